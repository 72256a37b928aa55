"""Odd files in a folder: each is used correctly or named with its reason."""
import contextlib
import csv
import json
import os
import sys
import tempfile

import numpy as np
import paddle
import pytest

from conftest import read_rows, run_program, write_image
from models.student_model import Student
from odd_files import BAD, BAD_TIFF, BGR, FORMATS, NAMES, SCENE, make_odd, ocv
from utils.errors import InputError
from utils.images.dataset import list_files, load_images
from utils.images.read import UnreadableImage, read_image
from utils.report.plots import contact_sheet
from utils.settings import Settings
from utils.tables import write_csv
from utils.transforms import to_square
from utils.weights import arrays_of, save_weights


def load(folder, cache, **options):
    return load_images(Settings(data_dir=folder, image_size=32, cache_dir=str(cache), **options))


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd") / "set"
    expected = make_odd(str(folder / "odd"))
    write_image(str(folder / "plain" / "0.png"), BGR)
    return str(folder), expected


def outcomes(expected):
    """(names of the good files, {name: reason} of the others)."""
    reasons = {n: outcome for n, outcome in expected.items() if isinstance(outcome, str)}
    return set(expected) - set(reasons), reasons


def same(image, expected):
    if expected.ndim == 2:
        expected = np.dstack([expected] * 3)
    return (image.dtype == np.uint8 and image.shape == expected.shape
            and np.abs(image - expected.astype(float)).mean() < 3)


def test_every_odd_file_is_used_correctly_or_named(odd, tmp_path):
    folder, expected = odd
    # beside the category folders
    beside = {"notes.txt": "not in a category folder", "@eaDir": "hidden or system file"}
    open(os.path.join(folder, "notes.txt"), "w").close()
    os.mkdir(os.path.join(folder, "@eaDir"))
    if sys.platform != "win32":
        os.symlink("round", os.path.join(folder, "round"))
        beside["round"] = "not in a category folder"
    images = load(folder, tmp_path / "cache")
    assert images.categories == ["odd", "plain"]
    left_out = {p.removeprefix("odd/"): reason for p, reason in images.left_out}
    assert left_out == beside | outcomes(expected)[1]
    assert len(images.left_out) - len(beside) + len(images) - 1 == len(expected) > 100
    for i, path in enumerate(images.paths[:-1]):
        outcome = expected[path.removeprefix("odd/")]
        assert same(read_image(os.path.join(folder, path)), outcome), path
        square = to_square(np.ascontiguousarray(outcome).astype(np.uint8), 36)
        assert same(images.square(i), square), path
    again = load(folder, tmp_path / "cache")
    assert again.paths == images.paths and again.left_out == images.left_out


# zeros may be black pixels, or the decoder needs no end
NO_END = ("bmp", "palette.bmp", "tif", "ppm")


def refused_or_whole(path, data, whole):
    path.write_bytes(data)
    try:
        np.testing.assert_array_equal(read_image(str(path)), whole)
    except UnreadableImage as e:
        assert str(e) in ((BAD, BAD_TIFF) if data else "empty file")


@pytest.mark.parametrize("format", FORMATS)
def test_half_a_file_is_never_half_an_image(tmp_path, format):
    data, path = FORMATS[format], tmp_path / format
    path.write_bytes(data)
    whole = read_image(str(path))
    end = len(data)
    for length in {*(end * tenth // 10 for tenth in range(10)), *range(end - 5, end)}:
        refused_or_whole(path, data[:length], whole)
        if format not in NO_END and length < end - 64:  # an interrupted copy of full length
            refused_or_whole(path, data[:length] + bytes(end - length), whole)


def become(path, change):
    os.remove(path)
    if change == "a pipe":
        os.mkfifo(path)
    elif change == "a folder":
        os.mkdir(path)
    elif change == "half of it":
        with open(path, "wb") as f:
            f.write(ocv(".png", BGR)[:-20])
    elif change == "another image":
        write_image(path, 255 - BGR)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pipes in folders")
@pytest.mark.parametrize("change, reason", [
    ("nothing", "cannot be read any more: No such file or directory"),
    ("half of it", "cannot be read any more: truncated"),
    ("a pipe", "cannot be read any more: not a regular file"),
    ("a folder", "cannot be read any more: Is a directory"),
    ("another image", "has changed since the run began")])
def test_a_file_that_becomes_something_else_during_a_run(folder, tmp_path, change, reason):
    stored = load(folder, tmp_path / "cache")
    fresh = load(folder, tmp_path / "cache", cache_gb=0)
    before = [np.array(stored.square(i)) for i in range(len(stored))]
    become(os.path.join(folder, stored.paths[5]), change)
    for i, square in enumerate(before):
        np.testing.assert_array_equal(stored.square(i), square)  # the run keeps what it has seen
        if i != 5:
            np.testing.assert_array_equal(fresh.square(i), square)
    with pytest.raises(InputError, match=f"'{fresh.paths[5]}' {reason}"):
        fresh.square(5)


@contextlib.contextmanager
def without_rights():
    """Root may read everything: be nobody for a while."""
    if os.getuid() == 0:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if 0 in os.getresuid():
            os.setresuid(0, 0, 0)


@pytest.mark.skipif(not hasattr(os, "getresuid"), reason="needs the users of Linux")
def test_no_permission_to_read():
    with tempfile.TemporaryDirectory() as top:  # not in tmp_path, where nobody else may look
        os.chmod(top, 0o777)
        folder, cache = os.path.join(top, "set"), os.path.join(top, "cache")
        for path in ("a/0.png", "a/1.png", "b/0.png", "b/closed/0.png"):
            write_image(os.path.join(folder, path), BGR)
        closed = os.path.join(folder, "a", "1.png"), os.path.join(folder, "b", "closed")
        for path in closed:
            os.chmod(path, 0)
        with without_rights():
            images = load(folder, cache)
        assert images.paths == ["a/0.png", "b/0.png"]
        assert images.left_out == [("a/1.png", "Permission denied"),
                                   ("b/closed", "Permission denied")]
        for path in closed:
            os.chmod(path, 0o755)
        with without_rights():  # the cache does not remember that it once was forbidden
            assert len(load(folder, cache)) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="paths end at 260 letters")
def test_folders_in_folders_in_folders(tmp_path):
    depth, here = 1500, os.getcwd()
    os.chdir(tmp_path)
    for _ in range(depth):
        os.mkdir("d")
        os.chdir("d")
    open("0.png", "w").close()
    found = list_files(str(tmp_path))
    os.remove("0.png")
    for _ in range(depth):  # pytest cannot remove them
        os.chdir(os.pardir)
        os.rmdir("d")
    os.chdir(here)
    assert found == (["d/" * depth + "0.png"], [])


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there are no such names")
def test_a_category_that_is_not_utf8_is_named_before_the_training(folder, tmp_path):
    os.rename(os.path.join(folder, "cans"), os.path.join(os.fsencode(folder), b"\xff"))
    with pytest.raises(InputError, match=r"'\\udcff' in .* is not UTF-8; rename it"):
        load(folder, tmp_path / "cache")
    assert len(load(folder, tmp_path / "cache", categories=("glass", "纸"))) == 18


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("student") / "s.pdparams")
    paddle.seed(0)
    save_weights(path, arrays_of(Student(2, freeze_depth=0)),
                 {"categories": ["odd", "plain"], "image_size": 32, "freeze_depth": 0})
    return path


@pytest.mark.parametrize("format", ["json", "csv"])
def test_inference_answers_every_good_file_and_names_every_bad_one(odd, student, tmp_path, format):
    folder, (names, reasons) = os.path.join(odd[0], "odd"), outcomes(odd[1])
    good = {os.path.join(folder, n) for n in names}
    bad = {os.path.join(folder, n): reason for n, reason in reasons.items()}
    batch = next(b for b in (7, 8) if len(good) % b)  # the last batch is not full
    output = str(tmp_path / f"o.{format}")
    done = run_program("inference.py", "--model_path", student, "--image_path", folder,
                       "--recursive", "--batch_size", str(batch), "--output", output)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert len(done.stdout.splitlines()) == len(good) and "\x1b" not in done.stdout
    assert f"{len(good)} images classified, {len(bad)} files left out" in done.stderr
    for path, reason in bad.items():
        assert done.stderr.count(f"left out {path!r}: {reason}\n") == 1
    if format == "json":
        with open(output, encoding="utf-8") as f:
            saved = json.load(f)
        assert {r["path"] for r in saved["images"]} == good and len(saved["images"]) == len(good)
        assert sorted((r["path"], r["reason"]) for r in saved["left_out"]) == sorted(bad.items())
    else:
        rows = read_rows(output)
        shown = sorted(p.encode(errors="backslashreplace").decode() for p in good)
        assert sorted(r["path"] for r in rows) == shown
        assert all(0.5 <= float(r["confidence"]) <= 1 for r in rows)


def test_a_table_is_no_program(tmp_path):
    path = str(tmp_path / "t.csv")
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "a=1", "", "'",
             "line\nbreak, \"quoted\"", "纸", "\udcff"]
    write_csv(path, ("path", "=score"), [*((t, -0.5) for t in texts), ("number", np.float64(-1))])
    with open(path, encoding="utf-8-sig", newline="") as f:
        header, *rows = csv.reader(f)
    assert header == ["path", "'=score"]
    guarded = ["'" + t for t in texts[:6]]
    assert [r[0] for r in rows] == [*guarded, *texts[6:-1], "\\udcff", "number"]
    assert [float(r[1]) for r in rows] == [-0.5] * len(texts) + [-1]
    with pytest.raises(FileExistsError):
        write_csv(path, (), [], mode="x")


def test_drawn_titles_may_be_any_file_name(tmp_path):
    contact_sheet([SCENE] * len(NAMES), NAMES, str(tmp_path / "sheet.png"))
    assert read_image(str(tmp_path / "sheet.png")).std() > 0
