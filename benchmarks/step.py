"""What one image costs in a run of five folds, part by part, and what it costs elsewhere.

    python benchmarks/step.py --image_size 64                      # to try it: a minute on a laptop
    python -m venv torch && torch/bin/pip install torch==2.13.0    # PyTorch in a Python of its own,
    python benchmarks/step.py --torch torch/bin/python             # and 224 pixels beside it

Batches of 16, ResNet50, 14 blocks frozen, random weights. Blocks of real training steps are timed,
with fresh augmentations and with stored ones (--stored_augmentations), whose files were just
written and are in the page cache; to fill them costs what the first column has without the tails,
once for each stored augmentation and for the plain image. The peers (benchmarks/peers.py), which
store nothing, take a batch of one fold each in between, and an image costs them four: it is in the
training set of four folds. Medians; only the ratios mean something on another machine. Figures:
docs/results.md.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
sys.path.insert(0, ROOT)
from utils import CORES, processor  # first: it sets what numpy, paddle and cv2 read when they load

# isort: split
import numpy as np
import paddle
from paddle.nn import functional as F

from models.teacher_model import Backbone, Head
from utils import engine
from utils.command import Parser
from utils.data_utils import epoch_order, images_per_fold, train_batches
from utils.images.dataset import Images
from utils.report.cost import count
from utils.settings import Settings
from utils.store import open_store
from utils.teacher import load_teacher
from utils.train_utils import build_student, frozen_stem, student_threads, train_step
from utils.transforms import square_side

ROUNDS, STEPS, BATCH, SIDE = 5, 6, 16, 2048
PLAIN = ("OMP_NUM_THREADS", "KMP_BLOCKTIME", "MKL_DEBUG_CPU_TYPE", "GLOG_minloglevel")  # of utils
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}  # for PyTorch
PARTS = ("waiting for images, or for what is stored", "teacher", "stem", "four tails")


class Clock:
    """Seconds by part."""

    def __init__(self):
        self.seconds = {}

    def call(self, part, function, *args):
        began = time.perf_counter()
        result = function(*args)
        self.seconds[part] = self.seconds.get(part, 0) + time.perf_counter() - began
        return result


class Here:
    """Five students with random weights on random images; the store is kept in `folder`."""

    def __init__(self, size, folder):
        self.settings = Settings(image_size=size, num_epochs=1, warmup_epochs=0, batch_size=BATCH,
                                 teacher_weights="random", student_weights="random",
                                 stored_augmentations=1, cache_dir=folder).check()
        rng, k = np.random.default_rng(0), 5
        self.per_step = k * images_per_fold(self.settings)
        shape = self.per_step, square_side(size), square_side(size), 3
        squares = rng.integers(0, 256, shape, np.uint8)
        n = STEPS * self.per_step
        self.fold_of, labels = np.arange(n) % k, np.arange(n) // k % 6
        self.images = Images("", [""] * n, labels, list("abcdef"), [],
                             lambda i: squares[i % len(squares)], np.zeros(n, np.int64))
        head = Head(*(rng.normal(0, 0.01, shape).astype(np.float32)
                      for shape in ((2048, 6), (1, 6), 2048)), np.ones(2048, np.float32))
        self.students = [build_student(i, labels, self.fold_of, head, self.settings)
                         for i in range(k)]
        self.teacher = load_teacher(("", None), self.settings, CORES)
        self.stem = frozen_stem(self.students, self.settings, CORES)
        run = SimpleNamespace(settings=self.settings, threads=CORES, teacher_weights=("", None),
                              student_weights=("", None))
        self.store = open_store(self.teacher, self.images, run)
        self.store.fill()
        self.maps = paddle.to_tensor(self.store.read("maps", np.arange(BATCH), np.ones(BATCH, int)))

    def block(self, store=None):
        """Milliseconds per image of STEPS steps, by part."""
        clock, pool = Clock(), student_threads(CORES)
        order = epoch_order(self.fold_of, range(5), self.settings, 0)
        for student in self.students:
            student.running = paddle.zeros([4])
        batches = train_batches(self.images, self.fold_of, order, self.settings, 0, 0, CORES, store)
        for _ in range(len(order)):
            batch = clock.call(PARTS[0], next, batches)
            features = clock.call(PARTS[1], batch.outputs, "features", self.teacher)
            maps = clock.call(PARTS[2], batch.outputs, "maps", self.stem)
            clock.call(PARTS[3], list, pool.map(
                lambda s: train_step(s, batch, features, maps), self.students))
        clock.seconds["all"] = sum(clock.seconds.values())
        return {part: 1000 * seconds / (len(order) * self.per_step)
                for part, seconds in clock.seconds.items()}

    def loss(self, student):
        pooled = student.network.pool(self.maps)
        logits = student.network.head(pooled)
        return (F.cross_entropy(logits, paddle.arange(BATCH) % 6)
                + 8 * F.mse_loss(student.regressor(pooled), paddle.ones([BATCH, 2048])))

    def tail_parts(self):
        """Milliseconds per image of one student on one core, by part."""
        student, clock = self.students[0], Clock()
        loss = clock.call("forward", self.loss, student)
        clock.call("backward", loss.backward)
        clock.call("Adam", student.optimizer.step)
        student.optimizer.clear_grad()
        return {part: 1000 * seconds / BATCH for part, seconds in clock.seconds.items()}


def matmul_rate():
    """Gigaflops of float32 matrix products, one in each thread."""
    pairs = [(paddle.randn([SIDE, SIDE]), paddle.randn([SIDE, SIDE])) for _ in range(CORES)]
    with ThreadPoolExecutor(CORES) as pool:
        began = time.perf_counter()
        list(pool.map(lambda pair: paddle.matmul(*pair), pairs))
        return len(pairs) * 2 * SIDE**3 / (time.perf_counter() - began) / 1e9


def start_peer(python, which, size):
    env = {k: v for k, v in os.environ.items() if k not in PLAIN}
    env |= {} if which == "paddle" else KEEP_MEMORY
    command = [python, os.path.join(ROOT, "benchmarks", "peers.py"), which, str(size)]
    process = subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)
    return json.loads(process.stdout.readline()), process


def ask(process):
    """Milliseconds per image of one fold, by part."""
    process.stdin.write("\n")
    process.stdin.flush()
    seconds = json.loads(process.stdout.readline())
    return {part: 1000 * value / BATCH for part, value in seconds.items()}


def median(rows, part):
    return statistics.median(r[part] for r in rows)


def main():
    parser = Parser(__doc__)
    parser.add_argument("--image_size", type=int, default=224, help="pixels (default: 224)")
    parser.add_argument("--torch", metavar="PYTHON", help="a Python that has PyTorch")
    args = parser.parse_args()
    engine.keep_memory()
    engine.choose_device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        measure(Here(args.image_size, folder), args)


def measure(here, args):
    """Time everything in rounds, and print the table."""
    half = args.torch if engine.BFLOAT16 else None
    peers = dict(start_peer(python, which, args.image_size) for which, python in (
        ("torch", args.torch), ("torch-half", half), ("paddle", sys.executable)) if python)
    for store in (None, here.store):
        here.block(store)  # warms up
    here.tail_parts()
    blocks, stored, tails, rates, others = [], [], [], [], {name: [] for name in peers}
    for _ in range(ROUNDS):
        blocks.append(here.block())
        stored.append(here.block(here.store))
        tails.append(here.tail_parts())
        rates.append(matmul_rate())
        for name, process in peers.items():
            others[name].append(ask(process))
    for process in peers.values():
        process.stdin.close()

    whole, whole_stored = median(blocks, "all"), median(stored, "all")
    kept = sum(file.rows.size for file in here.store.files) / 1000
    print(f"{processor()}, {CORES} cores, {engine.versions()}\n")
    print(f"| an image in five folds, {args.image_size} pixels, ms | fresh augmentations "
          f"| stored: features and maps, {kept:.0f} kB for each |\n" + 3 * "| --- " + "|")
    for part in PARTS:
        print(f"| {part} | {median(blocks, part):.1f} | {median(stored, part):.1f} |")
    print(f"| **all of it, here** | **{whole:.1f}** | **{whole_stored:.1f}** |")
    for name, rows in others.items():
        four = 4 * statistics.median(sum(r.values()) for r in rows)
        parts = ", ".join(f"{part} {median(rows, part):.1f}" for part in rows[0])
        print(f"| {name}, fold after fold, stores nothing: 4 x ({parts}) | {four:.0f}, "
              f"{four / whole:.1f} times | {four / whole_stored:.1f} times |")
    _, multiply_adds = count(Backbone(), [3, args.image_size, args.image_size])
    rate = statistics.median(rates)
    teacher = 2 * multiply_adds / median(blocks, "teacher") / 1e6
    print(f"\nteacher: {teacher:.0f} gigaflops, {100 * teacher / rate:.0f} % of those of a float32 "
          f"matrix product ({rate:.0f})\none student on one core, ms per image: "
          + ", ".join(f"{part} {median(tails, part):.1f}" for part in tails[0]))


if __name__ == "__main__":
    main()
