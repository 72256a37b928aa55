"""Which weights file to use: one fold's student, all together, the final model, or a distilled one.

    python benchmarks/ship.py --data_dir DIR --log_dir OUT --image_size 160 --num_epochs 40

The images are cut into five outer parts. For each, main.py is run with the options given here on
the images of the other four, and its weights files predict the fifth part, which nothing has seen.
The distilled model starts as the final one and learns, from the same images, labels and the mean
of the students' calibrated logits in equal parts ("born again", Furlanello et al. 2018). The
table after each part is of all images so far; a command that was stopped continues where it was.
Figures: docs/results.md.
"""
import os
import shlex
import shutil
import subprocess
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
sys.path.insert(0, ROOT)
from utils import CORES, processor  # first: it sets what numpy, paddle and cv2 read when they load

# isort: split
import dataclasses
import glob
from types import SimpleNamespace

import numpy as np
import paddle

from models.student_model import Ensemble
from models.teacher_model import Head
from utils import engine
from utils.command import run_command
from utils.data_utils import epoch_order, train_batches
from utils.errors import InputError
from utils.folds import assign_folds
from utils.images.dataset import find_categories, load_images
from utils.images.duplicates import find_groups
from utils.predict import load_model, load_students, predict_files
from utils.report.cost import milliseconds
from utils.report.statistics import compare, wilson
from utils.settings import FINAL, Settings, new_settings, parse
from utils.store import open_store
from utils.train_utils import build_student, frozen_stem, train_step
from utils.weights import arrays_of, imagenet_weights, read_about, save_weights

OUTER = 5


def main():
    given, sample, resume = parse(None, __doc__)
    settings = new_settings(given, sample)
    refused = {"folds", "no_final_model", "save_dir", "exclude", "groups"} & given.keys()
    if resume or sample or refused:
        raise InputError("--sample, --resume, --folds, --no_final_model, --save_dir, --exclude, "
                         "--groups: leave the option out; name images with --data_dir and "
                         "--categories")
    engine.keep_memory()
    engine.choose_device(settings.device)
    settings.categories = tuple(find_categories(settings.data_dir, settings.categories))
    images = load_images(settings, CORES)
    groups = find_groups(images, settings, CORES)
    outer = assign_folds(images.labels, OUTER, settings.seed, images.categories, groups)
    predicted = {}  # {name: int [N]}
    for part in range(OUTER):
        folder = os.path.join(settings.log_dir, f"outer{part}")
        rows, seen = np.flatnonzero(outer == part), np.flatnonzero(outer != part)
        saved = train(folder, images, seen, given)
        distilled = os.path.join(saved, "distilled.pdparams")
        if not os.path.exists(distilled):
            distill(saved, distilled)
        students = sorted(glob.glob(os.path.join(saved, "best_model_fold*.pdparams")))
        files = {"all students": students, "final model": [os.path.join(saved, FINAL)],
                 "distilled": [distilled]} | {f"student {k}": [s] for k, s in enumerate(students)}
        paths = [os.path.join(settings.data_dir, images.paths[i]) for i in rows]
        for name, group in files.items():
            model = load_model(group)
            own = predicted.setdefault(name, np.full(len(images), -1))
            own[rows] = [p.argmax() for _, p, *_ in predict_files(paths, model)]
            print(f"outer part {part}: {name} {(own[rows] == images.labels[rows]).mean():.4f}")
        known = np.flatnonzero(outer <= part)
        print_table({name: own[known] for name, own in predicted.items()}, images.labels[known],
                    groups[known], files, settings)


def train(folder, images, rows, given):
    """Run main.py on some of the images, or continue; returns the folder of its weights."""
    data = os.path.join(folder, "images")
    for i in rows:
        path = os.path.join(data, images.paths[i])
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            shutil.copy(os.path.join(images.data_dir, images.paths[i]), path)
    logs, saved = os.path.join(folder, "logs"), os.path.join(folder, "saved")
    if not glob.glob(os.path.join(logs, "*", "report.json")):
        options = {**given, "data_dir": data, "log_dir": logs, "save_dir": saved}
        if glob.glob(os.path.join(logs, "*", "checkpoint-*", "complete")):
            options = {"resume": True, "log_dir": logs, "save_dir": saved}
        command = [sys.executable, os.path.join(ROOT, "main.py")]
        for name, value in options.items():
            command.append(f"--{name}")
            if value is not True:
                command += map(str, value if isinstance(value, tuple) else [value])
        if subprocess.run(command).returncode:
            raise InputError(f"main.py failed in {folder}; the same command continues")
    return saved


def distill(saved, path):
    """Train a student on all images of a run, taught by the mean of its students' logits."""
    files = sorted(glob.glob(os.path.join(saved, "best_model_fold*.pdparams")))
    _, students, temperatures = load_students(files)
    final = read_about(os.path.join(saved, FINAL))
    settings = dataclasses.replace(Settings(**final["settings"]), alpha=0.5, temperature=1.0,
                                   feature_weight=0.0)
    images = load_images(settings, CORES)
    groups = find_groups(images, settings, CORES)
    fold_of = assign_folds(images.labels, settings.num_folds, settings.seed, images.categories,
                           groups)
    classes = len(images.categories)
    head = Head(np.eye(classes, dtype="float32"), np.zeros((1, classes), "float32"),
                np.zeros(classes, "float32"), np.ones(classes, "float32"))  # logits as they are
    weights = imagenet_weights("student_weights", settings.student_weights)
    student = build_student(settings.num_folds, images.labels, fold_of, head, settings, weights)
    stem = frozen_stem([student], settings, CORES)
    side = settings.image_size
    ensemble, maps = Ensemble(students, temperatures), stem(paddle.zeros([1, 3, side, side]))
    ensemble.stem = paddle.nn.Identity()  # all have the stem of the student: it runs once
    teacher = engine.compiled(ensemble, maps.shape[1:], CORES)
    store = open_store(None, images, SimpleNamespace(  # maps alone, stored by the run
        settings=settings.without_teacher(), threads=CORES, student_weights=weights))
    for epoch in range(settings.num_epochs):  # to the end: no image is left to choose one
        order = epoch_order(fold_of, range(settings.num_folds), settings, epoch)
        for batch in train_batches(images, fold_of, order, settings, epoch, threads=CORES,
                                   store=store):
            maps = batch.outputs("maps", stem)
            train_step(student, batch, paddle.log(teacher(maps).clip(1e-7)), maps)
        print(f"distilled, epoch {epoch + 1}: loss {student.running[0] / student.running[2]:.4f}")
        student.running = paddle.zeros([4])
    save_weights(path, arrays_of(student.network), {**final, "temperature": 1.0})


def print_table(predicted, labels, groups, files, settings):
    single = [predicted[name] for name in predicted if name.startswith("student ")]
    print(f"\n{processor()}, {CORES} cores, {engine.versions()}\n"
          f"python {shlex.join(sys.argv)}\n{len(labels)} images; p: exact McNemar, groups count "
          "once\n\n| file | accuracy | 95 % | errors | gained, lost against the final model | p "
          "| MB | ms, one image |\n" + 8 * "| --- " + "|")
    x = paddle.zeros([1, 3, settings.image_size, settings.image_size])
    for name in ("student 0", "all students", "final model", "distilled"):
        each = single if name == "student 0" else [predicted[name]]
        correct = np.mean([p == labels for p in each], axis=0)
        low, high = wilson(correct, groups)
        against = "| | "
        if name != "final model":
            c = [compare(labels, p, predicted["final model"], groups) for p in each]
            gained, lost, p = (np.mean([d[key] for d in c])
                               for key in ("gained", "lost", "mcnemar_p"))
            against = f"| {gained:.0f}, {lost:.0f} | {p:.2g} "
        size = sum(map(os.path.getsize, files[name])) / 1e6
        _, students, temperatures = load_students(files[name])
        run = engine.compiled(Ensemble(students, temperatures), list(x.shape[1:]), CORES)
        title = f"one student (mean of {len(single)})" if name == "student 0" else name
        print(f"| {title} | {correct.mean():.4f} | {low:.3f} to {high:.3f} | "
              f"{len(labels) - correct.sum():.0f} {against}| {size:.1f} | "
              f"{milliseconds(run, x):.2f} |")


if __name__ == "__main__":
    run_command(main)
