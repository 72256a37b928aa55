"""The report's figures against independent computations, and the pictures that come with it."""
import glob
import json
import sys

import numpy as np
import pytest
from conftest import read_rows
from paddle import nn
from paddle.vision.models import mobilenet_v2
from scipy.special import softmax
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_curve, precision_recall_fscore_support

from models.teacher_model import Trunk
from utils.cost import cost, count
from utils.data_utils import Pictures
from utils.pictures import read_picture
from utils.plots import contact_sheet, plot_text, unreadable
from utils.report import Answers, all_answers, build_report, report_text, write_report
from utils.run_log import COLUMNS, RunLog
from utils.settings import Settings
from utils.statistics import (calibration_error, compare, coverage, cross_fitted_epochs, fit_temperature,
                              needed_confidence, reliability, wilson)
from utils.tables import padded, read_csv, shorten, width, write_csv


class TrainedFold:
    """What the report reads of a fold: three to five epochs of made-up answers that grow better."""
    settings = Settings()

    def __init__(self, index, pictures, labels, seed):
        rng = np.random.default_rng([seed, index])
        self.index, self.pictures = index, pictures
        truth = np.eye(3)[labels[pictures]]
        self.probabilities = [softmax(2 * rng.normal(size=truth.shape) + e * truth, axis=1).astype(np.float32)
                              for e in range(3 + (index + seed) % 3)]
        self.history = [dict.fromkeys(COLUMNS[1:], 0.5) | {"epoch": e + 1, "val_accuracy": float(
            (p.argmax(1) == labels[pictures]).mean())} for e, p in enumerate(self.probabilities)]
        self.best_epoch = int(np.argmax([h["val_accuracy"] for h in self.history])) + 1


def make_run(tmp_path, trained, with_control, categories=("a", "b", "纸")):
    rng = np.random.default_rng(3)
    labels, parts = rng.integers(0, 3, 300), np.arange(300) % 3
    pictures = Pictures("", [f"夹/{i}.jpg" for i in range(300)], labels, list(categories), [],
                        lambda i: np.full((40, 40, 3), i % 256, np.uint8))
    folds, controls = ([TrainedFold(k, np.flatnonzero(parts == k), labels, seed) for k in trained] for seed in (1, 2))
    teacher = softmax(2 * rng.normal(size=(300, 3)) + np.eye(3)[labels], axis=1)
    controls = controls if with_control else []
    answers = all_answers(folds, controls, teacher, labels)
    groups = np.arange(300) - 3 * (np.arange(300) // 3 % 2)  # pairs, in one part
    report = build_report(folds, answers, pictures, parts, groups)
    text = write_report(str(tmp_path), report, folds, answers, pictures, groups)
    return folds, report, text


@pytest.mark.parametrize("trained, with_control", [([0, 1, 2], True), ([0, 2], False), ([1], True)])
def test_every_figure_follows_from_the_csv(tmp_path, trained, with_control):
    folds, _, text = make_run(tmp_path, trained, with_control)
    names, saved = ["a", "b", "纸"], json.loads((tmp_path / "report.json").read_text("utf-8"))
    rows, oof = read_rows(tmp_path / "out_of_fold.csv"), saved["out_of_fold"]
    several = len(trained) > 1
    assert sorted(r["path"] for r in rows) == sorted(f"夹/{i}.jpg" for k in trained for i in range(k, 300, 3))
    assert oof["pictures"] == len(rows) == 2 * oof["groups"] == 100 * len(trained) and oof["of"] == 300
    assert f"They are {50 * len(trained)} groups" in text
    assert saved["headline"] == ("student_cross_fitted" if several else "student")

    prefixes = {"student": "", "teacher": "teacher_"} | ({"student_cross_fitted": "crossfit_"} if several else {})
    if with_control:
        prefixes |= {"control": "control_"} | ({"control_cross_fitted": "control_crossfit_"} if several else {})
    assert set(prefixes) == set(oof) - {"pictures", "of", "groups"}
    truth, fold = np.array([names.index(r["label"]) for r in rows]), np.array([int(r["fold"]) for r in rows])
    group = np.array([int(r["group"]) for r in rows])
    guess, probabilities, raw = {}, {}, {}
    for who, prefix in prefixes.items():
        guess[who] = np.array([names.index(r[f"{prefix}prediction"]) for r in rows])
        p = np.array([[float(r[f"{prefix}p_{n}"]) for n in names] for r in rows])
        probabilities[who] = p
        raw[who] = p ** np.array([[float(r[f"{prefix}temperature"])] for r in rows])
        raw[who] /= raw[who].sum(1, keepdims=True)
        assert (p.argmax(1) == guess[who]).all()
        figures, right = oof[who], guess[who] == truth
        np.testing.assert_allclose(figures["accuracy"], right.mean())
        np.testing.assert_allclose(figures["accuracy_interval"], wilson(right, group))
        np.testing.assert_allclose(figures["macro_f1"], f1_score(truth, guess[who], average="macro"))
        np.testing.assert_allclose(figures["calibration_error"], calibration_error(p, truth), atol=1e-7)
        np.testing.assert_allclose(figures["calibration_error_raw"], calibration_error(raw[who], truth), atol=1e-7)
        key = who.removeprefix("student_") + "_accuracy" if who != "student" else "accuracy"
        by_fold = [right[fold == k].mean() for k in trained]
        np.testing.assert_allclose([f[key] for f in saved["folds"]], by_fold)
        np.testing.assert_allclose(list(saved["over_folds"][key].values()),
                                   [np.mean(by_fold), np.std(by_fold, ddof=1) if several else 0])
        assert f"{figures['accuracy']:.4f}" in text
    # The temperature of a fold comes from the other folds alone, and is the one that goes into its weights file
    for f in saved["folds"]:
        others = fold != f["fold"]
        expected = fit_temperature(raw["student"][others], truth[others]) if several else 1
        np.testing.assert_allclose(f["temperature"], expected, rtol=1e-4)
        assert {r["temperature"] for r in rows if int(r["fold"]) == f["fold"]} == {f"{f['temperature']:.9g}"}
    if several:
        assert [f["cross_fitted_epoch"] for f in saved["folds"]] == cross_fitted_epochs(
            [[h["val_accuracy"] for h in f.history] for f in folds])
        assert oof["student_cross_fitted"]["accuracy"] < oof["student"]["accuracy"]
        assert oof["student"]["calibration_error"] < oof["student"]["calibration_error_raw"]

    head, p = guess[saved["headline"]], probabilities[saved["headline"]]
    np.testing.assert_allclose(saved["agreement_with_teacher"], (head == guess["teacher"]).mean())
    assert saved["confusion_matrix"] == confusion_matrix(truth, head).tolist()
    for i, name in enumerate(names):
        c, told, true = saved["categories"][name], head == i, truth == i
        right = (told & true).sum()
        np.testing.assert_allclose(c["precision"], right / (head == i).sum())
        np.testing.assert_allclose(c["recall"], right / (truth == i).sum())
        np.testing.assert_allclose(c["precision_interval"], wilson(true[told], group[told]))
        np.testing.assert_allclose(c["recall_interval"], wilson(told[true], group[true]))
        np.testing.assert_allclose(c["roc_auc"], np.mean([(a > p[truth != i, i]).mean() for a in p[truth == i, i]]))
        precision, recall, _ = precision_recall_curve(truth == i, p[:, i])
        np.testing.assert_allclose(c["average_precision"], -np.sum(np.diff(recall) * precision[:-1]))
    assert saved["coverage"] == coverage(p, truth, group)
    assert saved["needed_confidence"] == {str(t): needed_confidence(p, truth, t, group) for t in (0.95, 0.98, 0.99)}
    if with_control:
        c = saved["student_against_control"]
        assert c == compare(truth, head, guess[saved["headline"].replace("student", "control")], group)
        assert f"{c['gained']} pictures gained, {c['lost']} lost" in text
        assert f"errors: student {(head != truth).sum()}, control {c['other_errors']};" in text
    else:
        assert "student_against_control" not in saved and "--control shows" in text

    for f, t in zip(saved["folds"], folds):
        mine = fold == f["fold"]
        ours, right = guess["student"][mine], guess["student"][mine] == truth[mine]
        assert (f["best_epoch"], f["epochs"], f["pictures"]) == (t.best_epoch, len(t.history), mine.sum())
        np.testing.assert_allclose(f["accuracy_interval"], wilson(right, group[mine]))
        np.testing.assert_allclose(f["macro_f1"], f1_score(truth[mine], ours, average="macro"))
        np.testing.assert_allclose(f["calibration_error"], calibration_error(probabilities["student"][mine], truth[mine]),
                                   atol=1e-7)
        if with_control:
            other = guess[saved["headline"].replace("student", "control")]
            np.testing.assert_allclose(f["difference_to_control"],
                                       np.mean((head == truth)[mine]) - np.mean((other == truth)[mine]))
    for key, v in saved["over_folds"].items():
        values = [f[key] for f in saved["folds"]]
        np.testing.assert_allclose([v["mean"], v["std"]], [np.mean(values), np.std(values, ddof=1) if several else 0])
    table = precision_recall_fscore_support(truth, head)
    np.testing.assert_allclose([[c["f1-score"], c["support"]] for c in saved["categories"].values()],
                               np.transpose(table[2:]))
    for name in ("macro", "weighted"):
        np.testing.assert_allclose(list(saved["averages"][f"{name} avg"].values())[:3],
                                   precision_recall_fscore_support(truth, head, average=name)[:3])
    for when, q in (("raw", raw[saved["headline"]]), ("calibrated", p)):
        bins = saved["reliability"][when]
        for key, values in zip(("pictures", "right", "sum_of_confidence"), reliability(q, truth)):
            np.testing.assert_allclose(bins[key], values, atol=1e-5)

    mistakes = read_rows(tmp_path / "mistakes.csv")
    wrong = sorted(np.flatnonzero(head != truth), key=lambda i: (-p[i].max(), rows[i]["path"]))
    assert [(m["path"], m["label"], m["prediction"]) for m in mistakes] == [
        (rows[i]["path"], names[truth[i]], names[head[i]]) for i in wrong]
    np.testing.assert_allclose([float(m["confidence"]) for m in mistakes], p[wrong].max(1))
    assert [m["path"] for m in saved["worst_mistakes"]] == [rows[i]["path"] for i in wrong[:25]]
    assert text == (tmp_path / "report.txt").read_text("utf-8")
    plots = "report", "confusion_matrix", "curves", "confidence", "mistakes"
    assert all((tmp_path / f"{f}.png").stat().st_size > 5000 for f in plots)


def test_a_weak_teacher_is_advised_against_unless_its_student_beats_the_control(tmp_path):
    _, report, _ = make_run(tmp_path, [0, 1, 2], True)
    oof = report["out_of_fold"]
    oof["student_cross_fitted"]["accuracy"] = 0.7
    for teacher, control, advised, compared in ((0.6, 0.65, False, True), (0.6, 0.75, True, False), (0.8, 0.65, False, False)):
        oof["teacher"]["accuracy"], oof["control_cross_fitted"]["accuracy"] = teacher, control
        text = report_text(report)
        assert ("may hold it back" in text, "so is the control without one: 0.6500" in text) == (advised, compared)
    oof["teacher"]["accuracy"], oof["control_cross_fitted"]["accuracy"] = 0.6, 0.75
    for alpha, weight, advice in ((1.0, 8.0, "weight: a smaller --feature_weight."), (0.5, 0.0, "weight: --alpha 1."),
                                  (1.0, 0.0, None)):
        report["settings"].update(alpha=alpha, feature_weight=weight)
        assert advice in report_text(report) if advice else "may hold it back" not in report_text(report)
    report["settings"].update(feature_weight=8.0, freeze_depth=19)  # where a smaller weight would change nothing
    assert "may hold it back" not in report_text(report)


def write_faultless(folder, labels, names):
    """The report of two students, and their controls, that are right on every picture."""
    n, right = len(labels), np.eye(len(names), dtype=np.float32)[labels]
    folds = [TrainedFold(k, np.arange(k, n, 2), labels % 3, 0) for k in (0, 1)]
    for f in folds:
        f.probabilities = [right[f.pictures]] * len(f.history)
    pictures = Pictures("", [f"{i}.jpg" for i in range(n)], labels, names, [], None)
    answers = all_answers(folds, folds, right, labels)
    report = build_report(folds, answers, pictures, np.arange(n) % 2, np.arange(n))
    write_report(str(folder), report, folds, answers, pictures, np.arange(n))


def test_a_run_without_mistakes(tmp_path):
    write_faultless(tmp_path, np.arange(30) % 3, ["a", "b", "c"])
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["out_of_fold"]["student"]["accuracy"] == 1
    assert not (tmp_path / "mistakes.png").exists() and read_rows(tmp_path / "mistakes.csv") == []


def test_hundreds_of_categories_are_drawn_too(tmp_path):
    write_faultless(tmp_path, np.repeat(np.arange(300), 2), [f"category {i}" for i in range(300)])
    for name in ("report", "confusion_matrix"):
        h, w, _ = read_picture(str(tmp_path / f"{name}.png")).shape
        assert max(h, w) < 8000


def test_tables_are_read_as_they_were_written(tmp_path):
    names = ["纸", "=1+1", "'a", "'=", "''=", "a,b\nc", "＝2", ""]
    write_csv(tmp_path / "t.csv", ("name", "n"), [(n, i) for i, n in enumerate(names)])
    assert (tmp_path / "t.csv").read_bytes().startswith(b"\xef\xbb\xbf")  # Excel takes it for another alphabet without
    assert [r["name"] for r in read_csv(tmp_path / "t.csv")] == names
    assert [r["name"][:2] for r in read_rows(tmp_path / "t.csv")][1::5] == ["'=", "'＝"]
    (tmp_path / "t.csv").write_text("name,n\na,1\n\n")
    assert read_csv(tmp_path / "t.csv") == [{"name": "a", "n": "1"}]
    for line in ("a", "a,1,2"):
        (tmp_path / "cut.csv").write_text("name,n\n" + line)
        with pytest.raises(ValueError):
            read_csv(tmp_path / "cut.csv")


def test_visualdl_shows_the_curves_of_every_category(tmp_path):
    reader = pytest.importorskip("visualdl").LogReader
    _, report, _ = make_run(tmp_path, [0, 1, 2], False, ("a", "50%", "纸"))
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    p = rng.dirichlet([1, 1, 1], 300)
    log = RunLog(str(tmp_path))
    log.results(report, {"student": Answers([], [], p, p)}, labels)
    log.close()
    (file,) = glob.glob(str(tmp_path / "student" / "vdlrecords*"))
    log = reader(file_path=file)
    assert [sorted(log.get_tags()[f"{k.lower()}_curve"]) for k in ("PR", "ROC")] == [
        [f"{k}/50％", f"{k}/a", f"{k}/纸"] for k in ("PR", "ROC")]
    for i, tag in enumerate(("a", "50％", "纸")):
        (pr,), (roc,) = (log.get_data(f"{k.lower()}_curve", f"{k}/{tag}") for k in ("PR", "ROC"))
        pr, roc = pr.pr_curve, roc.roc_curve
        assert len(pr.recall) == 125
        for j, t in enumerate(np.r_[0, np.arange(2, 126) / 125]):
            yes, positive = p[:, i] >= t, labels == i
            expected = [yes[positive].mean(), positive[yes].mean() if yes.any() else 1, yes[~positive].mean()]
            np.testing.assert_allclose([pr.recall[j], pr.precision[j], roc.fpr[j]], expected, atol=1e-6)
            assert pr.TP[j] == roc.TP[j] == (yes & positive).sum() and roc.tpr[j] == pr.recall[j]


def test_cost_by_hand():
    # 3x9x9 -> 8x5x5 by 3x3 at stride 2; two groups of 4 -> 8; depthwise; linear on 4 numbers
    layer = nn.Sequential(nn.Conv2D(3, 8, 3, 2, 1), nn.BatchNorm2D(8), nn.Conv2D(8, 16, 1, groups=2),
                          nn.Conv2D(16, 16, 3, padding=1, groups=16, bias_attr=False), nn.AdaptiveAvgPool2D(1),
                          nn.Flatten(), nn.Linear(16, 4))
    parameters = (8 * 3 * 9 + 8) + 2 * 8 + (16 * 4 + 16) + 16 * 9 + (16 * 4 + 4)
    assert count(layer, [3, 9, 9]) == (parameters, 25 * (8 * 27 + 16 * 4 + 16 * 9) + 16 * 4)
    found = cost(layer, [3, 9, 9], 1)
    assert (found["parameters"], found["ms_alone"] > 0, found["ms_in_batch_of_16"] > 0) == (parameters, True, True)
    # as published, at 224 pixels: ResNet50 25.56 M and 4.09 G, MobileNetV2 3.50 M and 0.30 G
    assert count(mobilenet_v2(), [3, 224, 224]) == (3504872, 300774272)
    parameters, multiply_adds = count(Trunk(), [3, 224, 224])
    assert (parameters + 2049 * 1000, multiply_adds + 2048 * 1000) == (25557032, 4089184256)


def test_titles_are_shortened_in_the_middle():
    assert shorten("Harmful → Other", 26) == "Harmful → Other" and shorten("", 3) == ""
    assert shorten("a/very/long/path/to/photograph.jpg", 15) == "a/very/…aph.jpg"
    assert shorten("可回收物/很长的名字/照片.jpg", 16) == "可回收物…片.jpg"
    assert [padded(t, 6) + "|" for t in ("纸", "", "cardboard")] == ["纸    |", "      |", "car…rd|"]
    assert padded("纸", 4, right=True) == "  纸"


def test_without_a_screen_a_contact_sheet_is_drawn_and_said_where(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    squares = [np.full((40, 40, 3), 40 * i, np.uint8) for i in range(7)]
    sheet = contact_sheet(squares, ["金属"] * 7, str(tmp_path / "sheet.png"), show=True)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3 and (tmp_path / "sheet.png").stat().st_size > 1000
    assert capsys.readouterr().out == f"--show: no screen here, see {tmp_path / 'sheet.png'}\n"


def test_a_text_with_a_very_long_line_becomes_a_picture_that_can_be_read(tmp_path):
    plot_text("one\n" + 40 * "a/path/of/some/photograph.jpg, " * 10, str(tmp_path / "text.png"))
    assert read_picture(str(tmp_path / "text.png")).shape[1] < 5000


def test_scalars_do_not_depend_on_visualdl(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "visualdl", None)  # import raises ImportError
    log = RunLog(str(tmp_path))
    assert capsys.readouterr().out.count("VisualDL is not usable here") == 1
    log.scores("fold2", {name: 0.25 for name in COLUMNS[1:]} | {"epoch": 1})
    log.image("picture", np.zeros((4, 4, 3), np.uint8))
    log.close()
    assert [r["fold"] + r["epoch"] + r["val_accuracy"] for r in read_rows(tmp_path / "scalars.csv")] == ["fold210.25"]


def test_visualdl_may_fail_at_any_moment(tmp_path, capsys):
    log = RunLog(str(tmp_path))
    for epoch in (1, 2):
        log.scores("fold0", {name: "what VisualDL cannot take for a number" for name in COLUMNS[1:]})
    log.close()
    RunLog(str(tmp_path)).image("picture", "what VisualDL cannot take for a picture")
    assert capsys.readouterr().out.count("VisualDL shows nothing more") == 2
    assert len(read_rows(tmp_path / "scalars.csv")) == 2


def test_letters_without_a_font_are_named():
    assert unreadable(["cans", "Müll"]) == [] and unreadable(["a\nb", "\U00012000"]) == ["\U00012000"]


def test_columns_of_the_report_stand_below_each_other_whatever_the_names(tmp_path):
    lines = make_run(tmp_path, [0, 1, 2], False, ("a", "厨余垃圾和其他很长的名字", "b" * 60))[2].split("\n")
    first = next(i for i, line in enumerate(lines) if "recall" in line)
    assert len({width(line) for line in lines[first + 1:first + 4]}) == 1
