"""The out-of-fold report: every image is predicted once, by the student that was not trained on it.

    write_results(folder, students, ...)                # a finished training: its predictions
    report = make_report(folder)                        # the rest, from the files of the run

Every student is scored at two epochs. "Best epoch" is the one of its weights file: the epoch that
is best on its own fold (TrainState.selected_by), which makes that score optimistic. "Cross-fitted"
is the same student at the epoch that the other folds chose: the honest score, and the headline.
"""
import os
from dataclasses import dataclass, replace

import numpy as np
from sklearn import metrics

from utils.errors import InputError
from utils.files import read_json, write_json
from utils.report import plots, statistics
from utils.report.notes import student_notes, teacher_notes
from utils.report.page import write_page
from utils.report.statistics import score, wilson
from utils.report.text import report_text
from utils.settings import Settings
from utils.tables import csv_rows, read_csv, write_csv

# Who predicts, and the prefix of its columns in out_of_fold.csv
PREFIXES = {"student": "", "student_cross_fitted": "crossfit_", "teacher": "teacher_",
            "control": "control_", "control_cross_fitted": "control_crossfit_"}
TARGETS = (0.95, 0.98, 0.99)  # accuracies for which the report gives the needed confidence
MAX_MISTAKES = 25  # in mistakes.png


def write_results(folder, trained, teacher_probs, images, groups, networks=None, notes=()):
    """Write out_of_fold.csv and results.json, from which make_report makes the report.

    trained: TrainStates of the folds, their controls and the final model; teacher_probs: float
    [N, C], row i from the head that was not fitted on image i; groups: int [N]; networks: of
    costs(); notes: lines for the report. Raises InputError if no student finished an epoch.
    """
    students, controls, failed = completed(trained)
    final = next((s for s in trained if s.is_final and s.history), None)
    labels = [images.labels[s.images] for s in students]
    epochs, raw = {}, {"teacher": [teacher_probs[s.images] for s in students]}
    for name, group in (("student", students), ("control", controls)):
        epochs[name] = [s.best_epoch for s in group]
        if len(group) > 1:
            epochs[f"{name}_cross_fitted"] = statistics.cross_fitted_epochs(
                *zip(*(s.curves for s in group)))
        raw |= {key: [s.probabilities[e - 1] for s, e in zip(group, epochs[key])]
                for key in (name, f"{name}_cross_fitted") if epochs.get(key)}
    names = [name for name in PREFIXES if name in raw]
    scaled_by = {name: statistics.calibrate(raw[name], labels) for name in names}

    def rows():
        for k, s in enumerate(students):
            temperatures = [f"{scaled_by[name][0][k]:.9g}" for name in names]
            for i, image in enumerate(s.images):
                probabilities = [scaled_by[name][1][k][i] for name in names]
                yield [images.paths[image], images.categories[images.labels[image]], s.fold,
                       groups[image], *(images.categories[p.argmax()] for p in probabilities),
                       *temperatures, *(f"{v:.9g}" for p in probabilities for v in p)]
    prefixes = [PREFIXES[name] for name in names]
    header = ["path", "label", "fold", "group", *(f"{p}prediction" for p in prefixes),
              *(f"{p}temperature" for p in prefixes),
              *(f"{p}p_{c}" for p in prefixes for c in images.categories)]
    write_csv(os.path.join(folder, "out_of_fold.csv"), header, rows())

    def facts(name, group):
        found = [{"name": s.name, "fold": s.fold, "best_epoch": s.best_epoch,
                  "epochs": len(s.history), "temperature": t}
                 for s, t in zip(group, scaled_by[name][0] if group else ())]
        for entry, epoch in zip(found, epochs.get(f"{name}_cross_fitted", ())):
            entry["cross_fitted_epoch"] = epoch
        return found
    if final:  # no image is left to fit its temperature: that of all folds' predictions
        best = "student_cross_fitted" if "student_cross_fitted" in raw else "student"
        final = {"best_epoch": final.best_epoch, "epochs": len(final.history),
                 "temperature": statistics.fit_temperature(*map(np.concatenate,
                                                                (raw[best], labels)))}
    write_json(os.path.join(folder, "results.json"), {
        "run": os.path.basename(os.path.abspath(folder)),  # it may be renamed later
        "students": facts("student", students), "controls": facts("control", controls),
        "final": final, "failed": failed, "networks": networks, "notes": list(notes)})


def completed(trained):
    """What the report covers: (students with a finished epoch, their controls or [], a line for
    each that failed).

    Controls are compared only if they and their students all reached their end: a network that
    stopped early loses to any other, which would say nothing about the teacher.
    """
    failed = [f"{s.name} stopped at {s.failed}" for s in trained if s.failed]
    students = [s for s in trained if s.is_fold and s.history]
    if not students:
        raise InputError("; ".join(failed))
    folds, controls = [s.fold for s in students], [s for s in trained if s.is_control]
    own = [c for c in controls if c.history and c.fold in folds]
    if controls and (len(own) < len(students) or any(s.failed for s in students + own)):
        return students, [], failed + ["students and controls are not compared, since one of them "
                                       "failed"]
    return students, own, failed


@dataclass
class Predictions:
    """out_of_fold.csv: one row per image."""
    paths: list
    labels: np.ndarray   # int64 [N]
    folds: np.ndarray    # int64 [N]
    groups: np.ndarray   # int64 [N]
    probabilities: dict  # {name of PREFIXES: float32 [N, C]}, calibrated
    raw: dict            # likewise, before calibration


def read_predictions(folder, categories):
    """Read out_of_fold.csv. Raises OSError, ValueError or KeyError if it cannot be used."""
    rows = csv_rows(os.path.join(folder, "out_of_fold.csv"))
    header = next(rows, [])
    names = [name for name, prefix in PREFIXES.items() if f"{prefix}prediction" in header]
    first = 4 + len(names)  # the first temperature
    number = {c: i for i, c in enumerate(categories)}
    paths, facts, values = [], [], []
    for row in rows:
        paths.append(row[0])
        facts.append((number[row[1]], int(row[2]), int(row[3])))
        values.append(np.array(row[first:], np.float32))
    if not paths:
        raise ValueError("out_of_fold.csv has no rows")
    labels, folds, groups = np.array(facts, np.int64).T
    values = np.stack(values)
    temperatures = values[:, :len(names)]
    probabilities = dict(zip(names, np.split(values[:, len(names):], len(names), axis=1)))
    raw = {name: statistics.scaled(p, 1 / temperatures[:, [i]])
           for i, (name, p) in enumerate(probabilities.items())}
    return Predictions(paths, labels, folds, groups, probabilities, raw)


def make_report(folder):
    """Make the report of a finished run from its files, and return its figures as a dict.

    Writes report.json, .txt, .png and .html, mistakes.csv and the plots into the folder. Raises
    InputError if it is not the folder of a finished run.
    """
    def path(name):
        return os.path.join(folder, name)
    try:
        saved = read_json(path("settings.json"))
        versions = saved.pop("versions", {})
        settings = Settings(**saved)
        results = read_json(path("results.json"))
        total = sum(1 for _ in csv_rows(path("folds.csv"))) - 1
        history = {}
        for row in read_csv(path("scalars.csv")):
            history.setdefault(row.pop("fold"), []).append({k: float(v) for k, v in row.items()})
        predictions = read_predictions(folder, settings.categories)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"{folder} has no finished run of this version in it ({e}); name one such "
                         "as logs/20260101-120000") from e
    report = build_report(predictions, results, settings, total)
    notes = [*results["notes"],
             *student_notes(predictions, report["headline"], settings, history),
             *teacher_notes(report, settings)]
    report |= {"run": results["run"], "versions": versions, "failed": results["failed"],
               "notes": notes}
    text = report_text(report)
    write_json(path("report.json"), report)
    with open(path("report.txt"), "w", encoding="utf-8", errors="backslashreplace") as f:
        f.write(text)
    mistakes = list_mistakes(predictions, report["headline"], settings.categories)
    write_csv(path("mistakes.csv"), ("path", "label", "prediction", "confidence"),
              [m.values() for m in mistakes])
    plots.plot_text(text, path("report.png"))
    plots.plot_confusion(report, path("confusion_matrix.png"))
    plots.plot_confidence(report, path("confidence.png"))
    students = results["students"]
    plots.plot_curves([history[s["name"]] for s in students], [s["best_epoch"] for s in students],
                      report["out_of_fold"]["teacher"]["accuracy"], path("curves.png"))
    settings = found_from(folder, settings)
    plots.draw_mistakes(mistakes[:MAX_MISTAKES], settings, path("mistakes.png"))
    write_page(folder, text, report, predictions, settings)
    return report


def found_from(folder, settings):
    """The settings with relative paths of data_dir and save_dir resolved from a run's folder.

    main.py was started in the folder that holds log_dir, unless log_dir is an absolute path. A path
    that is not found there stays as it is.
    """
    parent = os.path.dirname(os.path.abspath(folder))
    home = parent.removesuffix(os.sep + os.path.normpath(settings.log_dir))
    paths = {name: os.path.join(home, getattr(settings, name)) for name in ("data_dir", "save_dir")}
    return replace(settings, **{name: p for name, p in paths.items()
                                if home != parent and os.path.isdir(p)})


def build_report(predictions, results, settings, total):
    """All figures of a run as one JSON-able dict. total: images of the run, with those of folds
    that were not trained; results: the content of results.json."""
    p, students = predictions, results["students"]
    names, headline = list(settings.categories), "student"
    if len(students) > 1:
        headline = "student_cross_fitted"
    control = headline.replace("student", "control")
    predicted = {name: values.argmax(1) for name, values in p.probabilities.items()}
    best, raw = p.probabilities[headline], p.raw[headline]
    categories, averages = score_categories(best, p.labels, names, p.groups)
    folds = [score_fold(s, p, headline, control) for s in students]
    report = {
        "headline": headline,
        "out_of_fold": {"images": len(p.labels), "of": total, "groups": len(np.unique(p.groups)),
                        **{name: score(values, p.labels, p.raw[name], p.groups)
                           for name, values in p.probabilities.items()}},
        "largest_category": largest_category(p.labels, names),
        "never_predicted": [name for i, name in enumerate(names)
                            if not (predicted[headline] == i).any()],
        "agreement_with_teacher": float((predicted[headline] == predicted["teacher"]).mean()),
        "folds": folds, "over_folds": {},
        "categories": categories, "averages": averages,
        "confusion_matrix": metrics.confusion_matrix(p.labels, predicted[headline],
                                                     labels=np.arange(len(names))).tolist(),
        "category_names": names, "settings": vars(settings),
        "reliability": {when: dict(zip(("images", "correct", "sum_of_confidence"),
                                       (v.tolist() for v
                                        in statistics.reliability(values, p.labels))))
                        for when, values in (("raw", raw), ("calibrated", best))},
        "coverage": statistics.coverage(best, p.labels, p.groups),
        "needed_confidence": {str(t): statistics.needed_confidence(best, p.labels, t, p.groups)
                              for t in TARGETS},
        "worst_mistakes": list_mistakes(p, headline, names)[:MAX_MISTAKES]}
    for key in folds[0]:
        if key.endswith(("accuracy", "f1", "error", "difference_to_control")):
            values = [f[key] for f in folds]
            std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            report["over_folds"][key] = {"mean": float(np.mean(values)), "std": std}
    if control in predicted:
        report["student_against_control"] = statistics.compare(
            p.labels, predicted[headline], predicted[control], p.groups)
    if results["networks"]:
        report["networks"] = results["networks"]
    if results.get("final"):
        f = report["out_of_fold"][headline]
        report["final_model"] = {**results["final"], "expected_accuracy": f["accuracy"],
                                 "expected_interval": f["accuracy_interval"]}
    return report


def largest_category(labels, names):
    """What predicting the largest category for every image gives, as a dict."""
    counts = np.bincount(labels)
    return {"name": names[counts.argmax()], "accuracy": float(counts.max() / counts.sum()),
            "balanced_accuracy": float(1 / (counts > 0).sum())}


def score_fold(student, predictions, headline, control):
    """The figures of one fold as a dict; without a prefix those of its weights file."""
    p, rows = predictions, predictions.folds == student["fold"]
    figures = {name: score(values[rows], p.labels[rows], groups=p.groups[rows])
               for name, values in p.probabilities.items()}
    row = {k: student[k] for k in ("fold", "best_epoch", "epochs", "temperature")}
    row |= figures["student"]
    if "cross_fitted_epoch" in student:
        row["cross_fitted_epoch"] = student["cross_fitted_epoch"]
    row |= {f"{name.removeprefix('student_')}_accuracy": f["accuracy"]
            for name, f in figures.items() if name != "student"}
    if control in figures:
        row["difference_to_control"] = (figures[headline]["accuracy"]
                                        - figures[control]["accuracy"])
    return row


def score_categories(probabilities, labels, names, groups):
    """({category: precision, recall, their intervals, F1, areas under both curves}, averages)."""
    predicted = probabilities.argmax(1)
    # By number, not by name: a category may be called "accuracy"
    table = metrics.classification_report(labels, predicted, labels=np.arange(len(names)),
                                          output_dict=True, zero_division=0)
    categories = {}
    for i, name in enumerate(names):
        said, true, p = predicted == i, labels == i, probabilities[:, i]
        areas = {"average_precision": None, "roc_auc": None}
        if true.any() and not true.all():  # a curve needs both kinds of images
            areas = {"average_precision": float(metrics.average_precision_score(true, p)),
                     "roc_auc": float(metrics.roc_auc_score(true, p))}
        categories[name] = {
            **table[str(i)], "precision_interval": wilson(true[said], groups[said]),
            "recall_interval": wilson(said[true], groups[true]), **areas}
    return categories, {name: table[name] for name in ("macro avg", "weighted avg")}


def list_mistakes(predictions, name, categories):
    """The wrong predictions of `name`, the most confident first: list of dicts."""
    p = predictions.probabilities[name]
    confidence, predicted = p.max(1), p.argmax(1)
    wrong = np.flatnonzero(predicted != predictions.labels)
    return [{"path": predictions.paths[i], "label": categories[predictions.labels[i]],
             "prediction": categories[predicted[i]], "confidence": float(confidence[i])}
            for i in wrong[np.argsort(-confidence[wrong], kind="stable")]]
