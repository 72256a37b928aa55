"""Runs with made-up results, for the tests of the report: no network is trained."""
from types import SimpleNamespace

import cv2
import numpy as np
from scipy.special import softmax

from utils.files import write_json
from utils.report.build import make_report, write_results
from utils.report.text import report_text
from utils.run.log import COLUMNS, Log
from utils.settings import Settings
from utils.tables import write_csv


class Trained:
    """What the report needs of a TrainState: three to five epochs of made-up, improving results."""

    def __init__(self, name, fold, images, labels, seed):
        rng = np.random.default_rng([seed, fold])
        self.name, self.fold, self.images, self.failed = f"{name}{fold}", fold, images, ""
        self.is_control, self.is_final, self.is_fold = name == "control", False, name == "fold"
        truth = np.eye(3)[labels[images]]
        self.probabilities = [
            softmax(2 * rng.normal(size=truth.shape) + e * truth, axis=1).astype(np.float32)
            for e in range(3 + (fold + seed) % 3)]
        accuracies = [float((p.argmax(1) == labels[images]).mean()) for p in self.probabilities]
        self.history = [dict.fromkeys(COLUMNS[1:], 0.5) | {"epoch": e + 1, "val_accuracy": a}
                        for e, a in enumerate(accuracies)]
        self.curves = accuracies, [0.5] * len(accuracies)
        self.best_epoch = int(np.argmax(accuracies)) + 1


def write_run(folder, settings, images, fold_of, groups, trained, *results):
    """The files of a run that its report is made from."""
    write_json(str(folder / "settings.json"), {**vars(settings), "versions": {"python": "3"}})
    labels = [images.categories[i] for i in images.labels]
    write_csv(folder / "folds.csv", ("path", "label", "fold", "group"),
              zip(images.paths, labels, fold_of, groups))
    log = Log(str(folder))
    log.repeat(trained)
    log.close()
    write_results(str(folder), trained, *results)


def make_run(folder, trained, with_control, categories=("a", "b", "纸"), **options):
    """A run of 300 images in three folds, pairs of which are groups: (students, report, text)."""
    rng = np.random.default_rng(3)
    labels, fold_of = rng.integers(0, 3, 300), np.arange(300) % 3
    images = SimpleNamespace(paths=[f"夹/{i}.jpg" for i in range(300)], labels=labels,
                             categories=list(categories))
    (folder / "set" / "夹").mkdir(parents=True)
    for i, path in enumerate(images.paths):
        cv2.imencode(".jpg", np.full((40, 40, 3), i % 256, np.uint8))[1].tofile(
            folder / "set" / path)
    settings = Settings(data_dir=str(folder / "set"), categories=tuple(categories), image_size=32,
                        save_dir=str(folder / "saved"), **options)
    students, controls = ([Trained(name, k, np.flatnonzero(fold_of == k), labels, seed)
                           for k in trained] for name, seed in (("fold", 1), ("control", 2)))
    teacher_probs = softmax(2 * rng.normal(size=(300, 3)) + np.eye(3)[labels], axis=1)
    groups = np.arange(300) - 3 * (np.arange(300) // 3 % 2)  # pairs, in one fold
    write_run(folder, settings, images, fold_of, groups,
              students + controls if with_control else students, teacher_probs, images, groups)
    report = make_report(str(folder))
    return students, report, report_text(report)


def write_faultless(folder, labels, names):
    """The report of two students, and their controls, that are correct on every image."""
    n, right = len(labels), np.eye(len(names), dtype=np.float32)[labels]
    students, controls = ([Trained(name, k, np.arange(k, n, 2), labels % 3, 0) for k in (0, 1)]
                          for name in ("fold", "control"))
    for s in students + controls:
        s.probabilities = [right[s.images]] * len(s.history)
    images = SimpleNamespace(paths=[f"{i}.jpg" for i in range(n)], labels=labels, categories=names)
    write_run(folder, Settings(data_dir=str(folder), categories=tuple(names)), images,
              np.arange(n) % 2, np.arange(n), students + controls, right, images, np.arange(n))
    make_report(str(folder))
