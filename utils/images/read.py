"""Read any image file as uint8 RGB, or say why it cannot be used.

    image = read_image("photo.jpg")      # raises UnreadableImage

Pillow tells a file's format, size and orientation before it is decoded, and decodes it; OpenCV
decodes JPEG and PNG, to the same pixels in less time, and notices missing rows. docs/images.md
lists the formats and the reasons; benchmarks/fuzz_images.py looks for files that are read wrongly.
"""
import contextlib
import io
import os
import re
import stat
import warnings
import zlib

import cv2
import numpy as np
import PIL
import pillow_heif
from PIL import Image, TiffImagePlugin

from utils import MAX_PIXELS

try:
    import pillow_jxl
except ImportError:
    pillow_jxl = None

cv2.setNumThreads(1)  # each image is decoded in one thread, several images side by side
pillow_heif.register_heif_opener()
warnings.filterwarnings("ignore", module="PIL")  # about files that are left out with a reason
Image.init()
TiffImagePlugin.READ_LIBTIFF = True  # Pillow alone leaves missing strips black

FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "HEIF", "AVIF", "JPEG2000", "PPM"]
FORMATS += ["JXL"] * bool(pillow_jxl)
DECODERS = [cv2.__version__, PIL.__version__, pillow_heif.__version__, bool(pillow_jxl)]
MAX_FILE_MB = 200
RAW = (b"BM", b"II", b"MM", b"P")  # BMP, TIFF, PPM: may end in black pixels
EXIF_IN_PNG = re.compile(b"eXIf|Raw profile type exif|XML:com.adobe.xmp")
JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
TOO_LARGE = f"more than {MAX_PIXELS / 1e6:.0f} million pixels"
UNKNOWN = "truncated, damaged or not an image"
UNKNOWN_TIFF = "TIFF that is truncated, damaged or of a kind that Pillow does not read"
NO_JXL = "JPEG XL, which needs: pip install pillow-jxl-plugin"
WIDE = "signed, float or 32-bit values, can only be unsigned of up to 16 bits"


class UnreadableImage(Exception):
    """The reason why a file cannot be used as an image."""


def read_image(path):
    """Decode an image file to uint8 RGB [H, W, 3], upright according to its EXIF orientation.

    Gray, palette, CMYK and 16-bit images are converted; transparency is dropped; of several images
    or frames the first is taken. `path` may be anything that the system can open. Raises
    UnreadableImage with the reason.
    """
    try:
        # O_NONBLOCK: opening a pipe would wait for a writer
        flags = getattr(os, "O_NONBLOCK", 0)
        with open(path, "rb", opener=lambda p, f: os.open(p, f | flags)) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise UnreadableImage("not a regular file")
            if info.st_size > MAX_FILE_MB * 2**20:
                raise UnreadableImage(f"file larger than {MAX_FILE_MB} MB")
            data = file.read(info.st_size)
    except OSError as e:
        raise UnreadableImage(e.strerror or str(e)) from e
    return decode_image(data)


def decode_image(data):
    """Decode the bytes of an image file as read_image does. Raises UnreadableImage."""
    if not data:
        raise UnreadableImage("empty file")
    if not data.startswith(RAW) and data.endswith(bytes(64)):
        data = data.rstrip(b"\0")  # an interrupted copy has its full length: let the end be missing
    try:
        return _decode(data)
    except (UnreadableImage, MemoryError):  # out of memory: the file may be fine
        raise
    except Image.DecompressionBombError:
        raise UnreadableImage(TOO_LARGE) from None
    except Exception as e:  # Pillow raises exceptions of many types for damaged files
        if isinstance(e, cv2.error) and e.code == cv2.Error.StsNoMem:
            raise MemoryError from e
        raise UnreadableImage(UNKNOWN_TIFF if data.startswith((b"II", b"MM")) else
                              NO_JXL if data.startswith(JXL) and not pillow_jxl else
                              UNKNOWN) from None


def _decode(data):
    if data.startswith(b"\x89PNG"):
        file = io.BytesIO(data)
        Image.open(file, formats=["PNG"]).verify()  # compares checksums, as load() does not
        data = data[:file.tell() + 4]  # OpenCV would read on behind the end
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImage(TOO_LARGE)
        if image.format == "HEIF" and _ends_early(data):
            raise UnreadableImage(UNKNOWN)
        if image.format in ("JPEG", "MPO") or image.format == "PNG" and not image.is_animated:
            # not cv2.imread: it returns half of a truncated JPEG
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
            if pixels is None:
                raise UnreadableImage(UNKNOWN)
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        else:
            pixels = _rgb(image, data)
        orientation = None
        # Pillow would decode a PNG to find out that it has no EXIF; the plugin has turned the JXL
        if not (image.format == "PNG" and not EXIF_IN_PNG.search(data)
                or image.format == "JXL" and not image.jpeg):
            with contextlib.suppress(Exception):  # damaged EXIF
                orientation = image.getexif().get(0x0112)
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _ends_early(data):
    """Whether the box with a HEIC's tiles ends behind the file: libheif makes lost ones green."""
    at = 0
    while at < len(data):
        size, kind = int.from_bytes(data[at:at + 4], "big"), data[at + 4:at + 8]
        if size == 1:
            size = int.from_bytes(data[at + 8:at + 16], "big")
        at += size or len(data)
        if kind == b"mdat" and size and at > len(data):
            return True
    return False


def _rgb(image, data):
    """The pixels of a Pillow image, uint8 [H, W, 3]."""
    bits = 16
    if image.format == "TIFF":
        bits = max(image.tag_v2.get(258, (1,)))
        if bits > 16 or any(kind != 1 for kind in image.tag_v2.get(339, ())):
            raise UnreadableImage(WIDE)
        _check_tiff(image, data)
    if image.mode.startswith("I;16") or image.mode == "I" and image.format in ("PNG", "PPM"):
        gray = (np.asarray(image) >> bits - 8).astype(np.uint8)
        if image.format == "TIFF" and image.tag_v2.get(262) == 0:  # white is zero
            gray = 255 - gray
        return np.dstack([gray] * 3)
    if image.mode in ("I", "F"):
        raise UnreadableImage(WIDE)
    return np.asarray(image.convert("RGB"))


def _check_tiff(image, data):
    """Raises UnreadableImage for damage in compressed strips or tiles that libtiff overlooks."""
    tags, compression = image.tag_v2, image.info["compression"]
    if tags.get(322, 1) * tags.get(323, 1) > MAX_PIXELS:  # of a tile
        raise UnreadableImage(TOO_LARGE)
    starts, sizes = (tags[324], tags[325]) if 324 in tags else (tags[273], tags.get(279, ()))
    for start, size in zip(starts, sizes):
        piece = data[start:start + size]
        if compression != "raw" and not any(piece[-64:]):  # an interrupted copy of full length
            raise UnreadableImage(UNKNOWN_TIFF)
        if compression in ("tiff_adobe_deflate", "tiff_deflate"):  # libtiff ignores the checksum
            inflate = zlib.decompressobj()
            for at in range(0, len(piece), 2**14):
                inflate.decompress(piece[at:at + 2**14])
            if not inflate.eof:
                raise UnreadableImage(UNKNOWN_TIFF)
