"""From files to batches, whose randomness depends on nothing but seeds. Odd files: test_odd_files.py."""
import os
import shutil
import subprocess
import sys

import cv2
import filelock
import numpy as np
import pytest
from conftest import ROOT, write_picture

from utils import data_utils
from utils.copies import read_groups
from utils.data_utils import epoch_order, find_categories, load_pictures, prefetch, stratified_parts, walk
from utils.pictures import UnreadablePicture, read_picture
from utils.process import lock
from utils.run_log import print_pictures
from utils.settings import InputError


@pytest.fixture
def picture():
    return cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8), (80, 60))


def test_cache_follows_the_files_and_its_limit(folder, tmp_path, picture):
    cache = str(tmp_path / "cache")
    first = load_pictures(folder, 32, cache_dir=cache)
    number = first.paths.index("cans/0.png")
    before = first.square(number).copy()
    write_picture(os.path.join(folder, "cans", "0.png"), picture)
    after = load_pictures(folder, 32, cache_dir=cache).square(number)
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(first.square(number), before)  # a running run keeps its pictures
    for old in os.listdir(cache):
        if old.endswith(".npy"):  # what utils/copies.py keeps beside it
            open(os.path.join(cache, old[:-len(".npy")] + ".copies"), "w").close()
    mine = os.path.join(cache, "mine.npy")
    open(mine, "w").close()
    small = load_pictures(folder, 32, cache_dir=cache, cache_gb=36 * 36 * 3 * 5.5e-9)
    assert os.path.exists(mine)  # room is made among our own files only
    os.remove(mine)
    assert sum(os.path.getsize(os.path.join(cache, f)) < 36 * 36 * 3 * 6 for f in os.listdir(cache)
               if f.endswith(".npy")) == 1
    assert len({f.split(".")[0] for f in os.listdir(cache) if not f.startswith(".")}) == 1  # the others went whole
    whole = load_pictures(folder, 32, cache_dir=cache)
    for i in range(len(whole)):
        np.testing.assert_array_equal(small.square(i), whole.square(i))
    os.remove(os.path.join(folder, small.paths[-1]))
    with pytest.raises(InputError, match="cannot be read any more"):
        small.square(len(small) - 1)


def test_a_read_that_failed_once_is_tried_again_by_the_next_run(folder, tmp_path, monkeypatch):
    def broken(path):
        if path.endswith("3.png"):
            raise UnreadablePicture("Input/output error") from OSError(5, "Input/output error")
        return read_picture(path)
    cache, decoded = str(tmp_path / "cache"), []
    whole = load_pictures(folder, 32, cache_dir=cache)
    (array,) = (name for name in os.listdir(cache) if name.endswith(".npy"))
    os.remove(os.path.join(cache, array))  # as another data set's cache makes it go
    monkeypatch.setattr(data_utils, "read_picture", lambda path: decoded.append(path) or broken(path))
    for count in (27, 27 + 3):  # the second time only those that failed
        pictures = load_pictures(folder, 32, cache_dir=cache)
        assert len(pictures) == 24 and len(decoded) == count
        assert [p for p, why in pictures.left_out if why == "Input/output error"] == sorted(
            f"{c}/3.png" for c in pictures.categories)
    monkeypatch.undo()
    again = load_pictures(folder, 32, cache_dir=cache)
    assert again.paths == whole.paths
    for i in range(27):
        np.testing.assert_array_equal(again.square(i), whole.square(i))


def test_two_runs_decode_one_after_the_other_and_leave_no_unfinished_files(folder, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    left = cache / f"{'a' * 24}.npy.tmp"  # by a killed run
    left.write_bytes(bytes(1000))
    code = ("import sys; sys.path.insert(0, sys.argv[1]); from utils.data_utils import *\n"
            "print(len(load_pictures(sys.argv[2], 32, cache_dir=sys.argv[3])))")
    with filelock.FileLock(str(cache / ".decoding.lock")):
        process = subprocess.Popen([sys.executable, "-c", code, ROOT, folder, str(cache)], stdout=subprocess.PIPE,
                                   encoding="utf-8", env={**os.environ, "PYTHONUNBUFFERED": "1"})
        assert process.stdout.readline().startswith("waits for another run that decodes")
        assert left.exists()
    assert process.stdout.read() == "27\n" and process.wait() == 0
    assert sorted(n.split(".", 1)[1] for n in os.listdir(cache)) == ["decoding.lock", "json", "npy"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a small tmpfs")
def test_a_disk_that_fills_while_pictures_are_stored_is_one_line(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80k", "none", str(cache)], capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        with pytest.raises(InputError, match="picture cache needs 0.00 GB .*--cache_dir"):
            load_pictures(folder, 32, cache_dir=str(cache))
        monkeypatch.setattr(data_utils, "_make_room", lambda *_: None)  # as if the room went later
        with pytest.raises(InputError, match="No space left on device; choose another place with --cache_dir"):
            load_pictures(folder, 32, cache_dir=str(cache))
        assert os.listdir(cache) == [".decoding.lock"]
    finally:
        subprocess.run(["umount", "-l", str(cache)], check=True)


@pytest.mark.parametrize("windows", [False, True])
def test_cache_and_weights_may_share_a_folder(folder, tmp_path, monkeypatch, windows):
    if windows:  # which has no pread
        monkeypatch.delattr(os, "pread", raising=False)
    held = [lock(str(tmp_path)), lock(str(tmp_path))]  # twice: a notebook keeps what a stopped run has held
    pictures = load_pictures(folder, 32, cache_dir=str(tmp_path))
    assert [pictures.square(i).mean() for i in (0, 20)] == [np.load(pictures.cache + ".npy")[i].mean() for i in (0, 20)]
    os.truncate(pictures.cache + ".npy", 5000)
    with pytest.raises(OSError, match="was cut short while this run reads it"):
        pictures.square(len(pictures) - 1)
    assert all(h.is_locked for h in held)


def test_categories(folder, tmp_path):
    options = dict(image_size=32, cache_dir=str(tmp_path / "cache"))
    assert load_pictures(folder, **options).categories == ["cans", "glass", "纸"]
    chosen = load_pictures(folder, categories=("纸", "cans"), **options)
    assert chosen.categories == ["纸", "cans"] and len(chosen) == 18
    assert ("glass", "not one of the categories") in chosen.left_out
    assert {p.split("/")[0] for p, c in zip(chosen.paths, chosen.labels) if c == 0} == {"纸"}
    for wanted in (("cans", "tins"), ("cans", "../set/glass")):
        with pytest.raises(InputError, match="no such sub-folder"):
            load_pictures(folder, categories=wanted, **options)
    with pytest.raises(InputError, match="main.py --sample"):
        load_pictures(str(tmp_path / "nowhere"), **options)


def test_parts_cover_everything_once_and_are_stratified():
    labels = np.repeat([0, 1, 2], [50, 23, 7])
    parts = stratified_parts(labels, 5, seed=1)
    for c in range(3):
        counts = np.bincount(parts[labels == c], minlength=5)
        assert counts.sum() == (labels == c).sum() and np.ptp(counts) <= 1
    np.testing.assert_array_equal(parts, stratified_parts(labels, 5, seed=1))
    assert (parts != stratified_parts(labels, 5, seed=2)).any()
    with pytest.raises(InputError, match=r"c \(7\)"):
        stratified_parts(labels, 8, 1, ["a", "b", "c"])


def test_epoch_order_takes_each_picture_and_ignores_which_parts_are_needed():
    parts = stratified_parts(np.repeat([0, 1], [31, 22]), 5, seed=0)
    order = epoch_order(parts, range(5), 4, seed=3, epoch=7)
    assert order.shape == (3, 20) and set(order.ravel()) == set(range(53))
    for column, p in enumerate(range(5)):
        assert (parts[order[:, 4 * column:4 * column + 4]] == p).all()
    np.testing.assert_array_equal(epoch_order(parts, [1, 3], 4, 3, 7), order[:, [4, 5, 6, 7, 12, 13, 14, 15]])
    assert (order != epoch_order(parts, range(5), 4, 3, 8)).any()


def test_prefetch_keeps_order_and_passes_errors_on():
    assert list(prefetch(lambda i: i * i, range(50), workers=4)) == [i * i for i in range(50)]

    def fail(i):
        if i == 5:
            raise InputError("picture 5")
        return i
    with pytest.raises(InputError, match="picture 5"):
        list(prefetch(fail, range(50), workers=2))


def test_walk_names_folders_it_does_not_enter(folder):
    assert walk(folder, recursive=False) == ([], [("cans", "a folder"), ("glass", "a folder"), ("纸", "a folder")])
    assert len(walk(folder)[0]) == 27


def test_a_folder_too_high_is_noticed(folder, tmp_path, capsys):
    for part in ("train", "test"):
        shutil.copytree(folder, tmp_path / "high" / part)
    print_pictures(load_pictures(folder, 32, cache_dir=str(tmp_path / "cache")))
    assert "too high" not in capsys.readouterr().out
    print_pictures(load_pictures(str(tmp_path / "high"), 32, cache_dir=str(tmp_path / "cache")))
    assert "several categories have a sub-folder cans; if that is a category, --data_dir is one level too high" in \
        capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "darwin", reason="one name there")
def test_accents_may_be_stored_as_letters(folder, tmp_path):
    os.rename(os.path.join(folder, "cans"), os.path.join(folder, "Mu\u0308ll"))
    assert find_categories(folder, ("M\u00fcll", "纸")) == ["Mu\u0308ll", "纸"]
    pictures = load_pictures(folder, 32, cache_dir=str(tmp_path / "cache"))
    (tmp_path / "groups.csv").write_text("path,group\nM\u00fcll/1.png,a\nMu\u0308ll/2.png,a\n", "utf-8")
    assert [pictures.paths[i] for i in read_groups(str(tmp_path / "groups.csv"), pictures)[0]] == [
        "Mu\u0308ll/1.png", "Mu\u0308ll/2.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such file names")
def test_names_that_are_not_utf8(folder, tmp_path):
    name = os.path.join(os.fsencode(folder), b"cans", b"\xff\xfe.png")
    os.rename(os.path.join(folder, "cans", "0.png"), name)
    code = ("import sys; from utils.data_utils import load_pictures; from utils.run_log import print_pictures\n"
            "sys.stdout.reconfigure(errors='backslashreplace')\n"
            "print_pictures(load_pictures(sys.argv[1], 32, cache_dir=sys.argv[2]))")
    done = subprocess.run([sys.executable, "-c", code, folder, str(tmp_path / "cache")], cwd=ROOT, capture_output=True)
    assert done.returncode == 0 and b"27" in done.stdout, done.stderr
