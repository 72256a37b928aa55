"""TIFF in all its layouts, files that claim to be large, and the table of formats."""
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from conftest import ROOT
from format_table import PATH, TABLE, document
from odd_files import BAD_TIFF, SCENE, pil, tiff
from utils.images.dataset import EXTENSIONS
from utils.images.read import UnreadableImage, decode_image

FLAT = cv2.resize(SCENE // 32 * 32, (300, 200), interpolation=cv2.INTER_NEAREST)
LAYOUTS = {"strips": {}, "tiles": {"tile": (64, 32)}, "planes": {"planar": True},
           "tiles of planes": {"tile": (16, 64), "planar": True}}


def refused_or_whole(data, whole):
    try:
        np.testing.assert_array_equal(decode_image(data), whole)
    except UnreadableImage as e:
        assert str(e) == BAD_TIFF


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("depth", [8, 16])
def test_damage_in_the_middle_of_a_deflated_tiff_is_refused(layout, depth):
    image = np.random.default_rng(0).integers(0, 40, (100, 90, 3)).astype(f"uint{depth}")
    if depth == 16:
        image = image[..., :1] * np.uint16(257)
    data = tiff(image, 8, **LAYOUTS[layout])
    whole = decode_image(data)
    np.testing.assert_array_equal(whole, image.astype(np.uint8) + np.zeros(3, np.uint8))
    rng = np.random.default_rng(1)
    for start in rng.integers(12, len(data) * 9 // 10, 40).tolist():
        flipped = bytes([data[start] ^ 1 << int(rng.integers(8))])
        for wrong in (bytes(20), rng.bytes(20), flipped):
            refused_or_whole(data[:start] + wrong + data[start + len(wrong):], whole)


@pytest.mark.parametrize("predictor", [1, 2])
def test_lost_data_in_an_lzw_tiff_is_refused(predictor):
    data = pil(Image.fromarray(FLAT), "TIFF", compression="tiff_lzw", tiffinfo={317: predictor})
    np.testing.assert_array_equal(decode_image(data), FLAT)
    for tenth in range(1, 9):
        at = len(data) * tenth // 10
        refused_or_whole(data[:at] + bytes(20) + data[at + 20:], FLAT)


@pytest.mark.skipif(sys.platform == "win32", reason="measured as Linux and macOS do")
def test_small_files_that_claim_to_be_large_take_little_memory():
    code = ("import resource, sys, utils; sys.path.insert(0, 'tests')\n"
            "from odd_files import KINDS\n"
            "from utils.images.read import UnreadableImage, decode_image\n"
            "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "before = used()\n"
            "for name, (data, _) in KINDS.items():\n"
            "    if name.startswith('bomb'):\n"
            "        try:\n"
            "            print(decode_image(data).shape)\n"
            "        except UnreadableImage:\n"
            "            pass\n"
            "print(used() - before)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert int(done.stdout) / (2**20 if sys.platform == "darwin" else 2**10) < 100, done.stderr


def test_the_table_of_formats_is_up_to_date():
    with open(PATH, encoding="utf-8") as f:
        assert f.read() == document()
    assert set(" ".join(TABLE.values()).split()) == set(EXTENSIONS)
