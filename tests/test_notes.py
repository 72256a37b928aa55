"""Figures that say when they mean nothing: the notes of a report, the baseline of its headline."""
import html
import json
import re

import numpy as np
import pytest

from made_up_run import make_run, write_faultless
from utils.report.build import Predictions, build_report, make_report
from utils.report.notes import student_notes, teacher_notes
from utils.report.text import summary
from utils.settings import Settings


def predictions_of(labels, folds, student, teacher):
    def sure(predicted):
        return np.eye(labels.max() + 1, dtype=np.float32)[predicted]
    n = len(labels)
    probabilities = {"student": sure(student), "student_cross_fitted": sure(student),
                     "teacher": sure(teacher)}
    return Predictions(list(map(str, range(n))), labels, folds, np.arange(n), probabilities,
                       probabilities)


@pytest.mark.parametrize("case, words", [
    ("good", []), ("constant", ["the students: hardly better than guessing"]),
    ("fold 1 constant", ["the student of fold 1: hardly better than guessing"]),
    ("far below", ["the students: balanced accuracy far below the teacher's"]),
    ("lr 10", ["the loss of the students has blown up: lower --base_lr (10)"])])
def test_figures_that_mean_nothing_have_a_note(case, words):
    labels, folds = np.repeat([0, 1, 2], [60, 60, 6]), np.arange(126) % 2
    student, rng = labels.copy(), np.random.default_rng(0)
    if "constant" in case:
        student[(folds == 1) | (case == "constant")] = 0
    if case == "far below":
        wrong = rng.random(126) < 0.5
        student[wrong] = (labels[wrong] + 1) % 3
    settings = Settings(categories=("a", "b", "c"), base_lr=10.0 if case == "lr 10" else 1e-3)
    facts = [{"name": f"fold{k}", "fold": k, "best_epoch": 1, "epochs": 2, "temperature": 1.0,
              "cross_fitted_epoch": 2} for k in (0, 1)]
    p = predictions_of(labels, folds, student, labels)
    report = build_report(p, {"students": facts, "networks": None}, settings, 126)
    loss = 1e4 if case == "lr 10" else 5.0
    history = {f"fold{k}": [{"train_loss": loss}] * 2 for k in (0, 1)}
    notes = student_notes(p, "student_cross_fitted", settings, history)
    assert len(notes) == len(words) and all(map(str.startswith, notes, words))
    assert report["never_predicted"] == (["b", "c"] if case == "constant" else [])


def test_the_headline_has_its_baseline_everywhere(tmp_path):
    labels = np.repeat([0, 1], [97, 3])
    write_faultless(tmp_path, labels, ["纸", "trash <b>"])
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    (tmp_path / "results.json").write_text(json.dumps({**results, "notes": ["of the run"]}))
    rows = (tmp_path / "out_of_fold.csv").read_text("utf-8-sig").splitlines()
    columns = rows[0].split(",")
    for i in range(1, 101):  # the student answers the first category for all
        cells = rows[i].split(",")
        for prefix in ("", "crossfit_"):
            cells[columns.index(f"{prefix}p_纸")] = "1"
            cells[columns.index(f"{prefix}p_trash <b>")] = "0"
        rows[i] = ",".join(cells)
    (tmp_path / "out_of_fold.csv").write_text("\n".join(rows), "utf-8-sig")
    report = make_report(str(tmp_path))
    assert report["largest_category"] == {"name": "纸", "accuracy": 0.97, "balanced_accuracy": 0.5}
    text, page = ((tmp_path / f"report.{kind}").read_text("utf-8") for kind in ("txt", "html"))
    for line in ("Student, cross-fitted: accuracy 0.9700, balanced accuracy 0.5000",
                 "Predicting the largest category (纸) for every image gives 0.9700 and 0.5000.",
                 "note: never predicted: trash <b>", "note: of the run",
                 "note: the students: hardly better than guessing"):
        assert line in text
    rows = [re.sub("<.*?>", " ", row) for row in page.split("<tr>")]
    assert any("student, cross-fitted" in r and "0.970 (" in r and " 0.500" in r for r in rows)
    assert any("largest category, 纸" in r and " 0.970 " in r and " 0.500" in r for r in rows)
    for line in ("Never predicted: trash <b>", "从未被预测的类别：trash <b>", "of the run",
                 "the students: hardly better than guessing"):
        assert html.escape(line) in page
    assert "\n".join(summary(report)) in text


def test_a_weak_teacher_is_advised_against_unless_its_students_beat_the_control(tmp_path):
    _, report, _ = make_run(tmp_path, [0, 1, 2], True)
    settings, oof = Settings(**report["settings"]), report["out_of_fold"]
    oof["student_cross_fitted"]["accuracy"] = 0.7
    for teacher, control, advised in ((0.6, 0.65, False), (0.6, 0.75, True), (0.8, 0.65, False)):
        oof["teacher"]["accuracy"], oof["control_cross_fitted"]["accuracy"] = teacher, control
        assert len(teacher_notes(report, settings)) == advised
    oof["teacher"]["accuracy"], oof["control_cross_fitted"]["accuracy"] = 0.6, 0.75
    for alpha, weight, advice in ((1.0, 8.0, "weight (a smaller --feature_weight)"),
                                  (0.5, 0.0, "weight (--alpha 1)")):
        settings.alpha, settings.feature_weight = alpha, weight
        (note,) = teacher_notes(report, settings)
        assert note.endswith(advice)
    settings.alpha = 1.0  # a smaller weight would change nothing
    assert teacher_notes(report, settings) == []
    settings.feature_weight, settings.freeze_depth = 8.0, 19
    assert teacher_notes(report, settings) == []
    settings.freeze_depth = 14
    del oof["control_cross_fitted"]
    assert teacher_notes(report, settings)[0].endswith("--control shows whether it helps")
