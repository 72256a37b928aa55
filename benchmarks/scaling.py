"""How start-up, memory and a training step grow with the number of pictures, and a step with that of folds and processes.

    python benchmarks/scaling.py                                 # 2,500 and 16,000 drawn pictures, folds at 224 pixels
    python benchmarks/scaling.py --pictures 500 2000             # for a laptop
    python benchmarks/scaling.py --pictures 64000 --folds        # no second table; 1.3 GB in the temporary folder
    python benchmarks/scaling.py --pictures --folds --processes  # the third table alone, in five folds

Draws JPEG files of smooth noise, one in 50 a mirrored copy, and starts on them twice at 64 pixels, each time in a process
of its own, since the peak memory of a process never falls; Paddle and the rest, just loaded, are not counted in it. For
the teacher's trunk a random matrix stands in there, and weights are random. In brackets: processor time of all cores.
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
from utils import runtime  # noqa: E402
import cv2  # noqa: E402
import numpy as np  # noqa: E402
import paddle  # noqa: E402

from models.teacher_model import Head, extract_features, fit_heads, load_trunk  # noqa: E402
from utils.copies import group_pictures, known_copies  # noqa: E402
from utils.data_utils import Pictures, load_pictures, stratified_parts  # noqa: E402
from utils.parallel import team  # noqa: E402
from utils.settings import Settings  # noqa: E402
from utils.train_utils import build_fold, pictures_per_part, train  # noqa: E402
from utils.transforms import square_side  # noqa: E402

CATEGORIES, STEPS, WARM = 6, 16, 4
FEWEST = 400  # pictures, for so many steps
both = "{0[0]:.1f} ({0[1]:.1f})".format


def clocks():
    return np.array([time.perf_counter(), time.process_time()])


def peak():
    """Largest memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def draw(folder, count):
    def one(i):
        rng = np.random.default_rng(i - (i % 50 == 1))  # number 1 mirrors number 0
        picture = sum(cv2.resize(rng.normal(32, sd, (side, side, 3)), (96, 80), interpolation=cv2.INTER_CUBIC)
                      for side, sd in ((2, 30), (4, 30), (8, 20), (24, 15))).clip(0, 255).astype(np.uint8)
        path = os.path.join(folder, str(i % CATEGORIES), f"{i}.jpg")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        cv2.imencode(".jpg", picture[:, ::-1] if i % 50 == 1 else picture)[1].tofile(path)
    with ThreadPoolExecutor(runtime.CORES) as pool:
        list(pool.map(one, range(count)))


def step_time(pictures, parts, trunk, settings, threads=runtime.CORES):
    """Median milliseconds of a training step per picture, by both clocks."""
    rng, times = np.random.default_rng(0), []
    head = Head(*(0.01 * rng.normal(size=shape).astype("f") for shape in ((2048, CATEGORIES), (1, CATEGORIES), 2048)),
                np.ones(2048, "f"))
    team.folds = range(settings.num_folds)
    folds = [build_fold(k, pictures.labels, parts, head, settings) for k in team.folds]

    def on_step(_, step):  # every step, or every few
        times.append([step, *clocks()])
        if step >= STEPS:
            raise StopAsyncIteration  # nothing in the program raises it
    try:
        train(folds, pictures, parts, trunk, settings, threads, on_step=on_step)
    except StopAsyncIteration:
        steps, *both_clocks = np.diff([t for t in times if t[0] >= WARM], axis=0).T
        return 1000 * np.median(both_clocks / steps, 1) / (pictures_per_part(settings) * len(folds))


def pictures_in_folds(k):
    """Pictures, and their parts, for a step or two of k folds: 64 different ones of noise, none of them in a file."""
    squares = np.random.default_rng(0).integers(0, 256, (64, *2 * [square_side(224)], 3), np.uint8)
    n = np.arange((STEPS + 1) * pictures_per_part(Settings(num_folds=k)) * k)
    return Pictures("", n.tolist(), n // k % CATEGORIES, list("abcdef"), [], lambda i: squares[i % 64]), n % k


def step(threads):
    """What one process of several, or the only one, needs for a step of five folds, and sends in it; prints it as JSON."""
    team.join()
    gather, sent = team.all_gather, []

    def counted(x, n):
        sent.append(int(x.numel()) * 4)
        return gather(x, n)
    team.all_gather = counted
    settings = Settings(warmup_epochs=0)
    ms = step_time(*pictures_in_folds(5), load_trunk("", None, settings, threads), settings, threads)
    if not team.rank:
        print(json.dumps(dict(ms=ms.tolist(), sent=sum(sent[-2:]) * (team.size - 1))))


def start(folder, cache, second):
    """A start of main.py on a folder; the second time also what comes next. Prints seconds and MB as JSON."""
    settings, threads = Settings(image_size=64, warmup_epochs=0, head_c=1e-5), runtime.CORES  # head_c: fitted sooner
    before, times = peak(), [clocks()]
    pictures = load_pictures(folder, 64, cache_dir=cache)
    times.append(clocks())
    groups = group_pictures(len(pictures), known_copies(pictures, threads))
    times.append(clocks())
    parts = stratified_parts(pictures.labels, 5, 42, pictures.categories, groups)
    times.append(clocks())
    answer = dict(times=np.diff(times, axis=0).tolist(), peaks=[peak() - before])
    if second:
        matrix = np.random.default_rng(0).normal(size=(192, 2048)).astype("f")
        features = extract_features(lambda x: paddle.to_tensor(x[:, :, ::8, ::8].reshape(len(x), -1) @ matrix),
                                    pictures, settings, threads)
        fit_heads(features, pictures.labels, parts, range(5), settings, threads)
        answer["peaks"].append(peak() - before)
        del features
        answer["step"] = step_time(pictures, parts, load_trunk("", None, settings, threads), settings).tolist()
        answer["peaks"].append(peak() - before)
    print(json.dumps(answer))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, nargs="*", default=[2500, 16000],
                        help=f"a row of the table each, at least {FEWEST} (default: 2500 16000)")
    parser.add_argument("--folds", type=int, nargs="*", default=[2, 5, 10],
                        help="the first two give the line (default: 2 5 10); none: no second table")
    parser.add_argument("--processes", action="store_true", help="compare one process of one and two threads with two of one")
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--start", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if min(arguments.pictures, default=FEWEST) < FEWEST:
        parser.error(f"--pictures {min(arguments.pictures)}: at least {FEWEST}, or there are too few steps to time")
    runtime.keep_memory()
    runtime.choose_device("cpu")
    if arguments.step:
        return step(arguments.step)
    if arguments.start:
        return start(*arguments.start[:2], arguments.start[2] == "second")
    print(f"{runtime.processor()}, {runtime.CORES} cores, {runtime.versions()}")
    if arguments.pictures:
        print("\n| pictures | decode, s | copies, s | parts, s | second start, s | a step, ms per picture | MB: start | "
              "features, heads | training |\n" + 9 * "| --- " + "|")
    for count in arguments.pictures:
        with tempfile.TemporaryDirectory() as folder:
            draw(os.path.join(folder, "set"), count)
            first, second = (json.loads(subprocess.run(
                [sys.executable, __file__, "--start", os.path.join(folder, "set"), os.path.join(folder, "cache"), how],
                stdout=subprocess.PIPE, check=True).stdout) for how in ("first", "second"))
        times = map(both, [*first["times"], np.sum(second["times"], 0), second["step"]])
        peaks = np.round(first["peaks"] + second["peaks"][1:]).astype(int)
        print(f"| {count}", *times, *peaks, sep=" | ", end=" |\n", flush=True)
    if arguments.folds:
        print("\n| folds | a step, ms per picture, 224 pixels | on the line of the first two |\n" + 3 * "| --- " + "|")
    rows = []
    for k in arguments.folds:
        settings = Settings(num_folds=k, warmup_epochs=0)
        rows.append((k, step_time(*pictures_in_folds(k), load_trunk("", None, settings, runtime.CORES), settings)))
        tail = (rows[1][1] - rows[0][1]) / (rows[1][0] - rows[0][0]) if len(rows) > 1 else 0
        print(f"| {k} | {both(rows[-1][1])} | {both(rows[0][1] + (k - rows[0][0]) * tail)} |", flush=True)
    if arguments.processes:
        print("\n| processes | threads of each | ms per picture in five folds | pictures/s | bytes that each sends in a step |\n"
              + 5 * "| --- " + "|")
    for processes, threads in ((1, 1), (1, 2), (2, 1)) * arguments.processes:
        with tempfile.TemporaryDirectory() as folder:
            launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes), "--backend", "gloo", "--log_dir",
                      folder] if processes > 1 else []
            printed = subprocess.run([sys.executable, *launch, __file__, "--step", str(threads)], stdout=subprocess.PIPE,
                                     text=True, check=True).stdout
        (line,) = (json.loads(line) for line in printed.splitlines() if line.startswith('{"ms"'))
        print(f"| {processes} | {threads} | {line['ms'][0]:.1f} | {1000 / line['ms'][0]:.1f} | {line['sent']} |", flush=True)


if __name__ == "__main__":
    main()
