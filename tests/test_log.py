"""scalars.csv is complete whatever happens to VisualDL, and what is printed of an epoch."""
import sys
from types import SimpleNamespace

import numpy as np

from conftest import read_rows
from utils.run.log import COLUMNS, Log, print_epoch


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


def test_a_group_whose_students_have_all_stopped_has_no_more_lines(capsys):
    scores = dict(train_loss=0.5, train_accuracy=0.9, val_loss=0.4, val_accuracy=0.8)
    fold, control = (SimpleNamespace(
        name=name, history=[scores], best_epoch=1, is_final=False, failed="", stopped=stopped)
        for name, stopped in (("fold0", False), ("control0", True)))
    for group in ([fold], [control]):
        print_epoch(2, group, [fold], 3.0, 9)
    assert capsys.readouterr().out == (
        "epoch 2/9, 3 s: mean 0.500 0.900 | 0.400 0.800; fold0 0.500 0.900 | 0.400 0.800\n")
