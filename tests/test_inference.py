"""inference.py as a user starts it: predictions, tables, heat maps, one line for a wrong option."""
import glob
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import paddle
import pytest
from scipy.special import softmax

import inference
from conftest import ROOT, read_rows, run_program, write_image
from models.student_model import Student
from utils.errors import InputError
from utils.images.read import read_image
from utils.tables import read_csv
from utils.weights import arrays_of, save_weights


def probabilities_of(row):
    return [float(v) for k, v in row.items() if k.startswith("p_")]


def test_inference_repeats_the_out_of_fold_predictions(sample, tmp_path):
    where, _ = sample
    output = str(tmp_path / "predictions.csv")
    model = str(where / "saved" / "best_model_fold1.pdparams")
    done = run_program("inference.py", "--model_path", model, "--image_path", str(where / "sample"),
                       "--recursive", "--output", output, "--batch_size", "7")
    assert done.returncode == 0, done.stderr
    assert "240 images classified, 0 files left out" in done.stderr, done.stderr
    found = {os.path.relpath(r["path"], where / "sample").replace(os.sep, "/"): r
             for r in read_rows(output)}
    (table,) = glob.glob(str(where / "logs" / "*" / "out_of_fold.csv"))
    expected = [r for r in read_rows(table) if r["fold"] == "1"]
    assert len(found) == 240 and len(expected) == 80 and len(done.stdout.splitlines()) == 240
    for r in expected:
        assert found[r["path"]]["category"] == r["prediction"]
        for c in ("Harmful", "Kitchen", "Other", "Recyclable"):
            np.testing.assert_allclose(float(found[r["path"]][f"p_{c}"]), float(r[f"p_{c}"]),
                                       atol=1e-4)
    again = run_program("inference.py", "--model_path", model, "--image_path",
                        str(where / "sample"), "--output", output)
    assert again.returncode == 1 and "exists already" in again.stderr


def test_several_files_are_averaged_and_bad_images_left_out(sample, tmp_path, capsys):
    where, _ = sample
    models = [str(where / "saved" / f"best_model_fold{k}.pdparams") for k in range(3)]
    good = str(where / "sample" / "Other" / "000.png")
    write_image(str(tmp_path / "in" / "好 1.PNG"), np.full((50, 30, 3), 99, np.uint8))
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no image")
    for i in range(600):  # annotations
        (tmp_path / "in" / f"{i}.xml").write_text("notes")
    (tmp_path / "in" / "sub").mkdir()

    def predictions(paths, output):
        inference.main(["--model_path", *paths, "--image_path", str(tmp_path / "in"), good,
                        "--output", str(tmp_path / output)])
        saved = json.loads((tmp_path / output).read_text("utf-8"))
        assert [os.path.basename(r["path"]) for r in saved["images"]] == ["好 1.PNG", "000.png"]
        assert len(saved["left_out"]) == 602
        return [probabilities_of(r) for r in saved["images"]]
    together = predictions(models, "all.json")
    said = capsys.readouterr().err
    assert "2 images classified, 602 files left out" in said
    assert "left out 580 more: not an image file" in said
    assert said.count("\n") < 40 and "bad.jpg': truncated" in said
    with pytest.raises(InputError, match="no image there could be classified"):
        inference.main(["--model_path", models[0], "--image_path", str(tmp_path / "in" / "bad.jpg"),
                        "--output", str(tmp_path / "none.json")])
    assert len(json.loads((tmp_path / "none.json").read_text("utf-8"))["left_out"]) == 1
    each = [predictions([model], f"{i}.json") for i, model in enumerate(models)]
    # the mean of logits is the geometric mean of probabilities
    np.testing.assert_allclose(softmax(np.log(each).mean(0), axis=1), together, atol=1e-4)


def test_what_fails_before_the_first_prediction_leaves_no_output(sample, tmp_path, monkeypatch):
    def fail(paths, model, *_, **__):
        raise MemoryError
        yield
    monkeypatch.setattr(inference, "predict_files", fail)
    with pytest.raises(MemoryError):
        inference.main(["--model_path", str(sample[0] / "saved"), "--image_path",
                        str(sample[0] / "sample" / "Other"), "--output", str(tmp_path / "a.json")])
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["a.csv", "a.json"])
def test_a_full_disk_leaves_no_half_of_the_output(tmp_path, name):
    resource = pytest.importorskip("resource")
    output, limit = str(tmp_path / name), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # bytes of a file
    try:
        with pytest.raises(InputError, match=f"--output .*{name}: File too large"):
            inference.save(output, [["photo.jpg", "Other", 0.9, 0.1, 0.9]] * 100, [], ["a", "b"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert os.listdir(tmp_path) == []


def test_the_commands_of_the_original_readme(sample, tmp_path, monkeypatch, capsys):
    """Letter for letter but for the image's path; `python main.py` has tests of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inference, "try_gpu", lambda: "no GPU here")
    os.symlink(sample[0] / "saved", "models_saved")
    os.symlink(sample[0] / "logs", "logs")
    command = ("python inference.py --model_path models_saved/best_model_fold0.pdparams "
               f"--image_path {shlex.quote(str(sample[0] / 'sample' / 'Other' / '000.png'))} "
               "--categories Harmful Kitchen Other Recyclable --use_gpu --show")
    inference.main(shlex.split(command)[2:])
    printed = capsys.readouterr()
    assert printed.err.count("note: --use_gpu: no GPU here; continues on the CPU\n") == 1
    assert "000.png  " in printed.out and "1 images classified" in printed.err
    assert glob.glob("predictions-*.png")
    inference.main(["--image_path", str(sample[0] / "sample" / "Other" / "000.png")])
    assert "1 images classified" in capsys.readouterr().err  # models_saved/final_model.pdparams
    visualdl = pytest.importorskip("visualdl")
    assert shutil.which("visualdl", path=os.path.dirname(sys.executable))  # --logdir=./logs
    (record,) = glob.glob("./logs/*/fold0/vdlrecords*")
    values = visualdl.LogReader(file_path=record).get_data("scalar", "val/accuracy")
    assert [value.id for value in values] == [1, 2, 3]


@pytest.mark.parametrize("change, message", [
    (["--image_path", "nowhere"], "there is no such image"),
    (["--categories", "Kitchen", "Harmful", "Other", "Recyclable"],
     "Harmful Kitchen Other Recyclable, in this order"),
    (["--model_path", "nowhere.pdparams"], "nowhere.pdparams does not exist"),
    (["--output", "answers.txt"], "must end in .csv or .json"),
    (["--output", ""], "must end in .csv or .json"),  # of a variable that is not set
    (["--explain", ""], "--explain '': the name is empty"),
    (["--batch_size", "0"], "--batch_size 0"),
    (["--min_confidence", "1.5"], "--min_confidence 1.5: must be at least 0 and at most 1"),
    (["--min_confidence", "nan"], "--min_confidence nan"),
    (["--image_path", "requirements.txt"],
     "--image_path requirements.txt: no image there could be classified"),
    (["--image_path", "docs", "nowhere/*.jpg"], "--image_path nowhere/*.jpg: there is no such"),
    (["--image_path", "utils"], "add --recursive to search the sub-folders, utils/"),
    (["--model_path", "benchmarks"], "--model_path benchmarks: is a folder without final_model"),
    (["--explain", "docs"], "--explain docs: exists already"),
])
def test_wrong_use_of_inference(sample, monkeypatch, change, message):
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
            # BatchNorm takes the statistics of one batch, so that predictions differ
            layer._momentum = 0
    student.train()
    student(paddle.randn([64, 3, 32, 32]))
    found = {}
    for name, temperature, limit in (("plain", 1, 0), ("twice", 2, 0), ("careful", 1, None)):
        model, output = (str(tmp_path / f"{name}.{end}") for end in ("pdparams", "csv"))
        save_weights(model, arrays_of(student),
                     {**about, "freeze_depth": 0, "temperature": temperature})
        if limit is None:
            confidences = sorted(float(r["confidence"]) for r in found["plain"])
            limit = (confidences[119] + confidences[120]) / 2
        inference.main(["--model_path", model, "--image_path", str(where / "sample"),
                        "--recursive", "--output", output, "--min_confidence", str(limit)])
        printed = capsys.readouterr()
        found[name] = read_rows(output)
    plain, twice = (np.array([probabilities_of(r) for r in found[name]])
                    for name in ("plain", "twice"))
    assert len(np.unique(plain.max(1))) > 100
    np.testing.assert_allclose(softmax(np.log(plain) / 2, axis=1), twice, atol=1e-4)
    assert "240 images classified, 120 of them 'unsure', 0 files left out" in printed.err
    assert sum("  unsure  " in line for line in printed.out.splitlines()) == 120
    for before, after in zip(found["plain"], found["careful"]):
        unsure = {"category": "unsure"} if float(before["confidence"]) < limit else {}
        assert after == before | unsure


def test_heat_maps_are_drawn_beside_the_images(sample, tmp_path):
    where, _ = sample
    write_image(str(tmp_path / "in" / "好 1.PNG"), np.full((50, 30, 3), 99, np.uint8))
    write_image(str(tmp_path / "in" / ("x" * 200 + ".png")), np.full((50, 30, 3), 200, np.uint8))
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no image")
    inference.main(["--model_path", str(where / "saved" / "best_model_fold0.pdparams"),
                    "--image_path", str(tmp_path / "in"), "--explain", str(tmp_path / "heat")])
    first, second = sorted(os.listdir(tmp_path / "heat"))
    assert first.startswith("00001-") and first.endswith("xxx.jpg") and second.endswith("好_1.jpg")
    drawn = read_image(str(tmp_path / "heat" / second))
    assert drawn.shape == (32, 64, 3) and np.abs(drawn[:, :30].astype(int) - 99).max() < 20
    with pytest.raises(InputError, match="export gives probabilities only"):
        inference.main(["--model_path", "model.onnx", "--image_path", "in", "--explain", "heat"])


def test_a_category_called_unsure(sample, tmp_path):
    where, _ = sample
    for end in ("json", "pdparams"):
        content = (where / "saved" / f"best_model_fold0.{end}").read_bytes()
        if end == "json":
            content = content.replace(b'"Other"', b'"unsure"')
        (tmp_path / f"w.{end}").write_bytes(content)
    image = str(where / "sample" / "Other" / "000.png")
    args = ["--model_path", str(tmp_path / "w.pdparams"), "--image_path", image]
    inference.main(args)
    with pytest.raises(InputError, match="is itself called 'unsure'"):
        inference.main([*args, "--min_confidence", "0.5"])


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize("number, status", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_inference_that_is_stopped_saves_what_it_has_and_says_so(number, status, sample, tmp_path):
    where, _ = sample
    (tmp_path / "many").mkdir()
    for i in range(3000):
        os.link(where / "sample" / "Other" / "000.png", tmp_path / "many" / f"{i:04}.png")
    output = tmp_path / "predictions.csv"
    process = subprocess.Popen(
        [sys.executable, "inference.py", "--model_path",
         str(where / "saved" / "best_model_fold0.pdparams"), "--image_path", str(tmp_path / "many"),
         "--output", str(output)],
        cwd=ROOT, encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # a job that a shell started in the background ignores them
        preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT,
                                                                       signal.SIGHUP)])
    process.stdout.readline()  # the first prediction is there
    process.send_signal(getattr(signal, number))
    _, said = process.communicate(timeout=60)
    rows = read_csv(output)
    assert process.returncode == status and 0 < len(rows) < 3000
    assert f"stopped: {output} has the first {len(rows)} of 3000 images\n" in said
    assert [r["path"] for r in rows] == [str(tmp_path / "many" / f"{i:04}.png")
                                         for i in range(len(rows))]
