"""The out-of-fold report: every picture judged once, by the student that never saw it.

    python main.py --sample        # writes report.txt, report.json, out_of_fold.csv and plots to logs/<run>/
"""
import csv
import json
import os
import sys

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure  # not pyplot: it opens windows, and fails where the screen goes away
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, f1_score

from utils.data_utils import read_picture

# Category names may be Chinese; name only fonts that are here, or matplotlib warns about the others.
_INSTALLED = {f.name for f in font_manager.fontManager.ttflist}
matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a $
matplotlib.rcParams["font.family"] = ["DejaVu Sans"] + [
    n for n in ("Microsoft YaHei", "SimHei", "PingFang SC", "Noto Sans CJK SC", "Noto Sans CJK JP",
                "WenQuanYi Micro Hei") if n in _INSTALLED]


def calibration_error(probabilities, labels, bins=15):
    """Expected calibration error (Guo et al. 2017): mean gap between confidence and accuracy over equal-width bins of
    confidence, weighted by their pictures. probabilities: [N, C]; labels: [N]. 0 is perfect, 1 the worst."""
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(bin_of, right, bins) - np.bincount(bin_of, confidence, bins)
    return float(np.abs(gap).sum() / len(labels))


def score(probabilities, labels):
    """The same figures for teacher and student: accuracy, macro F1, calibration error."""
    guess = probabilities.argmax(1)
    return {"pictures": len(labels), "accuracy": float(accuracy_score(labels, guess)),
            "macro_f1": float(f1_score(labels, guess, labels=np.arange(probabilities.shape[1]), average="macro",
                                       zero_division=0)),
            "calibration_error": calibration_error(probabilities, labels)}


def _mean_and_deviation(values):
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}


def build_report(folds, controls, teacher_probabilities, pictures, parts):
    """All figures of a run as one JSON-able dict.

    folds: trained folds; controls: their twins without a teacher, or []; teacher_probabilities: float [N, C], row i from the head that never saw picture i.
    """
    rows = np.concatenate([f.pictures for f in folds])
    student = np.concatenate([f.best_probabilities for f in folds])
    labels, names = pictures.labels[rows], pictures.categories
    per_fold = [{"fold": f.index, "best_epoch": f.best_epoch, "epochs": len(f.history),
                 **score(f.best_probabilities, pictures.labels[f.pictures]),
                 "teacher_accuracy": score(teacher_probabilities[f.pictures], pictures.labels[f.pictures])["accuracy"]}
                for f in folds]
    # By number, not by name: a category may be called "accuracy"
    table = classification_report(labels, student.argmax(1), labels=np.arange(len(names)), output_dict=True,
                                  zero_division=0)
    return {
        "out_of_fold": {"pictures": len(rows), "of": len(parts), "student": score(student, labels),
                        "teacher": score(teacher_probabilities[rows], labels)},
        "folds": per_fold,
        "over_folds": {key: _mean_and_deviation([f[key] for f in per_fold])
                       for key in ("accuracy", "macro_f1", "calibration_error", "teacher_accuracy")},
        "categories": {name: table[str(i)] for i, name in enumerate(names)},
        "averages": {name: table[name] for name in ("macro avg", "weighted avg")},
        "confusion_matrix": confusion_matrix(labels, student.argmax(1), labels=np.arange(len(names))).tolist(),
        "category_names": names,
    }


def report_text(report):
    """The report for people: plain text."""
    oof, names = report["out_of_fold"], report["category_names"]
    width = max(12, max(map(len, names)))
    lines = [f"Out of fold: {oof['pictures']} of {oof['of']} pictures, each judged once, by the student that never "
             "saw it.", "Each fold's epoch was chosen on that same fold, which flatters the student a little.", "",
             f"{'':{width}}  precision   recall       F1  pictures"]
    for name, c in [*report["categories"].items(), *report["averages"].items()]:
        lines.append(f"{name:{width}}  {c['precision']:9.3f}{c['recall']:9.3f}{c['f1-score']:9.3f}{c['support']:10.0f}")
    lines += ["", "Confusion matrix (rows: true category, columns: predicted)",
              " " * width + "".join(f"{n[:9]:>10}" for n in names)]
    lines += [f"{n:{width}}" + "".join(f"{v:10}" for v in row) for n, row in zip(names, report["confusion_matrix"])]
    lines += ["", "fold       best epoch  accuracy  macro F1  calibration error   teacher's accuracy"]
    lines += [f"{f['fold']:<10} {f['best_epoch']:>5} of {f['epochs']:<3}{f['accuracy']:9.3f}{f['macro_f1']:10.3f}"
              f"{f['calibration_error']:19.3f}{f['teacher_accuracy']:21.3f}" for f in report["folds"]]
    for label, key in (("mean", "mean"), ("deviation", "std")):
        m = [report["over_folds"][k][key] for k in ("accuracy", "macro_f1", "calibration_error", "teacher_accuracy")]
        lines.append(f"{label:<20}{m[0]:11.3f}{m[1]:10.3f}{m[2]:19.3f}{m[3]:21.3f}")
    lines += ["", "all folds            accuracy  macro F1  calibration error"]
    for who in ("student", "teacher"):
        f = oof[who]
        lines.append(f"{who:<18}{f['accuracy']:11.4f}{f['macro_f1']:10.4f}{f['calibration_error']:19.4f}")
    return "\n".join(lines) + "\n"


def write_report(folder, report, folds, controls, teacher_probabilities, pictures):
    """Write report.txt, report.json, out_of_fold.csv, confusion_matrix.png and curves.png; returns the text."""
    text = report_text(report)
    with open(os.path.join(folder, "report.txt"), "w", encoding="utf-8", errors="backslashreplace") as f:
        f.write(text)
    with open(os.path.join(folder, "report.json"), "w", encoding="utf-8", errors="backslashreplace") as f:
        json.dump(report, f, indent=2, ensure_ascii=False)
    names = pictures.categories
    with open(os.path.join(folder, "out_of_fold.csv"), "w", newline="", encoding="utf-8",
              errors="backslashreplace") as f:
        table = csv.writer(f)
        table.writerow(["path", "label", "fold", "prediction", "teacher_prediction", *(f"p_{n}" for n in names)])
        for fold in folds:
            for i, p in zip(fold.pictures, fold.best_probabilities):
                table.writerow([pictures.paths[i], names[pictures.labels[i]], fold.index, names[p.argmax()],
                                names[teacher_probabilities[i].argmax()], *(f"{v:.6g}" for v in p)])
    plot_confusion(report, os.path.join(folder, "confusion_matrix.png"))
    plot_curves(folds, report, os.path.join(folder, "curves.png"))
    return text


def plot_confusion(report, path):
    """Counts, shaded by the share of the true category."""
    counts = np.array(report["confusion_matrix"])
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    n, names = len(counts), report["category_names"]
    fig = Figure(figsize=(2.2 + 0.75 * n, 1.8 + 0.65 * n), layout="constrained")
    ax = fig.subplots()
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i in range(n):
        for j in range(n):
            ax.text(j, i, counts[i, j], ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
    ax.set_xticks(range(n), names, rotation=40, ha="right")
    ax.set_yticks(range(n), names)
    ax.set(xlabel="predicted", ylabel="true",
           title=f"Out of fold, accuracy {report['out_of_fold']['student']['accuracy']:.3f}")
    fig.colorbar(image, label="share of the true category", shrink=0.8)
    fig.savefig(path, dpi=120)


def plot_curves(folds, report, path):
    """Loss and accuracy over epochs: thin lines are folds, a point marks the epoch that was kept."""
    fig = Figure(figsize=(11, 4.2), layout="constrained")
    axes = fig.subplots(1, 2)
    for ax, key in zip(axes, ("loss", "accuracy")):
        for i, f in enumerate(folds):
            epochs = [h["epoch"] for h in f.history]
            ax.plot(epochs, [h[f"train_{key}"] for h in f.history], color="tab:orange", lw=0.9, alpha=0.6,
                    label="training (mixed pictures)" if i == 0 else None)
            ax.plot(epochs, [h[f"val_{key}"] for h in f.history], color="tab:blue", lw=1.2, alpha=0.7,
                    label="validation, one line per fold" if i == 0 else None)
            ax.plot(f.best_epoch, f.history[f.best_epoch - 1][f"val_{key}"], "o", ms=4, color="tab:blue")
        ax.set(xlabel="epoch", title={"loss": "Loss (training: distillation loss)", "accuracy": "Accuracy"}[key])
        ax.grid(alpha=0.3)
    axes[1].axhline(report["out_of_fold"]["teacher"]["accuracy"], color="grey", ls="--", lw=1, label="teacher")
    axes[1].legend(loc="lower right", fontsize=9)
    fig.savefig(path, dpi=120)


def contact_sheet(squares, titles, path, show=False, columns=5):
    """Draw pictures with titles into a PNG file, and in a window if asked for; returns it as uint8 RGB [H, W, 3].

    Without a screen, one line says where the file is.
    """
    columns = min(columns, len(squares))
    rows = -(-len(squares) // columns)
    fig = Figure(figsize=(2.1 * columns, 2.4 * rows), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, square, title in zip(axes.flat, squares, titles):
        ax.imshow(square)
        ax.set_title(title, fontsize=9)
    fig.savefig(path, dpi=100)
    picture = read_picture(path)
    if show and not (sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or
                     os.environ.get("WAYLAND_DISPLAY")):
        print(f"--show: no screen here, see {path}")
    elif show:
        try:
            import matplotlib.pyplot as plt
            plt.figure(figsize=fig.get_size_inches(), layout="constrained")
            plt.imshow(picture)
            plt.axis("off")
            plt.show()
            plt.close()
        except Exception as e:  # a screen that refuses, or no window library: never worth a run
            print(f"--show: no window could be opened ({e}), see {path}")
    return picture
