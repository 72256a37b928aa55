"""Weights files: a round trip, strict loading, and no code from a stranger's pickle."""
import json
import os
import pickle

import numpy as np
import paddle
import pytest

import main
from models.student_model import Student
from real_runs import places
from utils.errors import InputError
from utils.predict import load_students
from utils.weights import (
    arrays_of,
    checksum,
    imagenet_weights,
    load_into,
    move_earlier_weights,
    read_about,
    read_arrays,
    read_student,
    save_weights,
    update_about,
)

ABOUT = {"categories": ["纸", "b"], "image_size": 32, "freeze_depth": 14, "fold": 0, "run": "first"}


def test_weights_and_json_round_trip(tmp_path):
    path = str(tmp_path / "best_model_fold0.pdparams")
    student, other = Student(2, scale=0.25), Student(2, scale=0.25)
    save_weights(path, arrays_of(student), ABOUT)
    load_into(other, read_arrays(path), path)
    for (name, a), b in zip(student.state_dict().items(), other.state_dict().values()):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=name)
    assert read_about(path) == {**ABOUT, "checksum": checksum(arrays_of(student), ABOUT)}
    assert sorted(os.listdir(tmp_path)) == ["best_model_fold0.json", "best_model_fold0.pdparams"]
    assert set(paddle.load(path)) == set(student.state_dict())  # Paddle reads ours


def test_reads_what_paddle_saves(tmp_path):
    path = str(tmp_path / "paddle.pdparams")
    net = paddle.vision.models.mobilenet_v2(scale=0.25)
    for protocol in (2, 4):
        paddle.save(net.state_dict(), path, protocol=protocol)
        student = Student(3, scale=0.25)
        load_into(student.features, read_arrays(path), path, "features.")
        loaded, saved = (network.features[3].state_dict()["conv.0.0.weight"].numpy()
                         for network in (student, net))
        np.testing.assert_array_equal(loaded, saved)


class Crafted:
    def __reduce__(self):
        return os.mkdir, (Crafted.target,)


def test_half_precision_weights_load_too(tmp_path):
    path = str(tmp_path / "w.pdparams")
    net, student = (paddle.vision.models.mobilenet_v2(scale=0.25) for _ in range(2))
    paddle.save({k: v.astype("float16") for k, v in net.state_dict().items()}, path)
    load_into(student, read_arrays(path), path)
    np.testing.assert_allclose(student.classifier[1].weight.numpy(),
                               net.classifier[1].weight.numpy(), rtol=1e-3, atol=1e-6)


def test_a_crafted_pickle_runs_nothing(tmp_path):
    Crafted.target = str(tmp_path / "owned")
    path = str(tmp_path / "evil.pdparams")
    (tmp_path / "evil.json").write_text(json.dumps(ABOUT))
    for content in (Crafted(), {"w": Crafted()}, {"w": np.array([Crafted()], object)}):
        with open(path, "wb") as f:
            pickle.dump(content, f)
        for read in (lambda: imagenet_weights("teacher_weights", path),
                     lambda: imagenet_weights("student_weights", path),
                     lambda: load_students([path])):
            with pytest.raises(InputError, match="evil.pdparams.*mkdir"):
                read()
    assert not os.path.exists(Crafted.target)


def test_files_that_do_not_fit_say_why(tmp_path):
    path = str(tmp_path / "w.pdparams")
    student = Student(2, scale=0.25)
    save_weights(path, arrays_of(student), ABOUT)
    with pytest.raises(InputError, match=r"w.pdparams does not fit Student: misshapen "
                                         r"classifier.weight \[1024, 2\]"):
        load_into(Student(3, scale=0.25), read_arrays(path), path)
    with pytest.raises(InputError, match="does not fit ResNet: missing conv1.weight, .* more"):
        load_into(paddle.vision.models.resnet18(), read_arrays(path), path)
    with open(path, "rb") as f:
        whole = f.read()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        with open(path, "wb") as f:
            f.write(whole[:length])
        with pytest.raises(InputError, match="w.pdparams is not a usable weights file"):
            read_arrays(path)
    with pytest.raises(InputError, match="cannot read"):
        read_arrays(str(tmp_path / "nowhere"))
    with open(path, "wb") as f:
        pickle.dump({"a": np.array([1, np.nan])}, f)
    with pytest.raises(InputError, match="not a finite number in a"):
        read_arrays(path)
    with open(path, "wb") as f:
        pickle.dump({1: np.ones(1)}, f)
    with pytest.raises(InputError, match="does not fit Student: missing"):
        load_into(student, read_arrays(path), path)


def test_missing_or_foreign_json(tmp_path):
    path = str(tmp_path / "w.pdparams")
    with pytest.raises(InputError, match="w.pdparams does not exist"):
        read_about(path)
    open(path, "w").close()
    with pytest.raises(InputError, match="w.json does not exist"):
        read_about(path)
    for key, value in (("temperature", 0), ("temperature", "1"), ("temperature", float("nan")),
                       ("categories", []), ("categories", "ab"),
                       ("categories", ["a", "a"]), ("image_size", "32"), ("freeze_depth", 99)):
        (tmp_path / "w.json").write_text(json.dumps({**ABOUT, key: value}))
        with pytest.raises(InputError, match="does not describe"):
            read_about(path)


def test_a_temperature_is_added_to_what_is_known(tmp_path):
    path = str(tmp_path / "w.pdparams")
    save_weights(path, arrays_of(Student(2, scale=0.25)), ABOUT)
    before = read_about(path)
    update_about(path, temperature=1.5)
    assert read_about(path) == {**before, "temperature": 1.5} and len(os.listdir(tmp_path)) == 2
    assert read_student(path)[0]["temperature"] == 1.5


def test_weights_beside_another_json_are_refused(tmp_path, capsys):
    paths = [str(tmp_path / f"best_model_fold{k}.pdparams") for k in range(2)]
    for path in paths:
        save_weights(path, arrays_of(Student(2)), ABOUT)
        load_students([path])
        assert "fold" in (said := capsys.readouterr().err) and "its run is not finished" in said
    first = read_about(paths[0])
    without = {key: value for key, value in first.items() if key != "checksum"}
    for wrong in ({**first, "run": "another"}, read_about(paths[1]), without):
        (tmp_path / "best_model_fold0.json").write_text(json.dumps(wrong))
        with pytest.raises(InputError, match="fold0.pdparams and .*fold0.json do not belong"):
            load_students(paths[:1])


def test_earlier_runs_are_kept(tmp_path):
    student = Student(2, scale=0.25)
    for run, where in (("first", None), ("second", "first"), ("first", "second"),
                       ("last", "first-2")):
        assert move_earlier_weights(str(tmp_path)) == (where and str(tmp_path / where))
        save_weights(str(tmp_path / "best_model_fold0.pdparams"), arrays_of(student),
                     {**ABOUT, "run": run})
    first = json.loads((tmp_path / "first" / "best_model_fold0.json").read_text("utf-8"))
    assert first["run"] == "first"
    for k in range(2):
        save_weights(str(tmp_path / f"best_model_fold{k}.pdparams"), arrays_of(student),
                     {**ABOUT, "run": "cut"})
    (tmp_path / "cut").mkdir()
    for name in ("best_model_fold0.pdparams", "best_model_fold1.pdparams", "best_model_fold1.json"):
        (tmp_path / name).rename(tmp_path / "cut" / name)  # a call that was killed
    assert move_earlier_weights(str(tmp_path)) == str(tmp_path / "cut")
    assert len(os.listdir(tmp_path / "cut")) == 4
    (tmp_path / "best_model_fold0.json.tmp").write_text("of a killed run")
    (tmp_path / "best_model_fold0.json").write_text('{"run": ".."}')
    assert os.path.basename(move_earlier_weights(str(tmp_path))).startswith("before-")
    (tmp_path / "best_model_fold0.json").write_text('{"run": "../../elsewhere"}')
    assert move_earlier_weights(str(tmp_path)) == str(tmp_path / "elsewhere")


def test_a_resumed_run_keeps_its_own_weights_and_moves_others(tmp_path):
    def write(run, *folds):
        for k in folds:
            save_weights(str(tmp_path / f"best_model_fold{k}.pdparams"), {"w": np.ones(1)},
                         {**ABOUT, "run": run})
    assert move_earlier_weights(str(tmp_path), but="mine") is None
    write("mine", 0, 1)
    assert move_earlier_weights(str(tmp_path), but="mine") is None
    assert len(os.listdir(tmp_path)) == 4
    write("theirs", 1)
    assert move_earlier_weights(str(tmp_path), but="mine") == str(tmp_path / "theirs")
    assert sorted(os.listdir(tmp_path / "theirs")) == ["best_model_fold1.json",
                                                       "best_model_fold1.pdparams"]
    (tmp_path / "best_model_fold1.pdparams").write_text("whose?")
    (tmp_path / "best_model_fold0 - Copy.pdparams").write_text("the user's")
    whose = move_earlier_weights(str(tmp_path), but="mine")
    assert os.path.basename(whose).startswith("before-")
    assert os.listdir(whose) == ["best_model_fold1.pdparams"]
    assert sorted(os.listdir(tmp_path)) == sorted([
        "best_model_fold0 - Copy.pdparams", "best_model_fold0.json", "best_model_fold0.pdparams",
        "theirs", os.path.basename(whose)])


def test_weights_of_the_wrong_network_are_refused(whole, weights, tmp_path):
    wrong, *_ = weights
    with pytest.raises(InputError, match="does not fit ResNet: missing conv1.weight"):
        main.main([*whole[1][1:], *places(tmp_path, "run"), "--teacher_weights", wrong])
