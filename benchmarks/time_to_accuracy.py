"""Minutes to an accuracy: finished runs of main.py, and beside them the original's way.

    python main.py --data_dir DIR --log_dir stored
    python main.py --data_dir DIR --log_dir fresh --stored_augmentations 0     # Ctrl-C after some
    python benchmarks/time_to_accuracy.py stored/RUN --fresh fresh/RUN         # RUN: its folder

Prints a table and draws docs/time-to-accuracy.png. The accuracy after an epoch is that of all
validation images together, each predicted by the student that did not train on it; the time to an
accuracy is that of the first epoch that reaches it. (Choosing an epoch by the images that score it
is a little optimistic; the table has the cross-fitted accuracy of the finished run beside it.) Time
is all of main.py's from its start to the end of the epoch: images, features and heads, filling the
store, validation, and the final model, which learns beside the folds.

Two curves are computed, not run, and take the accuracy after an epoch from the first run. A run
that was stopped (--fresh) gives the time before its first epoch and the median of an epoch. The
original's way, fold after fold: an image outside a fold costs what `benchmarks/peers.py paddle`
takes for it, soft labels and Paddle as it comes, measured now if --plain_ms does not give it. The
first run's accuracy flatters it (docs/results.md), and reading images and validation are not
counted. Start this on the machine of the runs, with nothing beside it.
"""
import os
import statistics
import sys

from step import ROOT, ask, start_peer  # first: it imports utils

# isort: split
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from utils import CORES, engine, processor
from utils.command import Parser, run_command
from utils.errors import InputError
from utils.files import read_json
from utils.report.statistics import by_epoch
from utils.tables import read_csv

BATCHES = 5  # of 16 images that are measured


class Finished:
    """A finished run of main.py: .minutes and .accuracy after each epoch."""

    def __init__(self, folder):
        def path(name):
            return os.path.join(folder, name)
        try:
            self.settings, report = read_json(path("settings.json")), read_json(path("report.json"))
            fold_of = [int(row["fold"]) for row in read_csv(path("folds.csv"))]
            scores, seconds = read_csv(path("scalars.csv")), read_csv(path("seconds.csv"))
        except (OSError, ValueError, KeyError) as e:
            raise InputError(f"{folder}: no finished run of this version ({e}); name one such as "
                             "logs/20260101-120000") from e
        folds, sizes = [fold["fold"] for fold in report["folds"]], np.bincount(fold_of)
        own = by_epoch([[float(row["val_accuracy"]) for row in scores if row["fold"] == f"fold{k}"]
                        for k in folds])
        self.accuracy = np.average(own, 0, sizes[folds])
        self.trained_on = sum(len(fold_of) - sizes[k] for k in folds)  # images of an epoch
        self.cross_fitted = report["out_of_fold"][report["headline"]]["accuracy"]
        reached, spent = {}, 0  # seconds after so many epochs
        for row in seconds:
            spent += float(row["seconds"])
            reached.setdefault(int(row["epoch"]), spent)
        self.start = reached[0] / 60
        self.minutes = np.array([reached[e + 1] for e in range(len(self.accuracy))]) / 60
        count = self.settings["stored_augmentations"]
        self.name = f"{count} stored augmentations" if count else "fresh augmentations"
        if len(seconds) > len(reached):
            print(f"note: {folder} was interrupted: what it spent between its last epoch and that "
                  "is not counted")


def stopped(folder):
    """(minutes before the first epoch, median minutes of an epoch, epochs) of a stopped run."""
    try:
        rows = read_csv(os.path.join(folder, "seconds.csv"))
        # of several rows of an epoch the later ones are preparations of a resumed run
        took = {int(row["epoch"]): float(row["seconds"]) / 60 for row in reversed(rows)}
        return took.pop(0), statistics.median(took.values()), len(took)
    except (OSError, ValueError, KeyError) as e:
        raise InputError(f"--fresh {folder}: no run with a finished epoch ({e})") from e


def plain_ms(size):
    """Milliseconds of an image in one fold, with Paddle as it comes."""
    _, process = start_peer(sys.executable, "paddle", size)
    ms = statistics.median(sum(ask(process).values()) for _ in range(BATCHES))
    process.stdin.close()
    return ms


def draw(curves, targets, path):
    """curves: [(name, minutes, accuracy, whether it is computed)]."""
    fig = Figure(figsize=(7, 4.4), layout="constrained")
    ax = fig.subplots()
    for name, minutes, accuracy, computed in curves:
        ax.plot(minutes, accuracy, "--" if computed else "-", label=name)
    for target in targets:
        ax.axhline(target, color="0.7", linewidth=0.8, zorder=0)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel="minutes", ylabel="validation accuracy, all folds")
    ax.set_ylim(bottom=min(targets) - 0.1)
    fig.legend(loc="outside upper left", frameon=False)
    fig.savefig(path, dpi=110)


def main():
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a finished run, such as "
                        "logs/20260101-120000; the first one gives the computed curves theirs")
    parser.add_argument("--fresh", metavar="RUN", help="a run with --stored_augmentations 0 that "
                        "was stopped after some epochs")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.93, 0.94],
                        help="accuracies (default: 0.93 0.94)")
    parser.add_argument("--plain_ms", type=float, help="milliseconds of an image in one fold with "
                        "Paddle as it comes, if they are known")
    parser.add_argument("--plot", default=os.path.join(ROOT, "docs", "time-to-accuracy.png"),
                        help="the file that is drawn (default: docs/time-to-accuracy.png)")
    args = parser.parse_args()
    runs = [Finished(folder) for folder in args.runs]
    first, size = runs[0], runs[0].settings["image_size"]
    ms = args.plain_ms or plain_ms(size)
    epochs = np.arange(1, len(first.accuracy) + 1)
    rows = [(run.name, run.start, run.minutes, run.accuracy, f"{run.cross_fitted:.4f}")
            for run in runs]
    if args.fresh:
        start, epoch, count = stopped(args.fresh)
        rows.append((f"fresh augmentations (computed from {count} epochs)", start,
                     start + epochs * epoch, first.accuracy, "not run"))
    rows.append((f"Paddle as it comes, fold after fold (computed, {ms:.0f} ms an image)", 0,
                 epochs * first.trained_on * ms / 60_000, first.accuracy, "not run"))

    print(f"{processor()}, {CORES} cores, {engine.versions()}\n\n"
          f"| {size} pixels, minutes | before the first epoch | an epoch | "
          + " | ".join(f"to {target:g}" for target in args.targets)
          + " | all epochs | accuracy, cross-fitted |\n" + (5 + len(args.targets)) * "| --- " + "|")
    for name, start, minutes, accuracy, cross_fitted in rows:
        took = [minutes[accuracy >= target][:1] for target in args.targets]
        print(f"| {name} | {start:.1f} | {(minutes[-1] - start) / len(minutes):.2f} | "
              + " | ".join(f"{t[0]:.1f}" if len(t) else "not reached" for t in took)
              + f" | {minutes[-1]:.1f} | {cross_fitted} |")
    draw([(name, minutes, accuracy, cross_fitted == "not run")
          for name, _, minutes, accuracy, cross_fitted in rows], args.targets, args.plot)
    print(f"\n{args.plot}")


if __name__ == "__main__":
    run_command(main)
