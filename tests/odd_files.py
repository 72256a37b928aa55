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
import pillow_heif
from PIL import Image, ImageCms, features

pillow_heif.register_heif_opener()
try:
    import pillow_jxl
except ImportError:
    pillow_jxl = None

MAX_FILE_MB = 200
SCENE = cv2.resize(np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8), (56, 40))  # RGB
BGR, GRAY = SCENE[..., ::-1].copy(), cv2.cvtColor(SCENE, cv2.COLOR_RGB2GRAY)
IMAGE, GRAY_IMAGE, UPSIDE_DOWN = (Image.fromarray(a) for a in (SCENE, GRAY, SCENE[::-1].copy()))
PALETTE, BLACK_WHITE = IMAGE.quantize(64), IMAGE.convert("1")
ALPHA = Image.merge("RGBA", (*IMAGE.split(), GRAY_IMAGE))
TALL = cv2.resize(SCENE, (1, 5000))

BAD = "truncated, damaged or not an image"
BAD_TIFF = "TIFF that is truncated, damaged or of a kind that Pillow does not read"
WIDE = "signed, float or 32-bit values, can only be unsigned of up to 16 bits"
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


def tiff(image, compression=1, tile=None, planar=False, missing=0, tags=()):
    """A TIFF by hand, of layouts that Pillow does not write: uint8 or uint16, gray or RGB."""
    h, w, c = (*image.shape, 1)[:3]
    th, tw = tile or (16, w)
    planes = np.moveaxis(image.reshape(h, w, c), 2, 0)[..., None] if planar else [
        image.reshape(h, w, c)]
    pieces = []
    for plane in planes:
        for y in range(0, h, th):
            for x in range(0, w, tw):
                piece = plane[y:y + th, x:x + tw]
                if tile:
                    piece = np.pad(piece, [(0, th - len(piece)), (0, tw - piece.shape[1]), (0, 0)])
                piece = piece.tobytes()
                pieces.append(piece if compression == 1 else zlib.compress(piece))
    pieces = pieces[:len(pieces) - missing]
    at = 8 + np.cumsum([0, *map(len, pieces)])
    bits, where = 8 * image.itemsize, (324, 325) if tile else (273, 279)
    every = {256: [w], 257: [h], 258: [bits] * c, 259: [compression],
             262: [2 if c == 3 else 1], 277: [c], 284: [2 if planar else 1],
             where[0]: at[:-1].tolist(), where[1]: list(map(len, pieces)),
             **({322: [tw], 323: [th]} if tile else {278: [th]}), **dict(tags)}
    entries, values, end = b"", b"", int(at[-1])
    for tag, numbers in sorted(every.items()):
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        entries += struct.pack("<HHI", tag, 4, len(numbers))
        entries += packed if len(numbers) == 1 else struct.pack("<I", end + len(values))
        values += packed if len(numbers) > 1 else b""
    return (b"II*\0" + struct.pack("<I", end + len(values)) + b"".join(pieces) + values
            + struct.pack("<H", len(every)) + entries + bytes(4))


def resized(data, at, format, width, height):
    """Other measures in the header of an image."""
    return data[:at] + struct.pack(format, width, height) + data[at + struct.calcsize(format):]


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
JPEG, GIF = pil(IMAGE, "JPEG", quality=95), pil(PALETTE, "GIF")
ANIMATED = pil(IMAGE, "PNG", save_all=True, append_images=[UPSIDE_DOWN])
JPEG_XL = bytes.fromhex("ff0a090c88040804010074004b188b1500d41b63dcddb87b0000e8b32198c8b954b988919a"
                        "4705a200")
PHONE = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(range(256)) * 20
MOVIE = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(range(256)) * 20
TEN_BITS = io.BytesIO()
pillow_heif.encode("RGB;16", (56, 40), (SCENE.astype(np.uint16) * 257).tobytes(), TEN_BITS,
                   quality=95)
TEN_BITS = TEN_BITS.getvalue()
SIXTEEN = BGR.astype(np.uint16) * 257
ROWS = b"".join(b"\0" + row.tobytes() for row in SCENE)
ROWS_OF_4_BITS = b"".join(b"\0" + bytes((r[::2] >> 4) << 4 | r[1::2] >> 4) for r in GRAY)

# What a file holds, and what must come of it: an image, or a reason
KINDS = {
    "zero bytes.jpg": (b"", "empty file"),
    "text.jpg": (b"no image\n" * 99, BAD),
    "a web page.png": (b"<!DOCTYPE html><html>404</html>", BAD),
    "movie.mp4": (MOVIE, "not an image file (by its extension)"),
    "movie.jpg": (MOVIE, BAD),
    "plain.HEIC": (pil(IMAGE, "HEIF", quality=95), SCENE),
    "HEIC content.jpg": (pil(IMAGE, "HEIF", quality=95), SCENE),
    "with a second image.heif": (pil(IMAGE, "HEIF", save_all=True, append_images=[UPSIDE_DOWN],
                                     quality=95), SCENE),
    "10 bits.heic": (TEN_BITS, SCENE),
    "in tiles, as phones do.heic": (pil(IMAGE.resize((140, 100)), "HEIF", quality=95, tile_size=64),
                   np.asarray(IMAGE.resize((140, 100)))),
    "header only.heic": (PHONE, BAD),
    "zeros.jpg": (bytes(5000), BAD),
    "header only.webp": (b"RIFF\0\0\0\0WEBPVP8X", BAD),
    "header only.jpg": (b"\xff\xd8\xff", BAD),
    "no extension": (JPEG, "not an image file (by its extension)"),
    "bomb.png": (png(20000, 20000, 1, 0, bytes(2501 * 20000)), BOMB),
    "bomb.bmp": (bmp(20000, 20000, bytes(999)), BOMB),
    "bomb.jpg": (resized(JPEG, JPEG.index(b"\xff\xc0") + 5, ">HH", 20000, 20000), BOMB),
    "bomb.gif": (resized(GIF, 6, "<HH", 20000, 20000), BOMB),
    "bomb.pgm": (b"P5 20000 20000 255\n" + bytes(999), BOMB),
    "16 bits.png": (ocv(".png", SIXTEEN), SCENE),
    "16 bits.tif": (ocv(".tif", SIXTEEN), SCENE),
    "16 bits.jp2": (ocv(".jp2", SIXTEEN), SCENE),
    "16 bits.ppm": (ocv(".ppm", SIXTEEN), SCENE),
    "16 bits, gray.png": (ocv(".png", GRAY.astype(np.uint16) * 257), GRAY),
    "1 bit.png": (pil(BLACK_WHITE, "PNG"), rgb(BLACK_WHITE)),
    "1 bit.bmp": (pil(BLACK_WHITE, "BMP"), rgb(BLACK_WHITE)),
    "1 bit, as a fax.tif": (pil(BLACK_WHITE, "TIFF", compression="group4"), rgb(BLACK_WHITE)),
    "4 bits.png": (png(56, 40, 4, 0, ROWS_OF_4_BITS), (GRAY >> 4) * 17),
    "gray.jpg": (pil(GRAY_IMAGE, "JPEG", quality=95), GRAY),
    # inverted and marked, as Adobe does
    "CMYK.jpg": (pil(IMAGE.convert("CMYK"), "JPEG", quality=95), SCENE),
    "CMYK.tif": (pil(IMAGE.convert("CMYK"), "TIFF"), SCENE),
    "palette.png": (pil(PALETTE, "PNG"), rgb(PALETTE)),
    "palette with alpha.png": (pil(PALETTE, "PNG", transparency=bytes(range(0, 256, 4))),
                               rgb(PALETTE)),
    "alpha.png": (pil(ALPHA, "PNG"), SCENE),
    "alpha.webp": (pil(ALPHA, "WEBP", lossless=True, exact=True), SCENE),
    "alpha.bmp": (ocv(".bmp", np.dstack([BGR, GRAY])), SCENE),
    "alpha.tif": (pil(ALPHA, "TIFF"), SCENE),
    "float, 0 to 1.tif": (ocv(".tif", BGR.astype(np.float32) / 255), BAD_TIFF),
    "float, gray.tif": (pil(Image.fromarray(GRAY / np.float32(255)), "TIFF"), WIDE),
    "float, 0 to 255.tif": (ocv(".tif", BGR.astype(np.float32)), BAD_TIFF),
    "64 bits.tif": (ocv(".tif", BGR / 255), BAD_TIFF),
    "32 bits.tif": (pil(Image.fromarray(GRAY.astype(np.int32)), "TIFF"), WIDE),
    "float, color.ppm": (ocv(".pfm", BGR.astype(np.float32) / 255), BAD),
    "float, gray.pgm": (ocv(".pfm", GRAY.astype(np.float32) / 255), WIDE),
    "10 bits.pgm": (b"P5 56 40 # camera\n1023\n" + (GRAY * 4.0).astype(">u2").tobytes(), GRAY),
    "16 bits, white is zero.tif": (tiff(65535 - GRAY.astype(np.uint16) * 257, tags={262: [0]}),
                                   GRAY),
    "tiles.tif": (tiff(SCENE, tile=(16, 32)), SCENE),
    "16 bits in planes.tif": (tiff(SCENE.astype(np.uint16) * 257, planar=True), SCENE),
    "planes.tif": (tiff(SCENE, planar=True), SCENE),
    "Deflate in tiles.tif": (tiff(SCENE, 8, (16, 32)), SCENE),
    "Deflate in planes.tif": (tiff(SCENE, 32946, planar=True), SCENE),
    "Deflate in tiles of planes.tif": (tiff(SCENE, 8, (32, 16), planar=True), SCENE),
    "LZW.tif": (pil(IMAGE, "TIFF", compression="tiff_lzw"), SCENE),
    "LZMA.tif": (pil(IMAGE, "TIFF", compression="lzma"), SCENE),
    "PackBits.tif": (pil(IMAGE, "TIFF", compression="packbits"), SCENE),
    "JPEG.tif": (pil(IMAGE, "TIFF", compression="jpeg", quality=95), SCENE),
    "JPEG 2000.tif": (tiff(SCENE, 34712), BAD_TIFF),
    "JPEG XL.tif": (tiff(SCENE, 50002), BAD_TIFF),
    "PNG.tif": (tiff(SCENE, 34933), BAD_TIFF),
    "WebP.tif": (tiff(SCENE, 50001), BAD_TIFF),
    "an unknown compression.tif": (tiff(SCENE, 12345), BAD_TIFF),
    "a strip is missing.tif": (tiff(SCENE, missing=1), BAD_TIFF),
    "a tile is missing.tif": (tiff(SCENE, 8, (16, 32), missing=1), BAD_TIFF),
    "bomb of one tile.tif": (tiff(SCENE, 8, (16, 32), tags={322: [60000], 323: [30000]}), BOMB),
    "two pages.tif": (pil(IMAGE, "TIFF", save_all=True, append_images=[UPSIDE_DOWN]), SCENE),
    "plain, with the plugin.jxl": (
        JPEG_XL, np.full((40, 56, 3), (200, 90, 30), np.uint8) if pillow_jxl else
        "JPEG XL, which needs: pip install pillow-jxl-plugin"),
    "plain.gif": (GIF, rgb(PALETTE)),
    "animated.gif": (pil(PALETTE, "GIF", save_all=True, append_images=[UPSIDE_DOWN.quantize(64)]),
                     rgb(PALETTE)),
    "animated.webp": (pil(IMAGE, "WEBP", save_all=True, append_images=[UPSIDE_DOWN],
                          lossless=True), SCENE),
    "animated.png": (ANIMATED, SCENE),
    "animated, one wrong byte.png": (ANIMATED[:-3000] + b"\x55" + ANIMATED[-2999:], BAD),
    "with text behind it.png": (ocv(".png", BGR) + b"`\x82`\x82`\x82`\x82" * 9, SCENE),
    "half of the rows.png": (png(56, 40, 8, 2, ROWS[:len(ROWS) // 2]), BAD),
    "a chunk of 2 GB.png": (ocv(".png", BGR)[:33] + b"\x7f\xff\xff\xffIDAT" + bytes(99), BAD),
    "with a color profile.jpg": (pil(IMAGE, "JPEG", quality=95, icc_profile=PROFILE), SCENE),
    "with a color profile.png": (pil(IMAGE, "PNG", icc_profile=PROFILE), SCENE),
    "with a color profile.webp": (pil(IMAGE, "WEBP", lossless=True, icc_profile=PROFILE), SCENE),
    "progressive.jpg": (pil(IMAGE, "JPEG", quality=95, progressive=True), SCENE),
    "padded with zeros.jpg": (JPEG + bytes(5000), SCENE),
    "with a movie behind it.jpg": (JPEG + MOVIE, SCENE),
    "bottom up.bmp": (pil(IMAGE, "BMP"), SCENE),
    "top down.bmp": (bmp(56, -40, BGR.tobytes()), SCENE),
    "1x1.png": (ocv(".png", BGR[:1, :1]), SCENE[:1, :1]),
    "1x5000.png": (ocv(".png", TALL[..., ::-1]), TALL),
    "5000x1.png": (ocv(".png", TALL[..., ::-1].transpose(1, 0, 2)), TALL.transpose(1, 0, 2)),
    "PNG content.jpg": (ocv(".png", BGR), SCENE),
    "JPEG content.tif": (JPEG, SCENE),
    "WebP content.JPEG": (pil(IMAGE, "WEBP", lossless=True), SCENE),
    "UPPER.PNG": (ocv(".png", BGR), SCENE),
}
T = Image.Transpose  # how a camera that lies so stores the upright scene, by EXIF orientation
for o, transpose in enumerate((None, T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM,
                               T.TRANSPOSE, T.ROTATE_90, T.TRANSVERSE, T.ROTATE_270), 1):
    lying = IMAGE if transpose is None else IMAGE.transpose(transpose)
    for format, options in (("JPEG", {"quality": 95}), ("PNG", {}), ("TIFF", {}),
                            ("HEIF", {"quality": 95}), ("AVIF", {"quality": 95}),
                            ("WEBP", {"lossless": True})):
        if format != "AVIF" or features.check("avif"):
            KINDS[f"orientation {o}.{format.lower()}"] = (
                pil(lying, format, exif=exif(o).tobytes(), **options), SCENE)
data = pil(IMAGE.transpose(T.ROTATE_90), "JPEG", exif=exif(6), quality=95)
KINDS["XMP before EXIF.jpg"] = (
    data[:2] + b"\xff\xe1\0\x23http://ns.adobe.com/xap/1.0/\0<x/>" + data[2:], SCENE)

NOISE = np.random.default_rng(1).integers(0, 256, (60, 80, 3), np.uint8)
NOISY = Image.fromarray(NOISE)
FORMATS = {
    "jpg": pil(NOISY, "JPEG"), "progressive.jpg": pil(NOISY, "JPEG", progressive=True),
    "gray.jpg": pil(NOISY.convert("L"), "JPEG"), "CMYK.jpg": pil(NOISY.convert("CMYK"), "JPEG"),
    "png": pil(NOISY, "PNG"), "palette.png": pil(NOISY.quantize(64), "PNG"),
    "webp": pil(NOISY, "WEBP"), "lossless.webp": pil(NOISY, "WEBP", lossless=True),
    "animated.png": ANIMATED, "bmp": pil(NOISY, "BMP"),
    "palette.bmp": pil(NOISY.quantize(64), "BMP"), "tif": pil(NOISY, "TIFF"),
    "gif": pil(NOISY, "GIF"), "ppm": ocv(".ppm", NOISE), "jp2": ocv(".jp2", NOISE),
    "heic": pil(NOISY, "HEIF"), "tiles.heic": pil(NOISY, "HEIF", tile_size=64)}
for compression in "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits":
    FORMATS[f"{compression}.tif"] = pil(NOISY, "TIFF", compression=compression)
if features.check("avif"):
    FORMATS["avif"] = pil(NOISY, "AVIF")

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
        f.truncate((MAX_FILE_MB + 1) * 2**20)  # takes no room
    for name in ".hidden.png", "Thumbs.db":
        shutil.copy(os.path.join(folder, "UPPER.PNG"), os.path.join(folder, name))
        expected[name] = "hidden or system file"
    expected |= {"folder.jpg/inside.png": SCENE, "large.jpg": f"file larger than {MAX_FILE_MB} MB"}
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
