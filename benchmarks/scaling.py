"""How start-up, memory and a training step grow with the number of images, folds and processes.

    python benchmarks/scaling.py                               # 2,500 and 16,000 drawn images
    python benchmarks/scaling.py --images 500 2000             # for a laptop
    python benchmarks/scaling.py --images 64000 --folds        # no second table; 1.3 GB on disk
    python benchmarks/scaling.py --images --folds --processes  # the third table alone, five folds

Draws JPEG files of smooth noise, one in 50 a mirrored copy, and starts on them twice at 64 pixels,
each time in a process of its own, since the peak memory of a process never falls; what Paddle takes
when loaded is not counted. A random matrix stands in for the teacher, and weights are random. In
the second table every step is timed once more with what --stored_augmentations 1 keeps, read from
the page cache; to fill it takes minutes and is not counted. In brackets: processor time of all
cores.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
from utils import CORES, processor  # first: it sets what numpy, paddle and cv2 read when they load

# isort: split
import cv2
import numpy as np
import paddle

from main import train
from models.teacher_model import Head
from utils import engine
from utils.command import Parser
from utils.data_utils import images_per_fold
from utils.distributed import world
from utils.folds import assign_folds
from utils.images.dataset import Images, load_images
from utils.images.duplicates import find_groups
from utils.settings import Settings
from utils.store import open_store
from utils.teacher import extract_features, fit_heads, load_teacher
from utils.train_utils import build_student, frozen_stem
from utils.transforms import square_side

CATEGORIES, STEPS, WARM_UP = 6, 16, 4
MIN_IMAGES = 400  # for so many steps
both = "{0[0]:.1f} ({0[1]:.1f})".format


def clocks():
    return np.array([time.perf_counter(), time.process_time()])


def peak():
    """Largest memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def draw(folder, count):
    def one(i):
        rng = np.random.default_rng(i - (i % 50 == 1))  # number 1 mirrors number 0
        image = sum(cv2.resize(rng.normal(32, sd, (side, side, 3)), (96, 80),
                               interpolation=cv2.INTER_CUBIC)
                    for side, sd in ((2, 30), (4, 30), (8, 20), (24, 15)))
        image = image.clip(0, 255).astype(np.uint8)
        path = os.path.join(folder, str(i % CATEGORIES), f"{i}.jpg")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        cv2.imencode(".jpg", image[:, ::-1] if i % 50 == 1 else image)[1].tofile(path)
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(one, range(count)))


class Enough(Exception):
    """So many steps have been timed."""


class Stopwatch:
    """A stand-in for a Run in main.train: notes the time of each step, and ends training."""
    epoch = step = 0
    teacher_weights = student_weights = "", None

    def __init__(self, settings, threads):
        self.settings, self.threads, self.times = settings, threads, []

    def after_step(self, epoch, step):
        self.times.append(clocks())
        if step == STEPS:
            raise Enough


def step_time(images, fold_of, settings, threads=CORES):
    """Median milliseconds of a training step per image, by both clocks."""
    rng = np.random.default_rng(0)
    head = Head(*(0.01 * rng.normal(size=shape).astype("f") for shape in (
        (2048, CATEGORIES), (1, CATEGORIES), 2048)), np.ones(2048, "f"))
    students = [build_student(k, images.labels, fold_of, head, settings)
                for k in range(settings.num_folds)]
    watch, teacher = Stopwatch(settings, threads), load_teacher(("", None), settings, threads)
    store = open_store(teacher, images, watch)
    if store:
        store.fill()
    try:
        train(students, images, fold_of, teacher, frozen_stem(students, settings, threads), watch,
              store)
    except Enough:
        steps = np.diff(watch.times[WARM_UP:], axis=0)
        return 1000 * np.median(steps, 0) / (images_per_fold(settings) * len(students))


def noise_in_folds(k):
    """Images in no file, and their folds, for a step or two of k folds: 64 different ones."""
    squares = np.random.default_rng(0).integers(0, 256, (64, *2 * [square_side(224)], 3), np.uint8)
    n = np.arange((STEPS + 1) * images_per_fold(Settings(num_folds=k)) * k)
    return Images("", n.tolist(), n // k % CATEGORIES, list("abcdef"), [],
                  lambda i: squares[i % 64], 0 * n), n % k


def step(threads):
    """What a process needs for a step of five folds, and sends in it, as JSON."""
    world.join()
    gather, sent = world.all_gather, []

    def counted(x, n):
        sent.append(int(x.numel()) * 4)
        return gather(x, n)
    world.all_gather = counted
    ms = step_time(*noise_in_folds(5), Settings(warmup_epochs=0, stored_augmentations=0),
                   threads)
    if world.rank == 0:
        print(json.dumps(dict(ms=ms.tolist(), sent=sum(sent[-2:]) * (world.size - 1))))


def start(folder, cache, second):
    """A start of main.py on a folder; the second time also what follows: seconds and MB as JSON."""
    settings = Settings(data_dir=folder, cache_dir=cache, image_size=64, warmup_epochs=0,
                        stored_augmentations=0, head_c=1e-5)  # fitted sooner
    before, times = peak(), [clocks()]
    images = load_images(settings)
    times.append(clocks())
    groups = find_groups(images, settings)
    times.append(clocks())
    fold_of = assign_folds(images.labels, 5, 42, images.categories, groups)
    times.append(clocks())
    answer = dict(times=np.diff(times, axis=0).tolist(), peaks=[peak() - before])
    if second:
        matrix = np.random.default_rng(0).normal(size=(192, 2048)).astype("f")

        def teacher(x):
            return paddle.to_tensor(x[:, :, ::8, ::8].reshape(len(x), -1) @ matrix)
        features = extract_features(teacher, images, settings, CORES)
        fit_heads(features, images.labels, fold_of, settings, CORES)
        answer["peaks"].append(peak() - before)
        del features
        answer["step"] = step_time(images, fold_of, settings).tolist()
        answer["peaks"].append(peak() - before)
    print(json.dumps(answer))


def main():
    parser = Parser(__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=[2500, 16000],
                        help=f"a row of the table each, at least {MIN_IMAGES} "
                             "(default: 2500 16000)")
    parser.add_argument("--folds", type=int, nargs="*", default=[2, 5, 10],
                        help="the first two give the line (default: 2 5 10); none: no second table")
    parser.add_argument("--processes", action="store_true",
                        help="compare one process with one and two threads with two of one")
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--start", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.images, default=MIN_IMAGES) < MIN_IMAGES:
        parser.error(f"--images {min(args.images)}: at least {MIN_IMAGES}, or there are too few "
                     "steps to time")
    engine.keep_memory()
    engine.choose_device("cpu")
    if args.step:
        return step(args.step)
    if args.start:
        return start(*args.start[:2], args.start[2] == "second")
    print(f"{processor()}, {CORES} cores, {engine.versions()}")
    if args.images:
        print("\n| images | decode, s | duplicates, s | folds, s | second start, s | a step, ms "
              "per image | MB: start | features, heads | training |\n" + 9 * "| --- " + "|")
    for count in args.images:
        with tempfile.TemporaryDirectory() as folder:
            data, cache = os.path.join(folder, "set"), os.path.join(folder, "cache")
            draw(data, count)
            first, second = (json.loads(subprocess.run(
                [sys.executable, __file__, "--start", data, cache, how], stdout=subprocess.PIPE,
                check=True).stdout.splitlines()[-1]) for how in ("first", "second"))
        times = map(both, [*first["times"], np.sum(second["times"], 0), second["step"]])
        peaks = np.round(first["peaks"] + second["peaks"][1:]).astype(int)
        print(f"| {count}", *times, *peaks, sep=" | ", end=" |\n", flush=True)
    if args.folds:
        print("\n| folds | a step, ms per image, 224 pixels | on the line of the first two | with "
              "stored augmentations | on the line |\n" + 5 * "| --- " + "|")
    rows = []
    for k in args.folds:
        with tempfile.TemporaryDirectory() as folder:
            rows.append((k, np.stack([step_time(*noise_in_folds(k), Settings(
                num_folds=k, warmup_epochs=0, stored_augmentations=stored, cache_dir=folder))
                for stored in (0, 1)])))
        tail = (rows[1][1] - rows[0][1]) / (rows[1][0] - rows[0][0]) if len(rows) > 1 else 0
        line = rows[0][1] + (k - rows[0][0]) * tail
        print(f"| {k}", *(both(ms[i]) for i in (0, 1) for ms in (rows[-1][1], line)), sep=" | ",
              end=" |\n", flush=True)
    if args.processes:
        print("\n| processes | threads of each | ms per image in five folds | images/s | bytes "
              "that each sends in a step |\n" + 5 * "| --- " + "|")
    for processes, threads in ((1, 1), (1, 2), (2, 1)) * args.processes:
        with tempfile.TemporaryDirectory() as folder:
            launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes),
                      "--backend", "gloo", "--log_dir", folder] if processes > 1 else []
            printed = subprocess.run([sys.executable, *launch, __file__, "--step", str(threads)],
                                     stdout=subprocess.PIPE, text=True, check=True).stdout
        (line,) = (json.loads(line) for line in printed.splitlines() if line.startswith('{"ms"'))
        print(f"| {processes} | {threads} | {line['ms'][0]:.1f} | {1000 / line['ms'][0]:.1f} | "
              f"{line['sent']} |", flush=True)


if __name__ == "__main__":
    main()
