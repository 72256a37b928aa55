"""Names in columns, and CSV files whatever the names."""
import pytest

from conftest import read_rows
from utils.tables import padded, read_csv, shorten, write_csv


def test_tables_are_read_as_they_were_written(tmp_path):
    names = ["纸", "=1+1", "'a", "'=", "''=", "a,b\nc", "＝2", "", "\udcff.jpg"]
    write_csv(tmp_path / "t.csv", ("name", "n"), [(n, i) for i, n in enumerate(names)])
    # without it Excel takes the file for another alphabet
    assert (tmp_path / "t.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    assert [r["name"] for r in read_csv(tmp_path / "t.csv")] == names
    assert [r["name"][:2] for r in read_rows(tmp_path / "t.csv")][1::5] == ["'=", "'＝"]
    (tmp_path / "t.csv").write_text("name,n\na,1\n\n")
    assert read_csv(tmp_path / "t.csv") == [{"name": "a", "n": "1"}]
    for line in ("a", "a,1,2"):
        (tmp_path / "cut.csv").write_text("name,n\n" + line)
        with pytest.raises(ValueError):
            read_csv(tmp_path / "cut.csv")


def test_titles_are_shortened_in_the_middle():
    assert shorten("Harmful → Other", 26) == "Harmful → Other" and shorten("", 3) == ""
    assert shorten("a/very/long/path/to/photograph.jpg", 15) == "a/very/…aph.jpg"
    assert shorten("可回收物/很长的名字/照片.jpg", 16) == "可回收物…片.jpg"
    assert [padded(t, 6) + "|" for t in ("纸", "", "cardboard")] == [
        "纸    |", "      |", "car…rd|"]
    assert padded("纸", 4, right=True) == "  纸"
