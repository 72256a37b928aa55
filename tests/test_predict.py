"""What inference, export and service share: which files a path names, and which students fit."""
import os
import shutil

import pytest

from utils.errors import InputError
from utils.predict import check_categories, expand, find_images, find_weights, load_students
from utils.settings import parse
from utils.weights import read_about, read_arrays, save_weights


def test_brackets_in_the_name_of_a_folder_are_no_pattern(tmp_path):
    for name in ("run[1]", "run1"):
        for k in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"fold{k}.pdparams").touch()
    here = str(tmp_path / "run[1]" / "fold0.pdparams")
    patterns = [here, str(tmp_path / "run1" / "fold*"), str(tmp_path / "run[1]" / "fold*")]
    assert expand(patterns) == [here, *(str(tmp_path / name / f"fold{k}.pdparams")
                                        for name in ("run1", "run[1]") for k in range(2))]


def test_paths_are_patterns_folders_and_below_the_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for name in ("a/1.jpg", "a/2.png", "a/b/3.jpg", "c/4.jpg", "c/notes.txt",
                 "saved/best_model_fold0.pdparams", "saved/best_model_fold1.pdparams",
                 "saved/best_model_fold0.json", "exported/model.onnx", "exported/model.pdiparams",
                 "exported/about.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def named(paths):
        return [os.path.relpath(path, tmp_path).replace(os.sep, "/") for path in paths]
    paths, left_out = find_images(["~/a/*.jpg", "~/c", "~/a/1.jpg", "~/a"])
    assert named(paths) == ["a/1.jpg", "c/4.jpg", "a/2.png"]  # each once
    assert named(path for path, _ in left_out) == ["c/notes.txt", "a/b"]
    assert named(find_images("~/a/**/*.jpg")[0]) == ["a/1.jpg", "a/b/3.jpg"]
    (tmp_path / "only").mkdir()
    os.rename(tmp_path / "a", tmp_path / "only" / "a")
    with pytest.raises(InputError, match="add --recursive to search the sub-folders, .*a"):
        find_images("~/only")
    assert len(find_images("~/only", recursive=True)[0]) == 3
    assert named(find_weights(["~/saved"])) == ["saved/best_model_fold0.pdparams",
                                                "saved/best_model_fold1.pdparams"]
    assert named(find_weights(["~/saved/best_model_fold*"])) == [  # without the JSON
        "saved/best_model_fold0.pdparams", "saved/best_model_fold1.pdparams"]
    assert named(find_weights(["~/exported"])) == ["exported/model.pdiparams"]
    (tmp_path / "saved" / "final_model.pdparams").touch()
    assert named(find_weights(["~/saved"])) == ["saved/final_model.pdparams"]
    assert capsys.readouterr().err.count("is a folder, of which are taken: ") == 3
    with pytest.raises(InputError, match="is a folder without .*; its sub-folders: a"):
        find_weights(["~/only"])
    assert parse(["--data_dir", "~/only", "--resume", "~/x"])[0::2] == (
        {"data_dir": str(tmp_path / "only")}, str(tmp_path / "x"))


def test_students_of_several_runs_name_all_of_them(sample, tmp_path):
    where, _ = sample
    for end in ("json", "pdparams"):
        shutil.copy(where / "saved" / f"best_model_fold0.{end}", tmp_path / f"other.{end}")
    mine = str(where / "saved" / "best_model_fold0.pdparams")
    other = str(tmp_path / "other.pdparams")
    about = load_students([mine, mine])[0]
    assert about["settings"]["num_folds"] == about["num_folds"] == 3
    save_weights(other, read_arrays(other), {
        **read_about(other), "run": "another", "settings": {**about["settings"], "seed": 5}})
    both = load_students([mine, other])[0]
    assert both["run"] == f"{about['run']}, another" and both["num_folds"] == 3
    assert both["settings"] == {k: v for k, v in about["settings"].items() if k != "seed"}


def test_categories_are_the_same_however_an_accent_is_stored():
    about = {"categories": ["Mu\u0308ll", "b"]}
    check_categories(about, ["M\u00fcll", "b"])
    with pytest.raises(InputError, match="in this order"):
        check_categories(about, ["b", "M\u00fcll"])
