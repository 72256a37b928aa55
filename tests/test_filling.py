"""The store of --stored_augmentations is filled once, even if interrupted, or refused in time."""
import errno
import glob
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import ROOT, write_image
from real_runs import LINUX, disk, two_processes
from tiny import RANDOM, Counted, Cut, content, opened, tiny_teacher, train_tiny
from utils import store as store_module
from utils.errors import InputError
from utils.images.dataset import load_images
from utils.store import open_store
from utils.teacher import extract_features

pytestmark = pytest.mark.usefixtures("compiled_once")


def stored_files(settings):
    return sorted(glob.glob(os.path.join(settings.cache_dir, "stored", "*.npy")))


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


def test_until_the_teacher_is_known_to_be_of_use_only_what_its_heads_need_is_stored(versions):
    counted, images = Counted(), load_images(versions)
    store = open_store(counted, images, SimpleNamespace(
        settings=versions, threads=2, teacher_weights=RANDOM, student_weights=RANDOM))
    extract_features(counted, images, versions, 2, store)
    assert counted.images == 1 + 16 * 6  # of three versions of 27 images, in whole steps
    store.fill()
    assert counted.images == 1 + 27 * 4 + 4  # 112 = 7 * 16
    store.fill()
    assert counted.images == 1 + 27 * 4 + 4


def test_heads_see_as_many_augmentations_as_they_are_told_though_fewer_are_stored(versions):
    versions.stored_augmentations, versions.head_views = 1, 3
    store, images = opened(versions)
    counted = Counted()
    features = extract_features(counted, images, versions, 2, store)
    assert counted.images == 27 * 2
    fresh = extract_features(tiny_teacher(), images, versions, 2)
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
import tiny, numpy as np
from utils import store
from utils.settings import Settings
store.SAVE_SECONDS = -1
class Killed(tiny.Counted):
    def __call__(self, x):
        if self.images == 1 + 16 * 3:
            os.kill(os.getpid(), 9)
        return super().__call__(x)
tiny.opened(Settings(data_dir=sys.argv[1], image_size=32, cache_dir=sys.argv[2],
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
                                         r"than --store_gb 6\.\d+e-05; raise it, or start a run "
                                         "with --stored_augmentations 2$"):
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
            time.sleep(0.6)
        return first(x)
    began, second = threading.Event(), Counted()
    thread = threading.Thread(target=opened, args=(versions, slow))
    thread.start()
    began.wait(60)
    opened(versions, second)
    thread.join()
    assert first.images + second.images == 113
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


@pytest.mark.parametrize("problem", ["little room", "quota", "read-only"])
def test_a_store_that_nobody_asked_for_gives_way(versions, monkeypatch, capsys, tmp_path, problem):
    """And one that was asked for is refused, with one line."""
    def full(*_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    def open_one(optional, notes=None):
        run = SimpleNamespace(settings=versions, threads=2, teacher_weights=RANDOM,
                              student_weights=RANDOM, notes=notes)
        return open_store(tiny_teacher(), images, run, optional)
    images, message, notes = load_images(versions), "Disk quota exceeded; .*--cache_dir", []
    if problem == "little room":  # for checkpoints something must be left
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=4e9))
        assert open_one(optional=False).names == ["features", "maps"]
        shutil.rmtree(os.path.join(versions.cache_dir, "stored"))
        message = "0.00 GB beside 4 GB that should stay free, and .* has 4.00 GB free; .*--cache_d"
    elif problem == "quota":
        if not hasattr(os, "posix_fallocate"):
            pytest.skip("files are not reserved here")
        monkeypatch.setattr(os, "posix_fallocate", full)
    with disk(tmp_path / "read-only", "ro") if problem == "read-only" else nullcontext() as place:
        if place:
            versions.cache_dir, message = str(place), "no permission to write; .*--cache_dir"
        if problem != "little room":
            with pytest.raises(InputError, match=message):
                open_one(optional=False)
        assert open_one(optional=True, notes=notes) is None
    assert versions.stored_augmentations == 0 and not stored_files(versions)
    assert re.search(message, notes[0]) and f"note: {notes[0]}\n" in capsys.readouterr().out


def test_the_oldest_stores_make_room_on_a_disk_that_is_short(versions, monkeypatch):
    opened(versions)
    first = stored_files(versions)
    needed = sum(map(os.path.getsize, first))

    def left(_):  # a disk with room for one store
        return 2**20 + needed - sum(map(os.path.getsize, stored_files(versions)))
    monkeypatch.setattr("utils.images.cache.free_bytes", left)
    versions.seed += 1
    opened(versions)
    assert len(stored_files(versions)) == 2 and not set(first) & set(stored_files(versions))
    versions.stored_augmentations = 9  # nothing that could be deleted is enough: nothing is
    with pytest.raises(InputError, match="--cache_dir, or fewer of them"):
        opened(versions)
    assert len(stored_files(versions)) == 2


def test_a_store_whose_space_is_taken_is_filled_whatever_the_limit(versions, monkeypatch):
    with pytest.raises(Cut):
        opened(versions, Counted(1 + 16 * 3))
    usage = shutil.disk_usage(versions.cache_dir)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    versions.store_gb = 1e-6
    assert opened(versions)[0].names == ["features", "maps"]


def test_what_no_float16_can_hold_is_refused(versions):
    with pytest.raises(InputError, match="features of a frozen network are not finite in float16"):
        opened(versions, lambda x: tiny_teacher()(x) + 1e6)


@pytest.mark.skipif(not LINUX, reason="Paddle launches processes without a GPU on Linux only")
def test_several_processes_fill_one_store_and_train_as_one(versions, tmp_path):
    """Each trains its students from the rows that both have computed."""
    students = train_tiny(versions)
    store, images = opened(versions)
    features = extract_features(tiny_teacher(), images, versions, 2, store)
    whole = [content(path) for path in stored_files(versions)]
    versions.cache_dir = str(tmp_path / "another")
    done = two_processes("""
import numpy as np
from tiny import opened, tiny_teacher, train_tiny
from utils.settings import Settings
from utils.teacher import extract_features
world.join()
settings = eval(sys.argv[1])
for s in train_tiny(settings).values():
    if s.rank == world.rank:
        np.savez(os.path.join(sys.argv[2], s.name), **s.best_weights)
store, images = opened(settings)
features = extract_features(tiny_teacher(), images, settings, 2, store)
np.save(os.path.join(sys.argv[2], f"features{world.rank}"), features)
world.barrier()
""", repr(versions), str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [content(path) for path in stored_files(versions)] == whole
    for rank in range(2):
        np.testing.assert_array_equal(features, np.load(tmp_path / f"features{rank}.npy"))
    for student in students.values():
        with np.load(tmp_path / f"{student.name}.npz") as other:
            for name, value in student.best_weights.items():
                np.testing.assert_array_equal(value, other[name], err_msg=student.name)
