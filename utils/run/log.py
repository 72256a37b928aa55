"""What a run shows while it runs: printed tables, scalars.csv, and everything for VisualDL.

    visualdl --logdir logs --port 8040 --language en        # then open http://localhost:8040
"""
import contextlib
import csv
import glob
import os
import time
import warnings

import numpy as np
import paddle

from models.student_model import BLOCKS, Student
from utils.data_utils import augmented_square, epoch_order, images_per_fold, stored_epoch
from utils.distributed import print0
from utils.folds import EXACT_HINT
from utils.images.read import read_image
from utils.report.build import read_predictions
from utils.report.plots import contact_sheet, unreadable
from utils.report.statistics import at_least
from utils.settings import RANDOM
from utils.tables import listed, padded, printable, width
from utils.transforms import center_crop

COLUMNS = ("fold", "epoch", "learning_rate", "train_loss", "train_accuracy", "val_loss",
           "val_accuracy", "val_balanced_accuracy")


class NoLog:
    """The log of the other processes: whatever it is told to do, it does nothing."""

    def __getattr__(self, name):
        return lambda *args, **options: None


class Log:
    """Scalars, images and hyperparameters of one run, in logs/<run>/.

    Each student is a VisualDL run of its own, so that the same scalar of all folds is one chart.
    VisualDL pulls in a web server and has failed with new versions of NumPy: if it does, a line
    says so, and scalars.csv has the numbers all the same.
    """

    def __init__(self, folder):
        self.folder, self.file, self.writers, self.LogWriter = folder, None, {}, None
        with self.visualdl("VisualDL is not usable here; scalars.csv has the same numbers"):
            from visualdl import LogWriter
            self.LogWriter = LogWriter

    @contextlib.contextmanager
    def visualdl(self, message):
        """Whatever fails inside is one line, and VisualDL is not tried again."""
        try:
            yield
        except Exception as e:
            print(f"{message} ({type(e).__name__}: {e})")
            self.LogWriter = None

    def writer(self, name):
        """The LogWriter of a VisualDL run."""
        if name not in self.writers:
            for old in glob.glob(os.path.join(glob.escape(self.folder), name, "vdl*.log")):
                os.remove(old)  # from before this run was resumed; all of it is written again
            self.writers[name] = self.LogWriter(os.path.join(self.folder, name))
        return self.writers[name]

    def scores(self, name, scores):
        """An epoch of a student: a dict with the keys of COLUMNS but `fold`."""
        if not self.file:  # only now: a run that cannot be resumed must not lose the old file
            path = os.path.join(self.folder, "scalars.csv")
            self.file = open(path, "w", newline="", encoding="utf-8")
            csv.writer(self.file).writerow(COLUMNS)
        csv.DictWriter(self.file, COLUMNS).writerow({"fold": name, **scores})
        self.file.flush()
        if self.LogWriter:
            with self.visualdl("VisualDL shows nothing more; scalars.csv has the same numbers"):
                for key in COLUMNS[2:]:
                    tag = key.replace("_", "/", 1) if key != "learning_rate" else key
                    self.writer(name).add_scalar(tag, scores[key], scores["epoch"])

    def time(self, epoch, seconds):
        """What epoch `epoch`, from 1, took; 0: everything before the first. A resumed run adds its
        preparation, under the number of epochs done before."""
        path = os.path.join(self.folder, "seconds.csv")
        header = [] if os.path.exists(path) else [("epoch", "seconds")]
        with open(path, "a", newline="", encoding="utf-8") as f:
            csv.writer(f).writerows([*header, (epoch, round(seconds, 1))])

    def repeat(self, students):
        """Log all epochs of a resumed run again, in the order in which they came."""
        for epoch in range(max(len(s.history) for s in students)):
            for student in students:
                if epoch < len(student.history):
                    self.scores(student.name, student.history[epoch])

    def image(self, tag, image):
        """image: uint8 RGB [H, W, 3]"""
        if self.LogWriter:
            with self.visualdl("VisualDL shows nothing more; the images are in the run's folder"):
                self.writer("images").add_image(tag, image, 0)

    def first_images(self, images, fold_of, settings):
        """The first five training images with labels, and up to five augmentations of each."""
        train_folds = [k for k in range(settings.num_folds) if k != settings.trained_folds[0]]
        rows = list(dict.fromkeys(epoch_order(fold_of, train_folds, settings, 0).ravel()))[:5]
        titles = [images.categories[images.labels[i]] for i in rows]
        plain = [center_crop(images.square(i), settings.image_size) for i in rows]
        stored = [stored_epoch(v) for v in range(1, settings.stored_augmentations + 1)]
        epochs = stored[:5] or range(5)
        augmented = [augmented_square(images, i, settings, e) for e in epochs for i in rows]
        for name, squares, labels, show in (
                ("first_images", plain, titles, settings.show),
                ("augmented_images", augmented, titles * len(epochs), False)):
            path = os.path.join(self.folder, f"{name}.png")
            self.image(name, contact_sheet(squares, labels, path, show))
        print(f"first five training images: {', '.join(titles)}; see first_images.png, and "
              "augmented_images.png for what training makes of them")

    def graph(self, num_classes, settings):
        """The student's layers, as a graph to unfold."""
        if not self.LogWriter:
            return
        # VisualDL reads only the older of Paddle 3's two descriptions of a network
        old_ir = getattr(paddle.pir_utils, "OldIrGuard", contextlib.nullcontext)
        with paddle.utils.unique_name.guard():
            network = Student(num_classes, settings.freeze_depth)  # add_graph changes its forward()
        network.eval()
        spec = paddle.static.InputSpec([-1, 3, settings.image_size, settings.image_size])
        try:
            with warnings.catch_warnings(), old_ir():
                warnings.simplefilter("ignore")
                self.writer("student").add_graph(network, [spec])
        except Exception as e:  # the rest of VisualDL may still work
            print(f"VisualDL cannot draw the student here ({type(e).__name__}: {e})")

    def results(self, report):
        """The report's text, plots and figures, and per category a PR and a ROC curve."""
        if not self.LogWriter:
            return
        with self.visualdl("VisualDL does not show all results"):
            for name in ("report", "confusion_matrix", "confidence", "curves", "mistakes"):
                path = os.path.join(self.folder, f"{name}.png")
                if os.path.exists(path):  # mistakes.png needs a mistake
                    self.writer("images").add_image(name, read_image(path), 0)
            predictions = read_predictions(self.folder, report["category_names"])
            answers = predictions.probabilities
            metrics = {f"result/{name}_{key}": report["out_of_fold"][name][key] for name in answers
                       for key in ("accuracy", "macro_f1", "calibration_error")}
            against = report.get("student_against_control") or {}
            metrics |= {f"result/{key}": against[key] for key in ("errors_removed", "mcnemar_p")
                        if against.get(key) is not None}
            settings = {key: value if type(value) in (int, float) else printable(str(value))
                        for key, value in report["settings"].items()}
            writer = self.writer("result")  # VisualDL's table of runs: settings beside figures
            writer.add_hparams(hparams_dict=settings, metrics_list=list(metrics))
            for name, value in metrics.items():
                writer.add_scalar(name, value, 0)
            for name, probabilities in answers.items():
                for i, category in enumerate(report["category_names"]):
                    self._curves(name, category.replace("%", "％"), probabilities[:, i],
                                 predictions.labels == i)

    def _curves(self, name, tag, scores, positive):
        """What add_pr_curve and add_roc_curve would write; they fail with NumPy 1.24 and later."""
        from visualdl.component.base_component import pr_curve_raw, roc_curve_raw
        # VisualDL takes number i of n for the threshold i / n; the first is 0, where curves end
        found, tp = (v[np.r_[0, 16:1001:8]] for v in at_least(scores, positive))
        fp = found - tp
        fn, tn = positive.sum() - tp, (~positive).sum() - fp
        precision, recall, fall_out = (
            a / np.maximum(b, 1) for a, b in ((tp, found), (tp, tp + fn), (fp, fp + tn)))
        precision[found == 0] = 1
        counts = [v.tolist() for v in (tp, fp, tn, fn)]
        now = round(time.time() * 1000)
        for kind, record, x, y in (("PR", pr_curve_raw, precision, recall),
                                   ("ROC", roc_curve_raw, recall, fall_out)):
            self.writer(name)._get_file_writer().add_record(record(
                f"{kind}/{tag}", *counts, x.tolist(), y.tolist(), step=0, walltime=now))

    def close(self):
        if self.file:
            self.file.close()
        for writer in self.writers.values():
            with self.visualdl("VisualDL may not show the last figures"):
                writer.close()


def print_images(images, max_shown=3):
    """The number of images per category; per reason the number of files left out, and examples."""
    counts = np.bincount(images.labels, minlength=len(images.categories))
    columns = max(width(printable(name)) for name in [*images.categories, "total"])
    print0(f"images in {images.data_dir}:")
    for name, n in [*zip(images.categories, counts), ("total", len(images))]:
        print0(f"  {padded(name, columns)} {n:8}")
    parents = {}  # name of a sub-folder -> the categories that have one
    for category, name, *_ in (p.split("/") for p in images.paths if p.count("/") > 1):
        parents.setdefault(name, set()).add(category)
    shared = sorted(name for name, categories in parents.items() if len(categories) > 1)
    if shared:
        print0(f"note: several categories have a sub-folder {printable(shared[0])}; if that is a "
              "category, --data_dir is one level too high")
    missing = unreadable(images.categories + images.paths)
    if missing:
        print0(f"note: plots show boxes for {len(missing)} characters of names, such as "
              f"{missing[-1]}, because no installed font has them; for Chinese on Debian and "
              "Ubuntu: apt install fonts-noto-cjk")
    reasons = {}
    for path, reason in images.left_out:
        reasons.setdefault(reason, []).append(path)
    if reasons:
        print0(f"left out, {len(images.left_out)} files; left_out.csv in the run's folder has "
               "them all:")
    for reason, paths in sorted(reasons.items(), key=lambda item: len(item[1])):
        some = ", ".join(map(repr, paths[:max_shown]))
        more = len(paths) - max_shown
        print0(f"  {len(paths):6} {reason}: {some}" + (f" and {more} more" if more > 0 else ""))


def print_duplicates(rows, oversized, settings, max_shown=20):
    """How many images stay together, and the groups whose labels differ.

    rows: of duplicate_rows; oversized: of oversized_group.
    """
    what = "duplicates and --groups" if settings.groups else "duplicates"
    print(f"{what}: {len(rows)} images in {len({g for g, *_ in rows})} groups stay together")
    if oversized and settings.duplicates == "near":
        print(f"note: one group has {oversized[0]} of the {oversized[1]} images of a category, "
              f"more than a fold should get; {EXACT_HINT}")
    conflicts = {}
    for g, path, _, conflict in rows:
        if conflict == "yes":
            conflicts.setdefault(g, []).append(path)
    if conflicts:
        print("probable label errors, images of one group with different labels:")
        for paths in list(conflicts.values())[:max_shown]:
            print("  " + listed(paths, max_shown))
        if len(conflicts) > max_shown:
            print(f"  and {len(conflicts) - max_shown} more groups; duplicates.csv in the run's "
                  "folder has them all")


def print_plan(fold_of, settings):
    """The sizes of folds and steps, and which students there are."""
    for k in settings.trained_folds:
        print(f"fold {k}: {(fold_of != k).sum()} images to train on, {(fold_of == k).sum()} to "
              "validate on")
    b = images_per_fold(settings)
    print(f"a step takes {b} images from each fold, a student trains on "
          f"{b * (settings.num_folds - 1)} of them"
          + ("; mixup needs two per fold and stays off: raise --batch_size"
             if b == 1 and settings.mixup_alpha else ""))
    print(f"{len(settings.trained_folds)} students, {settings.freeze_depth} of {BLOCKS} blocks "
          "frozen" + ", and the final model, which learns from all images, for use"
          * settings.has_final_model)
    if not (settings.has_final_model or settings.no_final_model):
        print("note: there is no final model, since its epoch is chosen by the validation of at "
              "least two folds")
    if RANDOM in (settings.teacher_weights, settings.student_weights):
        print("note: networks with random initialization are good for trying the program, not for "
              "good figures")


def print_epoch(epoch, students, active, seconds, num_epochs):
    """A line: the mean over folds (a stopped one with its best epoch), then each active student."""
    active = [s for s in active if s in students]
    for student in active:
        if student.failed:
            print(f"{student.name} stopped at {student.failed}")
    trained = [s for s in students if s.history and not s.is_final]
    scored = [s for s in active if not s.failed]
    if not (trained and scored):
        return
    last = [s.history[-1 if s in scored else s.best_epoch - 1] for s in trained]
    mean = {key: np.mean([scores[key] for scores in last]) for key in last[0]}

    def figures(scores, final=False):
        validation = "" if final else " | {val_loss:.3f} {val_accuracy:.3f}"
        return ("{train_loss:.3f} {train_accuracy:.3f}" + validation).format(**scores)
    print(f"epoch {epoch}/{num_epochs}, {seconds:.0f} s: mean {figures(mean)}; " + "; ".join(
        f"{s.name} {figures(s.history[-1], s.is_final)}{'*' if s.best_epoch == epoch else ''}"
        for s in scored))
    for student in scored:
        if student.stopped and epoch < num_epochs:
            name = student.selected_by.removeprefix("val_").replace("_", " ")
            best = student.history[student.best_epoch - 1][student.selected_by]
            print(f"{student.name} stops early: best validation {name} {best:.4f} at epoch "
                  f"{student.best_epoch}")
