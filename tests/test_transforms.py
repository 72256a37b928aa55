"""Augmentation: against its definition in NumPy, and properties that a viewer would check."""
import colorsys

import cv2
import numpy as np
import pytest

from utils.settings import Settings
from utils.transforms import (
    MEAN,
    STD,
    augment,
    center_crop,
    color_map,
    normalize,
    square_side,
    to_square,
)

PLAIN = dict(image_size=64, flip_horizontal=0, flip_vertical=0, rotation=0, crop_pad=0,
             brightness=0, contrast=0, saturation=0, hue=0, erasing=0)


@pytest.fixture
def square():
    side = square_side(64)
    image = np.random.default_rng(0).integers(0, 256, (side // 4, side // 4, 3), np.uint8)
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)


def augmented(square, seed=0, **change):
    return augment(square, Settings(**{**PLAIN, **change}), np.random.default_rng(seed))


def test_square_side_of_the_usual_size():
    assert square_side(224) == 256
    assert all((square_side(s) - s) % 2 == 0 for s in range(32, 300))


def test_with_nothing_random_an_augmented_image_is_the_center_crop(square):
    np.testing.assert_array_equal(augmented(square), center_crop(square, 64))


def test_flips_and_shifts_move_pixels_without_blurring_them(square):
    plain = center_crop(square, 64)
    np.testing.assert_array_equal(augmented(square, flip_horizontal=1), plain[:, ::-1])
    np.testing.assert_array_equal(augmented(square, flip_vertical=1), plain[::-1])
    shifted = augmented(square, crop_pad=3)
    places = [(y, x) for y in range(-3, 4) for x in range(-3, 4)
              if np.array_equal(shifted, square[4 + y + 1:4 + y + 65, 4 + x + 1:4 + x + 65])]
    assert len(places) == 1


def test_rotation_turns_about_the_center():
    square = np.zeros((square_side(64),) * 2 + (3,), np.uint8)
    cv2.line(square, (20, 37), (54, 37), (255, 255, 255), 3)
    angles = []
    for seed in range(40):
        v = augmented(square, seed, rotation=30)
        y, x = np.nonzero(v[..., 0] > 127)
        assert abs(x.mean() - 31.5) < 1.5 and abs(y.mean() - 31.5) < 1.5
        axis = np.linalg.svd(np.c_[x - x.mean(), y - y.mean()])[2][0]
        angles.append(np.degrees(np.arctan2(*axis[::-1])) % 180)
    angles = (np.array(angles) + 90) % 180 - 90
    assert np.abs(angles).max() <= 31 and angles.max() > 15 and angles.min() < -15


def test_color_map_against_the_definition_of_each_change():
    rgb = np.array([200.0, 80.0, 40.0])
    gray = 0.299 * 200 + 0.587 * 80 + 0.114 * 40

    def apply(*factors, mean=100.0):
        m = color_map(*factors, mean)
        return m[:, :3] @ rgb + m[:, 3]
    np.testing.assert_allclose(apply(1, 1, 1, 0), rgb, atol=1e-9)
    np.testing.assert_allclose(apply(1.2, 1, 1, 0), 1.2 * rgb)
    np.testing.assert_allclose(apply(1, 0.7, 1, 0), 0.7 * rgb + 0.3 * 100)
    np.testing.assert_allclose(apply(1, 1, 0.4, 0), 0.4 * rgb + 0.6 * gray)
    np.testing.assert_allclose(apply(1, 1, 0, 0), [gray] * 3)
    turned = apply(1, 1, 1, 0.1)
    np.testing.assert_allclose(turned @ [0.299, 0.587, 0.114], gray, atol=0.1)  # luma stays
    before, after = (colorsys.rgb_to_hsv(*np.clip(c, 0, 255))[0] for c in (rgb, turned))
    assert 0.03 < min((after - before) % 1, (before - after) % 1) < 0.2


def test_erasing_blanks_a_rectangle_with_the_mean_color(square):
    blanks = [(np.abs(normalize([augmented(square, seed, erasing=1)])[0]) < 0.02).all(0)
              for seed in range(30)]
    assert all(0.015 < b.mean() < 0.37 for b in blanks)
    y, x = np.nonzero(blanks[0])
    assert blanks[0][y.min():y.max() + 1, x.min():x.max() + 1].mean() > 0.97


def test_normalize(square):
    out = normalize([square, square[::-1]])
    expected = (np.stack([square, square[::-1]]) / 255 - MEAN) / STD
    assert out.dtype == np.float32 and out.flags.c_contiguous
    np.testing.assert_allclose(out, expected.transpose(0, 3, 1, 2), atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (300, 200), (20, 30)])
def test_to_square_takes_the_center_of_any_shape(shape):
    image = np.zeros((*shape, 3), np.uint8)
    s = min(shape)
    top, left = (shape[0] - s) // 2, (shape[1] - s) // 2
    image[top:top + s, left:left + s] = 200
    np.testing.assert_array_equal(to_square(image, 36), np.full((36, 36, 3), 200))
