"""--stored_augmentations: trained from what is on disk as from the networks, and filled once."""
import glob
import os
import shutil
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from conftest import ROOT, Quiet, write_image
from main import train
from test_resume import Cut, TinyRun, assert_same
from test_training import (  # noqa: F401
    TinyBackbone,
    any_head,
    assert_same_weights,
    one_by_one,
    tiny_set,
    weights_of,
)
from utils import data_utils, train_utils
from utils import store as store_module
from utils.errors import InputError
from utils.images.dataset import load_images
from utils.store import open_store
from utils.teacher import extract_features, fit_heads
from utils.train_utils import build_student, frozen_stem

pytestmark = pytest.mark.usefixtures("compiled_once")
RANDOM = "random weights", None


def tiny_teacher():
    paddle.seed(5)
    return train_utils.compiled(TinyBackbone(), [3, 32, 32])


def opened(settings, teacher=None, **weights):
    """(the Store, or None without the option; images)"""
    images = load_images(settings)
    run = SimpleNamespace(**dict(settings=settings, threads=2, teacher_weights=RANDOM,
                                 student_weights=RANDOM) | weights)
    return open_store(teacher or tiny_teacher(), images, run), images


def train_tiny(settings, folds=(0, 1, 2, 3), square=None, run=None, control=False):
    """Students of these folds after training; square(plain) replaces images.square."""
    images, fold_of = tiny_set(settings)
    if square:
        images.square = square(images.square)
    run = run or Quiet(settings)
    run.settings, run.teacher_weights, run.student_weights = settings, RANDOM, RANDOM
    teacher = tiny_teacher()
    store = open_store(teacher, images, run)
    features = np.random.default_rng(0).normal(size=(1, len(images), 5)).astype("float32")
    heads = fit_heads(features, images.labels, fold_of, settings)
    students = [build_student(k, images.labels, fold_of, heads[k], settings) for k in folds]
    if control:
        students.append(build_student(1, images.labels, fold_of, heads[1],
                                      settings.without_teacher(), name="control1"))
    stem = frozen_stem(students, settings, 2)
    if isinstance(run, TinyRun):
        run.start(students)
    try:
        train(students, images, fold_of, teacher, stem, run, store)
    except Cut:
        return None
    return students


@pytest.fixture
def versions(settings):
    """The settings with three stored versions."""
    settings.stored_augmentations = 3
    return settings


@pytest.mark.parametrize("depth", [0, 14])
def test_one_version_without_mixup_equals_training_on_these_images(
        settings, monkeypatch, one_by_one, depth):  # noqa: F811
    """Bit for bit, once the outputs of the networks are rounded to float16."""
    settings.mixup_alpha, settings.freeze_depth = 0.0, depth
    with monkeypatch.context() as m:
        m.setattr(data_utils, "augmented", lambda images, rows, settings, epoch:
                  data_utils.stored_version(images, rows, settings, [1] * len(rows)))
        known = train_utils.compiled
        m.setattr(train_utils, "compiled", lambda *args: lambda x, network=known(*args):
                  paddle.to_tensor(network(x).numpy().astype("float16").astype("float32")))
        live = train_tiny(settings)
    settings.stored_augmentations = 1
    assert_same(train_tiny(settings), live)


def test_what_is_stored_is_what_the_networks_say_of_each_version(versions):
    store, images = opened(versions)
    rows, teacher = np.arange(len(images)), tiny_teacher()
    stem = frozen_stem([build_student(0, images.labels, tiny_set(versions)[1],
                                      any_head(), versions)], versions, 2)
    for v in range(4):
        x = data_utils.stored_version(images, rows, versions, [v] * len(rows))
        if v == 0:
            np.testing.assert_array_equal(x, data_utils.plain(images, rows, versions))
        for name, network in (("features", teacher), ("maps", stem)):
            found, expected = store.read(name, rows, np.full(len(rows), v)), network(x).numpy()
            assert found.dtype == np.float32 and found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    read = store.read("maps", np.array([5, 2]), np.array([1, 3]))
    np.testing.assert_array_equal(read[1], store.read("maps", rows, np.full(len(rows), 3))[2])


def test_every_version_of_every_image_comes_equally_often_in_an_order_of_its_own(versions):
    store, images = opened(versions)
    taken = np.stack([store.versions(epoch) for epoch in range(12)])
    for block in range(4):
        assert (np.sort(taken[3 * block:3 * block + 3], 0) == [[1], [2], [3]]).all()
    assert len({tuple(column) for column in taken.T}) > 20
    np.testing.assert_array_equal(taken[7], store.versions(7))  # whatever came before


def test_mixup_mixes_maps_and_features_alike_within_the_fold(versions):
    versions.warmup_epochs = 0
    store, images = opened(versions)
    fold_of = tiny_set(versions)[1]
    order = data_utils.epoch_order(fold_of, range(3), versions, 1)
    batches = [*data_utils.train_batches(images, fold_of, order, versions, 1, 0, 2, store)]
    assert len(batches) == len(order)
    for batch, rows in zip(batches, order):
        rng = np.random.default_rng([versions.seed, data_utils.MIXUP, 1, batch.step])
        partner, lam = data_utils.mixup([0, 1, 2], len(rows) // 3, 3, versions.mixup_alpha, rng)
        assert batch.x is None and batch.lam == lam < 1
        assert (fold_of[rows] == fold_of[rows[partner]]).all()
        np.testing.assert_array_equal(batch.labels_b, images.labels[rows[partner]])
        for name in ("features", "maps"):
            own, other = (store.read(name, r, store.versions(1)[r]) for r in (rows, rows[partner]))
            np.testing.assert_allclose(batch.stored[name], lam * own + (1 - lam) * other,
                                       atol=1e-5)


def test_pixels_of_fold_k_change_no_weight_of_student_k(versions, tmp_path):
    fold_of = tiny_set(versions)[1]
    before = train_tiny(versions)
    versions.cache_dir = str(tmp_path / "another")
    after = train_tiny(versions, square=lambda square: lambda i: (
        255 - square(i) if fold_of[i] == 1 else square(i)))
    for k in range(4):
        same = [np.array_equal(value, weights_of(after[k])[key])
                for key, value in weights_of(before[k]).items()]
        assert all(same) if k == 1 else not all(same)


@pytest.mark.parametrize("depth", [0, 14])
def test_side_by_side_equals_one_at_a_time(versions, one_by_one, depth):  # noqa: F811
    versions.freeze_depth = depth
    together = train_tiny(versions, control=True)
    for k in range(3):  # the final model does not train alone
        (alone,) = train_tiny(versions, [k])
        assert_same_weights(alone, together[k])
        np.testing.assert_array_equal(alone.probabilities, together[k].probabilities)
    assert (weights_of(together[0])["hidden.weight"]
            != weights_of(together[1])["hidden.weight"]).any()
    assert together[-1].name == "control1" and len(together[-1].history) == 2


def test_stopped_it_ends_with_the_same_weights_even_if_the_store_is_gone(versions, tmp_path):
    versions.num_epochs, images = 4, load_images(versions)
    for name in ("whole", "run"):
        (tmp_path / name).mkdir()

    def trained(name, *cuts, resuming=False):
        run = TinyRun(versions, str(tmp_path / name), images, cuts, resuming)
        return train_tiny(versions, run=run, control=True)
    whole = trained("whole")
    assert trained("run", (1, 2)) is None
    assert trained("run", (2, 1), resuming=True) is None
    shutil.rmtree(os.path.join(versions.cache_dir, "stored"))
    assert_same(trained("run", resuming=True), whole)


class Counted:
    """A network that counts the images that it is asked for, and fails after `most`."""

    def __init__(self, most=10**9):
        self.network, self.images, self.most = tiny_teacher(), 0, most

    def __call__(self, x):
        self.images += len(x)
        if self.images > self.most:
            raise Cut
        return self.network(x)


def stored_files(settings):
    return sorted(glob.glob(os.path.join(settings.cache_dir, "stored", "*.npy")))


def content(path):
    with open(path, "rb") as f:
        return f.read()


def test_a_second_run_calls_no_network_and_says_so(versions, capsys, monkeypatch):
    first, second = Counted(), Counted()
    opened(versions, first)
    assert first.images == 1 + 27 * 4 + 4 and len(stored_files(versions)) == 2  # 112 = 7 * 16
    assert "used again" not in capsys.readouterr().out
    monkeypatch.setattr(store_module, "compiled", None)
    store, images = opened(versions, second)
    features = extract_features(second, images, versions, 2, store)
    assert second.images == 0 and features.shape == (3, 27, 5)
    assert "note: 3 augmentations of each image, stored by an" in capsys.readouterr().out
    monkeypatch.undo()
    fresh = extract_features(tiny_teacher(), images, versions, 2)  # the same augmentations
    np.testing.assert_allclose(features, fresh, rtol=1e-3, atol=1e-4)


def test_whatever_decides_the_content_makes_a_store_of_its_own(versions, folder):
    opened(versions)
    known = set(stored_files(versions))
    changes = [dict(hue=0.2), dict(erasing=0.5), dict(seed=7), dict(image_size=64),
               dict(stored_augmentations=2)]
    for change in changes:
        before = {name: getattr(versions, name) for name in change}
        vars(versions).update(change)
        opened(versions)
        vars(versions).update(before)
        assert len(set(stored_files(versions)) - known) == 2, change
        known |= set(stored_files(versions))
    versions.freeze_depth = 13  # concerns the student alone
    opened(versions)
    versions.freeze_depth = 14
    assert len(set(stored_files(versions)) - known) == 1
    known |= set(stored_files(versions))
    opened(versions, teacher_weights=("file", {"a": np.ones(3)}))
    assert len(set(stored_files(versions)) - known) == 1
    known |= set(stored_files(versions))
    for free in (dict(batch_size=8), dict(num_epochs=9), dict(feature_weight=1.0),
                 dict(mixup_alpha=1.0), dict(base_lr=1.0)):
        vars(versions).update(free)
        opened(versions)
        assert set(stored_files(versions)) == known, free
    write_image(os.path.join(folder, "cans", "3.png"), np.full((48, 64, 3), 9, np.uint8))
    opened(versions)
    assert len(set(stored_files(versions)) - known) == 2


def test_without_a_teachers_loss_only_maps_and_without_frozen_blocks_only_features(versions,
                                                                                  capsys):
    counted = Counted()
    assert opened(versions.without_teacher(), counted)[0].names == ["maps"] and not counted.images
    assert "freeze_depth" not in capsys.readouterr().out
    versions.freeze_depth = 0
    assert opened(versions)[0].names == ["features"]
    assert "note: with --freeze_depth 0 no maps are stored" in capsys.readouterr().out
    assert opened(versions.without_teacher())[0].names == []
    versions.stored_augmentations = 0
    assert opened(versions)[0] is None


def test_pixels_are_drawn_again_where_no_maps_are_stored(versions):
    versions.freeze_depth, versions.mixup_alpha = 0, 0.0
    store, images = opened(versions)
    fold_of = tiny_set(versions)[1]
    order = data_utils.epoch_order(fold_of, range(3), versions, 2)
    for batch, rows in zip(data_utils.train_batches(images, fold_of, order, versions, 2, 0, 2,
                                                    store), order):
        x = data_utils.stored_version(images, rows, versions, store.versions(2)[rows])
        np.testing.assert_array_equal(batch.x, x)
        np.testing.assert_allclose(batch.stored["features"], tiny_teacher()(x).numpy(), rtol=1e-3,
                                   atol=1e-4)


def test_a_filling_that_is_interrupted_continues(versions, tmp_path, capsys):
    opened(versions)
    whole = [content(path) for path in stored_files(versions)]
    versions.cache_dir = str(tmp_path / "another")
    with pytest.raises(Cut):
        opened(versions, Counted(1 + 16 * 3))
    rest = Counted()
    opened(versions, rest)
    assert "continues to store augmentations after 48 of 108" in capsys.readouterr().out
    assert rest.images == 16 * 4
    assert [content(path) for path in stored_files(versions)] == whole


KILLED = """
import os, sys
sys.path[:0] = ["tests", "."]
import test_store, numpy as np
from utils import store
from utils.settings import Settings
store.SAVE_SECONDS = -1
class Killed(test_store.Counted):
    def __call__(self, x):
        if self.images == 1 + 16 * 3:
            os.kill(os.getpid(), 9)
        return super().__call__(x)
test_store.opened(Settings(data_dir=sys.argv[1], image_size=32, cache_dir=sys.argv[2],
                           stored_augmentations=3, teacher_weights="random",
                           student_weights="random"), Killed())
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_a_killed_filling_continues(versions, tmp_path, capsys):
    opened(versions)
    whole = [content(path) for path in stored_files(versions)]
    versions.cache_dir = str(tmp_path / "another")
    killed = subprocess.run([sys.executable, "-c", KILLED, versions.data_dir, versions.cache_dir],
                            cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert killed.returncode == -9, killed.stderr
    opened(versions)
    assert "continues to store augmentations after 48 of 108" in capsys.readouterr().out
    assert [content(path) for path in stored_files(versions)] == whole
    for path in stored_files(versions):  # what is cut short, or not even described, is made again
        os.truncate(path, 200)
    opened(versions)
    os.remove(stored_files(versions)[0].replace(".npy", ".json"))
    opened(versions)
    assert [content(path) for path in stored_files(versions)] == whole


def test_a_limit_too_small_is_refused_with_numbers_before_any_time_is_spent(versions):
    _, images = opened(versions)
    needed = sum(map(os.path.getsize, stored_files(versions))) / 1e9
    shutil.rmtree(os.path.join(versions.cache_dir, "stored"))
    versions.store_gb = needed * 0.8
    counted = Counted()
    with pytest.raises(InputError, match=r"--stored_augmentations 3: they take 0\.000 GB, more "
                                         r"than --store_gb 6\.\d+e-05; raise it, or store at most"):
        opened(versions, counted)
    assert counted.images == 1 and not stored_files(versions)  # a black image, for the shape
    versions.store_gb = needed * 1.5
    opened(versions)
    first = stored_files(versions)
    for path in first:
        os.utime(path, (1e9, 1e9))
    versions.seed += 1  # the oldest make room
    opened(versions)
    assert len(stored_files(versions)) == 2 and not set(first) & set(stored_files(versions))


def test_a_second_run_waits_for_the_first_and_finds_what_it_stored(versions, capsys):
    load_images(versions)
    first = Counted()

    def slow(x):
        if first.images > 40:
            began.set()
            time.sleep(0.3)
        return first(x)
    began, second = threading.Event(), Counted()
    thread = threading.Thread(target=opened, args=(versions, slow))
    thread.start()
    began.wait(60)
    opened(versions, second)
    thread.join()
    assert second.images == 0 and first.images == 113
    assert "waiting for another run that stores augmentations" in capsys.readouterr().out


def test_a_full_disk_is_refused_with_numbers(versions, monkeypatch):
    load_images(versions)
    usage = shutil.disk_usage(versions.cache_dir)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20 + 1000))
    counted = Counted()
    with pytest.raises(InputError, match=r"--stored_augmentations needs 0.00 GB and .* has 0.00 GB "
                                         "free; .*--cache_dir, or fewer of them"):
        opened(versions, counted)
    assert counted.images == 1


def test_what_no_float16_can_hold_is_refused(versions):
    with pytest.raises(InputError, match="features of a frozen network are not finite in float16"):
        opened(versions, lambda x: tiny_teacher()(x) + 1e6)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Paddle launches processes "
                    "without a GPU on Linux only")
def test_several_processes_fill_one_store_and_train_as_one(sample, tmp_path):
    where, _ = sample

    def run(name, *launch):
        args = ["main.py", "--sample", "--image_size", "32", "--num_folds", "3", "--num_epochs",
                "2", "--warmup_epochs", "0", "--batch_size", "32", "--stored_augmentations", "2",
                "--data_dir", where / "sample", "--cache_dir", tmp_path / name / "cache",
                "--log_dir", tmp_path / name / "logs", "--save_dir", tmp_path / name / "saved"]
        done = subprocess.run([sys.executable, *map(str, [*launch, *args])], cwd=ROOT, timeout=400,
                              capture_output=True, text=True, env=os.environ | {"PYTHONUTF8": "1"})
        assert done.returncode == 0, done.stdout + done.stderr

    run("one")
    run("two", "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo",
        "--log_dir", tmp_path / "launch")
    for pattern in ("cache/stored/*.npy", "saved/*.pdparams"):
        one, two = ({os.path.basename(p): content(p)
                     for p in glob.glob(str(tmp_path / name / pattern))} for name in ("one", "two"))
        assert len(one) >= 2 and one == two
