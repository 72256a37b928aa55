"""A run that is stopped and goes on ends as one that was never stopped, bit for bit, and a damaged state is noticed."""
import dataclasses
import os
import shutil

import numpy as np
import paddle
import pytest
from test_training import TinyTrunk, parted, weights_of

from models.teacher_model import fit_heads
from utils import runtime
from utils.data_utils import load_pictures, stratified_parts
from utils.settings import InputError, parse
from utils.state import Checkpointer, checksums, end, ended, keep_start, read_start
from utils.train_utils import build_fold, control_settings, train


pytestmark = pytest.mark.usefixtures("compiled_once")


class Cut(BaseException):
    """Stands in for a killed process."""


def build(settings):
    """(students of two folds and the control of one, pictures, parts)"""
    pictures, parts = parted(settings)
    features = np.random.default_rng(0).normal(size=(1, len(pictures), 5)).astype("float32")
    heads = fit_heads(features, pictures.labels, parts, range(2), settings)
    folds = [build_fold(k, pictures.labels, parts, heads[k], s, name=name) for k, s, name in
             ((0, settings, "fold"), (1, settings, "fold"), (1, control_settings(settings), "control"))]
    return folds, pictures, parts


def run(settings, folder, cuts=(), resumed=False, fail=None):
    """Train; save behind the steps `cuts`, (epoch, step), and stop behind the last of them. Returns the folds."""
    folds, pictures, parts = build(settings)
    paddle.seed(5)
    trunk = runtime.compiled(TinyTrunk(), [3, 32, 32])
    checkpointer = Checkpointer(folder, folds, 100)
    start = checkpointer.restore() if resumed else (0, 0)
    if not resumed:
        checkpointer.save(0, 0)

    def on_step(epoch, step):
        checkpointer.minutes = 0 if (epoch, step) in cuts else 100
        checkpointer.after_step(epoch, step)
        if (epoch, step) == fail:
            raise ZeroDivisionError
        if cuts and (epoch, step) == cuts[-1]:
            raise Cut
    try:
        threads = len(folds)  # one each: every step is a point to stop at
        train(folds, pictures, parts, trunk, settings, threads, lambda epoch, *_: checkpointer.after_epoch(epoch), on_step, start)
    except Cut:
        return None
    return folds


def assert_same(folds, others):
    for f, g in zip(folds, others):
        assert f.history == g.history and (f.best_epoch, f.best_accuracy) == (g.best_epoch, g.best_accuracy)
        np.testing.assert_array_equal(f.probabilities, g.probabilities)
        assert f.best_weights and all(np.array_equal(v, g.best_weights[k]) for k, v in f.best_weights.items())
        for name, value in weights_of(f).items():
            np.testing.assert_array_equal(value, weights_of(g)[name], err_msg=f"{f.name} {name}")
        for a, b in zip(f.optimizer.state_dict().values(), g.optimizer.state_dict().values()):
            if isinstance(a, paddle.Tensor):
                np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.fixture
def whole(settings, tmp_path):
    """The folds of a run with mixup, dropout, a control and early stopping that was not stopped."""
    settings.num_epochs, settings.patience = 5, 3
    (tmp_path / "whole").mkdir()
    (tmp_path / "run").mkdir()
    return run(settings, str(tmp_path / "whole"))


def test_stopped_at_any_step_it_ends_with_the_same_weights_bit_for_bit(settings, tmp_path, whole):
    folder = str(tmp_path / "run")
    for n, cut in enumerate([(0, 5), (1, 1), (2, 5)]):  # a fifth step is the last of an epoch, before it is judged
        assert run(settings, folder, [cut], resumed=n > 0) is None
    with pytest.raises(ZeroDivisionError):  # as kill -9 does, between two saves: the work since the first is done again
        run(settings, folder, [(3, 1), (3, 3)], resumed=True, fail=(3, 2))
    assert_same(run(settings, folder, resumed=True), whole)
    assert len([n for n in os.listdir(folder) if n.startswith("state-")]) == 2


def test_a_torn_state_is_noticed_and_the_one_before_it_is_used(settings, tmp_path, capsys):
    folder = str(tmp_path / "run")
    os.mkdir(folder)
    run(settings, folder, [(0, 2), (0, 4)])
    folds, *_ = build(settings)
    checkpointer = Checkpointer(folder, folds, 0)
    before, newest = sorted(os.path.join(folder, n) for n in os.listdir(folder))
    assert checkpointer.restore() == (0, 4)
    with open(newest, "rb") as f:
        content = bytearray(f.read())
    content[len(content) // 2] ^= 1  # one bit
    for damaged in (content, content[:len(content) // 3], b""):
        with open(newest, "wb") as f:
            f.write(damaged)
        capsys.readouterr()
        assert checkpointer.restore() == (0, 2)
        printed = capsys.readouterr().out
        assert printed.count("\n") == 1 and f"{newest} is damaged" in printed and "before it is used" in printed
    checkpointer.after_step(0, 3)  # it goes on from there: the whole one is kept until the new one is whole, the damaged one not
    third = newest.replace("4.npz", "3.npz")
    assert sorted(os.listdir(folder)) == [os.path.basename(p) for p in (before, third)]
    checkpointer.after_step(0, 4)
    checkpointer.after_step(0, 4)  # no second time
    assert sorted(os.listdir(folder)) == [os.path.basename(p) for p in (third, newest)]
    for name in os.listdir(folder):
        os.truncate(os.path.join(folder, name), 100)
    with pytest.raises(InputError, match="no state in .* is whole"):
        checkpointer.restore()


def test_a_state_runs_no_code(tmp_path):
    class Crafted:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)
    for name in ("state-000001-000000000.npz", "start.npz"):
        np.savez(tmp_path / name, about=np.array([Crafted()]), labels=np.array([Crafted()]))
    with pytest.raises(InputError, match="no state .* is whole"):
        Checkpointer(str(tmp_path), [], 0).restore()
    with pytest.raises(InputError, match="start.npz is damaged.*pickle"):
        read_start(str(tmp_path), None, None, None, None, 1)
    assert not (tmp_path / "owned").exists()


def test_pictures_parts_and_weights_must_be_as_they_were(settings, folder, tmp_path, capsys):
    def load():
        pictures = load_pictures(folder, 32, cache_dir=settings.cache_dir)
        return pictures, checksums(pictures, 2), stratified_parts(pictures.labels, 3, 1)
    where, weights = str(tmp_path), ("w.pdparams", {"a": np.arange(5.0)})
    pictures, sums, parts = load()
    features = np.random.default_rng(0).normal(size=(1, len(pictures), 5)).astype("float32")
    heads = fit_heads(features, pictures.labels, parts, [0, 2], settings)
    keep_start(where, pictures, sums, parts, heads, np.eye(27, 3), weights, 2)
    again, teacher = read_start(where, pictures, sums, parts, weights, 2)
    assert list(again) == [0, 2] and capsys.readouterr().out == ""
    for a, b in zip(heads[2], again[2]):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(teacher, np.eye(27, 3))
    read_start(where, pictures, sums, parts, weights, 4)
    assert "this run began with threads 2, now it is 4" in capsys.readouterr().out
    with pytest.raises(InputError, match="w.pdparams holds other weights"):
        read_start(where, pictures, sums, parts, ("w.pdparams", {"a": np.arange(5.0) + 1e-9}), 2)
    with pytest.raises(InputError, match="other parts"):
        read_start(where, pictures, sums, np.roll(parts, 1), weights, 2)
    path = os.path.join(folder, "glass", "3.png")
    with open(path, "rb") as f:
        content = f.read()
    with open(os.path.join(folder, "glass", "4.png"), "rb") as f, open(path, "wb") as g:
        g.write(f.read())
    with pytest.raises(InputError, match="1 pictures are changed, such as glass/3.png; make it as it was"):
        read_start(where, *load(), weights, 2)
    os.remove(path)
    with pytest.raises(InputError, match="1 pictures are gone, or cannot be read now, such as glass/3.png"):
        read_start(where, *load(), weights, 2)
    with open(path, "wb") as f:
        f.write(content)
    with open(os.path.join(folder, "cans", "new.png"), "wb") as f:
        f.write(content)
    with pytest.raises(InputError, match="1 pictures are new, or could not be read then, such as cans/new.png"):
        read_start(where, *load(), weights, 2)


def test_settings_of_a_resumed_run(tmp_path, capsys, monkeypatch):
    from utils.run_log import record_run
    settings, _, folder = parse(["--num_folds", "3", "--categories", "a", "b", "--log_dir", str(tmp_path)])
    assert folder is None
    with pytest.raises(InputError, match="the name of the folder is empty"):
        parse(["--resume", ""])  # of a variable that is not set
    with pytest.raises(InputError, match="nothing to resume in .*--log_dir"):
        parse(["--resume", "--log_dir", str(tmp_path)])
    where = tmp_path / "20260101-000000"
    where.mkdir()

    class NoPictures:
        paths, labels, left_out, categories = [], [], [], []
    record_run(str(where), settings, NoPictures, [], [], [])
    (where / "state-000001-000000000.npz").write_text("")
    assert parse(["--resume", "--log_dir", str(tmp_path)]) == (settings, False, str(where))
    assert parse(["--resume", str(where)])[0] == settings
    settings.categories = ("Mu\u0308ll", "b")  # as a Mac stores it
    record_run(str(where), settings, NoPictures, [], [], [])
    assert parse(["--resume", str(where), "--categories", "M\u00fcll", "b"])[0] == settings
    settings.categories = ("a", "b")
    record_run(str(where), settings, NoPictures, [], [], [])
    free = parse(["--resume", str(where), "--threads", "7", "--save_dir", "elsewhere", "--num_folds", "3"])[0]
    assert free == dataclasses.replace(settings, threads=7, save_dir="elsewhere")
    for wrong, both in (("--num_epochs 60", "--num_epochs 60: .* began with 50"), ("--seed 1", "--seed 1: .* with 42"),
                        ("--categories b a", "--categories b a: .* with a b"), ("--control", "control True: .* False"),
                        ("--base_lr 1", "--base_lr 1.0: .* with 0.001"), ("--folds 1", "--folds 1: .* with none")):
        with pytest.raises(InputError, match=both):
            parse(["--resume", str(where), *wrong.split()])
    with pytest.raises(InputError, match="--log_dir elsewhere: the run .* goes on where it is"):
        parse(["--resume", str(where), "--log_dir", "elsewhere"])
    assert parse(["--sample", "--resume", str(where)])[1] is False  # its data_dir may be the user's, on a disk that is not there
    with monkeypatch.context() as m:
        m.chdir(where)
        assert parse(["--resume", "."])[0].log_dir == os.path.realpath(tmp_path)
    with pytest.raises(InputError, match="nowhere: not a run"):
        parse(["--resume", "nowhere"])
    assert not ended(str(where))
    with pytest.raises(InputError, match="has saved no state"):
        ended(str(tmp_path))
    (where / "report.json").write_text("{}")
    (where / "start.npz").write_text("")
    assert not ended(str(where))  # stopped while the report was written
    end(str(where))
    assert ended(str(where)) and sorted(os.listdir(where)) == ["copies.csv", "folds.csv", "left_out.csv", "report.json",
                                                              "settings.json"]
    assert parse(["--resume", "--log_dir", str(tmp_path)])[2] == str(where)  # it will say that it has ended
    assert capsys.readouterr().out == ""
    lost = tmp_path / "20260102-000000"
    lost.mkdir()
    record_run(str(lost), settings, NoPictures, [], [], [])
    os.utime(lost / "settings.json", (2e9, 2e9))
    assert parse(["--resume", "--log_dir", str(tmp_path)])[2] == str(where)
    assert capsys.readouterr().out == f"note: {lost} has saved nothing to go on with\n"


def test_a_run_that_the_disk_cannot_hold_is_refused_before_it_trains(settings, tmp_path, monkeypatch):
    folds, *_ = build(settings)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    with pytest.raises(InputError, match=r"state of this run takes 0\.\d+ GB and .* has 0.00 GB free.*--log_dir"):
        Checkpointer(str(tmp_path), folds, 10)
