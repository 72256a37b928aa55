"""Small pictures and small runs for the tests; nothing here needs a download or a data set."""
import csv
import glob
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from utils import runtime  # noqa: E402, F401
import cv2  # noqa: E402
import filelock  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from utils.settings import RANDOM, Settings  # noqa: E402


def write_picture(path, picture):
    """cv2.imwrite for any path."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    cv2.imencode(os.path.splitext(path)[1], picture)[1].tofile(path)


@pytest.fixture
def folder(tmp_path):
    """Three categories of nine 48x64 noise pictures, each about a colour of its category."""
    for c, name in enumerate(("cans", "glass", "纸")):
        for i in range(9):
            rng = np.random.default_rng([c, i])
            picture = rng.integers(0, 120, (48, 64, 3), np.uint8)
            picture[..., c] += 120
            write_picture(str(tmp_path / "set" / name / f"{i}.png"), picture)
    return str(tmp_path / "set")


@pytest.fixture
def settings(tmp_path, folder):
    return Settings(data_dir=folder, image_size=32, num_folds=3, batch_size=4, num_epochs=2, warmup_epochs=1,
                    base_lr=1e-3, cache_dir=str(tmp_path / "cache"), log_dir=str(tmp_path / "logs"),
                    save_dir=str(tmp_path / "saved"), teacher_weights=RANDOM, student_weights=RANDOM)


def read_rows(path):
    """A table as it stands in the file: utils.tables.read_csv takes its apostrophes away."""
    with open(path, newline="", encoding="utf-8-sig") as f:
        return list(csv.DictReader(f))


def run_program(*args):
    """Run a script of the repo as a user does; returns the finished process, output as text."""
    return subprocess.run([sys.executable, *args], cwd=ROOT, timeout=400, capture_output=True, encoding="utf-8",
                          errors="replace", stdin=subprocess.DEVNULL,
                          env={**os.environ, "PYTHONUTF8": "1", "DISPLAY": "", "WAYLAND_DISPLAY": ""})


SHORT = ["--image_size", "32", "--num_folds", "3", "--num_epochs", "3", "--warmup_epochs", "1", "--batch_size", "32"]


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """A short run on the sample set through the real command line: (its folder, what it printed).

    One run for all workers of pytest-xdist: whoever comes first makes it, the others wait for it.
    """
    common = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent
    where, printed = common / "sample run", common / "sample run.json"
    with filelock.FileLock(f"{printed}.lock"):
        if not printed.exists():
            done = run_program("main.py", "--sample", *SHORT, "--data_dir", str(where / "sample"), "--cache_dir",
                               str(where / "cache"), "--log_dir", str(where / "logs"), "--save_dir", str(where / "saved"),
                               "--show")
            assert done.returncode == 0, done.stdout + done.stderr
            printed.write_text(json.dumps(done.stdout))
    return where, json.loads(printed.read_text())


@pytest.fixture(scope="session")
def weights(sample):
    """Paths of the sample run's three weights files."""
    return sorted(glob.glob(str(sample[0] / "saved" / "*.pdparams")))


@pytest.fixture(scope="session")
def known_networks():
    return {}


@pytest.fixture
def compiled_once(monkeypatch, known_networks):
    """Most runs of the tests begin with the same frozen networks: compile each once only."""
    compiled = runtime.compiled

    def known(layer, input_shape, threads=1, half=False):
        state = runtime.freeze(layer).state_dict()
        key = type(layer), tuple(input_shape), threads, half, *state, *(v.numpy().tobytes() for v in state.values())
        if key not in known_networks:
            known_networks[key] = compiled(layer, input_shape, threads, half)
        return known_networks[key]
    monkeypatch.setattr(runtime, "compiled", known)
