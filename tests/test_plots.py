"""Sheets of images, texts as images, and fonts."""
import sys

import numpy as np

from utils.images.read import read_image
from utils.report.plots import contact_sheet, plot_text, unreadable


def test_without_a_display_a_contact_sheet_is_a_file_that_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    squares = [np.full((40, 40, 3), 40 * i, np.uint8) for i in range(7)]
    sheet = contact_sheet(squares, ["金属"] * 7, str(tmp_path / "sheet.png"), show=True)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    printed = capsys.readouterr()
    assert printed.out == ""  # which has the predictions
    assert printed.err == f"--show: no display here, see {tmp_path / 'sheet.png'}\n"


def test_a_text_with_a_very_long_line_becomes_an_image_that_can_be_read(tmp_path):
    plot_text("one\n" + 40 * "a/path/of/some/photograph.jpg, " * 10, str(tmp_path / "text.png"))
    assert read_image(str(tmp_path / "text.png")).shape[1] < 5000


def test_characters_without_a_font_are_named():
    assert unreadable(["cans", "Müll"]) == []
    assert unreadable(["a\nb", "\U00012000"]) == ["\U00012000"]
