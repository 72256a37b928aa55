"""main.py as a user starts it: files, exit codes, and one line for every wrong option."""
import glob
import json
import os
import shutil

import paddle
import pytest

import main
from conftest import ROOT, SHORT, read_rows, run_program
from real_runs import disk
from utils.errors import InputError
from utils.files import here
from utils.run.resume import is_finished
from utils.run.run import Run
from utils.settings import new_settings


def test_sample_run_leaves_everything_behind(sample):
    where, printed = sample
    (run,) = os.listdir(where / "logs")
    folder = where / "logs" / run
    files = {"report.txt", "report.html", "report.json", "results.json", "out_of_fold.csv",
             "confusion_matrix.png", "curves.png", "confidence.png", "mistakes.png", "mistakes.csv",
             "scalars.csv", "seconds.csv", "first_images.png", "augmented_images.png",
             "settings.json", "folds.csv", "left_out.csv", "duplicates.csv"}
    assert files <= set(os.listdir(folder))
    assert all(glob.glob(str(folder / d / "vdlrecords*")) for d in (
        "fold0", "fold1", "fold2", "images", "result", "student", "student_cross_fitted",
        "teacher"))
    (graph,) = glob.glob(str(folder / "student" / "vdlgraph*"))
    with open(graph, encoding="utf-8") as f:
        assert f.read().count('"InvertedResidual"') >= 17  # MobileNetV2's, to unfold
    rows = read_rows(folder / "out_of_fold.csv")
    assert len(rows) == len({r["path"] for r in rows}) == 240
    assert len({r["group"] for r in read_rows(folder / "folds.csv")}) == 240  # no duplicates
    assert (folder / "duplicates.csv").read_text("utf-8-sig").split() == [
        "group,path,label,conflict"]
    assert "duplicates: 0 images in 0 groups stay together" in printed
    assert "different labels" not in printed
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert report["category_names"] == ["Harmful", "Kitchen", "Other", "Recyclable"]
    known = json.loads((folder / "settings.json").read_text("utf-8"))
    # recorded, so that a folder that comes later does not keep a run from being resumed
    assert known["categories"] == report["category_names"]
    assert report["out_of_fold"]["teacher"]["accuracy"] > 0.4  # chance is 0.25
    assert len(read_rows(folder / "scalars.csv")) == 12  # three students, the final model
    took = read_rows(folder / "seconds.csv")  # before training, and in each epoch
    assert [row["epoch"] for row in took] == ["0", "1", "2", "3"]
    assert all(float(row["seconds"]) > 0 for row in took)
    for words in ("teacher's validation accuracy: fold 0", "epoch 3/3", "visualdl --logdir",
                  "Confusion matrix", "random initialization", "first five training images"):
        assert words in printed
    for k in range(3):
        about = json.loads((where / "saved" / f"best_model_fold{k}.json").read_text("utf-8"))
        assert about["categories"] == report["category_names"]
        assert about["image_size"] == 32 and about["fold"] == k
        assert about["scores"]["val_accuracy"] == report["folds"][k]["accuracy"]
        assert about["temperature"] == report["folds"][k]["temperature"] != 1
    networks = report["networks"]
    assert all(networks[name]["ms_alone"] > 0 for name in ("student", "teacher"))
    assert networks["teacher"]["multiply_adds"] > networks["student"]["multiply_adds"] > 1e6


def test_the_report_can_be_made_again_from_the_files_of_the_run(sample, tmp_path):
    (run,) = glob.glob(str(sample[0] / "logs" / "*"))
    again = shutil.copytree(run, tmp_path / "another name")
    made = {"report.txt", "report.json", "report.html", "mistakes.csv", "confidence.png"}
    for name in made:
        os.remove(again / name)
    done = run_program("-m", "utils.report", str(again))
    assert done.returncode == 0, done.stderr
    for name in made:
        assert (again / name).read_bytes() == open(os.path.join(run, name), "rb").read(), name


@pytest.fixture
def closed(tmp_path):
    """A folder that this user cannot write into."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # who may write wherever a disk allows it
        with disk(tmp_path / "closed", "ro") as folder:
            yield folder
        return
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


def refused_places(sample, tmp_path, monkeypatch, place):
    """What main.py says of a place for logs, weights, cache that it cannot use."""
    monkeypatch.chdir(tmp_path)
    refusal = f"cannot write .*{place.name}.*; choose another "
    for option in ("--log_dir", "--save_dir", "--cache_dir"):
        places = {"--log_dir": "logs", "--save_dir": "saved", "--cache_dir": "cache",
                  option: str(place)}
        with pytest.raises(InputError, match=refusal) as e:
            main.main(["--sample", *SHORT, "--data_dir", str(sample[0] / "sample"),
                       *(a for pair in places.items() for a in pair)])
        assert option in str(e.value)
        yield str(e.value)
        assert not os.path.exists("logs") or not os.listdir("logs")  # nothing has begun


def test_what_is_in_the_way_is_named(sample, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    assert len(list(refused_places(sample, tmp_path, monkeypatch, tmp_path / "file"))) == 3
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="permissions of Unix")
def test_a_place_that_cannot_be_written_to_is_named_before_training(sample, tmp_path, monkeypatch,
                                                                    closed):
    for message in refused_places(sample, tmp_path, monkeypatch, closed):
        assert "Read-only file system" in message or "Permission denied" in message


@pytest.mark.parametrize("args, message", [
    (["--data_dir", "nowhere"], "main.py --sample"),
    ([], "data101031"),
    (["--sample", "--cache_gb", "inf"], "--cache_gb inf"),
    (["--data_dir", ROOT, "--teacher_weights", "nowhere.pdparams"],
     "cannot read the weights file nowhere.pdparams"),
    (["--sample", "--folds", "5"], "--folds 5: with --num_folds 5 the folds are 0 to 4"),
    (["--num_epochs", "1" + "0" * 400], "must be at least 1 and at most 100000"),
    (["--alpha", "1.5"], "--alpha 1.5: must be at least 0 and at most 1"),
    (["--num_epochs", "3", "--warmup_epochs", "5"], "--warmup_epochs 5"),
    (["--data_dir", "."],
     "--log_dir logs: is or lies in --data_dir ., where every sub-folder is a category"),
    (["--data_dir", "d", "--save_dir", "d"], "--save_dir d: is or lies in --data_dir d"),
    (["--data_dir", "d", "--cache_dir", "d/.cache"], "no folder d"),
    (["--data_dir", "d", "--categories", "a", "b", "--log_dir", "d/b/logs"],
     "--log_dir d/b/logs: is or lies in a folder of --categories"),
    (["--data_dir", "d", "--categories", "a", "b", "--log_dir", "d/logs"], "no folder d"),
    ([ROOT], f"unrecognized arguments: {ROOT} (did you mean --data_dir?)"),
    (["--control", "--alpha", "1", "--feature_weight", "0"], "the student has no teacher either"),
    (["--control", "--alpha", "1", "--freeze_depth", "19"], "the student has no teacher either"),
    (["--device", "gpu"], "no GPU"),
    (["--epochs", "3"], "unrecognized arguments: --epochs (did you mean --num_epochs or "
     "--warmup_epochs?); --help lists all options"),
    (["--batch-size=8", "-lr", "1"], "--batch-size=8 (did you mean --batch_size?), -lr (did you "
     "mean --base_lr?)"),
    (["—data_dir", "d"], "(did you mean --data_dir?)"),
    (["--early-stopping", "5"], "(did you mean --patience?)"),  # by the help
    (["--workers", "5"], "unrecognized arguments: --workers; --help lists all options"),
    (["--batch_size", "many"], "invalid int value: 'many'"),
    (["--class_weights", "some"], "invalid choice"),
])
def test_wrong_use_of_main(tmp_path, monkeypatch, capsys, args, message):
    if "gpu" in args and paddle.device.is_compiled_with_cuda():
        pytest.skip("there may be a GPU")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, SystemExit)) as error:  # the scripts print both as one line
        main.main(args)
    assert message in f"{error.value}{capsys.readouterr().err}"
    assert not os.listdir(tmp_path)  # found before anything was written


def test_stored_augmentations_are_no_more_than_epochs_and_none_without_frozen_blocks():
    for given, expected in (({}, 8), ({"num_epochs": 3}, 3), ({"freeze_depth": 0}, 0),
                            ({"num_epochs": 3, "freeze_depth": 0, "stored_augmentations": 4}, 4)):
        assert new_settings(given).stored_augmentations == expected
    assert new_settings({}, sample=True).stored_augmentations == 0


def test_a_default_warm_up_gives_way_to_few_epochs():
    assert [new_settings({"num_epochs": n}).warmup_epochs for n in (3, 20, 50, 500)] == [0, 2, 5, 5]
    assert new_settings({"num_epochs": 3, "warmup_epochs": 2}).warmup_epochs == 2
    assert new_settings({"num_epochs": 3}, sample=True).warmup_epochs == 0


def test_folders_without_a_usable_image(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("cans", "glass"):
        (tmp_path / "set" / name).mkdir(parents=True)
    (tmp_path / "set" / "cans" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="no usable image in set.*cans/a.jpg': truncated, damaged"):
        main.main(["--data_dir", "set", "--teacher_weights", "random",
                   "--student_weights", "random"])


def test_a_batch_is_no_larger_than_its_folds_and_a_small_category_can_be_left_out(
        folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "load_teacher", lambda *_: 1 / 0)  # what is checked comes before
    os.makedirs("set/my bin")
    shutil.copy("set/cans/0.png", "set/my bin")
    args = [*SHORT, "--num_epochs", "2", "--batch_size", "500", "--data_dir", "set",
            "--teacher_weights", "random", "--student_weights", "random"]
    with pytest.raises(InputError, match="in my bin .1.: .* --exclude 'my bin'"):
        main.main(args)
    with pytest.raises(ZeroDivisionError):
        main.main([*args, "--exclude", "my bin"])
    printed = capsys.readouterr().out
    note = "note: --batch_size 500 is lowered to 18, since the smallest fold has 9 images\n"
    assert printed.count(note) == 1
    assert "a step takes 9 images from each fold, a student trains on 18 of them" in printed
    assert "note: categories left out by --exclude: my bin\n" in printed
    (run,) = os.listdir("logs")
    with open(f"logs/{run}/settings.json", encoding="utf-8") as f:
        known = json.load(f)  # as it was typed: the same command with --resume is accepted
    assert known["batch_size"] == 500 and known["categories"] == ["cans", "glass", "纸"]
    assert os.path.samefile(here("inference.py"), os.path.join(ROOT, "inference.py"))


def test_augmentations_are_stored_where_there_is_room_and_a_resumed_run_keeps_to_that(
        folder, compiled_once, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "train", lambda *_: 1 / 0)
    small, args = ["--store_gb", "1e-6"], [*SHORT, "--data_dir", "set", "--teacher_weights",
                                           "random", "--student_weights", "random"]

    def stored(*args):
        """What a run records, how many files it leaves, and what it says about them."""
        with pytest.raises(ZeroDivisionError):
            main.main([*args])
        newest = max(glob.glob("logs/*/settings.json"))
        with open(newest, encoding="utf-8") as f:
            known = json.load(f)["stored_augmentations"]
        return known, len(glob.glob("data/cache/stored/*.npy")), capsys.readouterr().out

    with pytest.raises(InputError, match="--stored_augmentations 2: they take .* more than --st"):
        main.main([*args, *small, "--stored_augmentations", "2"])
    known, files, printed = stored(*args, *small)
    assert (known, files) == (0, 0)
    assert "note: --stored_augmentations 3: they take " in printed
    assert "this run makes new augmentations in every epoch" in printed
    assert stored("--resume", "--store_gb", "1")[:2] == (0, 0)
    known, files, printed = stored(*args)
    assert (known, files) == (3, 2) and "new augmentations" not in printed  # of three epochs


def test_main_keeps_an_earlier_run_and_says_so(sample, compiled_once, tmp_path, capsys):
    where = shutil.copytree(sample[0], tmp_path / "run")  # other tests read the run as it was
    (earlier,) = os.listdir(where / "logs")
    (where / "groups.csv").write_text("path,group\nOther/000.png,a\nKitchen/000.png,a\n")
    main.main(["--sample", *SHORT, "--num_epochs", "2", "--folds", "1",
               "--data_dir", str(where / "sample"), "--cache_dir", str(where / "cache"),
               "--log_dir", str(where / "logs"), "--save_dir", str(where / "saved"),
               "--groups", str(where / "groups.csv")])
    printed = capsys.readouterr().out
    assert "duplicates and --groups: 2 images in 1 groups stay together" in printed
    assert "different labels:\n  Kitchen/000.png, Other/000.png\n" in printed
    (run,) = set(os.listdir(where / "logs")) - {earlier}
    folds = [(r["group"], r["fold"]) for r in read_rows(where / "logs" / run / "folds.csv")
             if r["path"] in ("Kitchen/000.png", "Other/000.png")]
    assert len(folds) == 2 and len(set(folds)) == 1
    duplicates = read_rows(where / "logs" / run / "duplicates.csv")
    assert [r["conflict"] for r in duplicates] == ["yes", "yes"]
    assert f"weights of an earlier run moved to {where / 'saved' / earlier}" in printed
    assert len(os.listdir(where / "saved" / earlier)) == 8 and len(os.listdir(where / "logs")) == 2
    saved = sorted(f for f in os.listdir(where / "saved") if f != earlier and f[0] != ".")
    assert saved == ["best_model_fold1.json", "best_model_fold1.pdparams"]
    assert "80 of 240 images" in printed


@pytest.mark.parametrize("late", [False, True])
def test_a_student_that_fails_is_named_and_the_report_covers_the_others(
        folder, compiled_once, tmp_path, monkeypatch, late):
    build, after_epoch = main.build_student, Run.after_epoch

    def poisoned(*args):
        student = build(*args)
        if student.name == "fold1" and not late:
            student.class_weights *= float("nan")
        return student

    def poisoning(self, epoch, active):
        after_epoch(self, epoch, active)
        if late:
            (control,) = (s for s in self.students if s.name == "control1")
            control.class_weights *= float("nan")
    monkeypatch.setattr(main, "build_student", poisoned)
    monkeypatch.setattr(Run, "after_epoch", poisoning)
    name, epoch = ("control1", 2) if late else ("fold1", 1)
    expected = rf"^{name} stopped at epoch {epoch}, step 1 of \d+: .*, \.\.\.\); lower --base_lr"
    with pytest.raises(InputError, match=expected):
        main.main([*SHORT, "--num_epochs", "2", "--control", "--data_dir", folder,
                   "--teacher_weights", "random", "--student_weights", "random",
                   "--cache_dir", str(tmp_path / "cache"), "--log_dir", str(tmp_path / "logs"),
                   "--save_dir", str(tmp_path / "saved")])
    (run,) = (tmp_path / "logs").iterdir()
    report = json.loads((run / "report.json").read_text("utf-8"))
    text = (run / "report.txt").read_text("utf-8")
    assert report["failed"][0].startswith(f"{name} stopped at epoch {epoch}")
    assert f"note: {name} stopped at epoch" in text
    assert [f["fold"] for f in report["folds"]] == ([0, 1, 2] if late else [0, 2])
    assert report["out_of_fold"]["images"] == (27 if late else 18) and is_finished(str(run))
    # a control that trained for one epoch is none
    assert ("control_cross_fitted" in report["out_of_fold"]) != late
    assert ("are not compared" in text) == late
    assert (tmp_path / "saved" / "best_model_fold1.pdparams").exists() == late
