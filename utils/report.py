"""The out-of-fold report: every picture judged once, by the student that never saw it.

    python main.py --sample        # writes report.txt, report.json, out_of_fold.csv, mistakes.csv and plots

Of every student there are two sets of answers. "Best epoch" is what its weights file gives: the epoch was chosen on
the fold's own part, which flatters the score. "Cross-fitted" is the same student at the epoch that the other folds
chose: the honest score, and the headline.
"""
import os
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import average_precision_score, classification_report, confusion_matrix, roc_auc_score

from utils.checkpoint import write_json
from utils.plots import contact_sheet, plot_confidence, plot_confusion, plot_curves, plot_text
from utils.settings import Settings
from utils.statistics import (calibrate, compare, coverage, cross_fitted_epochs, needed_confidence, reliability, score,
                              wilson)
from utils.tables import padded, printable, width, write_csv

# Who answers, and the prefix of its columns in out_of_fold.csv
PREFIXES = {"student": "", "student_cross_fitted": "crossfit_", "teacher": "teacher_", "control": "control_",
            "control_cross_fitted": "control_crossfit_"}
TITLES = {"student_cross_fitted": "student, cross-fitted", "teacher": "teacher",
          "control_cross_fitted": "control, cross-fitted", "student": "student, best epoch (optimistic)",
          "control": "control, best epoch (optimistic)"}
TARGETS = (0.95, 0.98, 0.99)  # of being right, in the table of confidences to ask for
SHEET, WIDE = 25, 20  # pictures in mistakes.png; categories that a confusion matrix in text has room for


@dataclass
class Answers:
    """The out-of-fold answers of one kind of network, rows in the order of the folds' pictures."""
    epochs: list               # of each fold, from 1; empty for the teacher
    temperatures: list         # of each fold
    raw: np.ndarray            # [N, C] softmax(logits)
    probabilities: np.ndarray  # [N, C] softmax(logits / temperature of the fold)


def all_answers(folds, controls, teacher_probabilities, labels):
    """{name: Answers} for the names in PREFIXES that there are; cross-fitted ones need two folds.

    controls: twins of the folds without a teacher, in the same order, or []; teacher_probabilities: float [N, C], row i
    from the head that never saw picture i; labels: int [N].
    """
    found = {}
    for name, group in (("student", folds), ("control", controls)):
        if group:
            epochs = {name: [f.best_epoch for f in group]}
            if len(group) > 1:
                scores = [[h["val_accuracy"] for h in f.history] for f in group]
                epochs[f"{name}_cross_fitted"] = cross_fitted_epochs(scores)
            found.update({key: (e, [f.probabilities[i - 1] for f, i in zip(group, e)]) for key, e in epochs.items()})
    found["teacher"] = [], [teacher_probabilities[f.pictures] for f in folds]
    answers = {}
    for name in PREFIXES:
        if name in found:
            epochs, raw = found[name]
            temperatures, calibrated = calibrate(raw, [labels[f.pictures] for f in folds])
            answers[name] = Answers(epochs, temperatures, *map(np.concatenate, (raw, calibrated)))
    return answers


def build_report(folds, answers, pictures, parts, groups, networks=None):
    """All figures of a run as one JSON-able dict.

    answers: all_answers of the folds; parts, groups: int [N], of all pictures; networks: {"student": ..., "teacher": ...},
    what utils.cost.cost found.
    """
    rows = np.concatenate([f.pictures for f in folds])
    groups = groups[rows]
    labels, names = pictures.labels[rows], pictures.categories
    student = "student_cross_fitted" if len(folds) > 1 else "student"
    control, headline = student.replace("student", "control"), answers[student]
    guess = {name: a.probabilities.argmax(1) for name, a in answers.items()}
    categories, averages = _categories(headline.probabilities, labels, names, groups)
    report = {
        "headline": student,
        "out_of_fold": {"pictures": len(rows), "of": len(parts), "groups": len(np.unique(groups)),
                        **{name: score(a.probabilities, labels, a.raw, groups) for name, a in answers.items()}},
        "agreement_with_teacher": float((guess[student] == guess["teacher"]).mean()),
        "folds": _folds(folds, answers, labels, groups, student, control),
        "categories": categories, "averages": averages,
        "confusion_matrix": confusion_matrix(labels, guess[student], labels=np.arange(len(names))).tolist(),
        "category_names": names,
        "settings": dict(vars(folds[0].settings)),
        "reliability": {when: dict(zip(("pictures", "right", "sum_of_confidence"),
                                       (v.tolist() for v in reliability(p, labels))))
                        for when, p in (("raw", headline.raw), ("calibrated", headline.probabilities))},
        "coverage": coverage(headline.probabilities, labels, groups),
        "needed_confidence": {str(t): needed_confidence(headline.probabilities, labels, t, groups) for t in TARGETS},
        "worst_mistakes": _mistakes(headline, labels, rows, pictures)[:SHEET],
    }
    report["over_folds"] = {}
    for key in report["folds"][0]:
        if key.endswith(("accuracy", "f1", "error", "difference_to_control")):
            values = [f[key] for f in report["folds"]]
            std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            report["over_folds"][key] = {"mean": float(np.mean(values)), "std": std}
    if control in answers:
        report["student_against_control"] = compare(labels, guess[student], guess[control], groups)
    if networks:
        report["networks"] = networks
    return report


def _folds(folds, answers, labels, groups, student, control):
    """One dict of figures per fold; those of its weights file have no prefix. student, control: who is compared."""
    ends = np.cumsum([len(f.pictures) for f in folds])
    table = []
    for k, (f, end) in enumerate(zip(folds, ends)):
        mine = slice(end - len(f.pictures), end)
        figures = {name: score(a.probabilities[mine], labels[mine], groups=groups[mine]) for name, a in answers.items()}
        row = {"fold": f.index, "best_epoch": f.best_epoch, "epochs": len(f.history),
               "temperature": answers["student"].temperatures[k], **figures["student"]}
        if "student_cross_fitted" in answers:
            row["cross_fitted_epoch"] = answers["student_cross_fitted"].epochs[k]
        row |= {f"{name.removeprefix('student_')}_accuracy": v["accuracy"]
                for name, v in figures.items() if name != "student"}
        if control in answers:
            row["difference_to_control"] = figures[student]["accuracy"] - figures[control]["accuracy"]
        table.append(row)
    return table


def _categories(probabilities, labels, names, groups):
    """Precision and recall of each category with their 95 % intervals, F1, and the area under both curves; averages."""
    guess = probabilities.argmax(1)
    # By number, not by name: a category may be called "accuracy"
    table = classification_report(labels, guess, labels=np.arange(len(names)), output_dict=True, zero_division=0)
    categories = {}
    for i, name in enumerate(names):
        predicted, true = guess == i, labels == i
        both_kinds = true.any() and not true.all()  # a curve needs pictures of the category, and others
        categories[name] = {
            **table[str(i)], "precision_interval": wilson(true[predicted], groups[predicted]),
            "recall_interval": wilson(predicted[true], groups[true]),
            "average_precision": float(average_precision_score(true, probabilities[:, i])) if both_kinds else None,
            "roc_auc": float(roc_auc_score(true, probabilities[:, i])) if both_kinds else None}
    return categories, {name: table[name] for name in ("macro avg", "weighted avg")}


def _mistakes(answers, labels, rows, pictures):
    """Every picture whose answer is wrong, the surest first: list of dicts."""
    confidence, guess = answers.probabilities.max(1), answers.probabilities.argmax(1)
    wrong = np.flatnonzero(guess != labels)
    return [{"path": pictures.paths[rows[i]], "label": pictures.categories[labels[i]],
             "prediction": pictures.categories[guess[i]], "confidence": float(confidence[i])}
            for i in wrong[np.argsort(-confidence[wrong], kind="stable")]]


def report_text(report):
    """The report for people: plain text, the most important first."""
    oof, names, folds = report["out_of_fold"], report["category_names"], report["folds"]
    best, teacher = oof[report["headline"]], oof["teacher"]
    lines = [f"Out of fold: {oof['pictures']} of {oof['of']} pictures, each judged once, by a student that never "
             "saw it.", *(f"note: {f}" for f in report.get("failed", [])),
             *([f"They are {oof['groups']} groups (copies, --groups): intervals and p count what a group proves, not its "
                "pictures."] if oof["groups"] < oof["pictures"] else []), "",
             f"{'':34}accuracy (95 % interval)  macro F1  calibration error, raw"]
    for name in TITLES:
        if name in oof:
            f, (low, high) = oof[name], oof[name]["accuracy_interval"]
            lines.append(f"{TITLES[name]:34}{f['accuracy']:8.4f}  {low:.3f} to {high:.3f}{f['macro_f1']:10.4f}"
                         f"{f['calibration_error']:19.4f}{f['calibration_error_raw']:7.4f}")
    lines.append("Best epoch: each fold's epoch was chosen on the very pictures that judge it. " + (
        "Cross-fitted: the other folds chose it." if len(folds) > 1 else
        "A cross-fitted score needs two folds: there is none."))
    lines.append(f"Student and teacher agree on {report['agreement_with_teacher']:.1%} of the pictures.")
    control = oof.get(report["headline"].replace("student", "control"), best)
    if control["accuracy"] < best["accuracy"] > teacher["accuracy"]:
        lines.append(f"The teacher is weaker than its student, but so is the control without one: {control['accuracy']:.4f}.")
    elif teacher["accuracy"] < best["accuracy"]:
        s = Settings(**report["settings"])
        less = [how for how, heard in (("--alpha 1", s.alpha < 1), ("a smaller --feature_weight", s.learns_features))
                if heard]
        if less:
            lines += [f"note: the teacher ({teacher['accuracy']:.4f}) is weaker than its student ({best['accuracy']:.4f}) and "
                      "may hold it back. Take better",
                      f"      --teacher_weights or more pictures for its heads, or give it less weight: {', '.join(less)}."
                      + ("" if "control" in oof else "\n      --control shows whether it helps.")]
    lines += _control_text(report) + _networks_text(report)

    margin = min(40, max(12, *(width(printable(n)) for n in names)))
    lines += ["", f"{'':{margin}}  precision (95 % interval)     recall (95 % interval)     F1  pictures"]
    for name, c in report["categories"].items():
        (a, b), (d, e) = c["precision_interval"], c["recall_interval"]
        lines.append(f"{padded(name, margin)}{c['precision']:11.3f} ({a:.3f} to {b:.3f})"
                     f"{c['recall']:11.3f} ({d:.3f} to {e:.3f}){c['f1-score']:7.3f}{c['support']:10.0f}")
    for name, c in report["averages"].items():
        lines.append(f"{name:{margin}}{c['precision']:11.3f}{'':17}{c['recall']:11.3f}{'':17}{c['f1-score']:7.3f}"
                     f"{c['support']:10.0f}")
    if len(names) <= WIDE:
        lines += ["", "Confusion matrix (rows: true category, columns: predicted)",
                  " " * margin + "".join(" " + padded(n, 9, right=True) for n in names)]
        lines += [padded(n, margin) + "".join(f"{v:10}" for v in row) for n, row in zip(names, report["confusion_matrix"])]
    else:
        lines += ["", f"Confusion matrix: of more than {WIDE} categories in report.json"]

    columns = [(title, key) for title, key in (
        ("cross-fitted", "cross_fitted_accuracy"), ("teacher", "teacher_accuracy"),
        ("control", "control_cross_fitted_accuracy" if len(folds) > 1 else "control_accuracy"),
        ("best epoch", "accuracy")) if key in folds[0]]
    lines += ["", "Accuracy of each fold" + "".join(f"{title:>14}" for title, _ in columns)
              + "  at epoch  temperature"]
    for f in folds:
        lines.append(f"{f['fold']:<21}" + "".join(f"{f[key]:14.3f}" for _, key in columns)
                     + f"{f['best_epoch']:5} of {f['epochs']:<3}{f['temperature']:12.3f}")
    for label, key in (("mean", "mean"), ("deviation", "std")):
        lines.append(f"{label:21}" + "".join(f"{report['over_folds'][k][key]:14.3f}" for _, k in columns))

    lines += ["", "To be right on   ask for a confidence of   are answered     of these are right (95 % interval)"]
    for target, v in report["needed_confidence"].items():
        lines.append(f"{float(target):<17.0%}" + (
            "cannot be reached on these pictures" if v is None else
            f"{v['min_confidence']:<26.3f}{v['answered']:6.1%}{v['pictures']:>8}    "
            "{:.1%} ({:.1%} to {:.1%})".format(v["accuracy"], *v["accuracy_interval"])))
    lines.append("(python inference.py --min_confidence, with one weights file; several together are right more often\n"
                 "than they say: benchmarks/ensemble_calibration.py)")
    return "\n".join(lines) + "\n"


def _control_text(report):
    if "student_against_control" not in report:
        return []
    c = report["student_against_control"]
    (low, high), removed = c["difference_interval"], c["errors_removed"]
    return ["", "Student against control (the same student, trained without a teacher), picture by picture:",
            f"  errors: student {c['errors']}, control {c['other_errors']}" + (
                "" if removed is None else f"; {removed:.1%} of them removed (95 % interval "
                "{:.1%} to {:.1%})".format(*c["errors_removed_interval"])),
            f"  accuracy {c['difference']:+.4f} (95 % interval {low:+.4f} to {high:+.4f}); fold by fold "
            + " ".join(f"{f['difference_to_control']:+.3f}" for f in report["folds"]),
            f"  {c['gained']} pictures gained, {c['lost']} lost"
            + (f" (groups: {c['better']}, {c['worse']})" if (c["better"], c["worse"]) != (c["gained"], c["lost"]) else "")
            + f": exact McNemar p = {c['mcnemar_p']:.3g}"]


def _networks_text(report):
    lines = ["", "Network    parameters   multiply-adds   ms per picture: alone, in a batch of 16"]
    for name, n in report.get("networks", {}).items():
        lines.append(f"{name:9}{n['parameters'] / 1e6:10.2f} M{n['multiply_adds'] / 1e6:14.1f} M{n['ms_alone']:23.2f}"
                     f"{n['ms_in_batch_of_16']:18.2f}")
    return lines if "networks" in report else []


def write_report(folder, report, folds, answers, pictures, groups):
    """Write report.txt, report.json, out_of_fold.csv, mistakes.csv and the plots; returns the text."""
    text = report_text(report)
    with open(os.path.join(folder, "report.txt"), "w", encoding="utf-8", errors="backslashreplace") as f:
        f.write(text)
    write_json(os.path.join(folder, "report.json"), report)
    rows, names = np.concatenate([f.pictures for f in folds]), pictures.categories
    labels = pictures.labels[rows]
    of_fold = np.repeat(np.arange(len(folds)), [len(f.pictures) for f in folds])
    header = ["path", "label", "fold", "group"]
    header += [f"{PREFIXES[name]}prediction" for name in answers]
    header += [f"{PREFIXES[name]}temperature" for name in answers]
    header += [f"{PREFIXES[name]}p_{c}" for name in answers for c in names]
    table = ([pictures.paths[row], names[labels[i]], folds[of_fold[i]].index, groups[row],  # one at a time: it may be large
              *(names[a.probabilities[i].argmax()] for a in answers.values()),
              *(f"{a.temperatures[of_fold[i]]:.9g}" for a in answers.values()),
              *(f"{v:.9g}" for a in answers.values() for v in a.probabilities[i])] for i, row in enumerate(rows))
    mistakes = _mistakes(answers[report["headline"]], labels, rows, pictures)
    write_csv(os.path.join(folder, "out_of_fold.csv"), header, table)
    write_csv(os.path.join(folder, "mistakes.csv"), ("path", "label", "prediction", "confidence"),
              [m.values() for m in mistakes])
    plot_text(text, os.path.join(folder, "report.png"))
    plot_confusion(report, os.path.join(folder, "confusion_matrix.png"))
    plot_confidence(report, os.path.join(folder, "confidence.png"))
    plot_curves(folds, report, os.path.join(folder, "curves.png"))
    if mistakes:
        number = {path: i for i, path in enumerate(pictures.paths)}
        squares = [pictures.square(number[m["path"]]) for m in report["worst_mistakes"]]
        titles = [f"{m['label']} → {m['prediction']}\n{m['confidence']:.3f}  {m['path']}" for m in report["worst_mistakes"]]
        contact_sheet(squares, titles, os.path.join(folder, "mistakes.png"))
    return text
