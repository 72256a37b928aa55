"""Small images and small runs for the tests; nothing here needs a download or a data set."""
import csv
import functools
import glob
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import utils  # noqa: F401  before numpy, cv2 and paddle

# isort: split
import cv2
import filelock
import numpy as np
import paddle
import pytest

from models.student_model import freeze
from utils import store, teacher, train_utils
from utils.images.dataset import load_images
from utils.report import cost
from utils.settings import RANDOM, Settings

# The files that take longest, for each of the three processes of pytest.ini to begin with; only
# those of the first need the sample run at once, which the others would wait for
FIRST = (("test_stops.py", "test_export.py"), ("test_notebooks.py", "test_processes.py"),
         ("test_filling.py", "test_resume.py", "test_store.py", "test_program.py"))


def pytest_collection_modifyitems(items):
    """Long tests first: each process begins with a third of the list, and ends with the others'."""
    first = [[item for name in names for item in items if item.path.name == name]
             for names in FIRST]
    rest, total = [item for item in items if item not in sum(first, [])], len(items)
    items.clear()
    for third, own in enumerate(first, 1):
        size = max(total * third // 3 - len(items) - len(own), 0)
        items += own + rest[:size]
        del rest[:size]
    items += rest


def write_image(path, image):
    """cv2.imwrite for any path."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    cv2.imencode(os.path.splitext(path)[1], image)[1].tofile(path)


@pytest.fixture
def folder(tmp_path):
    """Three categories of nine 48x64 noise images, each around a color of its category."""
    for c, name in enumerate(("cans", "glass", "纸")):
        for i in range(9):
            rng = np.random.default_rng([c, i])
            image = rng.integers(0, 120, (48, 64, 3), np.uint8)
            image[..., c] += 120
            write_image(str(tmp_path / "set" / name / f"{i}.png"), image)
    return str(tmp_path / "set")


# load() as the code of another process, which gets folder and cache as its arguments
LOAD = """import sys
from utils.images.dataset import load_images
from utils.settings import Settings
images = load_images(Settings(data_dir=sys.argv[1], image_size=32, cache_dir=sys.argv[2]))
"""


def load(folder, cache, **options):
    return load_images(Settings(data_dir=str(folder), image_size=32, cache_dir=str(cache),
                                **options))


@pytest.fixture
def settings(tmp_path, folder):
    return Settings(data_dir=folder, image_size=32, num_folds=3, batch_size=4, num_epochs=2,
                    warmup_epochs=1, base_lr=1e-3, cache_dir=str(tmp_path / "cache"),
                    log_dir=str(tmp_path / "logs"), save_dir=str(tmp_path / "saved"),
                    teacher_weights=RANDOM, student_weights=RANDOM, stored_augmentations=0)


def read_rows(path):
    """A table as it is in the file; utils.tables.read_csv removes the apostrophes."""
    with open(path, newline="", encoding="utf-8-sig") as f:
        return list(csv.DictReader(f))


def run_program(*args):
    """Run a script of the repo as a user does; returns the finished process, output as text."""
    env = {**os.environ, "PYTHONUTF8": "1", "DISPLAY": "", "WAYLAND_DISPLAY": ""}
    return subprocess.run([sys.executable, *args], cwd=ROOT, timeout=400, capture_output=True,
                          encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL, env=env)


SHORT = ["--image_size", "32", "--num_folds", "3", "--num_epochs", "3", "--warmup_epochs", "1",
         "--batch_size", "32", "--head_views", "1", "--freeze_depth", "14"]


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """A short run on the sample set through the real command line: (its folder, what it printed).

    The pytest processes share it; tests must not change it.
    """
    where = tmp_path_factory.getbasetemp().parent / "sample run"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        where = tmp_path_factory.mktemp("sample run")
    where.mkdir(exist_ok=True)
    printed = where / "printed.txt"
    with filelock.FileLock(where / "lock"):
        if not printed.exists():
            done = run_program("main.py", "--sample", *SHORT, "--show", *(
                str(a) for name, folder in (("data", "sample"), ("cache", "cache"), ("log", "logs"),
                                            ("save", "saved"))
                for a in (f"--{name}_dir", where / folder)))
            assert done.returncode == 0, done.stdout + done.stderr
            assert "not calibrated" not in done.stderr  # a note on the weights of unfinished runs
            printed.write_text(done.stdout, "utf-8")
    return where, printed.read_text("utf-8")


@pytest.fixture(scope="session")
def weights(sample):
    """Paths of the sample run's three weights files."""
    return sorted(glob.glob(str(sample[0] / "saved" / "best_model_fold*.pdparams")))


class Quiet:
    """A stand-in for a Run in main.train: logs and keeps nothing."""
    epoch = step = 0

    def __init__(self, settings, threads=2):
        self.settings, self.threads = settings, threads

    def start(self, students):
        pass

    def after_step(self, epoch, step):
        pass

    def after_epoch(self, epoch, active):
        pass


@pytest.fixture(scope="session")
def known_networks():
    return {}


@pytest.fixture
def compiled_once(monkeypatch, known_networks):
    """Most runs of the tests begin with the same frozen networks: compile each only once."""
    compiled = train_utils.compiled

    def known(layer, input_shape, threads=1, half=False, timed=False):
        state = freeze(layer).state_dict()
        key = (type(layer), tuple(input_shape), threads, half, *state,
               *(str(v.shape) if timed else v.numpy().tobytes() for v in state.values()))
        if key not in known_networks:
            known_networks[key] = compiled(layer, input_shape, threads, half)
        return known_networks[key]
    monkeypatch.setattr(train_utils, "compiled", known)
    monkeypatch.setattr(teacher, "compiled", known)
    monkeypatch.setattr(store, "compiled", known)
    # how long a network takes does not depend on its weights
    monkeypatch.setattr(cost, "compiled", functools.partial(known, timed=True))


@pytest.fixture
def one_by_one(monkeypatch, compiled_once):
    """Frozen networks that compute each image alone, in one thread.

    How the predictor adds up may depend on the size of the batch, and training amplifies the last
    bit; with these, students see the very same numbers whatever trains beside them.
    """
    known = train_utils.compiled

    def compiled(layer, shape, *_, **__):
        alone = known(layer, shape)
        return lambda x: paddle.concat([alone(x[i:i + 1]) for i in range(len(x))])
    monkeypatch.setattr(train_utils, "compiled", compiled)
    monkeypatch.setattr(store, "compiled", compiled)


@pytest.fixture
def versions(settings):
    """The settings with three stored versions."""
    settings.stored_augmentations = 3
    return settings


@pytest.fixture(scope="module")
def whole(sample, tmp_path_factory):
    """(a folder, the sample run's command line, its folder, the folder of its weights)"""
    where, _ = sample
    args = ["main.py", "--sample", *SHORT, "--data_dir", str(where / "sample"),
            "--cache_dir", str(where / "cache")]
    run = min(glob.glob(str(where / "logs" / "*")))
    return tmp_path_factory.mktemp("stops"), args, run, str(where / "saved")
