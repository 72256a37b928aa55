"""Read any image file as uint8 RGB, or say why it cannot be used.

    image = read_image("photo.jpg")      # raises UnreadableImage

OpenCV decodes. Files that it would decode to wrong pixels without an error are refused here;
benchmarks/fuzz_images.py found most of these cases.
"""
import math
import os
import re
import stat

import cv2
import numpy as np

from utils import MAX_PIXELS

cv2.setNumThreads(1)  # each image is decoded in one thread, several images side by side

MAX_FILE_MB = 200
JPEG_2000 = (b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51")
NEVER_END_IN_ZEROS = (b"\xff\xd8", b"RIFF", *JPEG_2000)  # JPEG, WebP
MAY_HOLD_FLOATS = (b"II", b"MM", b"Pf", b"PF")  # TIFF, PFM
NETPBM = re.compile(rb"P[2356]" + rb"(?:\s|#[^\n]*\n)+(\d{1,9})" * 3)  # width, height, maximum
HEIC = re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)
ORIENTATION = re.compile(  # EXIF entry, little or big endian, of a value other than 1 (upright)
    rb"\x12\x01\x03\0\x01\0\0\0[\x02-\x08]|\x01\x12\0\x03\0\0\0\x01\0[\x02-\x08]")
TOO_LARGE = f"more than {MAX_PIXELS / 1e6:.0f} million pixels"
UNKNOWN = f"truncated, damaged or not an image (to OpenCV {cv2.__version__})"


class UnreadableImage(Exception):
    """The reason why a file cannot be used as an image."""


def read_image(path):
    """Decode an image file to uint8 RGB [H, W, 3], upright according to its EXIF orientation.

    Gray, palette, CMYK and 16-bit images are converted; transparency is dropped. `path` may be
    anything that the system can open. Raises UnreadableImage with the reason.
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
    try:
        return _decode(data)
    except cv2.error as e:
        if e.code == cv2.Error.StsNoMem:
            raise MemoryError from e  # the file may be fine
        raise UnreadableImage(TOO_LARGE if "MAX_IMAGE" in str(e) else "cannot be decoded") from e


def _decode(original):
    data = original
    if data.startswith(NEVER_END_IN_ZEROS) and data.endswith(bytes(64)):
        data = data.rstrip(b"\0")  # an interrupted copy has its full length: let the end be missing
    if data[8:16] == b"WEBPVP8X" and len(data) > 30 and data[20] & 2:
        data = _first_webp_frame(data)
    if data.startswith(b"\x89PNG"):
        data = _still_png(data)
    if data.startswith(JPEG_2000) and cv2.__version__.startswith("4.11."):
        raise UnreadableImage("JPEG 2000, which needs OpenCV 4.12")  # a damaged one crashes 4.11
    netpbm = NETPBM.match(data[:4096])
    if netpbm and netpbm[3] not in (b"255", b"65535"):  # OpenCV does not scale it: too dark
        raise UnreadableImage(f"greatest value {netpbm[3].decode()}, can only be 255 or 65535")
    file = np.frombuffer(data, np.uint8)
    if data.startswith(MAY_HOLD_FLOATS):  # OpenCV would make them black or white
        stored = cv2.imdecode(file, cv2.IMREAD_UNCHANGED)
        if stored is not None and stored.dtype not in (np.uint8, np.uint16):
            raise UnreadableImage(f"{stored.dtype} values, can only be 8 or 16 bits")
    # not cv2.imread: it returns half of a truncated JPEG, and on Windows opens ASCII paths only
    image = cv2.imdecode(file, cv2.IMREAD_COLOR)
    if image is None:
        heic = HEIC.match(data) and b"avif" not in data[:64]
        raise UnreadableImage("HEIC, which OpenCV does not read: save it as JPEG" if heic
                              else UNKNOWN)
    # An image of a single color is the same in every orientation
    if _needs_check_of_orientation(original) and (image != image[0, 0]).any():
        stored = cv2.imdecode(file, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if np.array_equal(image, stored):
            raise UnreadableImage("stored turned or mirrored, which OpenCV "
                                  f"{cv2.__version__} does not undo")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _needs_check_of_orientation(data):
    """Whether an image is stored turned in a way that not every OpenCV undoes.

    WebP, and JPEG with XMP before EXIF, only from 4.13 on; AVIF in no version up to 5.0.
    """
    if data.startswith(b"\xff\xd8"):
        exif = data.find(b"Exif\0\0", 0, 2**18)
        return (exif > 0 and b"http://ns.adobe.com/xap/" in data[:exif]
                and ORIENTATION.search(data, exif, exif + 400))
    if data[8:12] == b"WEBP":
        return b"EXIF" in data and ORIENTATION.search(data, data.rfind(b"EXIF"))
    return data[4:11] == b"ftypavi" and re.search(rb"irot[\x01-\x03]|imir", data[:20_000])


def _first_webp_frame(data):
    """The first frame of an animated WebP as a still WebP: OpenCV decodes a damaged animation
    one time and fails the next."""
    # OpenCV allocates memory for all of it before it finds out
    if math.prod(1 + int.from_bytes(data[i:i + 3], "little") for i in (24, 27)) > MAX_PIXELS:
        raise UnreadableImage(TOO_LARGE)
    at = data.find(b"ANMF")
    frame = data[at + 24:at + 8 + int.from_bytes(data[at + 4:at + 8], "little")]
    if at < 0 or data[at + 8:at + 14] != bytes(6) or data[at + 14:at + 20] != data[24:30]:
        return data  # the frame covers only a part of the image: OpenCV puts it in place
    body = b"WEBP" + data[12:20] + bytes([data[20] & ~2]) + data[21:30] + frame
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _still_png(data):
    """A PNG up to its end chunk and not marked as animated: OpenCV shows uninitialized memory
    where an animation is damaged, and reads on behind the end."""
    at, kept = 8, [data[:8]]
    while at < len(data) and data[at:at + 8] != b"\0\0\0\0IEND":
        end = at + 12 + int.from_bytes(data[at:at + 4], "big")
        if data[at + 4:at + 8] != b"acTL":
            kept.append(data[at:end])
        at = end
    if at >= len(data):  # OpenCV would take 11 seconds and 3 GB to find this out
        raise UnreadableImage(UNKNOWN)
    return b"".join(kept) + data[at:at + 12]
