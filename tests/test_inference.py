"""inference.py as a user starts it: answers, tables, heat maps, and one line for every wrong option."""
import glob
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT, SHORT, read_rows, run_program, write_picture
from scipy.special import softmax

import inference
import main
from models.student_model import Student
from utils.checkpoint import arrays_of, save_weights, update_about
from utils.pictures import read_picture
from utils.settings import InputError
from utils.tables import read_csv


def test_inference_repeats_the_out_of_fold_answers(sample, tmp_path):
    where, _ = sample
    output = str(tmp_path / "answers.csv")
    model = str(where / "saved" / "best_model_fold1.pdparams")
    done = run_program("inference.py", "--model_path", model, "--image_path", str(where / "sample"), "--recursive",
                       "--output", output, "--batch_size", "7")
    assert done.returncode == 0 and "240 pictures answered, 0 files left out" in done.stderr, done.stderr
    answers = {os.path.relpath(r["path"], where / "sample").replace(os.sep, "/"): r for r in read_rows(output)}
    expected = [r for r in read_rows(glob.glob(str(where / "logs" / "*" / "out_of_fold.csv"))[0]) if r["fold"] == "1"]
    assert len(answers) == 240 and len(expected) == 80 and len(done.stdout.splitlines()) == 240
    for r in expected:
        ours, theirs = ([float(row[f"p_{c}"]) for c in ("Harmful", "Kitchen", "Other", "Recyclable")]
                        for row in (answers[r["path"]], r))
        np.testing.assert_allclose(ours, theirs, atol=1e-4)  # frozen blocks and tail apart there, one network here
        if np.diff(np.sort(theirs))[-1] > 2e-4:  # no tie
            assert answers[r["path"]]["category"] == r["prediction"]
    again = run_program("inference.py", "--model_path", model, "--image_path", str(where / "sample"), "--output", output)
    assert again.returncode == 1 and "exists already" in again.stderr and "Traceback" not in again.stderr


def test_brackets_in_the_name_of_a_folder_are_no_pattern(tmp_path):
    for name in ("run[1]", "run1"):
        for k in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"fold{k}.pdparams").touch()
    here = str(tmp_path / "run[1]" / "fold0.pdparams")
    assert inference.expand([here, str(tmp_path / "run1" / "fold*"), str(tmp_path / "run[1]" / "fold*")]) == [
        here, *(str(tmp_path / name / f"fold{k}.pdparams") for name in ("run1", "run[1]") for k in range(2))]


def test_inference_with_several_files_averages_and_survives_bad_files(sample, tmp_path, capsys):
    where, _ = sample
    models = [str(where / "saved" / f"best_model_fold{k}.pdparams") for k in range(3)]
    (tmp_path / "in" / "sub").mkdir(parents=True)
    good = str(shutil.copy(where / "sample" / "Other" / "000.png", tmp_path / "in" / "好 1.PNG"))
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no picture")
    (tmp_path / "in" / "notes.txt").write_text("notes")
    inference.main(["--model_path", *models, "--image_path", str(tmp_path / "in"), "--output", str(tmp_path / "o.json")])
    assert "1 pictures answered, 3 files left out" in capsys.readouterr().err
    saved = json.loads((tmp_path / "o.json").read_text("utf-8"))
    assert [os.path.basename(r["path"]) for r in saved["pictures"]] == ["好 1.PNG"] and len(saved["left_out"]) == 3
    for i, model in enumerate(models):
        inference.main(["--model_path", model, "--image_path", good, "--output", str(tmp_path / f"{i}.json")])
    each = []
    for name in ("0", "1", "2", "o"):
        (answer,) = json.loads((tmp_path / f"{name}.json").read_text("utf-8"))["pictures"]
        each.append([v for k, v in answer.items() if k.startswith("p_")])
    # The mean of logits is the geometric mean of probabilities, which are saved with six decimals
    np.testing.assert_allclose(softmax(np.log(each[:3]).mean(0)), each[3], atol=1e-4)


def test_students_of_several_runs_name_all_of_them(sample, tmp_path):
    where, _ = sample
    for end in ("json", "pdparams"):
        shutil.copy(where / "saved" / f"best_model_fold0.{end}", tmp_path / f"other.{end}")
    mine = str(where / "saved" / "best_model_fold0.pdparams")
    about = inference.load_students([mine, mine])[0]
    assert about["settings"]["num_folds"] == about["num_folds"] == 3
    update_about(str(tmp_path / "other.pdparams"), run="another", settings={**about["settings"], "seed": 5})
    both = inference.load_students([mine, str(tmp_path / "other.pdparams")])[0]
    assert both["run"] == f"{about['run']}, another" and both["num_folds"] == 3
    assert both["settings"] == {k: v for k, v in about["settings"].items() if k != "seed"}


@pytest.mark.parametrize("change, message", [
    (["--image_path", "nowhere"], "there is no such picture"),
    (["--categories", "Kitchen", "Harmful", "Other", "Recyclable"], "Harmful Kitchen Other Recyclable, in this order"),
    (["--model_path", "nowhere.pdparams"], "nowhere.pdparams does not exist"),
    (["--output", "answers.txt"], "must end in .csv or .json"),
    (["--output", ""], "must end in .csv or .json"),  # of a variable that is not set
    (["--explain", ""], "the name of the folder is empty"),
    (["--batch_size", "0"], "--batch_size 0"),
    (["--min_confidence", "1.5"], "--min_confidence 1.5: must be at least 0 and at most 1"),
    (["--min_confidence", "nan"], "--min_confidence nan"),
    (["--image_path", "requirements.txt"], "nothing in requirements.txt could be predicted"),
    (["--use_gpu"], "no GPU"),
    (["--explain", "docs"], "--explain docs: exists already"),
])
def test_wrong_use_of_inference(sample, monkeypatch, change, message):
    if change == ["--use_gpu"] and paddle.device.is_compiled_with_cuda():
        pytest.skip("there may be a GPU")
    where, _ = sample
    args = {"--model_path": [str(where / "saved" / "best_model_fold0.pdparams")],
            "--image_path": [str(where / "sample" / "Other" / "000.png")]}
    args[change[0]] = change[1:]
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError) as error:
        inference.main([a for k, v in args.items() for a in (k, *v)])
    assert message in str(error.value)


def test_inference_divides_by_the_temperature_and_can_be_unsure(sample, tmp_path, capsys):
    where, _ = sample
    about = json.loads((where / "saved" / "best_model_fold0.json").read_text("utf-8"))
    paddle.seed(1)
    student = Student(4, freeze_depth=0)
    for layer in student.sublayers():
        if hasattr(layer, "_momentum"):
            layer._momentum = 0  # BatchNorm takes over one batch, so that the answers differ from picture to picture
    student.train()
    student(paddle.randn([64, 3, 32, 32]))
    answers = {}
    for name, temperature, limit in (("plain", 1, 0), ("twice", 2, 0), ("careful", 1, None)):
        save_weights(str(tmp_path / f"{name}.pdparams"), arrays_of(student), {**about, "freeze_depth": 0,
                                                                               "temperature": temperature})
        if limit is None:
            confidences = sorted(float(r["confidence"]) for r in answers["plain"])
            limit = (confidences[119] + confidences[120]) / 2
        capsys.readouterr()
        inference.main(["--model_path", str(tmp_path / f"{name}.pdparams"), "--image_path", str(where / "sample"), "--recursive",
                        "--output", str(tmp_path / f"{name}.csv"), "--min_confidence", str(limit)])
        answers[name] = read_rows(tmp_path / f"{name}.csv")
    plain, twice = (np.array([[float(v) for k, v in r.items() if k.startswith("p_")] for r in answers[name]])
                    for name in ("plain", "twice"))
    assert len(np.unique(plain.max(1))) > 100
    np.testing.assert_allclose(softmax(np.log(plain) / 2, axis=1), twice, atol=1e-4)  # they are saved with six decimals
    printed = capsys.readouterr()
    assert "240 pictures answered, 120 of them with 'unsure', 0 files left out" in printed.err
    assert sum("  unsure  " in line for line in printed.out.splitlines()) == 120
    for before, after in zip(answers["plain"], answers["careful"]):
        assert after == before | ({"category": "unsure"} if float(before["confidence"]) < limit else {})


def test_heat_maps_are_drawn_beside_the_pictures(sample, tmp_path):
    where, _ = sample
    write_picture(str(tmp_path / "in" / "好 1.PNG"), np.full((50, 30, 3), 99, np.uint8))
    write_picture(str(tmp_path / "in" / ("x" * 200 + ".png")), np.full((50, 30, 3), 200, np.uint8))
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no picture")
    inference.main(["--model_path", str(where / "saved" / "best_model_fold0.pdparams"), "--image_path",
                    str(tmp_path / "in"), "--explain", str(tmp_path / "heat")])
    first, second = sorted(os.listdir(tmp_path / "heat"))
    assert first.startswith("00001-") and first.endswith("xxx.jpg") and second.endswith("好_1.jpg")
    drawn = read_picture(str(tmp_path / "heat" / second))
    assert drawn.shape == (32, 64, 3) and np.abs(drawn[:, :30].astype(int) - 99).max() < 20
    with pytest.raises(InputError, match="export gives answers only"):
        inference.main(["--model_path", "model.onnx", "--image_path", "in", "--explain", "heat"])


def test_a_category_called_unsure(sample, tmp_path):
    where, _ = sample
    for end in ("json", "pdparams"):
        content = (where / "saved" / f"best_model_fold0.{end}").read_bytes()
        (tmp_path / f"w.{end}").write_bytes(content.replace(b'"Other"', b'"unsure"') if end == "json" else content)
    args = ["--model_path", str(tmp_path / "w.pdparams"), "--image_path", str(where / "sample" / "Other" / "000.png")]
    inference.main(args)
    with pytest.raises(InputError, match="is itself called 'unsure'"):
        inference.main([*args, "--min_confidence", "0.5"])


def test_categories_are_the_same_however_an_accent_is_stored():
    about = {"categories": ["Mu\u0308ll", "b"]}
    inference.check_categories(about, ["M\u00fcll", "b"])
    with pytest.raises(InputError, match="in this order"):
        inference.check_categories(about, ["b", "M\u00fcll"])


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_inference_that_is_stopped_saves_what_it_has_and_says_so(number, status, sample, tmp_path):
    where, _ = sample
    (tmp_path / "many").mkdir()
    for i in range(3000):
        os.link(where / "sample" / "Other" / "000.png", tmp_path / "many" / f"{i:04}.png")
    process = subprocess.Popen(
        [sys.executable, "inference.py", "--model_path", str(where / "saved" / "best_model_fold0.pdparams"), "--image_path",
         str(tmp_path / "many"), "--output", str(tmp_path / "answers.csv")], cwd=ROOT, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a shell's job in the background ignores it
    process.stdout.readline()  # the first answer is there
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    rows = read_csv(tmp_path / "answers.csv")
    assert process.returncode == status and 0 < len(rows) < 3000
    assert f"stopped: {tmp_path / 'answers.csv'} has the first {len(rows)} of 3000 pictures\n" in said
    assert [r["path"] for r in rows] == [str(tmp_path / "many" / f"{i:04}.png") for i in range(len(rows))]


def test_weights_of_the_wrong_network_are_refused(sample, tmp_path):
    where, _ = sample
    wrong = str(where / "saved" / "best_model_fold1.pdparams")
    with pytest.raises(InputError, match="does not fit ResNet: missing conv1.weight"):
        main.main(["--sample", *SHORT, "--data_dir", str(where / "sample"), "--cache_dir", str(where / "cache"), "--log_dir",
                   str(tmp_path / "logs"), "--save_dir", str(tmp_path / "saved"), "--teacher_weights", wrong])
