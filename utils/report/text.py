"""report.txt: the figures of a run as plain text, the most important first."""
from utils.tables import listed, padded, printable, width

TITLES = {"student_cross_fitted": "student, cross-fitted", "teacher": "teacher",
          "control_cross_fitted": "control, cross-fitted",
          "student": "student, best epoch (optimistic)",
          "control": "control, best epoch (optimistic)"}
MAX_COLUMNS = 20  # of a confusion matrix in text


def report_text(report):
    """The text of a report of build_report."""
    sections = [headline(report), against_control(report), networks(report), categories(report),
                confusion(report), folds(report), confidence(report)]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def summary(report):
    """The headline with its baseline, and the notes: the lines that nobody should miss."""
    oof, largest = report["out_of_fold"], report["largest_category"]
    best, title = oof[report["headline"]], TITLES[report["headline"]].replace(" (optimistic)", "")
    lines = [f"{title[0].upper()}{title[1:]}: accuracy {best['accuracy']:.4f}, balanced accuracy "
             f"{best['balanced_accuracy']:.4f} (every category counts the same).",
             f"Predicting the largest category ({printable(largest['name'])}) for every image "
             f"gives {largest['accuracy']:.4f} and {largest['balanced_accuracy']:.4f}."]
    if report["never_predicted"]:
        lines.append(f"note: never predicted: {listed(report['never_predicted'])}; add images of "
                     "these categories, or train longer (--num_epochs)")
    return lines + [f"note: {n}" for n in report.get("failed", []) + report.get("notes", [])]


def headline(report):
    """How good the students are, and a table of what to compare them with: lines of text."""
    oof = report["out_of_fold"]
    lines = [f"Out of fold: {oof['images']} of {oof['of']} images, each predicted once, by the "
             "student that was not trained on it.", *summary(report)]
    if oof["groups"] < oof["images"]:
        lines.append(f"They form {oof['groups']} groups (duplicates, --groups), each of which "
                     "counts once in intervals and p-values.")
    lines += ["", f"{'':34}accuracy (95 % interval)  macro F1  calibration error (before scaling)"]
    for name, title in TITLES.items():
        if name in oof:
            f, (low, high) = oof[name], oof[name]["accuracy_interval"]
            lines.append(f"{title:34}{f['accuracy']:8.4f}  {low:.3f} to {high:.3f}"
                         f"{f['macro_f1']:10.4f}{f['calibration_error']:19.4f} "
                         f"({f['calibration_error_raw']:.4f})")
    lines.append("Best epoch: chosen on the images that it is scored on. " + (
        "Cross-fitted: chosen on the other folds." if len(report["folds"]) > 1 else
        "A cross-fitted score needs at least two folds."))
    lines.append(f"Student and teacher agree on {report['agreement_with_teacher']:.1%} of the "
                 "images.")
    return lines


def against_control(report):
    """Student against control, image by image: lines of text, none without controls."""
    c = report.get("student_against_control")
    if not c:
        return []
    removed, (low, high) = "", c["difference_interval"]
    if c["errors_removed"] is not None:
        removed = "; {:.1%} of the control's removed (95 % interval {:.1%} to {:.1%})".format(
            c["errors_removed"], *c["errors_removed_interval"])
    groups = ""
    if (c["better"], c["worse"]) != (c["gained"], c["lost"]):
        groups = f" (groups: {c['better']}, {c['worse']})"
    by_fold = " ".join(f"{f['difference_to_control']:+.3f}" for f in report["folds"])
    return ["Student against control (the same student, trained without the teacher), on the same "
            "images:",
            f"  errors: student {c['errors']}, control {c['other_errors']}{removed}",
            f"  accuracy {c['difference']:+.4f} (95 % interval {low:+.4f} to {high:+.4f}); by fold "
            + by_fold,
            f"  {c['gained']} images gained, {c['lost']} lost{groups}: exact McNemar test, "
            f"p = {c['mcnemar_p']:.3g}"]


def networks(report):
    """What student and teacher cost: lines of text, none if it was not measured."""
    if "networks" not in report:
        return []
    lines = ["Network    parameters   multiply-adds   ms per image: alone, in a batch of 16"]
    for name, n in report["networks"].items():
        lines.append(f"{name:9}{n['parameters'] / 1e6:10.2f} M{n['multiply_adds'] / 1e6:14.1f} M"
                     f"{n['ms_alone']:21.2f}{n['ms_in_batch_of_16']:18.2f}")
    return lines


def name_width(report):
    """The width of a column of categories, in characters."""
    return min(40, max(12, *(width(printable(n)) for n in report["category_names"])))


def categories(report):
    """Precision, recall and F1 of each category: lines of text."""
    margin = name_width(report)
    lines = [" " * margin
             + "  precision (95 % interval)     recall (95 % interval)     F1    images"]
    for name, c in report["categories"].items():
        (a, b), (d, e) = c["precision_interval"], c["recall_interval"]
        lines.append(f"{padded(name, margin)}{c['precision']:11.3f} ({a:.3f} to {b:.3f})"
                     f"{c['recall']:11.3f} ({d:.3f} to {e:.3f}){c['f1-score']:7.3f}"
                     f"{c['support']:10.0f}")
    for name, c in report["averages"].items():
        lines.append(f"{name:{margin}}{c['precision']:11.3f}{'':17}{c['recall']:11.3f}{'':17}"
                     f"{c['f1-score']:7.3f}{c['support']:10.0f}")
    return lines


def confusion(report):
    """The confusion matrix as lines of text, unless it has too many columns."""
    names, margin = report["category_names"], name_width(report)
    if len(names) > MAX_COLUMNS:
        return [f"The confusion matrix has more than {MAX_COLUMNS} categories: see report.json."]
    lines = ["Confusion matrix (rows: true category, columns: predicted)",
             " " * margin + "".join(" " + padded(n, 9, right=True) for n in names)]
    return lines + [padded(name, margin) + "".join(f"{v:10}" for v in row)
                    for name, row in zip(names, report["confusion_matrix"])]


def folds(report):
    """The accuracies of each fold, and what is known of the final model: lines of text."""
    rows = report["folds"]
    columns = {"cross-fitted": "cross_fitted_accuracy", "teacher": "teacher_accuracy",
               "control": report["headline"].replace("student", "control") + "_accuracy",
               "best epoch": "accuracy"}
    columns = {title: key for title, key in columns.items() if key in rows[0]}
    lines = ["Accuracy by fold     " + "".join(f"{title:>14}" for title in columns)
             + "  at epoch  temperature"]
    for f in rows:
        lines.append(f"{f['fold']:<21}" + "".join(f"{f[key]:14.3f}" for key in columns.values())
                     + f"{f['best_epoch']:5} of {f['epochs']:<3}{f['temperature']:12.3f}")
    for title, key in (("mean", "mean"), ("std. deviation", "std")):
        values = (report["over_folds"][column][key] for column in columns.values())
        lines.append(f"{title:21}" + "".join(f"{v:14.3f}" for v in values))
    final = report.get("final_model")
    if final:
        lines += ["Final model: it learned from all images, so nothing here scores it; expect the "
                  f"accuracy of the students, {final['expected_accuracy']:.4f}.",
                  f"Its epoch, {final['best_epoch']} of {final['epochs']}, has the best mean "
                  f"validation of the folds; temperature {final['temperature']:.3f}."]
    return lines


def confidence(report):
    """Which minimum confidence gives which accuracy: lines of text."""
    lines = ["Accuracy wanted   minimum confidence   images answered   "
             "accuracy reached (95 % interval)"]
    for target, v in report["needed_confidence"].items():
        found = "not reached on these images" if v is None else (
            f"{v['min_confidence']:<21.3f}{v['answered']:6.1%}{v['images']:>9}   "
            "{:.1%} ({:.1%} to {:.1%})".format(v["accuracy"], *v["accuracy_interval"]))
        lines.append(f"{float(target):<18.0%}{found}")
    return lines + ["(For python inference.py --min_confidence with one weights file. Several "
                    "together are more accurate",
                    "than their confidence says: benchmarks/ensemble_calibration.py.)"]
