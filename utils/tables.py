"""Names and tables that people read, also when a file is called =1+1.jpg or has a line break in its name."""
import csv
import itertools
import unicodedata

import numpy as np

FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")  # what a spreadsheet would run begins with one of them


def printable(name):
    """The name on one line of the terminal: line breaks, control characters and broken UTF-8 as in Python."""
    return name if name.isprintable() else repr(name)[1:-1]


def width(text):
    """Columns of a terminal that the text fills; a Chinese letter fills two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def shorten(text, columns):
    """Cut the middle out of a text that is wider than so many columns."""
    if width(text) <= columns:
        return text
    head = np.searchsorted(np.cumsum([width(c) for c in text]), columns // 2, "right")
    tail = np.searchsorted(np.cumsum([width(c) for c in text[::-1]]), columns - columns // 2 - 1, "right")
    return text[:head] + "…" + text[len(text) - tail:]


def padded(text, columns, right=False):
    """The text on one line, shortened or with blanks, so that it fills so many columns; at their right end if asked for."""
    text = shorten(printable(text), columns)
    blanks = " " * (columns - width(text))
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
