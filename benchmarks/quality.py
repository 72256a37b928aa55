"""What each ingredient is worth: students that differ in one thing, trained on the same batches.

    python benchmarks/quality.py --sample --num_folds 3 --num_epochs 3 --image_size 32   # to try it
    python benchmarks/quality.py --data_dir DIR --image_size 160 --num_epochs 16         # main.py's
    python benchmarks/quality.py --data_dir DIR --arms "no mixup" "no class weights"

Beside --arms (default: all; the first one is always trained) it takes the options of main.py but
--resume and --control. An arm is K students, one per fold. Arms that share their
batches train in one pass, side by side, and cost only their tails; the others get a pass of their
own, those with stored augmentations a store below --cache_dir, too. Accuracy is out of fold and
cross-fitted; each arm is compared with the first one, image by image, and with the control of its
pass if it differs from that in the teacher alone. A finished pass is kept in --log_dir and not run
again with the same settings, arms, images, folds and weights, and within a pass a checkpoint is
kept after each epoch, so a killed benchmark continues; after a change of the code choose another
--log_dir. Figures: docs/results.md.
"""
import argparse
import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
from utils import CORES, processor  # first: it sets what numpy, paddle and cv2 read when they load

# isort: split
import numpy as np
import paddle

from data.make_sample import make_sample
from main import train
from models.teacher_model import predict_out_of_fold
from utils import engine
from utils.command import run_command
from utils.data_utils import HEAD
from utils.errors import InputError
from utils.folds import assign_folds
from utils.images.dataset import find_categories, load_images
from utils.images.duplicates import find_groups
from utils.report.statistics import compare, cross_fitted_epochs, wilson
from utils.run.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from utils.settings import new_settings, parse
from utils.store import open_store
from utils.teacher import extract_features, fit_heads, load_teacher
from utils.train_utils import build_student, frozen_stem
from utils.weights import digest, imagenet_weights

SOFT_LABELS = dict(alpha=0.5, temperature=4.0, feature_weight=0.0)
DEFAULT, CONTROL = "default", "no teacher (control)"
LOW_RATE = "a tenth of the learning rate"  # at the full one the next arm learns nothing
FROZEN_NORM = "a tenth of the learning rate, BatchNorm statistics of the tail frozen"
UNFITTED = "soft labels of a head that was not fitted"


def plan(settings, wanted):
    """The passes: [(settings of the batches, {arm: its settings})], of the `wanted` arms or all."""
    def but(**changes):
        return dataclasses.replace(settings, **changes)
    no_mixup = but(mixup_alpha=0.0)
    plain = but(**dict.fromkeys(settings.augmentation, 0),  # all versions of an image are the same
                stored_augmentations=min(settings.stored_augmentations, 1))
    low_rate = but(base_lr=settings.base_lr / 10)
    passes = [
        (settings, {DEFAULT: settings, CONTROL: settings.without_teacher(),
                    "features alone": but(alpha=1.0),
                    "soft labels with a weight of 0.1": but(alpha=0.9),
                    "soft labels with a weight of 0.1 at T 1": but(alpha=0.9, temperature=1.0),
                    "soft labels (T 4, alpha 0.5) instead of features": but(**SOFT_LABELS),
                    UNFITTED: but(**SOFT_LABELS),
                    "no class weights": but(class_weights="none"), "no dropout": but(dropout=0.0),
                    LOW_RATE: low_rate, FROZEN_NORM: low_rate}),
        (no_mixup, {"no mixup": no_mixup, "no mixup, no teacher": no_mixup.without_teacher()}),
        (plain, {"no augmentation": plain,
                 "no augmentation, no teacher": plain.without_teacher()})]
    for count in sorted({0, 4, 8, 16} - {settings.stored_augmentations}):
        stored = but(stored_augmentations=count)
        passes.append((stored, {f"{count or 'no'} stored augmentations": stored}))
    known = [arm for _, arms in passes for arm in arms]
    if set(wanted) - set(known):
        raise InputError(f"--arms {' '.join(map(repr, wanted))}: there are only "
                         + ", ".join(map(repr, known)))
    passes = [(batches, {arm: s for arm, s in arms.items()
                         if not wanted or arm in (DEFAULT, *wanted)})
              for batches, arms in passes]
    return [(batches, arms) for batches, arms in passes if arms]


class Progress:
    """A stand-in for a Run in main.train: a line and a checkpoint per epoch.

    students: {arm: [TrainState]}; a checkpoint that is already in `folder` is continued.
    """
    epoch, step, checkpoint = 0, 0, None

    def __init__(self, title, settings, threads, students, folder, weights):
        self.title, self.settings, self.threads = title, settings, threads
        self.teacher_weights, self.student_weights = weights
        self.students, self.folder = students, folder
        self.everyone = [s for own in students.values() for s in own]
        os.makedirs(folder, exist_ok=True)
        if checkpoints(folder):
            self.checkpoint, self.epoch, self.step = load_checkpoint(folder, self.everyone)

    def after_step(self, epoch, step):
        pass

    def after_epoch(self, epoch, active):
        for student in active:
            if student.failed:
                raise InputError(f"{student.name}: {student.failed}")
        print(f"{self.title}, epoch {epoch + 1}: " + "; ".join(
            f"{arm} {np.mean([s.history[-1]['val_accuracy'] for s in own]):.4f}"
            for arm, own in self.students.items()))
        self.checkpoint = save_checkpoint(self.folder, self.everyone, epoch + 1, 0, self.checkpoint)


def main():
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--arms", nargs="+", default=[])
    own, rest = parser.parse_known_args()
    given, sample, resume = parse(rest, __doc__)
    settings = new_settings(given, sample)
    if resume or settings.control:
        raise InputError("--resume, --control: the same command continues by itself, and each pass "
                         "has a control; leave the option out")
    if len(settings.trained_folds) < 2:
        raise InputError("--folds: cross-fitted figures need at least two folds")
    passes = plan(settings, own.arms)
    engine.keep_memory()
    engine.choose_device(settings.device)
    threads = settings.threads or CORES
    if sample:
        make_sample(settings.data_dir)
    settings.categories = tuple(find_categories(settings.data_dir, settings.categories,
                                                settings.exclude))
    for batches, arms in passes:
        for s in (batches, *arms.values()):
            s.categories = settings.categories
    os.makedirs(settings.log_dir, exist_ok=True)

    images = load_images(settings, threads)
    groups = find_groups(images, settings, threads)
    fold_of = assign_folds(images.labels, settings.num_folds, settings.seed, images.categories,
                           groups)
    teacher_weights = imagenet_weights("teacher_weights", settings.teacher_weights)
    student_weights = imagenet_weights("student_weights", settings.student_weights)
    teacher = load_teacher(teacher_weights, settings, threads)
    features = extract_features(teacher, images, settings, threads)
    heads = fit_heads(features, images.labels, fold_of, settings, threads)
    teacher_predicted = predict_out_of_fold(features[0], heads, fold_of).argmax(1)
    del features

    def build(arm, arm_settings, k):
        head = heads[k]
        if arm == UNFITTED:  # as a new linear layer: it knows nothing of these categories
            rng = np.random.default_rng([settings.seed, HEAD, k])
            bound = len(head.mean)**-0.5
            head = head._replace(**{name: rng.uniform(-bound, bound, value.shape).astype("float32")
                                    for name, value in zip(("weight", "bias"), head)})
        student = build_student(k, images.labels, fold_of, head, arm_settings, student_weights,
                                f"{arm} fold {k}")
        for layer in student.network.features.sublayers() if arm == FROZEN_NORM else ():
            if isinstance(layer, paddle.nn.BatchNorm2D):
                layer._use_global_stats = True  # Paddle's argument, which its MobileNetV2 lacks
        return student

    results = {}
    for number, (batches, arms) in enumerate(passes):
        key = json.dumps([decisive(batches), {arm: decisive(s) for arm, s in arms.items()},
                          images.digest(), fold_of.tolist(), digest(teacher_weights[1]),
                          digest(student_weights[1])])
        name = hashlib.sha256(key.encode()).hexdigest()[:12]
        path = os.path.join(settings.log_dir, f"quality-{name}.npz")
        if not os.path.exists(path):
            began = time.time()
            students = {arm: [build(arm, s, k) for k in settings.trained_folds]
                        for arm, s in arms.items()}
            progress = Progress(f"pass {number}", batches, threads, students, path[:-len(".npz")],
                                (teacher_weights, student_weights))
            stem = frozen_stem(progress.everyone, batches, threads)
            store = open_store(teacher, images, progress)
            if store:
                store.fill()
            train(progress.everyone, images, fold_of, teacher, stem, progress, store)
            predicted = {arm: cross_fitted(own, len(images)) for arm, own in students.items()}
            np.savez(path + ".tmp.npz", minutes=(time.time() - began) / 60, **predicted)
            os.replace(path + ".tmp.npz", path)
            shutil.rmtree(progress.folder)
        with np.load(path) as saved:
            control = next((arm for arm in arms if "no teacher" in arm), None)
            for arm, s in arms.items():
                own_control = dataclasses.replace(s.without_teacher(),
                                                  temperature=settings.temperature)  # unused there
                compared = control and own_control == arms[control]
                results[arm] = saved[arm], control if compared else None, saved["minutes"].item()
    print_table(results, teacher_predicted, images, groups,
                np.isin(fold_of, settings.trained_folds), settings)


def decisive(settings):
    """The settings that decide the predictions; what the files of the others hold is known."""
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)
            if not f.metadata["free"] and f.name != "log_dir"}


def cross_fitted(students, n):
    """The prediction for each of n images, int [n], by the student that never saw it, at the epoch
    that the other folds chose."""
    predicted = np.full(n, -1)
    epochs = cross_fitted_epochs(*zip(*(s.curves for s in students)))
    for student, epoch in zip(students, epochs):
        predicted[student.images] = student.probabilities[epoch - 1].argmax(1)
    return predicted


def print_table(results, teacher_predicted, images, groups, rows, settings):
    labels, first = images.labels[rows], next(iter(results))
    print(f"\n{processor()}, {CORES} cores, {engine.versions()}\n"
          f"python {shlex.join(sys.argv)}\nseed {settings.seed}, {rows.sum()} images; p: exact "
          "McNemar, groups count once; minutes: of the whole pass\n\n"
          "| arm | accuracy | 95 % | errors | gained, lost against the first | p | errors removed "
          "from its control's | p | minutes |\n" + 9 * "| --- " + "|")
    everything = [*results.items(), ("teacher itself", (teacher_predicted, None, 0))]
    for arm, (predicted, control, minutes) in everything:
        correct = predicted[rows] == labels
        low, high = wilson(correct, groups[rows])

        def against(other, cell):
            if other in (None, arm):
                return "| | "
            c = compare(labels, predicted[rows], results[other][0][rows], groups[rows])
            return f"| {cell(c)} | {c['mcnemar_p']:.2g} "
        print(f"| {arm} | {correct.mean():.4f} | {low:.3f} to {high:.3f} | {(~correct).sum()} "
              + against(first, lambda c: f"{c['gained']}, {c['lost']}")
              + against(control,
                        lambda c: f"{c['other_errors'] - c['errors']} of {c['other_errors']}")
              + f"| {f'{minutes:.0f}' if minutes else ''} |")


if __name__ == "__main__":
    run_command(main)
