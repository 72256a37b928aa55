"""The report's figures against independent computations, and the plots that come with it."""
import glob
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
from paddle import nn
from paddle.vision.models import mobilenet_v2
from sklearn import metrics

from conftest import read_rows
from made_up_run import make_run, write_faultless
from models.teacher_model import Backbone
from utils.errors import InputError
from utils.files import read_json, write_json
from utils.images.read import read_image
from utils.report import statistics
from utils.report.build import completed, make_report, read_predictions, write_results
from utils.report.cost import cost, count
from utils.report.statistics import calibration_error, wilson
from utils.run.log import Log
from utils.tables import width


@pytest.mark.parametrize("trained, with_control", [([0, 1, 2], True), ([0, 2], False), ([1], True)])
def test_every_figure_follows_from_the_csv(tmp_path, trained, with_control):
    students, _, text = make_run(tmp_path, trained, with_control)
    names = ["a", "b", "纸"]
    saved = json.loads((tmp_path / "report.json").read_text("utf-8"))
    rows, oof = read_rows(tmp_path / "out_of_fold.csv"), saved["out_of_fold"]
    several = len(trained) > 1
    assert sorted(r["path"] for r in rows) == sorted(
        f"夹/{i}.jpg" for k in trained for i in range(k, 300, 3))
    assert oof["images"] == len(rows) == 2 * oof["groups"] == 100 * len(trained)
    assert oof["of"] == 300
    assert f"They form {50 * len(trained)} groups" in text
    assert saved["headline"] == ("student_cross_fitted" if several else "student")

    prefixes = {"student": "", "teacher": "teacher_"}
    prefixes |= {"control": "control_"} if with_control else {}
    if several:
        prefixes |= {f"{name}_cross_fitted": f"{prefixes[name]}crossfit_"
                     for name in ("student", "control") if name in prefixes}
    assert set(prefixes) == set(oof) - {"images", "of", "groups"}
    truth = np.array([names.index(r["label"]) for r in rows])
    fold, group = (np.array([int(r[key]) for r in rows]) for key in ("fold", "group"))
    predicted, probabilities, raw = {}, {}, {}
    for who, prefix in prefixes.items():
        predicted[who] = np.array([names.index(r[f"{prefix}prediction"]) for r in rows])
        p = np.array([[float(r[f"{prefix}p_{n}"]) for n in names] for r in rows])
        probabilities[who] = p
        raw[who] = p ** np.array([[float(r[f"{prefix}temperature"])] for r in rows])
        raw[who] /= raw[who].sum(1, keepdims=True)
        assert (p.argmax(1) == predicted[who]).all()
        figures, correct = oof[who], predicted[who] == truth
        np.testing.assert_allclose(figures["accuracy"], correct.mean())
        np.testing.assert_allclose(figures["accuracy_interval"], wilson(correct, group))
        np.testing.assert_allclose(figures["macro_f1"],
                                   metrics.f1_score(truth, predicted[who], average="macro"))
        np.testing.assert_allclose(figures["balanced_accuracy"], metrics.recall_score(
            truth, predicted[who], average="macro"))
        for key, values in (("calibration_error", p), ("calibration_error_raw", raw[who])):
            np.testing.assert_allclose(figures[key], calibration_error(values, truth), atol=1e-6)
        key = who.removeprefix("student_") + "_accuracy" if who != "student" else "accuracy"
        by_fold = [correct[fold == k].mean() for k in trained]
        np.testing.assert_allclose([f[key] for f in saved["folds"]], by_fold)
        np.testing.assert_allclose(
            list(saved["over_folds"][key].values()),
            [np.mean(by_fold), np.std(by_fold, ddof=1) if several else 0])
        assert f"{figures['accuracy']:.4f}" in text
    # A fold's temperature comes from the other folds alone, and goes into its weights file
    for f in saved["folds"]:
        others = fold != f["fold"]
        expected = 1
        if several:
            expected = statistics.fit_temperature(raw["student"][others], truth[others])
        np.testing.assert_allclose(f["temperature"], expected, rtol=1e-4)
        temperatures = {r["temperature"] for r in rows if int(r["fold"]) == f["fold"]}
        assert temperatures == {f"{f['temperature']:.9g}"}
    if several:
        assert [f["cross_fitted_epoch"] for f in saved["folds"]] == statistics.cross_fitted_epochs(
            *zip(*(s.curves for s in students)))
        assert oof["student_cross_fitted"]["accuracy"] < oof["student"]["accuracy"]
        assert oof["student"]["calibration_error"] < oof["student"]["calibration_error_raw"]

    head, p = predicted[saved["headline"]], probabilities[saved["headline"]]
    np.testing.assert_allclose(saved["agreement_with_teacher"],
                               (head == predicted["teacher"]).mean())
    assert saved["confusion_matrix"] == metrics.confusion_matrix(truth, head).tolist()
    for i, name in enumerate(names):
        c, told, true = saved["categories"][name], head == i, truth == i
        right = (told & true).sum()
        np.testing.assert_allclose(c["precision"], right / (head == i).sum())
        np.testing.assert_allclose(c["recall"], right / (truth == i).sum())
        np.testing.assert_allclose(c["precision_interval"], wilson(true[told], group[told]))
        np.testing.assert_allclose(c["recall_interval"], wilson(told[true], group[true]))
        np.testing.assert_allclose(c["roc_auc"], np.mean(
            [(a > p[truth != i, i]).mean() for a in p[truth == i, i]]))
        precision, recall, _ = metrics.precision_recall_curve(truth == i, p[:, i])
        np.testing.assert_allclose(c["average_precision"],
                                   -np.sum(np.diff(recall) * precision[:-1]))
    assert saved["coverage"] == statistics.coverage(p, truth, group)
    assert saved["needed_confidence"] == {
        str(t): statistics.needed_confidence(p, truth, t, group) for t in (0.95, 0.98, 0.99)}
    if with_control:
        c = saved["student_against_control"]
        other = predicted[saved["headline"].replace("student", "control")]
        assert c == statistics.compare(truth, head, other, group)
        assert f"{c['gained']} images gained, {c['lost']} lost" in text
        assert f"errors: student {(head != truth).sum()}, control {c['other_errors']};" in text
    else:
        assert "student_against_control" not in saved and "--control shows" in text

    for f, s in zip(saved["folds"], students):
        mine = fold == f["fold"]
        ours, correct = predicted["student"][mine], predicted["student"][mine] == truth[mine]
        assert (f["best_epoch"], f["epochs"]) == (s.best_epoch, len(s.history))
        assert f["images"] == mine.sum()
        np.testing.assert_allclose(f["accuracy_interval"], wilson(correct, group[mine]))
        np.testing.assert_allclose(f["macro_f1"],
                                   metrics.f1_score(truth[mine], ours, average="macro"))
        np.testing.assert_allclose(
            f["calibration_error"],
            calibration_error(probabilities["student"][mine], truth[mine]), atol=1e-7)
        if with_control:
            np.testing.assert_allclose(
                f["difference_to_control"],
                np.mean((head == truth)[mine]) - np.mean((other == truth)[mine]))
    for key, v in saved["over_folds"].items():
        values = [f[key] for f in saved["folds"]]
        np.testing.assert_allclose(
            [v["mean"], v["std"]], [np.mean(values), np.std(values, ddof=1) if several else 0])
    table = metrics.precision_recall_fscore_support(truth, head)
    np.testing.assert_allclose(
        [[c["f1-score"], c["support"]] for c in saved["categories"].values()],
        np.transpose(table[2:]))
    for name in ("macro", "weighted"):
        np.testing.assert_allclose(
            list(saved["averages"][f"{name} avg"].values())[:3],
            metrics.precision_recall_fscore_support(truth, head, average=name)[:3])
    for when, q in (("raw", raw[saved["headline"]]), ("calibrated", p)):
        bins = saved["reliability"][when]
        for key, values in zip(("images", "correct", "sum_of_confidence"),
                               statistics.reliability(q, truth)):
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
    predictions = read_predictions(str(tmp_path), names)
    assert (predictions.labels == truth).all()
    assert set(predictions.probabilities) == set(prefixes)
    for who, values in predictions.probabilities.items():
        np.testing.assert_allclose(values, probabilities[who], rtol=1e-6)


def test_a_report_is_made_again_without_the_images_and_the_weights(tmp_path, capsys):
    make_run(tmp_path, [0, 1, 2], True)
    before = {name: (tmp_path / name).read_bytes() for name in ("report.json", "mistakes.csv")}
    assert capsys.readouterr().out.count("no heat maps of fold") == 3  # nothing has saved weights
    for name in (*before, "mistakes.png", "report.html"):
        os.remove(tmp_path / name)
    for image in (tmp_path / "set" / "夹").iterdir():
        image.unlink()
    make_report(str(tmp_path))
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
    printed = capsys.readouterr().out
    assert "mistakes.png lacks 25 images" in printed and "report.html lacks 24 examples" in printed
    assert (tmp_path / "report.html").exists() and not (tmp_path / "mistakes.png").exists()


def test_a_report_is_made_again_from_any_working_folder(tmp_path, capsys):
    make_run(tmp_path, [0, 1, 2], False)
    home, page = tmp_path.parent.parent, (tmp_path / "report.html").read_bytes()
    write_json(str(tmp_path / "settings.json"), {
        **read_json(str(tmp_path / "settings.json")), "log_dir": tmp_path.parent.name,
        "data_dir": os.path.relpath(tmp_path / "set", home)})
    capsys.readouterr()
    make_report(str(tmp_path))
    assert "lacks" not in capsys.readouterr().out
    assert (tmp_path / "report.html").read_bytes().count(b"<img") == page.count(b"<img") > 24
    for name in ("report.json", "settings.json"):  # a page to pass on does not tell where it was
        assert str(home) not in (tmp_path / name).read_text("utf-8").replace(
            str(tmp_path / "saved"), "")


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no finished run"):
        make_report(str(tmp_path / "nothing here"))
    make_run(tmp_path, [0, 1, 2], False)
    table = (tmp_path / "out_of_fold.csv").read_text("utf-8-sig")
    (tmp_path / "out_of_fold.csv").write_text(table[:1000], "utf-8")
    with pytest.raises(InputError, match="no finished run.*too few or too many columns"):
        make_report(str(tmp_path))


@pytest.mark.parametrize("name, epochs, folds, compared", [
    ("", 3, [0, 1, 2], True), ("fold1", 0, [0, 2], True), ("control1", 0, [0, 1, 2], False),
    ("fold1", 1, [0, 1, 2], False), ("control1", 1, [0, 1, 2], False)])
def test_controls_are_compared_only_where_nothing_failed(name, epochs, folds, compared):
    students, controls = (
        [SimpleNamespace(name=f"{kind}{k}", fold=k, is_fold=kind == "fold",
                         is_control=kind == "control",
                         failed="a loss" if f"{kind}{k}" == name else "",
                         history=[{}] * (epochs if f"{kind}{k}" == name else 3))
         for k in range(3)] for kind in ("fold", "control"))
    failed = [f"{name} stopped at a loss"] if name else []
    left, own, lines = completed(students + controls)
    assert [s.fold for s in left] == folds and [c.fold for c in own] == (folds if compared else [])
    assert lines[:1] == failed and ("are not compared" in "".join(lines)) != compared
    assert completed(students)[1:] == ([], failed if name in ("", "fold1") else [])


def test_without_a_finished_epoch_there_is_no_report(tmp_path):
    students = [SimpleNamespace(name=f"fold{k}", failed="a loss", is_fold=True, history=[])
                for k in (0, 1)]
    with pytest.raises(InputError, match="^fold0 stopped at a loss; fold1 stopped at a loss$"):
        write_results(str(tmp_path), students, None, None, None)


def test_a_run_without_mistakes(tmp_path):
    write_faultless(tmp_path, np.arange(30) % 3, ["a", "b", "c"])
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["out_of_fold"]["student"]["accuracy"] == 1
    assert not (tmp_path / "mistakes.png").exists() and read_rows(tmp_path / "mistakes.csv") == []


def test_hundreds_of_categories_are_drawn_too(tmp_path):
    write_faultless(tmp_path, np.repeat(np.arange(300), 2), [f"类别 {i}" for i in range(300)])
    for name in ("report", "confusion_matrix"):
        h, w, _ = read_image(str(tmp_path / f"{name}.png")).shape
        assert max(h, w) < 8000


def test_visualdl_shows_the_curves_of_every_category(tmp_path):
    reader = pytest.importorskip("visualdl").LogReader
    _, report, _ = make_run(tmp_path, [0, 1, 2], False, ("a", "50%", "纸"))
    log = Log(str(tmp_path))
    log.results(report)
    log.close()
    predictions = read_predictions(str(tmp_path), report["category_names"])
    labels, p = predictions.labels, predictions.probabilities["student"]
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
            expected = [yes[positive].mean(), positive[yes].mean() if yes.any() else 1,
                        yes[~positive].mean()]
            np.testing.assert_allclose([pr.recall[j], pr.precision[j], roc.fpr[j]], expected,
                                       atol=1e-6)
            assert pr.TP[j] == roc.TP[j] == (yes & positive).sum() and roc.tpr[j] == pr.recall[j]


def test_cost_by_hand():
    # 3x9x9 -> 8x5x5 by 3x3 at stride 2; two groups of 4 -> 8; depthwise; linear on 4 numbers
    layer = nn.Sequential(nn.Conv2D(3, 8, 3, 2, 1), nn.BatchNorm2D(8),
                          nn.Conv2D(8, 16, 1, groups=2),
                          nn.Conv2D(16, 16, 3, padding=1, groups=16, bias_attr=False),
                          nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(16, 4))
    parameters = (8 * 3 * 9 + 8) + 2 * 8 + (16 * 4 + 16) + 16 * 9 + (16 * 4 + 4)
    assert count(layer, [3, 9, 9]) == (parameters, 25 * (8 * 27 + 16 * 4 + 16 * 9) + 16 * 4)
    found = cost(layer, [3, 9, 9], 1)
    assert found["parameters"] == parameters
    assert found["ms_alone"] > 0 and found["ms_in_batch_of_16"] > 0
    # as published, at 224 pixels: ResNet50 25.56 M and 4.09 G, MobileNetV2 3.50 M and 0.30 G
    assert count(mobilenet_v2(), [3, 224, 224]) == (3504872, 300774272)
    parameters, multiply_adds = count(Backbone(), [3, 224, 224])
    assert parameters + 2049 * 1000 == 25557032
    assert multiply_adds + 2048 * 1000 == 4089184256


def test_columns_of_the_report_stand_below_each_other_whatever_the_names(tmp_path):
    names = "a", "厨余垃圾和其他很长的名字", "b" * 60
    lines = make_run(tmp_path, [0, 1, 2], False, names)[2].split("\n")
    first = next(i for i, line in enumerate(lines) if "recall" in line)
    assert len({width(line) for line in lines[first + 1:first + 4]}) == 1
