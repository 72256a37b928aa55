"""The report's pictures: confusion matrix, confidence, curves over epochs, and sheets of pictures with titles.

    python main.py --sample        # draws them into logs/<run>/
"""
import math
import os
import sys
import warnings

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure  # not pyplot: it opens windows, and fails where the screen goes away

from utils.pictures import read_picture
from utils.tables import printable, shorten, width

MANY = 60  # categories that a confusion matrix has room for
MOST = 300  # lines of a text as a picture, and letters of a line
matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a $
# Category names may be Chinese; name only fonts that are here, or matplotlib warns about the others.
matplotlib.rcParams["font.family"] = ["DejaVu Sans"] + [
    n for n in ("Microsoft YaHei", "SimHei", "PingFang SC", "Noto Sans CJK SC", "Noto Sans CJK JP",
                "WenQuanYi Micro Hei") if n in font_manager.get_font_names()]
warnings.filterwarnings("ignore", "Glyph .* missing from")  # two lines for each letter and plot; see unreadable


def unreadable(names):
    """The letters of these names for which plots show boxes, since no font that they use has them."""
    fonts = map(font_manager.findfont, matplotlib.rcParams["font.family"])
    known = set().union(*(font_manager.get_font(font).get_charmap() for font in fonts))
    return sorted(c for c in set("".join(map(printable, names))) if ord(c) not in known)


def plot_confusion(report, path):
    """Counts, shaded by the share of the true category."""
    counts = np.array(report["confusion_matrix"])
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    n, names = len(counts), [shorten(printable(name), 28) for name in report["category_names"]]
    cell = min(1, MANY / n)  # of many categories the names and counts get no room: report.json has them
    longest = max(map(width, names))
    fig = Figure(figsize=(1.6 + 0.08 * longest + 0.75 * n * cell, 1.5 + 0.06 * longest + 0.65 * n * cell),
                 layout="constrained")
    ax = fig.subplots()
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if n <= MANY:
        for i in range(n):
            for j in range(n):
                ax.text(j, i, counts[i, j], ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
        ax.set_xticks(range(n), names, rotation=40, ha="right")
        ax.set_yticks(range(n), names)
    ax.set(xlabel="predicted", ylabel="true")
    fig.suptitle(f"Out of fold, accuracy {report['out_of_fold'][report['headline']]['accuracy']:.3f}")
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
        ax.set(xlabel="epoch", title={"loss": "Loss (in training with the teacher's share)", "accuracy": "Accuracy"}[key])
        ax.grid(alpha=0.3)
    axes[1].axhline(report["out_of_fold"]["teacher"]["accuracy"], color="grey", ls="--", lw=1, label="teacher")
    axes[1].legend(loc="lower right", fontsize=9)
    fig.savefig(path, dpi=120)


def plot_confidence(report, path):
    """Left: accuracy at each confidence, before and after temperature scaling, above the number of pictures there.
    Right: how often the answers are right against the share of pictures that are answered."""
    fig = Figure(figsize=(11, 4.8), layout="constrained")
    axes = fig.subplot_mosaic([["reliability", "coverage"], ["pictures", "coverage"]],
                              gridspec_kw={"height_ratios": [3, 1]})
    figures, ax = report["out_of_fold"][report["headline"]], axes["reliability"]
    ax.plot([0, 1], [0, 1], color="grey", lw=1, ls="--", label="as sure as right")
    for when, error, color in (("raw", "calibration_error_raw", "tab:orange"),
                               ("calibrated", "calibration_error", "tab:blue")):
        n, right, confidence = map(np.array, report["reliability"][when].values())
        filled = n > 0
        ax.plot(confidence[filled] / n[filled], right[filled] / n[filled], "o-", ms=4, color=color,
                label=f"{when}: error {figures[error]:.3f}")
        axes["pictures"].stairs(n, np.linspace(0, 1, len(n) + 1), color=color, lw=1.5)
    ax.set(ylabel="share of right answers", title="Reliability", xlim=(0, 1), ylim=(0, 1.02))
    ax.legend(loc="lower right", fontsize=9)
    axes["pictures"].set(xlabel="confidence", ylabel="pictures", xlim=(0, 1), yscale="symlog", ylim=(0, None))
    axes["pictures"].yaxis.set_major_formatter("{x:.0f}")
    points = report["coverage"]
    answered, right, low, high = 100 * np.array([(p["answered"], p["accuracy"], *p["accuracy_interval"]) for p in points]).T
    axes["coverage"].plot(answered, right, "o-", ms=4)
    axes["coverage"].fill_between(answered, low, high, alpha=0.15, label="95 % interval")
    axes["coverage"].set(xlabel="answered, % of the pictures, the surest first",
                         ylabel="right, % of the answered", title="Coverage", xlim=(0, 101))
    axes["coverage"].legend(loc="lower left", fontsize=9)
    for ax in axes.values():
        ax.grid(alpha=0.3)
    fig.savefig(path, dpi=120)


def plot_text(text, path):
    """A text with columns as a picture, for VisualDL, whose own texts lose their lines and spaces."""
    lines = text.rstrip().split("\n")
    lines = [line[:MOST] for line in lines[:MOST]] + ["..."] * (len(lines) > MOST)
    fig = Figure(figsize=(0.2 + 0.075 * max(map(width, lines)), 0.2 + 0.15 * len(lines)))
    fig.text(0.01, 0.99, "\n".join(lines), fontsize=9, va="top", family=["monospace",
                                                                         *matplotlib.rcParams["font.family"]])
    fig.savefig(path, dpi=120)


def contact_sheet(squares, titles, path, show=False):
    """Draw pictures with titles into a PNG file, and in a window if asked for; returns it as uint8 RGB [H, W, 3].

    Each line of a title is shortened to the width of its picture. Without a screen, one line says where the file is.
    """
    columns = min(5, len(squares))
    rows = math.ceil(len(squares) / columns)
    lines = max(title.count("\n") for title in titles) + 1
    fig = Figure(figsize=(2.1 * columns, (2.2 + 0.2 * lines) * rows), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, square, title in zip(axes.flat, squares, titles):
        ax.imshow(square)
        ax.set_title("\n".join(shorten(printable(line), 28) for line in title.split("\n")), fontsize=9)
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
