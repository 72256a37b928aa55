"""How fast the parts of a training step are, as Paddle runs them and as this repo does. Random weights will do.

    python benchmarks/parts.py                      # 224 pixels, under two minutes on 2 cores
    python benchmarks/parts.py --image_size 160

Prints a table of medians, measured one after the other in this one process. Only the ratios mean something beyond
the machine, whose name is printed too.
"""
import argparse
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
from utils import runtime  # noqa: E402
import numpy as np  # noqa: E402
import paddle  # noqa: E402

from models.student_model import Depthwise, Prefix, Student  # noqa: E402
from models.teacher_model import Trunk  # noqa: E402
from utils.train_utils import fold_pool  # noqa: E402

PICTURES, STUDENTS = 16, 4


def median_seconds(work, repeats=7):
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def row(what, seconds, pictures):
    print(f"| {what} | {seconds * 1000:.0f} | {pictures / seconds:.0f} |", flush=True)


def make_tail_step(maps, fast):
    student = Student(6)
    if not fast:
        for layer in student.sublayers():
            if isinstance(layer, Depthwise):
                layer.__class__ = paddle.nn.Conv2D
    student.train()
    optimizer = paddle.optimizer.Adam(1e-4, parameters=[p for p in student.parameters() if not p.stop_gradient])
    labels = paddle.arange(PICTURES) % 6

    def step():
        paddle.nn.functional.cross_entropy(student.tail(maps), labels).backward()
        optimizer.step()
        optimizer.clear_grad()
    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_size", type=int, default=224)
    size = parser.parse_args().image_size
    runtime.choose_device("cpu")
    print(f"{runtime.processor()}, {runtime.CORES} cores, {runtime.versions()}\n")
    print(f"| {PICTURES} pictures, {size} pixels | ms | pictures/s |\n| --- | --- | --- |")
    shape = [3, size, size]
    x = np.random.default_rng(0).normal(size=(PICTURES, *shape)).astype(np.float32)
    for name, layer in (("teacher", Trunk()), ("prefix", Prefix(Student(6)))):
        fast = runtime.frozen(layer, shape, runtime.CORES)

        def dynamic():
            with paddle.no_grad():
                layer(paddle.to_tensor(x)).numpy()
        row(f"{name}, dynamic graph, one thread", median_seconds(dynamic, 3), PICTURES)
        row(f"{name}, as here", median_seconds(lambda: fast(x)), PICTURES)
    maps = fast(x)
    for fast_depthwise in (False, True):
        steps = [make_tail_step(maps, fast_depthwise) for _ in range(STUDENTS)]
        how = "depthwise as matrices" if fast_depthwise else "Paddle's depthwise"
        row(f"{STUDENTS} tails learn, {how}, one after another",
            median_seconds(lambda: [step() for step in steps]), STUDENTS * PICTURES)
        with fold_pool(runtime.CORES) as pool:
            row(f"{STUDENTS} tails learn, {how}, in {runtime.CORES} threads",
                median_seconds(lambda: list(pool.map(lambda step: step(), steps))), STUDENTS * PICTURES)


if __name__ == "__main__":
    main()
