"""What the networks see of an image: a random augmentation in training, the center crop otherwise.

Both start from the stored square (utils/images). An augmentation costs two passes over it: flips,
rotation and crop are one affine map of positions; brightness, contrast, saturation and hue are one
affine map of colors. So the image is resampled once and rounded twice.
"""
import cv2
import numpy as np

from models import MEAN, STD

_LUT = ((np.arange(256)[:, None] / 255 - MEAN) / STD).T.astype(np.float32, order="C")  # [3, 256]
_GRAY = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([_GRAY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_TO_RGB = np.linalg.inv(_TO_YIQ)
_SAME, _TO_GRAY = np.eye(3), np.tile(_GRAY, (3, 1))


def square_side(image_size):
    """Side in pixels of the stored square: 8/7 of the crop, as 256 is to 224, of same parity."""
    return image_size + 2 * round(image_size / 14)


def to_square(image, side):
    """Cut the central square out of uint8 [H, W, 3] and resize it to [side, side, 3]."""
    h, w = image.shape[:2]
    s = min(h, w)
    top, left = (h - s) // 2, (w - s) // 2
    cut = np.ascontiguousarray(image[top:top + s, left:left + s])
    interpolation = cv2.INTER_AREA if s > side else cv2.INTER_CUBIC
    return cv2.resize(cut, (side, side), interpolation=interpolation)


def center_crop(square, size):
    """The crop for validation and inference: the center [size, size, 3] of a square."""
    start = (len(square) - size) // 2
    return square[start:start + size, start:start + size]


def preprocess(image, size):
    """The center crop [size, size, 3] of an image of any size, uint8 RGB [H, W, 3]."""
    return center_crop(to_square(image, square_side(size)), size)


def augment(square, s, rng):
    """A random crop, uint8 [s.image_size, s.image_size, 3], for training; `s` is Settings.

    Depends on nothing but `rng`. Outside the square its mirror image is seen: black corners would
    tell the network by how much the image was turned.
    """
    size, side = s.image_size, len(square)
    u = rng.random(13)  # always the same number of draws: no setting shifts the draws of another
    angle = np.deg2rad(s.rotation * (2 * u[2] - 1))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn[:, 0] *= -1 if u[0] < s.flip_horizontal else 1
    turn[:, 1] *= -1 if u[1] < s.flip_vertical else 1
    shift = np.floor(u[3:5] * (2 * s.crop_pad + 1)) - s.crop_pad
    offset = (size - 1) / 2 + shift - turn @ np.full(2, (side - 1) / 2)
    image = cv2.warpAffine(square, np.hstack([turn, offset[:, None]]), (size, size),
                           flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)

    jitter = np.array([s.brightness, s.contrast, s.saturation])
    factors = 1 + jitter * (2 * u[5:8] - 1)
    mean_gray = _GRAY @ cv2.mean(image)[:3]
    image = cv2.transform(image, color_map(*factors, s.hue * (2 * u[8] - 1), mean_gray))
    if u[9] < s.erasing:  # Zhong et al. 2020: 2 to 33 % of the area, aspect ratio 0.3 to 3.3
        area, aspect = size * size * (0.02 + 0.31 * u[10]), np.exp(np.log(3.3) * (2 * u[11] - 1))
        h, w = (min(size, max(1, round(x)))
                for x in (np.sqrt(area * aspect), np.sqrt(area / aspect)))
        place = u[12] * (size - h + 1) * (size - w + 1)
        top, left = int(place // (size - w + 1)), int(place % (size - w + 1))
        image[top:top + h, left:left + w] = np.round(np.array(MEAN) * 255)  # 0 once normalized
    return image


def color_map(brightness, contrast, saturation, hue, mean_gray):
    """The four color changes, in this order, as one 3x4 matrix for cv2.transform.

    Brightness, contrast (about `mean_gray`, 0..255) and saturation are factors; `hue` is a
    fraction of a full turn of the color circle (in YIQ, where that is linear).
    """
    a = 2 * np.pi * hue
    turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    colors = _TO_RGB @ turn @ _TO_YIQ @ (saturation * _SAME + (1 - saturation) * _TO_GRAY)
    constant = (1 - contrast) * brightness * mean_gray
    return np.hstack([colors * contrast * brightness, np.full((3, 1), constant)])


def normalize(images):
    """uint8 images, each [S, S, 3] -> float32 [B, 3, S, S], scaled by ImageNet's mean and STD."""
    out = np.empty((len(images), 3, *images[0].shape[:2]), np.float32)
    for planes, image in zip(out, images):
        for plane, values, lut in zip(planes, cv2.split(np.ascontiguousarray(image)), _LUT):
            cv2.LUT(values, lut[None], dst=plane)  # by plane: half the time of all three at once
    return out
