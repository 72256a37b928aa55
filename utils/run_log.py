"""What a run says and leaves behind while it runs: lines to read, tables, scalars.csv, and all of it for VisualDL.

    visualdl --logdir logs --port 8040 --language en        # then open http://localhost:8040
"""
import contextlib
import csv
import dataclasses
import glob
import json
import os
import time
import warnings

import numpy as np
import paddle

from models.student_model import Student
from utils import runtime
from utils.checkpoint import write_json
from utils.data_utils import NO_COPIES, VIEW, epoch_order
from utils.pictures import read_picture
from utils.plots import contact_sheet, unreadable
from utils.statistics import at_least
from utils.tables import padded, printable, width, write_csv
from utils.transforms import eval_view, train_view

COLUMNS = ("fold", "epoch", "learning_rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy")


@contextlib.contextmanager
def unless_visualdl_fails(what, log=None):
    """VisualDL pulls in a web server, and has failed with new versions of NumPy: it must cost neither training nor report.

    log: a RunLog that will not try again.
    """
    try:
        yield
    except Exception as e:
        print(f"{what} ({type(e).__name__}: {e})")
        if log:
            log.LogWriter = None


class RunLog:
    """Scalars, pictures and hyperparameters of one run, below logs/<run>/.

    Each fold is a VisualDL run of its own, so that the same scalar of all folds lies in one chart.
    If VisualDL cannot be imported, one line says so, and the CSV holds all the numbers.
    """

    def __init__(self, folder):
        self.folder = folder
        self.file = None
        self.writers = {}
        self.LogWriter = None
        with unless_visualdl_fails("VisualDL is not usable here; scalars.csv has the same numbers"):
            from visualdl import LogWriter
            self.LogWriter = LogWriter

    def writer(self, name):
        if name not in self.writers:
            for old in glob.glob(os.path.join(glob.escape(self.folder), name, "vdl*.log")):
                os.remove(old)  # of this run before it was resumed; all that it held is written again
            self.writers[name] = self.LogWriter(os.path.join(self.folder, name))
        return self.writers[name]

    def scores(self, fold, scores):
        """One epoch of one fold, "fold0" or "control0": a dict with the keys of COLUMNS but `fold`."""
        if not self.file:  # no sooner: a run that cannot be resumed must not lose it
            self.file = open(os.path.join(self.folder, "scalars.csv"), "w", newline="", encoding="utf-8")
            csv.writer(self.file).writerow(COLUMNS)
        csv.DictWriter(self.file, COLUMNS).writerow({"fold": fold, **scores})
        self.file.flush()
        if self.LogWriter:
            with unless_visualdl_fails("VisualDL shows nothing more; scalars.csv has the same numbers", self):
                for name in COLUMNS[2:]:
                    tag = name.replace("_", "/", 1) if name != "learning_rate" else name
                    self.writer(fold).add_scalar(tag, scores[name], scores["epoch"])

    def repeat(self, folds):
        """The scores of all epochs of a resumed run so far, in the order in which they came."""
        for epoch in range(max(len(f.history) for f in folds)):
            for f in folds:
                if epoch < len(f.history):
                    self.scores(f.name, f.history[epoch])

    def image(self, tag, picture):
        """picture: uint8 RGB [H, W, 3]"""
        if self.LogWriter:
            with unless_visualdl_fails("VisualDL shows nothing more; the pictures are in the folder of the run", self):
                self.writer("pictures").add_image(tag, picture, 0)

    def first_pictures(self, pictures, parts, trained, settings):
        """The first five training pictures with their labels, and five training views of each."""
        needed = [p for p in range(settings.num_folds) if p != trained[0]]
        first = epoch_order(parts, needed, 5, settings.seed, 0)[0][:5]
        titles = [pictures.categories[pictures.labels[i]] for i in first]
        plain = [eval_view(pictures.square(i), settings.image_size) for i in first]
        views = [train_view(pictures.square(i), settings, np.random.default_rng([settings.seed, VIEW, epoch, i]))
                 for epoch in range(5) for i in first]
        for name, squares, labels, show in (("first_pictures", plain, titles, settings.show),
                                            ("training_views", views, titles * 5, False)):
            self.image(name, contact_sheet(squares, labels, os.path.join(self.folder, f"{name}.png"), show))
        print(f"first five training pictures: {', '.join(titles)}; drawn in first_pictures.png, views of them in "
              "training_views.png")

    def graph(self, num_classes, settings):
        """The student's layers, to unfold; 2 s."""
        if not self.LogWriter:
            return
        # VisualDL reads only the older of the two forms in which Paddle 3 describes a network
        older = getattr(paddle.pir_utils, "OldIrGuard", contextlib.nullcontext)
        with paddle.utils.unique_name.guard():
            student = Student(num_classes, settings.freeze_depth)  # one to draw: add_graph rewrites its forward()
        student.eval()
        with unless_visualdl_fails("VisualDL cannot draw the student here"), warnings.catch_warnings(), older():
            warnings.simplefilter("ignore")
            self.writer("student").add_graph(student, [paddle.static.InputSpec([-1, 3, *2 * [settings.image_size]])])

    @unless_visualdl_fails("VisualDL does not show all results")
    def results(self, report, answers, labels):
        """The report: its text and plots as pictures, its figures, and of everyone in `answers` a precision-recall and
        an ROC curve per category. answers: {name: utils.report.Answers}; labels: int [N], of the same rows."""
        if not self.LogWriter:
            return
        for name in ("report", "confusion_matrix", "confidence", "curves", "mistakes"):
            path = os.path.join(self.folder, f"{name}.png")
            if os.path.exists(path):  # without mistakes there is no picture of them
                self.image(name, read_picture(path))
        if not self.LogWriter:  # it failed just now
            return
        metrics = {f"result/{name}_{key}": figures[key] for name, figures in report["out_of_fold"].items() if name in answers
                   for key in ("accuracy", "macro_f1", "calibration_error")}
        against = report.get("student_against_control") or {}
        metrics |= {f"result/{key}": against[key] for key in ("errors_removed", "mcnemar_p") if against.get(key) is not None}
        values = {k: "all" if v == () else v if type(v) in (int, float) else printable(str(v))  # not bool, which is an int
                  for k, v in report["settings"].items()}
        writer = self.writer("result")  # settings beside final figures: VisualDL's table of runs
        writer.add_hparams(hparams_dict=values, metrics_list=list(metrics))
        for name, value in metrics.items():
            writer.add_scalar(name, value, 0)
        for name, a in answers.items():
            for i, category in enumerate(report["category_names"]):
                self._curves(name, category.replace("%", "％"), a.probabilities[:, i], labels == i)

    def _curves(self, name, tag, scores, positive):
        """add_pr_curve and add_roc_curve fail with NumPy 1.24 and later; the records that they write do not."""
        from visualdl.component.base_component import pr_curve_raw, roc_curve_raw
        # 125 levels, since VisualDL says that number i of n is confidence i / n; the first is 0, where curves end
        found, tp = (v[np.r_[0, 16:1001:8]] for v in at_least(scores, positive))
        fp = found - tp
        fn, tn = positive.sum() - tp, (~positive).sum() - fp
        precision, recall, fall_out = (a / np.maximum(b, 1) for a, b in ((tp, found), (tp, tp + fn), (fp, fp + tn)))
        precision[found == 0] = 1
        counts = [v.tolist() for v in (tp, fp, tn, fn)]
        # In VisualDL a tag of a run is one kind of thing, hence two tags
        for kind, record, x, y in (("PR", pr_curve_raw, precision, recall), ("ROC", roc_curve_raw, recall, fall_out)):
            self.writer(name)._get_file_writer().add_record(
                record(f"{kind}/{tag}", *counts, x.tolist(), y.tolist(), step=0, walltime=round(time.time() * 1000)))

    def close(self):
        if self.file:
            self.file.close()
        for name, w in self.writers.items():
            with unless_visualdl_fails(f"VisualDL may not show the last figures of {name}"):
                w.close()


def print_pictures(pictures):
    """The table of pictures found, and every file left out with its reason."""
    counts = np.bincount(pictures.labels, minlength=len(pictures.categories))
    columns = max(width(printable(name)) for name in [*pictures.categories, "together"])
    print(f"pictures in {pictures.data_dir}:")
    for name, n in [*zip(pictures.categories, counts), ("together", len(pictures))]:
        print(f"  {padded(name, columns)} {n:8}")
    inside = {}  # a sub-folder's name -> the categories that have one
    for category, name, *_ in (path.split("/") for path in pictures.paths if path.count("/") > 1):
        inside.setdefault(name, set()).add(category)
    shared = sorted(name for name, own in inside.items() if len(own) > 1)
    if shared:
        print(f"note: several categories have a sub-folder {printable(shared[0])}; if that is a category, --data_dir is one "
              "level too high")
    boxes = unreadable(pictures.categories + pictures.paths)
    if boxes:
        print(f"note: plots show boxes for {len(boxes)} letters of names, such as {boxes[-1]}: no installed font that they "
              "use has them; for Chinese on Debian and Ubuntu: apt install fonts-noto-cjk")
    if pictures.left_out:
        print(f"left out, {len(pictures.left_out)} files:")
        for path, reason in pictures.left_out:
            print(f"  {path!r}: {reason}")


def print_copies(copies, given, large, settings, most=20):
    """How many pictures stay together, and the groups whose labels differ, `most` of them.

    copies: copy_rows; given: the pairs of read_groups; large: too_large of the copies found.
    """
    count = len({g for g, *_ in copies})
    print(f"copies: {len(copies)} pictures in {count} groups stay together"
          + (f" ({len(np.unique(given[:, 0]))} groups from {settings.groups})" if settings.groups else ""))
    if large and settings.copies == "near":
        print(f"note: one group has {large[0]} of the {large[1]} pictures of a category, more than a part should; "
              + NO_COPIES)
    conflicts = {}
    for g, path, _, conflict in copies:
        if conflict == "yes":
            conflicts.setdefault(g, []).append(path)
    if conflicts:
        print("probable label errors: these copies, or groups of --groups, carry different labels:")
        for paths in list(conflicts.values())[:most]:
            print("  " + ", ".join(map(printable, paths[:most]))
                  + (f" and {len(paths) - most} more" if len(paths) > most else ""))
        if len(conflicts) > most:
            print(f"  and {len(conflicts) - most} more groups; copies.csv in the folder of this run has them all")


def record_places(folder, settings):
    """Where a resumed run found what it needs: the next one looks there too."""
    path = os.path.join(folder, "settings.json")
    with open(path, encoding="utf-8") as f:
        known = json.load(f)
    places = [f.name for f in dataclasses.fields(settings) if f.metadata["free"] and f.type is str]
    write_json(path, {**known, **{name: getattr(settings, name) for name in places}})


def record_run(folder, settings, pictures, parts, groups, copies):
    """settings.json, left_out.csv, folds.csv and copies.csv: what the run was made of."""
    write_json(os.path.join(folder, "settings.json"), {**vars(settings), "versions": runtime.versions()})
    labels = [pictures.categories[i] for i in pictures.labels]
    folds = zip(pictures.paths, labels, parts, groups)
    for name, header, rows in (("folds.csv", ("path", "label", "part", "group"), folds),
                               ("copies.csv", ("group", "path", "label", "conflict"), copies),
                               ("left_out.csv", ("path", "reason"), pictures.left_out)):
        write_csv(os.path.join(folder, name), header, rows)


def print_epoch(epoch, folds, active, seconds, settings):
    """One line: the mean over folds (a stopped one counts with its best epoch), then each fold that trained."""
    active = [f for f in active if f in folds]
    for f in active:
        if f.failed:
            print(f"{f.name} stops at {f.failed}")
    folds = [f for f in folds if f.history]
    active = [f for f in active if not f.failed]
    if not folds:
        return
    kept = [f.history[-1 if f in active else f.best_epoch - 1] for f in folds]
    mean = {key: np.mean([h[key] for h in kept]) for key in kept[0]}

    def figures(h):
        return f"{h['train_loss']:.3f} {h['train_accuracy']:.3f} | {h['val_loss']:.3f} {h['val_accuracy']:.3f}"
    print(f"epoch {epoch}/{settings.num_epochs}, {seconds:.0f} s: mean {figures(mean)}; " + "; ".join(
        f"{f.name} {figures(f.history[-1])}{'*' if f.best_epoch == epoch else ''}" for f in active))
    for f in active:
        if f.stopped() and epoch < settings.num_epochs:
            print(f"{f.name} stops early: best validation accuracy {f.best_accuracy:.4f} at epoch {f.best_epoch}")
