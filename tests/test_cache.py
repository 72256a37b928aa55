"""Images decoded once and kept for later runs, whatever happens to the files meanwhile."""
import os
import shutil
import subprocess
import sys

import cv2
import filelock
import numpy as np
import pytest

from conftest import LOAD, ROOT, load, write_image
from real_runs import disk
from utils.errors import InputError
from utils.images import cache as cache_module
from utils.images import dataset
from utils.images.duplicates import find_duplicates
from utils.images.read import UnreadableImage, read_image
from utils.run.process import lock


@pytest.fixture
def image():
    return cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8), (80, 60))


def test_cache_follows_the_files_and_its_limit(folder, tmp_path, image):
    cache = str(tmp_path / "cache")
    first = load(folder, cache)
    number = first.paths.index("cans/0.png")
    before = first.square(number).copy()
    write_image(os.path.join(folder, "cans", "0.png"), image)
    after = load(folder, cache).square(number)
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(first.square(number), before)  # a run keeps its images
    for old in os.listdir(cache):
        if old.endswith(".npy"):  # kept beside it, also by earlier versions
            for more in (".duplicates.json", ".copies"):
                open(os.path.join(cache, old[:-len(".npy")] + more), "w").close()
    mine = os.path.join(cache, "mine.npy")
    open(mine, "w").close()
    small = load(folder, cache, cache_gb=36 * 36 * 3 * 5.5e-9)
    assert os.path.exists(mine)  # room is made among our own files only
    os.remove(mine)
    assert sum(os.path.getsize(os.path.join(cache, f)) < 36 * 36 * 3 * 6 for f in os.listdir(cache)
               if f.endswith(".npy")) == 1
    names = {f.split(".")[0] for f in os.listdir(cache) if not f.startswith(".")}
    assert len(names) == 1  # nothing is left of the others
    whole = load(folder, cache)
    np.testing.assert_array_equal(small.checksums, whole.checksums)
    for i in range(len(whole)):
        np.testing.assert_array_equal(small.square(i), whole.square(i))
    os.remove(os.path.join(folder, small.paths[-1]))
    with pytest.raises(InputError, match="cannot be read any more"):
        small.square(len(small) - 1)


def rename(*pairs):
    for old, new in pairs:
        os.rename(old, new)


def overwrite(a, b):
    """Swap contents in place, and set the times again."""
    times = [os.stat(f).st_mtime_ns for f in (a, b)]
    with open(a, "r+b") as f, open(b, "r+b") as g:
        first, second = f.read(), g.read()
        f.seek(0), g.seek(0)
        f.write(second), g.write(first)
    for f, time in zip((a, b), times):
        os.utime(f, ns=(time, time))


@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize("how", ["renamed", "folders renamed", "overwritten"])
def test_files_of_equal_size_and_time_that_change_places_are_noticed(tmp_path, how, near):
    if how == "overwritten" and sys.platform == "win32":
        pytest.skip("Windows does not tell when a file was last changed")
    a, b = (str(tmp_path / "set" / c) for c in "ab")
    for c, gray in ((a, 60), (b, 200)):
        for i in range(3):
            noise = np.random.default_rng([gray, i]).integers(0, 50, (40, 40, 3), np.uint8)
            write_image(f"{c}/{i}.bmp", noise + np.uint8(gray))
    shutil.copy(f"{a}/0.bmp", f"{a}/1.bmp")
    for path in (f"{c}/{i}.bmp" for c in (a, b) for i in range(3)):
        os.utime(path, ns=(10**18, 10**18))
    before = load(tmp_path / "set", tmp_path / "cache")
    assert find_duplicates(before, near=near).tolist() == [[0, 1]]
    if how == "renamed":
        rename((f"{a}/0.bmp", f"{a}/t"), (f"{b}/0.bmp", f"{a}/0.bmp"), (f"{a}/t", f"{b}/0.bmp"))
    elif how == "folders renamed":
        rename((a, f"{a}t"), (b, a), (f"{a}t", b))
    else:
        overwrite(f"{a}/0.bmp", f"{b}/0.bmp")
    after = load(tmp_path / "set", tmp_path / "cache")
    assert after.paths == before.paths and after.digest() != before.digest()
    assert after.square(0).mean() > 190 and after.square(3).mean() < 120
    assert find_duplicates(after, near=near).tolist() == [
        [3, 4] if how == "folders renamed" else [1, 3]]


def test_a_read_that_failed_once_is_tried_again_by_the_next_run(folder, tmp_path, monkeypatch):
    def broken(path):
        if path.endswith("3.png"):
            raise UnreadableImage("Input/output error") from OSError(5, "Input/output error")
        return read_image(path)
    cache, decoded = str(tmp_path / "cache"), []
    whole = load(folder, cache)
    (array,) = (name for name in os.listdir(cache) if name.endswith(".npy"))
    os.remove(os.path.join(cache, array))  # as another data set's cache makes it go
    monkeypatch.setattr(dataset, "read_image", lambda path: decoded.append(path) or broken(path))
    for count in (27, 27 + 3):  # the second time only those that failed
        images = load(folder, cache)
        assert len(images) == 24 and len(decoded) == count
        assert [p for p, why in images.left_out if why == "Input/output error"] == sorted(
            f"{c}/3.png" for c in images.categories)
    monkeypatch.undo()
    again = load(folder, cache)
    assert again.paths == whole.paths
    for i in range(27):
        np.testing.assert_array_equal(again.square(i), whole.square(i))


def test_two_runs_decode_one_after_the_other_and_leave_no_unfinished_files(folder, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    left = cache / f"{'a' * 24}.npy.tmp"  # by a killed run
    left.write_bytes(bytes(1000))
    code = LOAD + "print(len(images))"
    with filelock.FileLock(str(cache / ".decoding.lock")):
        process = subprocess.Popen([sys.executable, "-c", code, folder, str(cache)], cwd=ROOT,
                                   stdout=subprocess.PIPE, encoding="utf-8",
                                   env={**os.environ, "PYTHONUNBUFFERED": "1"})
        assert process.stdout.readline().startswith("waiting for another process that prepares")
        assert left.exists()
    assert process.stdout.read() == "27\n" and process.wait() == 0
    assert sorted(n.split(".", 1)[1] for n in os.listdir(cache)) == ["decoding.lock", "json", "npy"]


def test_a_disk_that_fills_while_images_are_stored_is_one_line(folder, tmp_path, monkeypatch):
    with disk(tmp_path / "cache", "size=80k") as cache:
        with pytest.raises(InputError, match="image cache needs 0.00 GB .*--cache_dir"):
            load(folder, cache)
        monkeypatch.setattr(cache_module, "make_room", lambda *_: None)  # the disk fills later
        with pytest.raises(InputError, match="No space left on device; choose another folder with"
                                             " --cache_dir"):
            load(folder, cache)
        assert os.listdir(cache) == [".decoding.lock"]


@pytest.mark.parametrize("windows", [False, True])
def test_cache_and_weights_may_share_a_folder(folder, tmp_path, monkeypatch, windows):
    if windows:  # which has no pread
        monkeypatch.delattr(os, "pread", raising=False)
    # twice: a notebook still holds what a stopped run has locked
    held = [lock(str(tmp_path)), lock(str(tmp_path))]
    images = load(folder, tmp_path)
    stored = np.load(images.cache + ".npy")
    assert [images.square(i).mean() for i in (0, 20)] == [stored[i].mean() for i in (0, 20)]
    os.truncate(images.cache + ".npy", 5000)
    with pytest.raises(OSError, match="was cut short during the run"):
        images.square(len(images) - 1)
    assert all(h.is_locked for h in held)
