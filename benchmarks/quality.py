"""What each ingredient is worth: students that differ in one thing, trained side by side on the same pictures.

    python benchmarks/quality.py --sample --num_folds 3 --num_epochs 3 --image_size 32   # to try it: minutes on 2 cores
    python benchmarks/quality.py --data_dir DIR --image_size 160 --num_epochs 16         # options of main.py
    python benchmarks/quality.py --data_dir DIR --arms "no mixup" "no class weights"     # these only, and the default

--arms NAME ... is its own option, the others are main.py's, but --resume and --control. Every arm is K students, one
per fold. Arms that see the same views train in one pass, as controls do, and cost only their tails; those that need
other views get a pass of their own. Accuracy is out of fold and cross-fitted; each arm is compared with the first,
picture by picture, and with the control of its pass if that differs from it in the teacher alone. A finished pass is
kept in --log_dir and not run again with the same settings, arms, pictures, parts and weights, so a killed benchmark
goes on with the next pass; after a change of the code choose another --log_dir. Figures: README, "Measured", and
docs/measurements.md.
"""
import argparse
import dataclasses
import hashlib
import json
import os
import shlex
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
from utils import runtime  # noqa: E402
import numpy as np  # noqa: E402
import paddle  # noqa: E402

from data.make_sample import make_sample  # noqa: E402
from models.teacher_model import extract_features, fit_heads, load_trunk, teacher_predictions  # noqa: E402
from utils.checkpoint import imagenet_weights  # noqa: E402
from utils.copies import group_pictures, known_copies, read_groups  # noqa: E402
from utils.data_utils import HEAD, find_categories, load_pictures, stratified_parts  # noqa: E402
from utils.settings import InputError, parse  # noqa: E402
from utils.state import checksums, digest  # noqa: E402
from utils.statistics import compare, cross_fitted_epochs, wilson  # noqa: E402
from utils.train_utils import build_fold, control_settings, train  # noqa: E402

PLAIN = dict(flip_horizontal=0.0, flip_vertical=0.0, rotation=0.0, crop_pad=0, brightness=0.0, contrast=0.0,
             saturation=0.0, hue=0.0, erasing=0.0)
SOFT_LABELS = dict(alpha=0.5, temperature=4.0, feature_weight=0.0)
DEFAULT, CONTROL = "default", "no teacher (control)"
LOW_RATE = "a tenth of the learning rate"  # at the full one the next arm learns nothing
FROZEN_NORM = "a tenth of the learning rate, BatchNorm statistics of the tail frozen"


def passes(settings, wanted):
    """[(settings of the stream of pictures, {arm: its settings})]: each pass trains all its arms side by side.

    wanted: arms to keep beside the default one; all if it is empty.
    """
    def with_(**changes):
        return dataclasses.replace(settings, **changes)
    no_mixup, plain, low_rate = with_(mixup_alpha=0.0), with_(**PLAIN), with_(base_lr=settings.base_lr / 10)
    every = [
        (settings, {DEFAULT: settings, CONTROL: control_settings(settings),
                    "soft labels (T 4, alpha 0.5) instead of features": with_(**SOFT_LABELS),
                    "soft labels of a head that was not fitted": with_(**SOFT_LABELS),
                    "no class weights": with_(class_weights="none"), LOW_RATE: low_rate, FROZEN_NORM: low_rate}),
        (no_mixup, {"no mixup": no_mixup, "no mixup, no teacher": control_settings(no_mixup)}),
        (plain, {"no augmentation": plain, "no augmentation, no teacher": control_settings(plain)})]
    unknown = set(wanted).difference(*(arms for _, arms in every))
    if unknown:
        raise InputError(f"--arms {' '.join(map(repr, sorted(unknown)))}: no such arm; there are "
                         + ", ".join(repr(arm) for _, arms in every for arm in arms))
    kept = [(stream, {arm: s for arm, s in arms.items() if not wanted or arm in [DEFAULT, *wanted]}) for stream, arms in every]
    return [(stream, arms) for stream, arms in kept if arms]


def main():
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--arms", nargs="+", default=[])
    own, rest = parser.parse_known_args()
    settings, sample, resumed = parse(rest, __doc__)
    if resumed:
        raise InputError("--resume: the same command goes on by itself, with the next pass")
    if settings.control:
        raise InputError("--control: each pass has one of its own; leave the option out")
    planned = passes(settings, own.arms)
    runtime.keep_memory()
    runtime.choose_device(settings.device)
    threads = settings.threads or runtime.CORES
    if sample:
        make_sample(settings.data_dir)
    categories = find_categories(settings.data_dir, settings.categories)
    pictures = load_pictures(settings.data_dir, settings.image_size, categories, settings.cache_dir, settings.cache_gb,
                             threads)
    pairs = np.concatenate([known_copies(pictures, threads, settings.copies == "near"),
                            read_groups(settings.groups, pictures)])
    groups = group_pictures(len(pictures), pairs)
    parts = stratified_parts(pictures.labels, settings.num_folds, settings.seed, categories, groups)
    trained = sorted(settings.folds) or list(range(settings.num_folds))
    if len(trained) < 2:
        raise InputError("--folds: cross-fitted figures need at least two folds")
    os.makedirs(settings.log_dir, exist_ok=True)

    teacher_weights = imagenet_weights("teacher_weights", settings.teacher_weights)
    trunk = load_trunk(*teacher_weights, settings, threads)
    student_weights = imagenet_weights("student_weights", settings.student_weights)
    features = extract_features(trunk, pictures, settings, threads)
    heads = fit_heads(features, pictures.labels, parts, trained, settings, threads)
    teacher = teacher_predictions(features[0], heads, parts).argmax(1)
    del features

    def build(arm, arm_settings, k):
        head = heads[k]
        if "not fitted" in arm:  # as a new linear layer: a head that says nothing of these categories
            rng, bound = np.random.default_rng([settings.seed, HEAD, k]), len(head.mean)**-0.5
            head = head._replace(weight=rng.uniform(-bound, bound, head.weight.shape).astype("float32"),
                                 bias=rng.uniform(-bound, bound, head.bias.shape).astype("float32"))
        fold = build_fold(k, pictures.labels, parts, head, arm_settings, student_weights, arm + " fold ")
        for layer in fold.student.features.sublayers() if arm == FROZEN_NORM else ():
            if isinstance(layer, paddle.nn.BatchNorm2D):
                layer._use_global_stats = True  # Paddle's own argument, which its MobileNetV2 does not pass on
        return fold

    results, sums = {}, checksums(pictures, threads).tolist()
    for number, (stream, arms) in enumerate(planned):
        key = [decisive(stream), {arm: decisive(s) for arm, s in arms.items()}, pictures.paths, sums, parts.tolist(),
               digest(teacher_weights[1]), digest(student_weights[1])]
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
        path = os.path.join(settings.log_dir, f"quality-{name}.npz")
        if not os.path.exists(path):
            began = time.time()
            folds = {arm: [build(arm, s, k) for k in trained] for arm, s in arms.items()}

            def on_epoch(epoch, active, seconds):
                for f in active:
                    if f.failed:
                        raise InputError(f"{f.name}: {f.failed}")
                print(f"pass {number}, epoch {epoch}, {seconds:.0f} s: " + "; ".join(
                    f"{arm} {np.mean([f.history[-1]['val_accuracy'] for f in own]):.4f}" for arm, own in folds.items()))
            train([f for own in folds.values() for f in own], pictures, parts, trunk, stream, threads, on_epoch)
            answers = {arm: cross_fitted_answers(own, len(pictures)) for arm, own in folds.items()}
            np.savez(path + ".tmp.npz", minutes=(time.time() - began) / 60, **answers)
            os.replace(path + ".tmp.npz", path)
        with np.load(path) as saved:
            control = next((arm for arm in arms if "no teacher" in arm), None)
            for arm, s in arms.items():
                twin = dataclasses.replace(control_settings(s), temperature=settings.temperature)  # which it does not use
                results[arm] = saved[arm], control if control and twin == arms[control] else None, saved["minutes"].item()
    print_table(results, teacher, pictures, groups, np.isin(parts, trained), settings)


def decisive(settings):
    """The settings on which the answers depend; what the files of the others hold is known beside them."""
    free = {f.name for f in dataclasses.fields(settings) if f.metadata["free"]}
    return {name: value for name, value in vars(settings).items() if name not in {"log_dir", *free}}


def cross_fitted_answers(folds, n):
    """Answer of each of n pictures, int [n], by the student that never saw it at the epoch the other folds chose."""
    answers = np.full(n, -1)
    epochs = cross_fitted_epochs([[h["val_accuracy"] for h in f.history] for f in folds])
    for f, epoch in zip(folds, epochs):
        answers[f.pictures] = f.probabilities[epoch - 1].argmax(1)
    return answers


def print_table(results, teacher, pictures, groups, rows, settings):
    labels, first = pictures.labels[rows], next(iter(results))
    print(f"\n{runtime.processor()}, {runtime.CORES} cores, {runtime.versions()}\npython {shlex.join(sys.argv)}\n"
          f"seed {settings.seed}, {rows.sum()} pictures; p: exact McNemar, copies count once; minutes: of the whole pass\n\n"
          "| arm | accuracy | 95 % | errors | gained, lost against the first | p | errors removed from those of the control of "
          "its pass | p | minutes |\n" + 9 * "| --- " + "|")
    for arm, (answers, control, minutes) in [*results.items(), ("teacher itself", (teacher, None, 0))]:
        right = answers[rows] == labels
        low, high = wilson(right, groups[rows])

        def against(other, cells):
            if other in (None, arm):
                return "| | "
            c = compare(labels, answers[rows], results[other][0][rows], groups[rows])
            return f"| {cells(c)} | {c['mcnemar_p']:.2g} "
        print(f"| {arm} | {right.mean():.4f} | {low:.3f} to {high:.3f} | {(~right).sum()} "
              + against(first, lambda c: f"{c['gained']}, {c['lost']}")
              + against(control, lambda c: f"{c['other_errors'] - c['errors']} of {c['other_errors']}")
              + f"| {f'{minutes:.0f}' if minutes else ''} |")


if __name__ == "__main__":
    runtime.command(main)
