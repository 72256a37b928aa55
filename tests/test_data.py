"""From files to batches, whose randomness depends on nothing but seeds."""
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from conftest import LOAD, ROOT, load
from utils.data_utils import epoch_order
from utils.errors import InputError
from utils.folds import assign_folds
from utils.images.dataset import find_categories, list_files
from utils.images.duplicates import read_groups
from utils.run.log import print_images
from utils.settings import Settings
from utils.threads import prefetch


def test_categories(folder, tmp_path):
    cache = tmp_path / "cache"
    assert load(folder, cache).categories == ["cans", "glass", "纸"]
    chosen = load(folder, cache, categories=("纸", "cans"))
    assert chosen.categories == ["纸", "cans"] and len(chosen) == 18
    assert ("glass", "not one of the categories") in chosen.left_out
    assert {p.split("/")[0] for p, c in zip(chosen.paths, chosen.labels) if c == 0} == {"纸"}
    for wanted in (("cans", "tins"), ("cans", "../set/glass")):
        with pytest.raises(InputError, match="no such sub-folder"):
            load(folder, cache, categories=wanted)
    with pytest.raises(InputError, match="main.py --sample"):
        load(tmp_path / "nowhere", cache)


def test_epoch_order_takes_each_image_and_ignores_which_folds_are_needed():
    settings = Settings(seed=3, batch_size=16, num_folds=5)  # 4 images per fold
    fold_of = assign_folds(np.repeat([0, 1], [31, 22]), 5, seed=0)
    order = epoch_order(fold_of, range(5), settings, epoch=7)
    assert order.shape == (3, 20) and set(order.ravel()) == set(range(53))
    for k in range(5):
        assert (fold_of[order[:, 4 * k:4 * k + 4]] == k).all()
    np.testing.assert_array_equal(epoch_order(fold_of, [1, 3], settings, 7),
                                  order[:, [4, 5, 6, 7, 12, 13, 14, 15]])
    assert (order != epoch_order(fold_of, range(5), settings, 8)).any()


def test_prefetch_keeps_order_and_passes_errors_on():
    assert list(prefetch(lambda i: i * i, range(50), threads=4)) == [i * i for i in range(50)]

    def fail(i):
        if i == 5:
            raise InputError("image 5")
        return i
    with pytest.raises(InputError, match="image 5"):
        list(prefetch(fail, range(50), threads=2))


def test_list_files_names_folders_it_does_not_enter(folder):
    assert list_files(folder, recursive=False) == (
        [], [("cans", "a folder"), ("glass", "a folder"), ("纸", "a folder")])
    assert len(list_files(folder)[0]) == 27


def test_a_folder_too_high_is_noticed(folder, tmp_path, capsys):
    for place in ("north", "south"):
        shutil.copytree(folder, tmp_path / "high" / place)
    print_images(load(folder, tmp_path / "cache"))
    assert "too high" not in capsys.readouterr().out
    print_images(load(tmp_path / "high", tmp_path / "cache"))
    assert ("several categories have a sub-folder cans; if that is a category, --data_dir is one "
            "level too high") in capsys.readouterr().out


def test_hundreds_of_files_left_out_are_counted_with_a_few_examples(folder, tmp_path, capsys):
    for i in range(200):
        for c in ("cans", "glass", "纸"):
            open(os.path.join(folder, c, f"{i}.txt"), "w").close()
    open(os.path.join(folder, "cans", "empty.jpg"), "w").close()
    images = load(folder, tmp_path / "cache")
    assert len(images.left_out) == 601
    print_images(images)
    printed = capsys.readouterr().out.split("left out, ")[1].splitlines()
    assert printed == ["601 files; left_out.csv in the run's folder has them all:",
                       "       1 empty file: 'cans/empty.jpg'",
                       "     600 not an image file (by its extension): 'cans/0.txt', 'cans/1.txt', "
                       "'cans/10.txt' and 597 more"]


@pytest.mark.skipif(sys.platform == "darwin", reason="one name there")
def test_accents_may_be_stored_as_letters(folder, tmp_path):
    os.rename(os.path.join(folder, "cans"), os.path.join(folder, "Mu\u0308ll"))
    assert find_categories(folder, ("M\u00fcll", "纸")) == ["Mu\u0308ll", "纸"]
    assert find_categories(folder, exclude=("M\u00fcll",)) == sorted({*os.listdir(folder)}
                                                                     - {"Mu\u0308ll"})
    images, groups = load(folder, tmp_path / "cache"), tmp_path / "groups.csv"
    groups.write_text("path,group\nM\u00fcll/1.png,a\nMu\u0308ll/2.png,a\n", "utf-8")
    assert [images.paths[i] for i in read_groups(str(groups), images)[0]] == [
        "Mu\u0308ll/1.png", "Mu\u0308ll/2.png"]


@pytest.mark.parametrize("folders, options, message", [
    ("train/a train/b val/a test/a", {}, "test, train, val look like a split .*data_dir .*train, "
                                         "which has the categories a, b .*with --categories"),
    ("Train2017 val2017 notes", {}, "Train2017, val2017 look like a split .*one sub-folder per"),
    ("训练集/x 测试集/x", {}, "look like a split"),
    ("wrap/wrap/a wrap/wrap/b", {}, "wrap would be the only .* are a, b: .*--data_dir .*wrap.wrap"),
    ("one", {}, "at least two categories are needed; sub-folders of .*: one; looked for"),
    ("a b c", {"exclude": ["a", "c"]}, ": a, b, c, of which .* --exclude leave: b;"),
    ("a b", {"wanted": ["a"]}, ": a, b, of which --categories .* leave: a;"),
    ("a b c", {"exclude": ["d"]}, "--exclude d: no such sub-folder of .*, which has a, b, c"),
    ("train test", {"wanted": ["test", "train"]}, None),
    ("bus train car", {}, None), ("test1 test2", {}, None), ("invalid valid", {}, None)])
def test_sub_folders_that_are_no_categories_are_named(tmp_path, folders, options, message):
    for name in folders.split():
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    if message is None:
        assert find_categories(str(tmp_path), **options) == sorted(folders.split())
    else:
        with pytest.raises(InputError, match=message):
            find_categories(str(tmp_path), **options)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such file names")
def test_names_that_are_not_utf8(folder, tmp_path):
    name = os.path.join(os.fsencode(folder), b"cans", b"\xff\xfe.png")
    os.rename(os.path.join(folder, "cans", "0.png"), name)
    code = LOAD + ("from utils.run.log import print_images\n"
                   "sys.stdout.reconfigure(errors='backslashreplace')\n"
                   "print_images(images)")
    done = subprocess.run([sys.executable, "-c", code, folder, str(tmp_path / "cache")], cwd=ROOT,
                          capture_output=True)
    assert done.returncode == 0 and b"27" in done.stdout, done.stderr
