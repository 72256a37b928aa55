"""A run that is stopped and continues ends as one that never was, bit for bit, and a damaged
checkpoint is noticed."""
import contextlib
import dataclasses
import os
import shutil

import numpy as np
import paddle
import pytest

from tiny import RANDOM, Cut, assert_same_weights, tiny_heads, tiny_set, train_tiny
from utils.errors import InputError
from utils.folds import assign_folds
from utils.images.dataset import Images, load_images
from utils.run import resume
from utils.run.checkpoint import check_space, load_checkpoint
from utils.run.run import Run
from utils.settings import NEWEST, new_settings, parse
from utils.train_utils import build_student

pytestmark = pytest.mark.usefixtures("compiled_once")


class TinyRun(Run):
    """A Run in `folder` without a command line; saves behind the steps `cuts`, (epoch, step), and
    is killed behind the last of them."""

    def __init__(self, settings, folder, images, cuts=(), resuming=False, fail=None):
        super().__init__({})
        self.settings, self.folder, self.images, self.resuming = settings, folder, images, resuming
        self.threads, self.name, self.cuts, self.fail = 2, "run", cuts, fail

    def after_step(self, epoch, step):
        self.settings.save_minutes = 0 if (epoch, step) in self.cuts else 100
        super().after_step(epoch, step)
        if (epoch, step) == self.fail:
            raise ZeroDivisionError
        if self.cuts and (epoch, step) == self.cuts[-1]:
            raise Cut


def build(settings, heads=None):
    """Students of two folds, the control of one, and the final model."""
    images, fold_of = tiny_set(settings)
    heads = heads or tiny_heads(settings, images, fold_of)
    return [build_student(k, images.labels, fold_of, heads[k], s, name=name) for k, s, name in (
        (0, settings, "fold0"), (1, settings, "fold1"),
        (1, settings.without_teacher(), "control1"), (settings.num_folds, settings, "final"))]


def train_in(folder, settings, cuts=(), resuming=False, fail=None):
    """Train in a folder, until the last cut. Returns {name: TrainState}, or None if it was cut."""
    run = TinyRun(settings, folder, load_images(settings), cuts, resuming, fail)
    with contextlib.suppress(Cut):
        return train_tiny(settings, run=run, build=lambda heads: build(settings, heads))


def assert_same(students, others):
    assert students.keys() == others.keys()
    for s, o in zip(students.values(), others.values()):
        assert s.history == o.history
        assert s.best_epoch == o.best_epoch
        np.testing.assert_array_equal(s.probabilities, o.probabilities)
        assert s.best_weights
        assert all(np.array_equal(v, o.best_weights[k]) for k, v in s.best_weights.items())
        assert_same_weights(s, o)
        for a, b in zip(s.optimizer.state_dict().values(), o.optimizer.state_dict().values()):
            if isinstance(a, paddle.Tensor):
                np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.fixture
def whole(settings, tmp_path):
    """The students of a run with mixup, dropout, a control and early stopping, never stopped."""
    settings.num_epochs, settings.patience = 5, 3
    (tmp_path / "whole").mkdir()
    (tmp_path / "run").mkdir()
    return train_in(str(tmp_path / "whole"), settings)


def test_stopped_at_any_step_it_ends_with_the_same_weights_bit_for_bit(settings, tmp_path, whole):
    folder = str(tmp_path / "run")
    for n, cut in enumerate([(0, 5), (1, 1), (2, 5)]):  # step 5 ends the epoch, before validation
        assert train_in(folder, settings, [cut], resuming=n > 0) is None
    with pytest.raises(ZeroDivisionError):  # as kill -9 does, between two saves: work is done again
        train_in(folder, settings, [(3, 1), (3, 3)], resuming=True, fail=(3, 2))
    assert_same(train_in(folder, settings, resuming=True), whole)
    assert len([n for n in os.listdir(folder) if n.startswith("checkpoint-")]) == 2


def test_instead_of_an_unfinished_or_damaged_checkpoint_the_one_before_it_is_used(
        settings, tmp_path, capsys):
    folder = str(tmp_path / "run")
    os.mkdir(folder)
    train_in(folder, settings, [(0, 2), (0, 4)])
    students, images = build(settings), load_images(settings)
    before, newest = sorted(n for n in os.listdir(folder) if n.startswith("checkpoint-"))
    assert load_checkpoint(folder, students)[1:] == (0, 4)
    complete = os.path.join(folder, newest, "complete")
    os.rename(complete, tmp_path / "complete")  # killed before it was written
    assert load_checkpoint(folder, students)[1:] == (0, 2)
    os.rename(tmp_path / "complete", complete)
    file = os.path.join(folder, newest, "control1.npz")
    with open(file, "rb") as f:
        content = bytearray(f.read())
    content[len(content) // 2] ^= 1  # one bit
    for damaged in (content, content[:len(content) // 3], b"", None):
        os.remove(file)
        if damaged is not None:
            with open(file, "wb") as f:
                f.write(damaged)
        capsys.readouterr()
        assert load_checkpoint(folder, students)[1:] == (0, 2)
        printed = capsys.readouterr().out
        assert printed.count("\n") == 1 and f"{file} is damaged" in printed
        assert "the checkpoint before it is tried" in printed
    # it continues from there: the good one is kept until the new one is complete
    run = TinyRun(settings, folder, images, resuming=True)
    run.start(students)
    run.cuts = [(0, 3), (0, 4), (9, 9)]
    run.after_step(0, 3)
    third = newest.replace("4", "3")
    saved = [n for n in os.listdir(folder) if n.startswith("checkpoint-")]
    assert sorted(saved) == [before, third]
    run.after_step(0, 4)
    run.after_step(0, 4)  # no second time
    saved = sorted(n for n in os.listdir(folder) if n.startswith("checkpoint-"))
    assert saved == [third, newest]
    for name in saved:
        os.truncate(os.path.join(folder, name, "fold0.npz"), 100)
    with pytest.raises(InputError, match="no checkpoint in .* is complete"):
        load_checkpoint(folder, students)


def test_a_checkpoint_runs_no_code(settings, tmp_path):
    class Crafted:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)
    (tmp_path / "checkpoint-000001-000000000").mkdir()
    (tmp_path / "checkpoint-000001-000000000" / "complete").touch()
    students = build(settings)
    for name in ("checkpoint-000001-000000000/fold0.npz", "start.npz"):
        np.savez(tmp_path / name, about=np.array([Crafted()]), labels=np.array([Crafted()]))
    with pytest.raises(InputError, match="no checkpoint .* is complete"):
        load_checkpoint(str(tmp_path), students)
    with pytest.raises(InputError, match="start.npz is damaged.*pickle"):
        resume.load_start(str(tmp_path), None, None, None, 1)
    assert not (tmp_path / "owned").exists()


def test_images_folds_and_weights_must_be_as_they_were(settings, folder, tmp_path, capsys):
    where = str(tmp_path)
    weights = [(name, {"a": np.arange(5.0)}) for name in ("teacher.pdparams", "student.pdparams")]
    settings.folds = (0, 2)

    def load():
        images = load_images(settings)
        return images, assign_folds(images.labels, 3, 1)
    images, fold_of = load()
    heads = tiny_heads(settings, images, fold_of)
    resume.save_start(where, images, fold_of, heads, np.eye(27, 3), ["a note"], weights, 2)
    again, teacher_probs, notes = resume.load_start(where, images, fold_of, weights, 2)
    assert list(again) == [0, 2, 3] and notes == ["a note"] and capsys.readouterr().out == ""
    for a, b in zip(heads[2], again[2]):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(teacher_probs, np.eye(27, 3))
    resume.load_start(where, images, fold_of, weights, 4)
    assert "this run began with threads 2, now it is 4" in capsys.readouterr().out
    for i, (name, _) in enumerate(weights):
        other = [*weights]
        other[i] = (name, {"a": np.arange(5.0) + 1e-9})
        with pytest.raises(InputError, match=f"{name} holds other weights"):
            resume.load_start(where, images, fold_of, other, 2)
    with pytest.raises(InputError, match="other folds"):
        resume.load_start(where, images, np.roll(fold_of, 1), weights, 2)
    path = os.path.join(folder, "glass", "3.png")
    with open(path, "rb") as f:
        content = f.read()
    shutil.copyfile(os.path.join(folder, "glass", "4.png"), path)
    with pytest.raises(InputError, match="1 images are changed, such as glass/3.png; "
                                         "restore it"):
        resume.load_start(where, *load(), weights, 2)
    os.remove(path)
    with pytest.raises(InputError, match="1 images are gone, or cannot be read now, "
                                         "such as glass/3"):
        resume.load_start(where, *load(), weights, 2)
    for name in (path, os.path.join(folder, "cans", "new.png")):
        with open(name, "wb") as f:
            f.write(content)
    with pytest.raises(InputError, match="1 images are new, or could not be read then, "
                                         "such as cans/"):
        resume.load_start(where, *load(), weights, 2)


def resumed(*args):
    """The folder and the settings that a command line with --resume means."""
    given, _, option = parse(args)
    folder = resume.find_run(option, given)
    return folder, resume.resumed_settings(folder, given)


def test_settings_of_a_resumed_run(tmp_path, capsys, monkeypatch):
    log_dir = str(tmp_path)
    settings = new_settings(parse(["--num_folds", "3", "--categories", "a", "b",
                                   "--log_dir", log_dir])[0])
    assert parse([])[2] is None and parse(["--resume"])[2] == NEWEST
    with pytest.raises(InputError, match="the name of the folder is empty"):
        parse(["--resume", ""])  # a variable that is not set
    with pytest.raises(InputError, match="nothing to resume in .*--log_dir"):
        resumed("--resume", "--log_dir", log_dir)
    where = tmp_path / "20260101-000000"
    where.mkdir()
    nothing = Images("", [], np.zeros(0, int), [], [], None, np.zeros(0, int))

    def record(folder, **changes):
        changed = dataclasses.replace(settings, **changes)
        resume.record_run(str(folder), changed, nothing, [], np.zeros(0, int))
    record(where)
    (where / "checkpoint-000001-000000000").mkdir()
    (where / "checkpoint-000001-000000000" / "complete").touch()
    assert resumed("--resume", "--log_dir", log_dir) == (str(where), settings)
    assert resumed("--resume", str(where))[1] == settings
    record(where, categories=("Mu\u0308ll", "b"))  # as a Mac stores it
    resumed("--resume", str(where), "--categories", "M\u00fcll", "b")
    record(where)
    free = resumed("--resume", str(where), "--threads", "7", "--save_dir", "elsewhere",
                   "--num_folds", "3", "--device", "cpu")[1]
    assert free == dataclasses.replace(settings, threads=7, save_dir="elsewhere", device="cpu")
    for wrong, both in (("--num_epochs 60", "--num_epochs 60: .* began with 50"),
                        ("--seed 1", "--seed 1: .* with 42"),
                        ("--categories b a", "--categories b a: .* with a b"),
                        ("--control", "control True: .* False"),
                        ("--base_lr 1", "--base_lr 1.0: .* with 0.001"),
                        ("--folds 1", "--folds 1: .* with none")):
        with pytest.raises(InputError, match=both):
            resumed("--resume", str(where), *wrong.split())
    with pytest.raises(InputError, match="--log_dir elsewhere: the run .* continues where it is"):
        resumed("--resume", str(where), "--log_dir", "elsewhere")
    with monkeypatch.context() as m:
        m.chdir(where)
        assert resumed("--resume", ".")[1].log_dir == os.path.realpath(tmp_path)
    with pytest.raises(InputError, match="nowhere: not a run"):
        resumed("--resume", "nowhere")
    assert not resume.is_finished(str(where))
    with pytest.raises(InputError, match="has no checkpoint yet"):
        resume.is_finished(log_dir)
    (where / "report.json").write_text("{}")
    (where / "start.npz").write_text("")
    assert not resume.is_finished(str(where))  # stopped while the report was written
    resume.finish(str(where))
    assert resume.is_finished(str(where))
    assert sorted(os.listdir(where)) == ["duplicates.csv", "folds.csv", "left_out.csv",
                                         "report.json", "settings.json"]
    assert resumed("--resume", "--log_dir", log_dir)[0] == str(where)  # it will say so
    assert capsys.readouterr().out == ""
    early = tmp_path / "20260102-000000"
    early.mkdir()
    record(early)
    os.utime(early / "settings.json", (2e9, 2e9))
    assert resumed("--resume", "--log_dir", log_dir)[0] == str(where)
    assert capsys.readouterr().out == f"note: {early} was stopped before its first checkpoint\n"
    (early / "report.json").write_text("{}")
    (where / "checkpoint-000002-000000000").mkdir()
    (where / "checkpoint-000002-000000000" / "complete").touch()
    assert resumed("--resume", "--log_dir", log_dir)[0] == str(where)
    assert capsys.readouterr().out == f"note: {early} is newer, but finished\n"


def test_a_batch_size_that_was_lowered_may_be_typed_again(settings):
    images, fold_of = tiny_set(settings)
    settings.batch_size, folder = 500, None
    os.mkdir(settings.log_dir)
    os.mkdir(settings.save_dir)
    for resuming in (False, True):
        run = TinyRun(settings, folder, images, resuming=resuming)
        if resuming:
            run.settings = resume.resumed_settings(folder, dict(batch_size=500))
        run.teacher_weights = run.student_weights = RANDOM
        run.begin(images, fold_of, np.arange(27))
        assert run.settings.batch_size == 18
        assert run.notes == ["--batch_size 500 is lowered to 18, since the smallest fold has 9 "
                             "images"]
        if not resuming:
            run.save_heads(tiny_heads(run.settings, images, fold_of), np.eye(27, 3))
            folder = run.folder
        run.__exit__(None, None, None)


def test_a_run_that_the_disk_cannot_hold_is_refused_before_it_trains(settings, tmp_path,
                                                                     monkeypatch):
    students = build(settings)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    with pytest.raises(InputError, match=r"checkpoints of this run take 0\.\d+ GB and .* has "
                                         "0.00 GB free.*--log_dir"):
        check_space(str(tmp_path), students)
