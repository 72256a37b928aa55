"""Names and tables that people read, also when a file is called =1+1.jpg or has a line break in its name."""
import csv

FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")  # what a spreadsheet would run begins with one of them


def printable(name):
    """The name on one line of the terminal: line breaks, control characters and broken UTF-8 as in Python."""
    return name if name.isprintable() else repr(name)[1:-1]


def guarded(text):
    """A text that a spreadsheet would run as a formula gets an apostrophe in front."""
    return "'" + text if text.lstrip("'").startswith(FORMULA) else text


def write_csv(path, header, rows, mode="w"):
    """Write a table as UTF-8 with a byte order mark, by which Excel knows it; texts are guarded."""
    def cell(value):
        return guarded(value) if isinstance(value, str) else value
    with open(path, mode, newline="", encoding="utf-8-sig", errors="backslashreplace") as f:
        csv.writer(f).writerows([cell(v) for v in row] for row in (header, *rows))


def read_csv(path):
    """The rows of a table of write_csv, as dicts; the apostrophe that write_csv added is removed."""
    def text(value):
        return value[1:] if value.startswith("'") and guarded(value) != value else value
    with open(path, newline="", encoding="utf-8-sig") as f:
        return [{k: text(v) for k, v in row.items()} for row in csv.DictReader(f)]
