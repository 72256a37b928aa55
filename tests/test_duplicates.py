"""Duplicates are found and nothing else is; groups stay in one fold, and folds stay balanced."""
import os
import re
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from conftest import write_image
from utils.errors import InputError
from utils.folds import assign_folds
from utils.images import duplicates
from utils.images.dataset import load_images
from utils.images.duplicates import (
    duplicate_rows,
    find_duplicates,
    find_groups,
    group_images,
    look_alikes,
    oversized_group,
    read_groups,
)
from utils.run.log import print_duplicates
from utils.settings import Settings


def drawn(*seed):
    """An image with soft colors and a few sharp shapes, uint8 [120, 160, 3]."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(60, 200, (4, 5, 3), np.uint8), (160, 120),
                       interpolation=cv2.INTER_CUBIC)
    for _ in range(6):
        a, b = rng.integers((20, 0), (140, 120), (2, 2)).tolist()
        cv2.rectangle(image, a, b, rng.integers(0, 200, 3).tolist(), 3)
    return image


def jpeg(image, quality):
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


DUPLICATES = {
    "exact": np.copy, "mirrored": lambda p: p[:, ::-1], "upside down": lambda p: p[::-1],
    "turned 90": lambda p: np.rot90(p), "turned 180": lambda p: np.rot90(p, 2),
    "turned 270": lambda p: np.rot90(p, 3), "JPEG 60": lambda p: jpeg(p, 60),
    "half size": lambda p: cv2.resize(p, None, fx=0.5, fy=0.5),
    "brighter": lambda p: cv2.convertScaleAbs(p, None, 1.15, 10),
    "cropped": lambda p: p[2:-2, 3:-3],
    "all at once": lambda p: jpeg(np.rot90(cv2.convertScaleAbs(p, None, 1.1, 0)[1:-2, ::-1]), 70)}


@pytest.fixture
def load(tmp_path):
    def load_set(**options):
        return load_images(Settings(data_dir=str(tmp_path / "set"), image_size=128,
                                    cache_dir=str(tmp_path / "cache"), **options))
    return load_set


@pytest.fixture
def planted(tmp_path, load):
    """Two categories of 12 images each, and every kind of duplicate of three of the first."""
    for c in ("cans", "glass"):
        for i in range(12):
            write_image(str(tmp_path / "set" / c / f"{i}.png"), drawn(c == "cans", i))
    for i in range(3):
        for name, change in DUPLICATES.items():
            write_image(str(tmp_path / "set" / "cans" / f"{i} {name}.png"),
                        np.ascontiguousarray(change(drawn(1, i))))
    return load()


def pairs_of(images, **options):
    """find_duplicates, computed anew."""
    if os.path.exists(images.cache + ".duplicates.json"):
        os.remove(images.cache + ".duplicates.json")
    return find_duplicates(images, **options)


def test_every_planted_duplicate_and_nothing_else_is_grouped(planted):
    groups = group_images(len(planted), find_duplicates(planted))
    np.testing.assert_array_equal(groups, find_groups(planted, Settings()))
    found = {frozenset(np.array(planted.paths)[groups == g])
             for g in np.flatnonzero(np.bincount(groups) > 1)}
    names = ["", *(f" {name}" for name in DUPLICATES)]
    assert found == {frozenset(f"cans/{i}{name}.png" for name in names) for i in range(3)}
    fold_of = assign_folds(planted.labels, 3, 0, planted.categories, groups)
    assert all(len(set(fold_of[groups == g])) == 1 for g in set(groups))


def test_neither_threads_nor_order_of_files_matter(planted, load):
    pairs = pairs_of(planted, threads=1)
    np.testing.assert_array_equal(pairs, pairs_of(planted, threads=5))
    other = load(categories=("glass", "cans"))
    assert other.paths != planted.paths
    names = [{frozenset((images.paths[i], images.paths[j])) for i, j in found}
             for images, found in ((other, find_duplicates(other)), (planted, pairs))]
    assert names[0] == names[1]


@pytest.mark.parametrize("gray", [128, 240])
def test_objects_on_one_table_are_no_duplicates(tmp_path, load, gray):
    for i in range(30):
        rng = np.random.default_rng(i)
        shade = np.linspace(0, 30, 160).astype(np.uint8)[:, None, None]
        image = np.full((160, 160, 3), gray, np.uint8) - shade
        color, (x, y) = rng.integers(0, 256, 3).tolist(), rng.integers(50, 110, 2).tolist()
        if i % 3 == 0:
            cv2.circle(image, (x, y), 10 + i // 2, color, -1)
        elif i % 3 == 1:
            cv2.rectangle(image, (x - 8 - i // 3, y - 20), (x + 8, y + i), color, -1)
        else:
            cv2.putText(image, chr(65 + i), (x - 20, y + 20), cv2.FONT_HERSHEY_SIMPLEX, 2, color, 6)
        noisy = np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)
        write_image(str(tmp_path / "set" / "ab"[i % 2] / f"{i}.png"), noisy)
    assert not len(find_duplicates(load()))


def test_blank_images_are_duplicates_only_if_they_are_equal(tmp_path, load):
    for name, value, noise in (("a/1", 250, 0), ("b/1", 250, 0), ("a/2", 251, 0), ("b/2", 90, 0),
                               ("a/3", 90, 1), ("b/3", 90, 1)):
        blank = np.full((60, 80, 3), value, np.uint8)
        blank += np.random.default_rng(ord(name[0])).integers(0, noise + 1, blank.shape, np.uint8)
        write_image(str(tmp_path / "set" / f"{name}.png"), blank)
    images = load()
    pairs = [(images.paths[i], images.paths[j]) for i, j in find_duplicates(images)]
    assert pairs == [("a/1.png", "b/1.png")]


def test_images_with_equal_checksums_are_compared(planted):
    planted.checksums[:] = 7
    assert len(pairs_of(planted, near=False)) == 3


def test_duplicates_with_different_labels_are_listed(tmp_path, planted, load, capsys):
    for i in range(25):
        write_image(str(tmp_path / "set" / "cans" / f"conflict {i:02}.png"), drawn(2, i))
        write_image(str(tmp_path / "set" / "glass" / f"conflict {i:02}.jpg"), drawn(2, i))
    images = load()
    rows = duplicate_rows(images, group_images(len(images), find_duplicates(images)))
    assert {path for _, path, _, conflict in rows if conflict == "yes"} == {
        path for path in images.paths if "conflict" in path}
    assert all(label == path.split("/")[0] for _, path, label, _ in rows)
    print_duplicates(rows, None, Settings())
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == ["duplicates: 86 images in 28 groups stay together",
                           "probable label errors, images of one group with different labels:",
                           "  cans/conflict 00.png, glass/conflict 00.jpg"]
    assert len(printed) == 2 + 20 + 1 and "5 more groups; duplicates.csv" in printed[-1]


def test_identical_images_alone_are_grouped_if_asked_for(planted):
    pairs = [(planted.paths[i], planted.paths[j]) for i, j in find_duplicates(planted, near=False)]
    assert pairs == [(f"cans/{i} exact.png", f"cans/{i}.png") for i in range(3)]
    assert len(find_duplicates(planted)) > 3 == len(find_duplicates(planted, near=False))


def test_a_group_larger_than_a_fold_is_noticed(capsys):
    labels, groups = np.repeat([0, 1], [50, 20]), np.arange(70)
    assert oversized_group(groups, labels, 5) is None
    assert oversized_group(np.arange(10), np.repeat([0, 1], 5), 5) is None
    groups[50:58] = 50
    assert oversized_group(groups, labels, 5) == (8, 20)
    assert oversized_group(groups, labels, 2) is None
    for mode, note in (("near", "8 of the 20 images of a category, .*--duplicates exact"),
                       ("exact", None)):
        print_duplicates([], (8, 20), Settings(duplicates=mode))
        printed = capsys.readouterr().out
        assert re.search(note, printed) if note else "note" not in printed


def test_given_groups_join_found_ones(tmp_path, planted):
    path = str(tmp_path / "groups.csv")
    with open(path, "w", encoding="utf-8-sig", newline="") as f:
        f.write('path,group,note\ncans/0.png,red can,"two\nlines"\nglass/5.png, red can ,\n'
                'glass/6.png,red can,\ncans/7.png,alone,\ncans/7.png,alone,\n')
    given = read_groups(path, planted)
    assert len(given) == 2 and not len(read_groups("", planted))
    groups = find_groups(planted, Settings(groups=path))
    members = np.array(planted.paths)[groups == groups[planted.paths.index("glass/6.png")]]
    assert set(members) == {"cans/0.png", "glass/5.png", "glass/6.png",
                            *(f"cans/0 {name}.png" for name in DUPLICATES)}


@pytest.mark.parametrize("content", [
    "path;group\ncans/0.png;a\nglass/1.png;a\n", "Path,Group\ncans/0.png,a\nglass/1.png,a\n",
    "note; GROUP ;PATH\n1,5;a;cans/0.png\n2,5; a;glass/1.png\n",
    '"Path";"Group"\r\n"cans/0.png";"a"\r\n"glass/1.png";"a"\r\n',
    "path\tgroup\ncans/0.png\ta\nglass/1.png\ta\n",
    "path,group,a;b\ncans/0.png,a,c;d\nglass/1.png,a,\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_groups_files_of_spreadsheets(tmp_path, folder, load, content, encoding):
    path = tmp_path / "groups.csv"
    path.write_bytes(content.encode(encoding))
    images = load()
    (pair,) = read_groups(str(path), images)
    assert {images.paths[i] for i in pair} == {"cans/0.png", "glass/1.png"}


@pytest.mark.parametrize("content, message", [
    (None, "No such file"),
    (b"", "line 1: the header must have the columns path"),
    (b"image;group\ncans/0.png;a\n", "line 1: the header must have the columns path"),
    (b"path,group\ncans/0.png,a\ncans/nowhere.png,a\n", "line 3: no image cans/nowhere.png in "),
    (b"path,group\ncans/0.png,a\ncans/1.png\n", "line 3: a path and a group are needed"),
    (b"group,path\na,cans/0.png\na\n", "line 3: a path and a group are needed"),
    (b"path,group\ncans/0.png,a\ncans/1.png,a\ncans/0.png,b\n",
     "line 4: cans/0.png is in group a already"),
    ("path,group\ncans/0.png,a\ncans/1.png,玻璃\n".encode("gbk"), "line 3: not UTF-8 text"),
    ("path,group\n".encode("utf-16"), "line 1: not UTF-8 text"),
    (b'path,group\ncans/0.png,"5 inch\ncans/1.png,a\ncans/2.png,a\n',
     "after line 1: unexpected end of data"),
    (b"path,group\ncans/0.png,a\ncans/1.png,\0\n" + b"x" * 200000, "line "),
])
def test_bad_groups_files(tmp_path, folder, load, content, message):
    path = str(tmp_path / "groups.csv")
    if content is not None:
        with open(path, "wb") as f:
            f.write(content)
    with pytest.raises(InputError) as error:
        read_groups(path, load())
    assert str(error.value).startswith(f"--groups {path}") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_given_groups_may_name_images_that_are_left_out(tmp_path, folder, load):
    open(os.path.join(folder, "cans", "empty.png"), "w").close()
    write_image(os.path.join(folder, "=1", "0.png"), drawn(0))
    os.mkdir(os.path.join(folder, "cans", ".hidden"))
    write_image(os.path.join(folder, "cans", ".hidden", "0.png"), drawn(0))
    write_image(os.path.join(folder, "cans", "\udcff.png"), drawn(0))  # a name that is not UTF-8
    path = tmp_path / "groups.csv"
    path.write_text("path,group\ncans/empty.png,a\ncans/.hidden/0.png,a\ncans/0.png,a\n"
                    "cans/1.png,a\nglass/1.png,a\n'=1/0.png,a\n"
                    "cans/\\udcff.png,a\n")  # the last two as in folds.csv
    assert len(read_groups(str(path), load(categories=("cans", "纸", "=1")))) == 3


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.6])
def test_look_alikes_are_those_of_all_pairs_in_all_orientations(noise):
    rng = np.random.default_rng(0)
    soft = np.stack([cv2.resize(rng.normal(size=(3, 3)), (8, 8)) for _ in range(60)])
    rough = soft[rng.integers(0, 60, 400)] + noise * rng.normal(size=(400, 8, 8)) * soft.std()
    rough = np.stack([np.rot90(r[:, ::-1] if i % 2 else r, rng.integers(4))
                      for i, r in enumerate(rough)])
    rough -= rough.mean((1, 2), keepdims=True)
    rough /= np.linalg.norm(rough, axis=(1, 2), keepdims=True)
    rough[::50] = 0  # blank
    turned = [np.rot90(r, k, (1, 2)).reshape(400, 64)
              for r in (rough, rough[:, ::-1]) for k in range(4)]
    table = np.max([rough.reshape(400, 64) @ t.T for t in turned], 0)
    np.fill_diagonal(table, 0)
    assert (table >= 0.95).sum(1).max() <= 20 and (noise > 0.5 or (table >= 0.95).sum() > 400)
    pairs = np.argwhere(np.triu(table >= 0.95))
    np.testing.assert_array_equal(look_alikes(rough.astype(np.float32)), pairs)


def test_duplicates_are_looked_for_once_and_again_when_images_change(tmp_path, planted, load,
                                                                     monkeypatch):
    pairs = find_duplicates(planted)
    with monkeypatch.context() as m:
        m.delattr(duplicates, "near_duplicates")
        np.testing.assert_array_equal(find_duplicates(load()), pairs)
        m.setattr(duplicates, "VERSION", -1)
        with pytest.raises(NameError):
            find_duplicates(planted)
    with open(planted.cache + ".duplicates.json", "w") as f:
        f.write("{")
    np.testing.assert_array_equal(find_duplicates(planted), pairs)
    write_image(str(tmp_path / "set" / "cans" / "0 mirrored.png"), drawn(3))
    assert len(find_duplicates(load())) < len(pairs)


def test_of_several_processes_one_looks_for_duplicates(planted, monkeypatch):
    calls, near = [], duplicates.near_duplicates
    monkeypatch.setattr(duplicates, "near_duplicates", lambda *a: calls.append(1) or near(*a))
    with ThreadPoolExecutor(3) as pool:  # the lock is the same among threads
        pairs = list(pool.map(lambda _: find_duplicates(planted), range(3)))
    assert len(calls) == 1
    np.testing.assert_array_equal(pairs[0], pairs[2])
