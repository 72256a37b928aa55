"""What one picture costs in a run of five folds, part by part, and what the same costs fold after fold elsewhere.

    python benchmarks/step.py --image_size 64                   # to try it: a minute on a laptop
    python benchmarks/step.py --torch torch/bin/python          # 224 pixels, beside PyTorch in a Python of its own:
                                                                # python -m venv torch && torch/bin/pip install torch==2.13.0

Batches of 16, ResNet50, 14 blocks frozen, random weights. Here training itself is timed, whole blocks of steps; the others
take a batch of one fold each in between (benchmarks/peers.py), and a picture costs them four: it is in the training set of
four folds. Medians; only the ratios mean something beyond the machine, which is printed. Figures: README, "Speed".
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
sys.path.insert(0, ROOT)
from utils import runtime  # noqa: E402
import numpy as np  # noqa: E402
import paddle  # noqa: E402

from models.teacher_model import Head, Trunk, load_trunk  # noqa: E402
from utils import train_utils  # noqa: E402
from utils.cost import count  # noqa: E402
from utils.data_utils import Pictures  # noqa: E402
from utils.settings import Settings  # noqa: E402
from utils.transforms import square_side  # noqa: E402

ROUNDS, STEPS, BATCH, SIDE = 5, 6, 16, 2048
PLAIN = ("OMP_NUM_THREADS", "KMP_BLOCKTIME", "MKL_DEBUG_CPU_TYPE", "GLOG_minloglevel")  # of what utils/__init__.py sets
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}  # runtime.keep_memory, for PyTorch


class Clock:
    """Seconds by part, of calls that are wrapped."""

    def __init__(self):
        self.seconds = {}

    def add(self, part, seconds):
        self.seconds[part] = self.seconds.get(part, 0) + seconds

    def timed(self, part, work):
        def call(*args):
            began = time.perf_counter()
            result = work(*args)
            self.add(part, time.perf_counter() - began)
            return result
        return call

    def waited(self, part, iterate):
        def wrapped(*args):
            step = self.timed(part, iter(iterate(*args)).__next__)
            try:
                while True:
                    yield step()
            except StopIteration:
                pass
        return wrapped


class Here:
    """Five folds of random weights on random squares; block() trains some steps and returns ms per picture, by part."""

    def __init__(self, size):
        self.settings = Settings(image_size=size, num_epochs=1, warmup_epochs=0, patience=1000, batch_size=BATCH,
                                 teacher_weights="random", student_weights="random").check()
        rng = np.random.default_rng(0)
        self.per_step = 5 * train_utils.pictures_per_part(self.settings)
        squares = rng.integers(0, 256, (self.per_step, square_side(size), square_side(size), 3), np.uint8)
        n = STEPS * self.per_step
        self.parts, labels = np.arange(n) % 5, np.arange(n) // 5 % 6
        self.pictures = Pictures("", [""] * n, labels, list("abcdef"), [], lambda i: squares[i % len(squares)])
        head = Head(*(rng.normal(0, 0.01, shape).astype(np.float32) for shape in ((2048, 6), (1, 6), (2048,))),
                    np.ones(2048, np.float32))
        self.folds = [train_utils.build_fold(k, labels, self.parts, head, self.settings) for k in range(5)]
        self.trunk = load_trunk("", None, self.settings, runtime.CORES)
        self.maps = paddle.randn([BATCH, 96, size // 16, size // 16])
        self.compiled, self.prefetch = runtime.compiled, train_utils.prefetch

    def block(self):
        clock, taken = Clock(), {}
        train_utils.prefetch = clock.waited("waiting for views", self.prefetch)
        runtime.compiled = lambda *args: clock.timed("prefix", self.compiled(*args))

        def on_step(epoch, step):
            if step == STEPS and not taken:  # later calls belong to the validation
                taken.update(clock.seconds, all=time.perf_counter() - clock.began)

        def trunk(x):
            return clock.timed("teacher", self.trunk)(x)
        order = train_utils.epoch_order

        def begin(*args):
            clock.began = time.perf_counter()
            return order(*args)
        train_utils.epoch_order = begin
        train_utils.train(self.folds, self.pictures, self.parts, trunk, self.settings, runtime.CORES, on_step=on_step)
        train_utils.epoch_order, train_utils.prefetch, runtime.compiled = order, self.prefetch, self.compiled
        taken["four tails learn"] = 2 * taken["all"] - sum(taken.values())
        return {part: 1000 * seconds / (STEPS * self.per_step) for part, seconds in taken.items()}


def loss_of(fold, maps):
    """The loss of one student on what a prefix gave."""
    pooled = fold.student.pool(maps)
    return (paddle.nn.functional.cross_entropy(fold.student.head(pooled), paddle.arange(BATCH) % 6)
            + 8 * paddle.nn.functional.mse_loss(fold.regressor(pooled), paddle.ones([BATCH, 2048])))


def tail_parts(here):
    """ms per picture of one student on one core, by part."""
    fold, clock = here.folds[0], Clock()
    fold.student.train()
    loss = clock.timed("forward", loss_of)(fold, here.maps)
    clock.timed("backward", loss.backward)()
    clock.timed("Adam", fold.optimizer.step)()
    fold.optimizer.clear_grad()
    return {part: 1000 * seconds / BATCH for part, seconds in clock.seconds.items()}


def pair_rate(here):
    """Pictures per second that students learn from, one student on each core."""
    def learn(fold):
        loss_of(fold, here.maps).backward()
        fold.optimizer.step()
        fold.optimizer.clear_grad()
    for fold in here.folds:
        fold.student.train()
    with ThreadPoolExecutor(runtime.CORES) as pool:
        began = time.perf_counter()
        list(pool.map(learn, here.folds[:runtime.CORES]))
        return BATCH * min(runtime.CORES, 5) / (time.perf_counter() - began)


def matmul_rate():
    """Gigaflops of float32 products of matrices, one in each thread."""
    pairs = [(paddle.randn([SIDE, SIDE]), paddle.randn([SIDE, SIDE])) for _ in range(runtime.CORES)]
    with ThreadPoolExecutor(runtime.CORES) as pool:
        began = time.perf_counter()
        list(pool.map(lambda pair: paddle.matmul(*pair), pairs))
        return len(pairs) * 2 * SIDE**3 / (time.perf_counter() - began) / 1e9


def start_peer(python, which, size):
    env = {k: v for k, v in os.environ.items() if k not in PLAIN} | ({} if which == "paddle" else KEEP)
    process = subprocess.Popen([python, os.path.join(ROOT, "benchmarks", "peers.py"), which, str(size)], env=env, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    return json.loads(process.stdout.readline()), process


def ask(process):
    """ms per picture of one fold, by part."""
    process.stdin.write("\n")
    process.stdin.flush()
    return {part: 1000 * seconds / BATCH for part, seconds in json.loads(process.stdout.readline()).items()}


def median(rows, part):
    return statistics.median(r[part] for r in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_size", type=int, default=224, help="pixels (default: 224)")
    parser.add_argument("--torch", metavar="PYTHON", help="a Python that has PyTorch")
    args = parser.parse_args()
    runtime.keep_memory()
    runtime.choose_device("cpu")
    here = Here(args.image_size)
    peers = dict(start_peer(python, which, args.image_size)
                 for which, python in (("torch", args.torch), ("torch-half", args.torch if runtime.BFLOAT16 else None),
                                       ("paddle", sys.executable)) if python)
    here.block()  # the first one warms up
    tail_parts(here)
    blocks, tails, pairs, rates, others = [], [], [], [], {name: [] for name in peers}
    for _ in range(ROUNDS):
        blocks.append(here.block())
        tails.append(tail_parts(here))
        pairs.append(pair_rate(here))
        rates.append(matmul_rate())
        for name, process in peers.items():
            others[name].append(ask(process))
    for process in peers.values():
        process.stdin.close()

    whole = median(blocks, "all")
    print(f"{runtime.processor()}, {runtime.CORES} cores, {runtime.versions()}\n")
    print(f"| one picture in five folds, {args.image_size} pixels | ms |\n| --- | --- |")
    for part in ("waiting for views", "teacher", "prefix", "four tails learn"):
        print(f"| {part} | {median(blocks, part):.1f} |")
    print(f"| **all of it, here** | **{whole:.1f}** |")
    for name, rows in others.items():
        four = 4 * statistics.median(sum(r.values()) for r in rows)
        parts = ", ".join(f"{part} {median(rows, part):.1f}" for part in rows[0])
        print(f"| {name}, fold after fold: 4 x ({parts}) | {four:.0f}, {four / whole:.1f} times |")
    _, multiply_adds = count(Trunk(), [3, args.image_size, args.image_size])
    rate, teacher = statistics.median(rates), 2 * multiply_adds / median(blocks, "teacher") / 1e6
    print(f"\nteacher: {teacher:.0f} gigaflops, {100 * teacher / rate:.0f} % of those of a product of float32 matrices "
          f"({rate:.0f})\n"
          f"one student on one core, ms per picture: " + ", ".join(f"{part} {median(tails, part):.1f}" for part in tails[0])
          + f"; one on each of {runtime.CORES} cores: {statistics.median(pairs):.0f} pictures/s")


if __name__ == "__main__":
    main()
