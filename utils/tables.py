"""Text in columns, and CSV files that a spreadsheet can open, whatever a file is called."""
import csv
import re
import unicodedata

import numpy as np

# A spreadsheet runs a cell that begins with one of these as a formula
FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
SURROGATE = re.compile(r"\\udc([89a-f][0-9a-f])")  # a byte of a file name that is not UTF-8


def printable(name):
    """The name on one line: line breaks, control characters, broken UTF-8 as Python's escapes."""
    return name if name.isprintable() else repr(name)[1:-1]


def composed(value):
    """A name, or each of a tuple, in Unicode's composed form: macOS may store accents apart."""
    if isinstance(value, tuple):
        return tuple(map(composed, value))
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


def listed(names, most=10):
    """The names in one line of text."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(map(printable, names[:most])) or "none") + rest


def width(text):
    """Columns that the text fills in a terminal; a Chinese character fills two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def shorten(text, columns):
    """Cut the middle out of a text that is wider than `columns`."""
    if width(text) <= columns:
        return text
    widths = np.array([width(c) for c in text])
    head = np.searchsorted(widths.cumsum(), columns // 2, "right")
    tail = np.searchsorted(widths[::-1].cumsum(), columns - columns // 2 - 1, "right")
    return text[:head] + "…" + text[len(text) - tail:]


def padded(text, columns, right=False):
    """The text on one line that fills exactly `columns`, aligned left or right."""
    text = shorten(printable(text), columns)
    blanks = " " * (columns - width(text))
    return blanks + text if right else text + blanks


def guarded(text):
    """Put an apostrophe before a text that a spreadsheet would run as a formula."""
    return "'" + text if text.lstrip("'").startswith(FORMULA) else text


def unguarded(cell):
    """The text of a cell of write_csv as it was written."""
    cell = SURROGATE.sub(lambda byte: chr(0xdc00 + int(byte[1], 16)), cell)
    return cell[1:] if cell.startswith("'") and guarded(cell) != cell else cell


def write_csv(path, header, rows, mode="w"):
    """Write a table as UTF-8 with a byte order mark, by which Excel knows it; texts are guarded."""
    with open(path, mode, newline="", encoding="utf-8-sig", errors="backslashreplace") as f:
        writer = csv.writer(f)
        writer.writerow(map(guarded, header))
        writer.writerows([guarded(v) if isinstance(v, str) else v for v in row] for row in rows)


def csv_rows(path):
    """Yield the rows of a table of write_csv as lists of texts, as they were written; header first.

    Raises ValueError at a row with too few or too many columns.
    """
    with open(path, newline="", encoding="utf-8-sig") as f:
        columns = None
        for row in filter(None, csv.reader(f)):
            columns = columns or len(row)
            if len(row) != columns:
                raise ValueError(f"{path}: a line has too few or too many columns")
            yield list(map(unguarded, row))


def read_csv(path):
    """The rows of a table of write_csv as a list of dicts. Raises ValueError as csv_rows does."""
    rows = csv_rows(path)
    header = next(rows, [])
    return [dict(zip(header, row)) for row in rows]
