"""Any picture file as uint8 RGB, or the reason why not.

    picture = read_picture("photo.jpg")      # raises UnreadablePicture

OpenCV decodes. What it would show wrongly, and without a word, is refused here; benchmarks/fuzz_pictures.py
found much of it.
"""
import math
import os
import re
import stat

import cv2
import numpy as np

from utils import MAX_PIXELS

MAX_FILE_MB = 200
JPEG_2000 = (b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51")
PADDED = (b"\xff\xd8", b"RIFF", *JPEG_2000)  # JPEG, WebP: no whole one ends in many zeros
FLOATS = (b"II", b"MM", b"Pf", b"PF")  # TIFF and PFM may hold other numbers than 8 or 16 bits
NETPBM = re.compile(rb"P[2356]" + rb"(?:\s|#[^\n]*\n)+(\d{1,9})" * 3)  # width, height, greatest value
ORIENTATION = re.compile(rb"\x12\x01\x03\0\x01\0\0\0[\x02-\x08]|\x01\x12\0\x03\0\0\0\x01\0[\x02-\x08]")  # of EXIF, not 1
TOO_LARGE = f"more than {MAX_PIXELS / 1e6:.0f} million pixels"
HEIC = re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)
UNKNOWN = f"truncated, damaged or not a picture (to OpenCV {cv2.__version__})"


class UnreadablePicture(Exception):
    """The reason why one file is not usable as a picture."""


def read_picture(path):
    """Decode any picture file to uint8 RGB [H, W, 3], turned as its EXIF says.

    Grey, palette, CMYK and 16-bit pictures are converted; transparency is dropped. Works for any path
    the system can open. Raises UnreadablePicture with the reason.
    """
    try:
        # O_NONBLOCK: a pipe, even one that took a picture's place a moment ago, must not keep us waiting
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | getattr(os, "O_NONBLOCK", 0))) as f:
            info = os.fstat(f.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise UnreadablePicture("not a regular file")
            if info.st_size > MAX_FILE_MB * 2**20:
                raise UnreadablePicture(f"file larger than {MAX_FILE_MB} MB")
            data = f.read(info.st_size)
    except OSError as e:
        raise UnreadablePicture(e.strerror or str(e)) from e
    return decode(data)


def decode(data):
    """The bytes of a picture file as uint8 RGB, as read_picture. Raises UnreadablePicture with the reason."""
    if not data:
        raise UnreadablePicture("empty file")
    try:
        return _decode(data)
    except cv2.error as e:
        if e.code == cv2.Error.StsNoMem:
            raise MemoryError from e  # says nothing of the file
        raise UnreadablePicture(TOO_LARGE if "MAX_IMAGE" in str(e) else "cannot be decoded") from e


def _decode(data):
    """What OpenCV would show wrongly and without a word is refused with a word."""
    exif = data.find(b"Exif\0\0", 0, 2**18) if data.startswith(b"\xff\xd8") else -1
    turned = (data[8:12] == b"WEBP" and b"EXIF" in data and ORIENTATION.search(data, data.rfind(b"EXIF"))
              or exif > 0 and b"http://ns.adobe.com/xap/" in data[:exif] and ORIENTATION.search(data, exif, exif + 400)
              or data[4:11] == b"ftypavi" and re.search(rb"irot[\x01-\x03]|imir", data[:20_000]))
    if data.startswith(PADDED) and data.endswith(bytes(64)):
        data = data.rstrip(b"\0")  # an interrupted copy has its full length, the rest zeros: now its end is missing
    if data[8:16] == b"WEBPVP8X" and len(data) > 30 and data[20] & 2:
        if math.prod(1 + int.from_bytes(data[i:i + 3], "little") for i in (24, 27)) > MAX_PIXELS:
            raise UnreadablePicture(TOO_LARGE)  # OpenCV finds that out behind asking for the memory of all of them
        data = _still(data)
    if data.startswith(b"\x89PNG"):
        at, kept = 8, [data[:8]]
        while at < len(data) and data[at:at + 8] != b"\0\0\0\0IEND":
            end = at + 12 + int.from_bytes(data[at:at + 4], "big")
            # OpenCV shows whatever it finds in memory where an animated picture is damaged
            if data[at + 4:at + 8] != b"acTL":
                kept.append(data[at:end])
            at = end
        if at >= len(data):  # OpenCV would find that out too, after 11 seconds and with 3 GB of memory
            raise UnreadablePicture(UNKNOWN)
        data = b"".join(kept) + data[at:at + 12]  # it would look further
    if data.startswith(JPEG_2000) and cv2.__version__.startswith("4.11."):  # a damaged one kills the process
        raise UnreadablePicture("JPEG 2000, which needs OpenCV 4.12")
    netpbm = NETPBM.match(data[:4096])
    if netpbm and netpbm[3] not in (b"255", b"65535"):  # would come out too dark
        raise UnreadablePicture(f"greatest value {netpbm[3].decode()}, can only be 255 or 65535")
    file = np.frombuffer(data, np.uint8)
    if data.startswith(FLOATS):  # would come out black or white
        stored = cv2.imdecode(file, cv2.IMREAD_UNCHANGED)
        if stored is not None and stored.dtype not in (np.uint8, np.uint16):
            raise UnreadablePicture(f"{stored.dtype} values, can only be 8 or 16 bits")
    # imread cannot open non-ASCII paths on Windows and returns half of a truncated JPEG; imdecode can, and refuses
    picture = cv2.imdecode(file, cv2.IMREAD_COLOR)
    if picture is None:
        heic = HEIC.match(data) and b"avif" not in data[:64]
        raise UnreadablePicture("HEIC, which OpenCV does not read: save it as JPEG" if heic else UNKNOWN)
    # OpenCV turns WebP, and a JPEG whose EXIF stands behind its XMP, from 4.13 on, and AVIF in no version so far
    if turned and (picture != picture[0, 0]).any():  # one of a single colour is the same turned
        if np.array_equal(picture, cv2.imdecode(file, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)):
            raise UnreadablePicture(f"stored turned or mirrored, which OpenCV {cv2.__version__} does not undo")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _still(data):
    """The first frame of an animated WebP as a WebP: a damaged animation decodes at one time and fails at another."""
    at = data.find(b"ANMF")
    frame = data[at + 24:at + 8 + int.from_bytes(data[at + 4:at + 8], "little")]
    if at < 0 or data[at + 8:at + 14] != bytes(6) or data[at + 14:at + 20] != data[24:30]:
        return data  # a part of the picture: OpenCV puts it in place
    body = b"WEBP" + data[12:20] + bytes([data[20] & ~2]) + data[21:30] + frame
    return b"RIFF" + len(body).to_bytes(4, "little") + body
