"""What a run leaves behind while it runs: scalars.csv, and the same for VisualDL, one curve per fold.

    visualdl --logdir logs --port 8040 --language en        # then open http://localhost:8040
"""
import csv
import os
import time

import numpy as np

from utils.data_utils import read_picture
from utils.statistics import at_least

COLUMNS = ("fold", "epoch", "learning_rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy")


class RunLog:
    """Scalars, pictures and hyperparameters of one run, below logs/<run>/.

    Each fold is a VisualDL run of its own, so that the same scalar of all folds lies in one chart.
    If VisualDL cannot be imported, one line says so, and the CSV holds all the numbers.
    """

    def __init__(self, folder):
        self.folder = folder
        self.file = open(os.path.join(folder, "scalars.csv"), "w", newline="", encoding="utf-8")
        self.csv = csv.DictWriter(self.file, COLUMNS)
        self.csv.writeheader()
        self.writers = {}
        try:
            from visualdl import LogWriter
            self.LogWriter = LogWriter
        except Exception as e:  # it pulls in a web server; whatever breaks there must not cost the training
            self.LogWriter = None
            print(f"VisualDL is not usable here ({type(e).__name__}: {e}); scalars.csv has the same numbers")

    def writer(self, name):
        if name not in self.writers:
            self.writers[name] = self.LogWriter(os.path.join(self.folder, name))
        return self.writers[name]

    def scores(self, fold, scores):
        """One epoch of one fold, "fold0" or "control0": a dict with the keys of COLUMNS but `fold`."""
        self.csv.writerow({"fold": fold, **scores})
        self.file.flush()
        if self.LogWriter:
            for name in COLUMNS[2:]:
                tag = name.replace("_", "/", 1) if name != "learning_rate" else name
                self.writer(fold).add_scalar(tag, scores[name], scores["epoch"])

    def image(self, tag, picture, step=0):
        """picture: uint8 RGB [H, W, 3]"""
        if self.LogWriter:
            self.writer("pictures").add_image(tag, picture, step)

    def hyperparameters(self, settings, metrics):
        """Settings beside final metrics, for VisualDL's table of runs."""
        if self.LogWriter:
            values = {k: v if isinstance(v, (int, float)) and not isinstance(v, bool) else str(v) if v != () else "all"
                      for k, v in settings.items()}
            writer = self.writer("result")
            writer.add_hparams(hparams_dict=values, metrics_list=list(metrics))
            for name, value in metrics.items():
                writer.add_scalar(name, value, 0)

    def results(self, report, settings, answers, labels):
        """The report: its text and plots as pictures, its figures, and of everyone in `answers` a precision-recall and
        an ROC curve per category. answers: {name: utils.report.Answers}; labels: int [N], of the same rows."""
        if not self.LogWriter:
            return
        for name in ("report", "confusion_matrix", "confidence", "curves", "mistakes"):
            path = os.path.join(self.folder, f"{name}.png")
            if os.path.exists(path):  # without mistakes there is no picture of them
                self.image(name, read_picture(path))
        self.hyperparameters(settings, {f"result/{name}_{key}": figures[key]
                                        for name, figures in report["out_of_fold"].items() if name in answers
                                        for key in ("accuracy", "macro_f1", "calibration_error")})
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
        self.file.close()
        for w in self.writers.values():
            w.close()
