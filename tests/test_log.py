"""scalars.csv is complete whatever happens to VisualDL."""
import sys

import numpy as np

from conftest import read_rows
from utils.run.log import COLUMNS, Log


def test_scalars_do_not_depend_on_visualdl(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "visualdl", None)  # import raises ImportError
    log = Log(str(tmp_path))
    assert capsys.readouterr().out.count("VisualDL is not usable here") == 1
    log.scores("fold2", {name: 0.25 for name in COLUMNS[1:]} | {"epoch": 1})
    log.image("image", np.zeros((4, 4, 3), np.uint8))
    log.close()
    (row,) = read_rows(tmp_path / "scalars.csv")
    assert [row[key] for key in ("fold", "epoch", "val_accuracy")] == ["fold2", "1", "0.25"]


def test_visualdl_may_fail_at_any_moment(tmp_path, capsys):
    log = Log(str(tmp_path))
    for epoch in (1, 2):
        log.scores("fold0", dict.fromkeys(COLUMNS[1:], "what VisualDL cannot take for a number"))
    log.close()
    Log(str(tmp_path)).image("image", "what VisualDL cannot take for an image")
    assert capsys.readouterr().out.count("VisualDL shows nothing more") == 2
    assert len(read_rows(tmp_path / "scalars.csv")) == 2
