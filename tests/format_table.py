"""docs/images.md, the table of image formats, made from the kinds of odd files.

    python tests/format_table.py
"""
import os

from odd_files import BAD, BOMB, KINDS, MAX_FILE_MB

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "docs", "images.md")
TABLE = {"JPEG": ".jpg .jpeg .jpe .jfif", "PNG": ".png", "WebP": ".webp", "BMP": ".bmp",
         "TIFF": ".tif .tiff", "HEIC, HEIF": ".heic .heif .hif", "AVIF": ".avif", "GIF": ".gif",
         "JPEG 2000": ".jp2", "JPEG XL": ".jxl", "PPM, PGM": ".ppm .pgm"}
DOCUMENT = """# Image formats

A file is recognized by its content; its extension must be one of these. `python \
tests/format_table.py` makes the table from the files that tests/test_odd_files.py reads.

| Format | Extensions | Read, among others | Left out |
|---|---|---|---|
{rows}

- Training, inference, export's comparison and the service read files in the same way: OpenCV \
decodes JPEG and PNG, pillow-heif HEIC, and Pillow the rest.
- Images are turned upright, as EXIF or HEIC say, and converted to 8-bit RGB. Transparency and \
color profiles are ignored. Of several frames, pages or images the first or main one is used.
- JPEG XL needs `pip install pillow-jxl-plugin`, which decodes a file before its size is checked.
- Of all formats, these are left out: files larger than {size} MB, images of {pixels}, and \
truncated or damaged files. left_out.csv has the reason of each.
- Wrong bytes in the middle of a file are noticed in PNG and in TIFF with Deflate or LZMA, which \
have checksums; elsewhere they may go unnoticed. So may the end of an uncompressed file (BMP, PPM, \
TIFF) that is all zeros, as an interrupted copy leaves it: they may be black pixels.
"""


def document():
    """The text of docs/images.md."""
    rows = []
    for format, extensions in TABLE.items():
        read, left_out = [], []
        for name, (_, outcome) in KINDS.items():
            stem, extension = os.path.splitext(name)
            if extension.lower() not in extensions.split():
                continue
            if not isinstance(outcome, str) or extension == ".jxl":
                read.append("EXIF orientation 1 to 8" if stem.startswith("orientation") else stem)
            elif outcome not in (BAD, BOMB, "empty file"):  # of all formats
                left_out.append(stem)
        read = "; ".join(dict.fromkeys(read))
        rows.append(f"| {format} | {extensions} | {read} | {'; '.join(left_out)} |")
    return DOCUMENT.format(rows="\n".join(rows), size=MAX_FILE_MB, pixels=BOMB)


if __name__ == "__main__":
    with open(PATH, "w", encoding="utf-8") as f:
        f.write(document())
