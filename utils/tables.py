"""Names and tables that people read, also when a file is called =1+1.jpg or has a line break in its name."""
import csv

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run begins with one of them


def printable(name):
    """The name on one line of the terminal: line breaks, control characters and broken UTF-8 as in Python."""
    return name if name.isprintable() else repr(name)[1:-1]


def write_csv(path, header, rows, mode="w"):
    """Write a table as UTF-8. A text that a spreadsheet would run as a formula gets an apostrophe in front."""
    def cell(value):
        return "'" + value if isinstance(value, str) and value.startswith(FORMULA) else value
    with open(path, mode, newline="", encoding="utf-8", errors="backslashreplace") as f:
        csv.writer(f).writerows([cell(v) for v in row] for row in (header, *rows))
