"""The report's figures against independent computations."""
import csv
import json
import sys

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from utils.data_utils import Pictures
from utils.report import build_report, calibration_error, contact_sheet, write_report
from utils.run_log import COLUMNS, RunLog


def test_calibration_error_by_hand():
    # two bins: confidence 0.65 and right half of the time, confidence 0.95 and always right
    p = np.array([[0.65, 0.35], [0.65, 0.35], [0.05, 0.95], [0.05, 0.95]])
    np.testing.assert_allclose(calibration_error(p, np.array([0, 1, 1, 1])), 0.5 * 0.15 + 0.5 * 0.05)


def test_calibration_error_of_honest_probabilities_is_small():
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1, 1], 50_000)
    labels = (rng.random(len(p))[:, None] > p.cumsum(1)).sum(1)
    assert calibration_error(p, labels) < 0.01


class TrainedFold:
    def __init__(self, index, pictures, probabilities):
        self.index, self.pictures, self.best_probabilities, self.best_epoch = index, pictures, probabilities, 1
        self.probabilities = [probabilities, probabilities]
        self.history = [dict.fromkeys(COLUMNS[1:], 0.5) | {"epoch": e} for e in (1, 2)]


@pytest.mark.parametrize("trained", [[0, 1, 2], [1]])
def test_every_figure_follows_from_the_csv(tmp_path, trained):
    rng = np.random.default_rng(3)
    labels, parts = rng.integers(0, 3, 60), np.arange(60) % 3
    pictures = Pictures("", [f"夹/{i}.jpg" for i in range(60)], labels, ["a", "b", "纸"], [], None)
    folds = [TrainedFold(k, np.flatnonzero(parts == k), rng.dirichlet([1, 1, 1], 20)) for k in trained]
    teacher = rng.dirichlet([1, 1, 1], 60)
    report = build_report(folds, [], teacher, pictures, parts)
    text = write_report(str(tmp_path), report, folds, [], teacher, pictures)
    with open(tmp_path / "out_of_fold.csv", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert sorted(r["path"] for r in rows) == sorted(f"夹/{i}.jpg" for i in range(60) if parts[i] in trained)
    truth, guess = [r["label"] for r in rows], [r["prediction"] for r in rows]
    saved = json.loads((tmp_path / "report.json").read_text("utf-8"))
    oof = saved["out_of_fold"]
    assert oof["pictures"] == 20 * len(trained) and oof["of"] == 60
    np.testing.assert_allclose(oof["student"]["accuracy"], accuracy_score(truth, guess))
    np.testing.assert_allclose(oof["student"]["macro_f1"], f1_score(truth, guess, average="macro"))
    np.testing.assert_allclose(oof["teacher"]["accuracy"],
                               accuracy_score(truth, [r["teacher_prediction"] for r in rows]))
    by_fold = [np.mean([r["label"] == r["prediction"] for r in rows if r["fold"] == str(k)]) for k in trained]
    np.testing.assert_allclose(saved["over_folds"]["accuracy"]["mean"], np.mean(by_fold))
    np.testing.assert_allclose(saved["over_folds"]["accuracy"]["std"], np.std(by_fold, ddof=1) if by_fold[1:] else 0)
    assert saved["confusion_matrix"][0][2] == sum(t == "a" and g == "纸" for t, g in zip(truth, guess))
    assert f"{oof['student']['accuracy']:.4f}" in text and text == (tmp_path / "report.txt").read_text("utf-8")
    assert all((tmp_path / f).stat().st_size > 5000 for f in ("confusion_matrix.png", "curves.png"))


def test_contact_sheet_is_a_picture_also_without_a_screen(tmp_path, capsys):
    squares = [np.full((40, 40, 3), 40 * i, np.uint8) for i in range(7)]
    sheet = contact_sheet(squares, ["金属"] * 7, str(tmp_path / "sheet.png"))
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3 and (tmp_path / "sheet.png").stat().st_size > 1000


def test_scalars_do_not_depend_on_visualdl(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "visualdl", None)  # import raises ImportError
    log = RunLog(str(tmp_path))
    assert capsys.readouterr().out.count("VisualDL is not usable here") == 1
    log.scores("fold2", {name: 0.25 for name in COLUMNS[1:]} | {"epoch": 1})
    log.image("picture", np.zeros((4, 4, 3), np.uint8))
    log.hyperparameters({"seed": 1}, {"result/accuracy": 0.5})
    log.close()
    with open(tmp_path / "scalars.csv", encoding="utf-8") as f:
        assert [r["fold"] + r["epoch"] + r["val_accuracy"] for r in csv.DictReader(f)] == ["fold210.25"]
