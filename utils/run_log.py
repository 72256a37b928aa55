"""What a run leaves behind while it runs: scalars.csv, and the same for VisualDL, one curve per fold.

    visualdl --logdir logs --port 8040 --language en        # then open http://localhost:8040
"""
import csv
import os

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

    def close(self):
        self.file.close()
        for w in self.writers.values():
            w.close()
