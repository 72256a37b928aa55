"""What the networks see of a picture: one random view in training, one fixed view otherwise.

A picture arrives as a uint8 RGB square (see data_utils). A training view costs two passes over it:
flips, rotation and crop are one affine map of places, brightness, contrast, saturation and hue are one
affine map of colours. So it is resampled once, and rounded twice.
"""
import cv2
import numpy as np

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, RGB in 0..1

_LUT = ((np.arange(256)[:, None] / 255 - MEAN) / STD).T.astype(np.float32, order="C")  # [3, 256]
_GREY = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([_GREY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_TO_RGB = np.linalg.inv(_TO_YIQ)
_SAME, _TO_GREY = np.eye(3), np.tile(_GREY, (3, 1))


def square_side(image_size):
    """Side in pixels of the stored square: 8/7 of the view, as 256 is to 224; same parity as the view."""
    return image_size + 2 * round(image_size / 14)


def to_square(picture, side):
    """Cut the central square of uint8 [H, W, 3] and resize it to [side, side, 3]."""
    h, w = picture.shape[:2]
    s = min(h, w)
    top, left = (h - s) // 2, (w - s) // 2
    cut = np.ascontiguousarray(picture[top:top + s, left:left + s])
    return cv2.resize(cut, (side, side), interpolation=cv2.INTER_AREA if s > side else cv2.INTER_CUBIC)


def eval_view(square, size):
    """The view for validation and inference: the centre [size, size, 3] of a stored square."""
    start = (len(square) - size) // 2
    return square[start:start + size, start:start + size]


def whole_view(picture, size):
    """What `inference.py` sees of a picture of any size: uint8 RGB [H, W, 3] -> [size, size, 3]."""
    return eval_view(to_square(picture, square_side(size)), size)


def train_view(square, s, rng):
    """A random view, uint8 [s.image_size, s.image_size, 3], that depends on nothing but `rng`.

    `s` is Settings. Outside the square its mirror image is seen: black corners would tell the
    network by how much the picture was turned.
    """
    size, side = s.image_size, len(square)
    u = rng.random(13)  # always the same number of draws, so that no switch shifts another's
    angle = np.deg2rad(s.rotation * (2 * u[2] - 1))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn[:, 0] *= -1 if u[0] < s.flip_horizontal else 1
    turn[:, 1] *= -1 if u[1] < s.flip_vertical else 1
    shift = np.floor(u[3:5] * (2 * s.crop_pad + 1)) - s.crop_pad
    offset = (size - 1) / 2 + shift - turn @ np.full(2, (side - 1) / 2)
    view = cv2.warpAffine(square, np.hstack([turn, offset[:, None]]), (size, size), flags=cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_REFLECT_101)

    brightness, contrast, saturation = 1 + np.array([s.brightness, s.contrast, s.saturation]) * (2 * u[5:8] - 1)
    view = cv2.transform(view, colour_map(brightness, contrast, saturation, s.hue * (2 * u[8] - 1),
                                          _GREY @ cv2.mean(view)[:3]))
    if u[9] < s.erasing:  # Zhong et al. 2020: 2 to 33 % of the area, aspect ratio 0.3 to 3.3
        area, aspect = size * size * (0.02 + 0.31 * u[10]), np.exp(np.log(3.3) * (2 * u[11] - 1))
        h, w = (min(size, max(1, round(x))) for x in (np.sqrt(area * aspect), np.sqrt(area / aspect)))
        place = u[12] * (size - h + 1) * (size - w + 1)
        top, left = int(place // (size - w + 1)), int(place % (size - w + 1))
        view[top:top + h, left:left + w] = np.round(np.array(MEAN) * 255)  # 0 after normalisation
    return view


def colour_map(brightness, contrast, saturation, hue, grey):
    """The four colour changes, in this order, as one 3x4 matrix for cv2.transform.

    Brightness, contrast (about the mean `grey`, 0..255) and saturation are factors; `hue` is in turns of the
    colour circle (in YIQ, where that is linear).
    """
    a = 2 * np.pi * hue
    hue_turn = _TO_RGB @ [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]] @ _TO_YIQ
    colour = hue_turn @ (saturation * _SAME + (1 - saturation) * _TO_GREY)
    constant = (1 - contrast) * brightness * grey
    return np.hstack([colour * contrast * brightness, np.full((3, 1), constant)])


def normalise(views):
    """uint8 views, each [S, S, 3], -> float32 [B, 3, S, S] with ImageNet mean 0 and deviation 1."""
    out = np.empty((len(views), 3, *views[0].shape[:2]), np.float32)
    for planes, view in zip(out, views):
        for plane, values, lut in zip(planes, cv2.split(np.ascontiguousarray(view)), _LUT):
            cv2.LUT(values, lut[None], dst=plane)  # a plane at a time: half the time of all three and a split
    return out
