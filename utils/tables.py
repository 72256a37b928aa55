"""Names and tables that people read, also when a file is called =1+1.jpg or has a line break in its name."""
import csv
import itertools
import unicodedata

import numpy as np

FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")  # what a spreadsheet would run begins with one of them


def printable(name):
    """The name on one line of the terminal: line breaks, control characters and broken UTF-8 as in Python."""
    return name if name.isprintable() else repr(name)[1:-1]


def widths(text):
    """Columns of a terminal that the text has filled after each of its letters; a Chinese one fills two."""
    return np.cumsum([2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text], dtype=int)


def shorten(text, width):
    """Cut the middle out of a text that is wider than `width` columns."""
    if not text or widths(text)[-1] <= width:
        return text
    head = np.searchsorted(widths(text), width // 2, "right")
    tail = np.searchsorted(widths(text[::-1]), width - width // 2 - 1, "right")
    return text[:head] + "…" + text[len(text) - tail:]


def padded(text, width, right=False):
    """The text on one line, shortened or with blanks, so that it fills `width` columns; at their right end if asked for."""
    text = shorten(printable(text), width)
    blanks = " " * (width - (widths(text)[-1] if text else 0))
    return blanks + text if right else text + blanks


def guarded(text):
    """A text that a spreadsheet would run as a formula gets an apostrophe in front."""
    return "'" + text if text.lstrip("'").startswith(FORMULA) else text


def write_csv(path, header, rows, mode="w"):
    """Write a table as UTF-8 with a byte order mark, by which Excel knows it; texts are guarded."""
    def cell(value):
        return guarded(value) if isinstance(value, str) else value
    with open(path, mode, newline="", encoding="utf-8-sig", errors="backslashreplace") as f:
        csv.writer(f).writerows([cell(v) for v in row] for row in itertools.chain([header], rows))


def read_csv(path):
    """The rows of a table of write_csv, as dicts; the apostrophe that write_csv added is removed. Raises ValueError if a
    line has too few or too many columns."""
    def text(value):
        return value[1:] if value.startswith("'") and guarded(value) != value else value
    with open(path, newline="", encoding="utf-8-sig") as f:
        header, *rows = [row for row in csv.reader(f) if row] or [[]]
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"{path}: a line has too few or too many columns")
    return [{k: text(v) for k, v in zip(header, row)} for row in rows]
