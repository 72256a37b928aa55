"""The report's plots: confusion matrix, confidence, training curves, and sheets of images."""
import math
import os
import sys
import warnings

import cv2
import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure  # not pyplot: it needs a display

from utils.images.read import read_image
from utils.predict import read_images
from utils.tables import printable, shorten, width

MAX_LABELED = 60  # categories that a confusion matrix has room to label
MAX_TEXT = 300  # lines of a text drawn as an image, and characters of a line
matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a $
# Category names may be Chinese. Only fonts that are installed, or matplotlib warns of the others
CHINESE = ("Microsoft YaHei", "SimHei", "PingFang SC", "Noto Sans CJK SC", "Noto Sans CJK JP",
           "WenQuanYi Micro Hei")
FONTS = ["DejaVu Sans", *(n for n in CHINESE if n in font_manager.get_font_names())]
matplotlib.rcParams["font.family"] = FONTS
warnings.filterwarnings("ignore", "Glyph .* missing from")  # see `unreadable`


def unreadable(names):
    """The characters of these names that no installed font has: plots show boxes for them."""
    fonts = [font_manager.get_font(font_manager.findfont(name)) for name in FONTS]
    known = set().union(*(font.get_charmap() for font in fonts))
    return sorted(c for c in set("".join(map(printable, names))) if ord(c) not in known)


def plot_confusion(report, path):
    """Counts, shaded by their share of the true category."""
    counts = np.array(report["confusion_matrix"])
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    n, names = len(counts), [shorten(printable(name), 28) for name in report["category_names"]]
    cells, longest = n, max(map(width, names))
    if n > MAX_LABELED:  # too many to name and number: report.json has them
        cells, longest = 16, 0
    fig = Figure(figsize=(1.6 + 0.08 * longest + 0.75 * cells, 1.5 + 0.06 * longest + 0.65 * cells),
                 layout="constrained")
    ax = fig.subplots()
    drawn = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if n <= MAX_LABELED:
        for i, j in np.ndindex(n, n):
            ax.text(j, i, counts[i, j], ha="center", va="center",
                    color="white" if share[i, j] > 0.5 else "black")
        ax.set_xticks(range(n), names, rotation=40, ha="right")
        ax.set_yticks(range(n), names)
    ax.set(xlabel="predicted", ylabel="true")
    accuracy = report["out_of_fold"][report["headline"]]["accuracy"]
    fig.suptitle(f"Out of fold, accuracy {accuracy:.3f}")
    fig.colorbar(drawn, label="share of the true category", shrink=0.8)
    fig.savefig(path, dpi=120)


def plot_curves(histories, best_epochs, teacher_accuracy, path):
    """Loss and accuracy over epochs, a thin line per fold; dots mark the best epochs.

    histories: for each fold a list of dicts, one per epoch; best_epochs: from 1.
    """
    fig = Figure(figsize=(11, 4.2), layout="constrained")
    axes = fig.subplots(1, 2)
    titles = {"loss": "Loss (training: with the teacher's terms)", "accuracy": "Accuracy"}
    for ax, (key, title) in zip(axes, titles.items()):
        for i, (history, best) in enumerate(zip(histories, best_epochs)):
            epochs = [h["epoch"] for h in history]
            ax.plot(epochs, [h[f"train_{key}"] for h in history], color="tab:orange", lw=0.9,
                    alpha=0.6, label=None if i else "training (augmented, with mixup)")
            ax.plot(epochs, [h[f"val_{key}"] for h in history], color="tab:blue", lw=1.2,
                    alpha=0.7, label=None if i else "validation, one line per fold")
            ax.plot(best, history[best - 1][f"val_{key}"], "o", ms=4, color="tab:blue")
        ax.set(xlabel="epoch", title=title)
        ax.grid(alpha=0.3)
    axes[1].axhline(teacher_accuracy, color="gray", ls="--", lw=1, label="teacher")
    axes[1].legend(loc="lower right", fontsize=9)
    fig.savefig(path, dpi=120)


def plot_confidence(report, path):
    """Left: accuracy at each confidence, before and after temperature scaling, above the number of
    images there. Right: accuracy against the share of images that are answered."""
    fig = Figure(figsize=(11, 4.8), layout="constrained")
    axes = fig.subplot_mosaic([["reliability", "coverage"], ["images", "coverage"]],
                              gridspec_kw={"height_ratios": [3, 1]})
    figures, ax = report["out_of_fold"][report["headline"]], axes["reliability"]
    ax.plot([0, 1], [0, 1], color="gray", lw=1, ls="--", label="perfectly calibrated")
    for when, title, error, color in (
            ("raw", "before scaling", "calibration_error_raw", "tab:orange"),
            ("calibrated", "after temperature scaling", "calibration_error", "tab:blue")):
        n, correct, confidence = map(np.array, report["reliability"][when].values())
        filled = n > 0
        ax.plot(confidence[filled] / n[filled], correct[filled] / n[filled], "o-", ms=4,
                color=color, label=f"{title}: error {figures[error]:.3f}")
        axes["images"].stairs(n, np.linspace(0, 1, len(n) + 1), color=color, lw=1.5)
    ax.set(ylabel="accuracy", title="Reliability", xlim=(0, 1), ylim=(0, 1.02))
    ax.legend(loc="lower right", fontsize=9)
    axes["images"].set(xlabel="confidence", ylabel="images", xlim=(0, 1), yscale="symlog",
                       ylim=(0, None))
    axes["images"].yaxis.set_major_formatter("{x:.0f}")
    answered, accuracy, low, high = 100 * np.array(
        [(p["answered"], p["accuracy"], *p["accuracy_interval"]) for p in report["coverage"]]).T
    ax = axes["coverage"]
    ax.plot(answered, accuracy, "o-", ms=4)
    ax.fill_between(answered, low, high, alpha=0.15, label="95 % interval")
    ax.set(xlabel="images answered, most confident first, %", ylabel="accuracy on them, %",
           title="Accuracy against coverage", xlim=(0, 101))
    ax.legend(loc="lower left", fontsize=9)
    for ax in axes.values():
        ax.grid(alpha=0.3)
    fig.savefig(path, dpi=120)


def plot_text(text, path):
    """A text in columns as an image, for VisualDL, which drops line breaks and spaces of texts."""
    lines = text.rstrip().split("\n")
    lines = [line[:MAX_TEXT] for line in lines[:MAX_TEXT]] + ["..."] * (len(lines) > MAX_TEXT)
    fig = Figure(figsize=(0.2 + 0.075 * max(map(width, lines)), 0.2 + 0.15 * len(lines)))
    fig.text(0.01, 0.99, "\n".join(lines), fontsize=9, va="top", family=["monospace", *FONTS])
    fig.savefig(path, dpi=120)


def contact_sheet(images, titles, path, show=False):
    """Draw square images with titles into a PNG file; returns it as uint8 RGB [H, W, 3].

    Each line of a title is shortened to the width of its image. show: open a window too; without a
    display, one line says where the file is.
    """
    columns, side, gap = min(5, len(images)), 200, 10
    rows, lines = math.ceil(len(images) / columns), max(t.count("\n") for t in titles) + 1
    height, pitch = side + 16 * lines + gap, side + gap
    canvas = np.full((rows * height, columns * pitch, 3), 255, np.uint8)
    fig = Figure(figsize=(canvas.shape[1] / 100, canvas.shape[0] / 100), dpi=100)
    for n, (image, title) in enumerate(zip(images, titles)):
        bottom, left = (n // columns + 1) * height, n % columns * pitch
        canvas[bottom - side:bottom, left:left + side] = cv2.resize(
            np.ascontiguousarray(image), (side, side), interpolation=cv2.INTER_AREA)
        title = "\n".join(shorten(printable(line), 28) for line in title.split("\n"))
        fig.text((left + side / 2) / canvas.shape[1], 1 - (bottom - side - 2) / canvas.shape[0],
                 title, ha="center", va="bottom", fontsize=9)
    fig.figimage(canvas)
    fig.savefig(path, dpi=100)
    sheet = read_image(path)
    if show:
        show_image(sheet, fig.get_size_inches(), path)
    return sheet


def show_image(image, size, path):
    """Open a window with an image, `size` in inches; without a display, name its file instead."""
    if not (sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY")
            or os.environ.get("WAYLAND_DISPLAY")):
        print(f"--show: no display here, see {path}", file=sys.stderr)
        return
    try:
        import matplotlib.pyplot as plt
        plt.figure(figsize=size, layout="constrained")
        plt.imshow(image)
        plt.axis("off")
        plt.show()
        plt.close()
    except Exception as e:  # a display that refuses, or no window library: never worth a run
        print(f"--show: no window could be opened ({e}), see {path}", file=sys.stderr)


def draw_mistakes(mistakes, settings, path):
    """A sheet of the images of list_mistakes; those that are gone since are left out."""
    files = [os.path.join(settings.data_dir, m["path"]) for m in mistakes]
    read = [image for image, _ in read_images(files, settings.image_size)]
    drawn = [(image, f"{m['label']} → {m['prediction']}\n{m['confidence']:.3f}  {m['path']}")
             for image, m in zip(read, mistakes) if image is not None]
    if len(drawn) < len(mistakes):
        print(f"note: mistakes.png lacks {len(mistakes) - len(drawn)} images that are no longer in "
              f"{settings.data_dir}")
    if drawn:
        contact_sheet(*zip(*drawn), path)
