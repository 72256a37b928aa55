"""More than a hundred kinds of bad and odd files, made here, and what must come of each.

    python benchmarks/fuzz_images.py      # damages them further
"""
import io
import os
import shutil
import struct
import sys
import zlib

import cv2
import numpy as np
from PIL import Image, ImageCms, features  # Pillow comes with Paddle

SCENE = cv2.resize(np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8), (56, 40))  # RGB
BGR, GRAY = SCENE[..., ::-1].copy(), cv2.cvtColor(SCENE, cv2.COLOR_RGB2GRAY)
IMAGE, GRAY_IMAGE, UPSIDE_DOWN = (Image.fromarray(a) for a in (SCENE, GRAY, SCENE[::-1].copy()))
PALETTE, BLACK_WHITE = IMAGE.quantize(64), IMAGE.convert("1")
ALPHA = Image.merge("RGBA", (*IMAGE.split(), GRAY_IMAGE))
TALL = cv2.resize(SCENE, (1, 5000))

OPENCV = tuple(map(int, cv2.__version__.split(".")[:2]))
BAD = f"truncated, damaged or not an image (to OpenCV {cv2.__version__})"
TURNED = f"stored turned or mirrored, which OpenCV {cv2.__version__} does not undo"
BOMB = "more than 120 million pixels"


def pil(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def ocv(extension, image, *options):
    return cv2.imencode(extension, image, options)[1].tobytes()


def rgb(image):
    return np.asarray(image.convert("RGB"))


def png(width, height, depth, color, rows):
    """A PNG by hand, of bits per value and kinds of color that cv2 does not write."""
    def chunk(kind, data):
        length, checksum = (struct.pack(">I", n) for n in (len(data), zlib.crc32(kind + data)))
        return length + kind + data + checksum
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def bmp(width, height, rows):
    header = 54 + len(rows), 0, 0, 54, 40, width, height, 1, 24, *[0] * 6
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", *header) + rows


def resized(data, at, format, width, height):
    """Other measures in the header of an image."""
    return data[:at] + struct.pack(format, width, height) + data[at + struct.calcsize(format):]


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


FLOAT32 = "float32 values, can only be 8 or 16 bits"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
JPEG, GIF = pil(IMAGE, "JPEG", quality=95), pil(PALETTE, "GIF")
ANIMATED = pil(IMAGE, "PNG", save_all=True, append_images=[UPSIDE_DOWN])
PHONE = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(range(256)) * 20
MOVIE = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(range(256)) * 20
SIXTEEN = BGR.astype(np.uint16) * 257
ROWS_OF_4_BITS = b"".join(b"\0" + bytes((r[::2] >> 4) << 4 | r[1::2] >> 4) for r in GRAY)

# What a file holds, and what must come of it: an image, or a reason
KINDS = {
    "zero bytes.jpg": (b"", "empty file"),
    "text.jpg": (b"no image\n" * 99, BAD),
    "a page.png": (b"<!DOCTYPE html><html>404</html>", BAD),
    "movie.mp4": (MOVIE, "not an image file (by its extension)"),
    "movie.jpg": (MOVIE, BAD),
    "phone.HEIC": (PHONE, "HEIC, which OpenCV does not read: save it as JPEG"),
    "phone.jpg": (PHONE, "HEIC, which OpenCV does not read: save it as JPEG"),
    "zeros.jpg": (bytes(5000), BAD),
    "header only.webp": (b"RIFF\0\0\0\0WEBPVP8X", BAD),
    "header only.jpg": (b"\xff\xd8\xff", BAD),
    "no extension": (JPEG, "not an image file (by its extension)"),
    "bomb.png": (png(20000, 20000, 1, 0, bytes(2501 * 20000)), BOMB),
    "bomb.bmp": (bmp(20000, 20000, bytes(999)), BOMB),
    "bomb.jpg": (resized(JPEG, JPEG.index(b"\xff\xc0") + 5, ">HH", 20000, 20000), BOMB),
    "bomb.gif": (resized(GIF, 6, "<HH", 20000, 20000), BOMB if OPENCV >= (4, 12) else BAD),
    "bomb.pgm": (b"P5 20000 20000 255\n" + bytes(999), BOMB),
    "16 bits.png": (ocv(".png", SIXTEEN), SCENE),
    "16 bits.tif": (ocv(".tif", SIXTEEN), SCENE),
    "16 bits.jp2": (ocv(".jp2", SIXTEEN), SCENE if OPENCV >= (4, 12) else
                    "JPEG 2000, which needs OpenCV 4.12"),
    "16 bits.ppm": (ocv(".ppm", SIXTEEN), SCENE),
    "16 bits, gray.png": (ocv(".png", GRAY.astype(np.uint16) * 257), GRAY),
    "1 bit.png": (pil(BLACK_WHITE, "PNG"), rgb(BLACK_WHITE)),
    "1 bit.bmp": (pil(BLACK_WHITE, "BMP"), rgb(BLACK_WHITE)),
    "1 bit, as a fax.tif": (pil(BLACK_WHITE, "TIFF", compression="group4"), rgb(BLACK_WHITE)),
    "4 bits.png": (png(56, 40, 4, 0, ROWS_OF_4_BITS), (GRAY >> 4) * 17),
    "gray.jpg": (pil(GRAY_IMAGE, "JPEG", quality=95), GRAY),
    # inverted and marked, as Adobe does
    "cmyk.jpg": (pil(IMAGE.convert("CMYK"), "JPEG", quality=95), SCENE),
    "cmyk.tif": (pil(IMAGE.convert("CMYK"), "TIFF"), SCENE),
    "palette.png": (pil(PALETTE, "PNG"), rgb(PALETTE)),
    "palette with alpha.png": (pil(PALETTE, "PNG", transparency=bytes(range(0, 256, 4))),
                               rgb(PALETTE)),
    "alpha.png": (pil(ALPHA, "PNG"), SCENE),
    "alpha.webp": (pil(ALPHA, "WEBP", lossless=True, exact=True), SCENE),
    "alpha.bmp": (ocv(".bmp", np.dstack([BGR, GRAY])), SCENE),
    "alpha.tif": (pil(ALPHA, "TIFF"), SCENE * (GRAY[..., None] / 255)),  # on black
    "float, 0 to 1.tif": (ocv(".tif", BGR.astype(np.float32) / 255), FLOAT32),
    "float, gray.tif": (pil(Image.fromarray(GRAY / np.float32(255)), "TIFF"), FLOAT32),
    "float, 0 to 255.tif": (ocv(".tif", BGR.astype(np.float32)), FLOAT32),
    "64 bits.tif": (ocv(".tif", BGR / 255), "float64 values, can only be 8 or 16 bits"),
    "32 bits.tif": (pil(Image.fromarray(GRAY.astype(np.int32)), "TIFF"),
                    "int32 values, can only be 8 or 16 bits"),
    "float.ppm": (ocv(".pfm", BGR.astype(np.float32) / 255), FLOAT32),
    "10 bits.pgm": (b"P5 56 40 # camera\n1023\n" + (GRAY.astype(">u2") * 4).tobytes(),
                    "greatest value 1023, can only be 255 or 65535"),
    "two pages.tif": (pil(IMAGE, "TIFF", save_all=True, append_images=[UPSIDE_DOWN]), SCENE),
    "one.gif": (GIF, rgb(PALETTE) if OPENCV >= (4, 12) else BAD),
    "animated.gif": (pil(PALETTE, "GIF", save_all=True, append_images=[UPSIDE_DOWN.quantize(64)]),
                     rgb(PALETTE) if OPENCV >= (4, 12) else BAD),
    "animated.webp": (pil(IMAGE, "WEBP", save_all=True, append_images=[UPSIDE_DOWN],
                          lossless=True), SCENE),
    "animated.png": (ANIMATED, SCENE),
    "animated, one wrong byte.png": (ANIMATED[:-3000] + b"\x55" + ANIMATED[-2999:], BAD),
    "something behind it.png": (ocv(".png", BGR) + b"`\x82`\x82`\x82`\x82" * 9, SCENE),
    "a chunk of 2 GB.png": (ocv(".png", BGR)[:33] + b"\x7f\xff\xff\xffIDAT" + bytes(99), BAD),
    "icc.jpg": (pil(IMAGE, "JPEG", quality=95, icc_profile=PROFILE), SCENE),
    "icc.png": (pil(IMAGE, "PNG", icc_profile=PROFILE), SCENE),
    "icc.webp": (pil(IMAGE, "WEBP", lossless=True, icc_profile=PROFILE), SCENE),
    "progressive.jpg": (pil(IMAGE, "JPEG", quality=95, progressive=True), SCENE),
    "padded with zeros.jpg": (JPEG + bytes(5000), SCENE),
    "with a movie behind it.jpg": (JPEG + MOVIE, SCENE),
    "bottom up.bmp": (pil(IMAGE, "BMP"), SCENE),
    "top down.bmp": (bmp(56, -40, BGR.tobytes()), SCENE),
    "1x1.png": (ocv(".png", BGR[:1, :1]), SCENE[:1, :1]),
    "1x5000.png": (ocv(".png", TALL[..., ::-1]), TALL),
    "5000x1.png": (ocv(".png", TALL[..., ::-1].transpose(1, 0, 2)), TALL.transpose(1, 0, 2)),
    "a PNG.jpg": (ocv(".png", BGR), SCENE),
    "a JPEG.tif": (JPEG, SCENE),
    "a WebP.JPEG": (pil(IMAGE, "WEBP", lossless=True), SCENE),
    "UPPER.PNG": (ocv(".png", BGR), SCENE),
}
if cv2.haveImageWriter(".avif"):
    KINDS["avif.avif"] = ocv(".avif", BGR, cv2.IMWRITE_AVIF_QUALITY, 95), SCENE
if features.check("avif"):
    KINDS["turned.avif"] = pil(IMAGE, "AVIF", exif=exif(6)), TURNED if OPENCV >= (4, 12) else BAD
T = Image.Transpose  # how a camera that lies so stores the upright scene, by EXIF orientation
for o, transpose in enumerate((None, T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM,
                               T.TRANSPOSE, T.ROTATE_90, T.TRANSVERSE, T.ROTATE_270), 1):
    lying = IMAGE if transpose is None else IMAGE.transpose(transpose)
    for format, options in (("JPEG", {"quality": 95}), ("PNG", {}), ("TIFF", {}),
                            ("WEBP", {"lossless": True})):
        KINDS[f"orientation {o}.{format.lower()}"] = (
            pil(lying, format, exif=exif(o), **options),
            TURNED if format == "WEBP" and o > 1 and OPENCV < (4, 13) else SCENE)
PLAIN = Image.new("RGB", (40, 40), (90, 120, 60))  # the same turned
for name, lying, outcome in (
        ("", IMAGE.transpose(T.ROTATE_90), TURNED if OPENCV < (4, 13) else SCENE),
        ("plain, ", PLAIN, rgb(PLAIN))):
    data = pil(lying, "JPEG", exif=exif(6), quality=95)
    KINDS[f"{name}XMP before EXIF.jpg"] = (
        data[:2] + b"\xff\xe1\0\x23http://ns.adobe.com/xap/1.0/\0<x/>" + data[2:], outcome)

NOISE = np.random.default_rng(1).integers(0, 256, (60, 80, 3), np.uint8)
NOISY = Image.fromarray(NOISE)
FORMATS = {
    "jpg": pil(NOISY, "JPEG"), "progressive.jpg": pil(NOISY, "JPEG", progressive=True),
    "gray.jpg": pil(NOISY.convert("L"), "JPEG"), "cmyk.jpg": pil(NOISY.convert("CMYK"), "JPEG"),
    "png": pil(NOISY, "PNG"), "palette.png": pil(NOISY.quantize(64), "PNG"),
    "webp": pil(NOISY, "WEBP"), "lossless.webp": pil(NOISY, "WEBP", lossless=True),
    "animated.png": ANIMATED, "bmp": pil(NOISY, "BMP"),
    "palette.bmp": pil(NOISY.quantize(64), "BMP"), "tif": pil(NOISY, "TIFF"),
    "gif": pil(NOISY, "GIF"), "ppm": ocv(".ppm", NOISE)}
for compression in "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits":
    FORMATS[f"{compression}.tif"] = pil(NOISY, "TIFF", compression=compression)
if OPENCV >= (4, 12):
    FORMATS["jp2"] = ocv(".jp2", NOISE)
if cv2.haveImageWriter(".avif"):
    FORMATS["avif"] = ocv(".avif", NOISE)

NAMES = ["a  space .png", "it's \"quoted\".png", "line\nbreak.png", "carriage\rreturn.png",
         "tab\t.png", "😀.png", "纸 瓶.png", "n" * 246 + ".png", "-leading dash.png", "--help.png",
         "=1+1.png", "@SUM(A1).png", "$HOME $x$ %s {0}.png", "color \x1b[31m.png",
         "back\\slash.png", "*?[a].png", "a.b.c.png", "é.png", "e\u0301.png", "~.png", "#.png",
         os.fsdecode(b"broken UTF-8 \xff\xfe.png")]


def make_odd(folder):
    """Fill a folder with all kinds of files; returns {path: image or reason}."""
    os.makedirs(folder)
    expected = {}
    named = {n: (ocv(".png", BGR), SCENE) for n in NAMES}
    for name, (content, outcome) in {**KINDS, **named}.items():
        try:
            with open(os.path.join(folder, name), "wb") as f:
                f.write(content)
            expected[name] = outcome
        except OSError:
            assert sys.platform in ("win32", "darwin"), name  # they forbid some names
    os.makedirs(os.path.join(folder, "folder.jpg"))
    with open(os.path.join(folder, "folder.jpg", "inside.png"), "wb") as f:
        f.write(ocv(".png", BGR))
    os.makedirs(os.path.join(folder, "empty.png"))
    with open(os.path.join(folder, "large.jpg"), "wb") as f:
        f.truncate(201 * 2**20)  # takes no room
    for name in ".hidden.png", "Thumbs.db":
        shutil.copy(os.path.join(folder, "UPPER.PNG"), os.path.join(folder, name))
        expected[name] = "hidden or system file"
    expected |= {"folder.jpg/inside.png": SCENE, "large.jpg": "file larger than 200 MB"}
    if sys.platform != "win32":
        os.mkfifo(os.path.join(folder, "pipe.jpg"))
        for name, target, outcome in (
                ("link.png", "UPPER.PNG", SCENE),
                ("broken link.jpg", "nowhere", "No such file or directory"),
                ("round.jpg", "round.jpg", "Too many levels of symbolic links"),
                ("up", "..", "a link to a folder"),
                ("device.jpg", os.devnull, "not a regular file"),
                ("folder link.jpg", "folder.jpg", "a link to a folder")):
            os.symlink(target, os.path.join(folder, name))
            expected[name] = outcome
        expected["pipe.jpg"] = "not a regular file"
    return expected
