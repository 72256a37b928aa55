"""An export predicts like its students, in Paddle and in ONNX, and inference.py takes it."""
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import paddle
import pytest
from PIL import Image
from scipy.special import softmax

import export
import inference
from conftest import ROOT, read_rows
from models.student_model import Ensemble, Student, freeze
from utils.errors import InputError
from utils.files import read_json, write_json
from utils.predict import load_export, load_model
from utils.transforms import normalize


def predictions(model, images, output):
    """[(path, category, [probability])] of inference.py."""
    inference.main(["--model_path", *model, "--image_path", images, "--recursive", "--output",
                    output])
    return [(r["path"], r["category"], [float(v) for k, v in r.items() if k.startswith("p_")])
            for r in read_rows(output)]


@pytest.mark.skipif(paddle.__version__.startswith("2."), reason="paddle2onnx needs Paddle 3")
@pytest.mark.parametrize("count, pixels", [(3, False), (1, True)])
def test_exports_predict_like_their_students(sample, weights, tmp_path, capfd, monkeypatch, count,
                                             pixels):
    pytest.importorskip("paddle2onnx")
    images, model = str(sample[0] / "sample"), weights[:count]
    folder = str(tmp_path / "exported")
    int8 = ["int8"] if count == 1 else []
    export.main(["--model_path", *model, "--output", folder, "--format", "paddle", "onnx", *int8,
                 *(["--pixels"] if pixels else [])])
    printed = capfd.readouterr().out
    assert f"{count} students, compared with their export on 64 images" in printed
    sizes = {name: os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder)}
    expected = predictions(model, images, str(tmp_path / "students.csv"))
    for name in ("model.onnx", "model.pdiparams"):
        found = predictions([os.path.join(folder, name)], images, str(tmp_path / f"{name}.csv"))
        assert [f[:2] for f in found] == [e[:2] for e in expected] and len(found) == 240
        np.testing.assert_allclose([f[2] for f in found], [e[2] for e in expected], atol=1e-5)
    with open(os.path.join(folder, "about.json"), encoding="utf-8") as f:
        about = json.load(f)
    assert about["input"].startswith("uint8 [B, 32, 32, 3]" if pixels else
                                     "float32 [B, 3, 32, 32]")
    assert ("scores" in about) == (count == 1)
    if int8:
        assert sizes["model.int8.onnx"] < 0.3 * sizes["model.onnx"]
        onnx = pytest.importorskip("onnx")
        values = [onnx.numpy_helper.to_array(v) for v in onnx.load(os.path.join(
            folder, "model.int8.onnx")).graph.initializer if v.data_type == onnx.TensorProto.INT8]
        matrices = [v for v in values if v.ndim > 1]
        # a processor without VNNI adds pairs of products in 16 bits
        assert matrices and all(2 * 255 * np.abs(v.astype(int)).max() < 2**15 for v in matrices)
        (table,) = glob.glob(str(sample[0] / "logs" / "*" / "out_of_fold.csv"))
        truth = {os.path.join(images, *r["path"].split("/")): r["label"]
                 for r in read_rows(table) if r["fold"] == "0"}
        small = predictions([os.path.join(folder, "model.int8.onnx")], images,
                            str(tmp_path / "int8.csv"))
        np.testing.assert_allclose([sum(f[2]) for f in small], 1, atol=1e-5)
        a, b = (np.array([f[1] == truth[f[0]] for f in found if f[0] in truth])
                for found in (expected, small))
        assert (f"on its 80 validation images: accuracy {a.mean():.4f}, as int8 {b.mean():.4f} "
                f"({(b & ~a).sum()} gained, {(a & ~b).sum()} lost)\n") in printed
    if not pixels:  # the program of docs/deploy.md
        photo = str(tmp_path / "photo.jpg")
        Image.open(os.path.join(images, "Other", "000.png")).resize((90, 70)).save(photo)
        ((_, _, expected),) = predictions(model, photo, str(tmp_path / "photo.csv"))
        with open(os.path.join(ROOT, "docs", "deploy.md"), encoding="utf-8") as f:
            program = re.search(r"^    import json.*?(?=^\S)", f.read(), re.DOTALL | re.MULTILINE)
        monkeypatch.chdir(tmp_path)
        names = {}
        exec(textwrap.dedent(program.group()), names)
        np.testing.assert_allclose(names["probabilities"], expected, atol=1e-4)
    home = tmp_path / "home"  # where ONNX Runtime would keep a number for this user
    home.mkdir()
    subprocess.run([sys.executable, "-c", "import utils, onnxruntime, sys\n"
                    "onnxruntime.InferenceSession(sys.argv[1])",
                    os.path.join(folder, "model.onnx")], cwd=ROOT,
                   env={**os.environ, "HOME": str(home)}, check=True)
    assert os.listdir(home) == []
    with pytest.raises(InputError, match="exists already"):
        export.main(["--model_path", *model, "--output", folder])
    with pytest.raises(InputError, match="name one file"):
        load_model([os.path.join(folder, "model.onnx"), *model])
    for change in ({"pixels": not pixels}, {"image_size": 64}):  # of another export
        write_json(os.path.join(folder, "about.json"), {**about, **change})
        for name in ("model.onnx", "model.pdiparams"):
            with pytest.raises(InputError, match=f"{name} and .*about.json do not belong"):
                load_model([os.path.join(folder, name)])
    write_json(os.path.join(folder, "about.json"),
               {**about, "categories": ["a", *about["categories"][1:]]})  # renamed by hand
    assert load_model([os.path.join(folder, "model.onnx")]).about["categories"][0] == "a"
    for name, why in (("model.onnx", "model.onnx is not a usable ONNX model"),
                      ("model.pdiparams", "not a usable Paddle")):
        os.truncate(os.path.join(folder, name), 10_000)
        with pytest.raises(InputError, match=why):
            load_model([os.path.join(folder, name)])
    os.remove(os.path.join(folder, "about.json"))
    with pytest.raises(InputError, match="about.json does not exist; an export is the folder"):
        load_model([os.path.join(folder, "model.onnx")])


def test_a_model_of_paddle_3_is_named_as_such_in_paddle_2(tmp_path):
    for name in ("model.json", "model.pdiparams"):
        (tmp_path / name).write_text("{}")
    why = ("was exported with Paddle 3" if paddle.__version__.startswith("2.") else
           "not a usable Paddle model")
    with pytest.raises(InputError, match=why):
        load_export(str(tmp_path / "model.pdiparams"))


def test_several_students_are_averaged_and_share_what_they_have_in_common():
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    x = paddle.to_tensor(normalize(images))
    paddle.seed(3)
    students = [Student(4, 5, scale=0.25) for _ in range(3)]
    apart = Ensemble(students, [1.0, 0.5, 2.0])
    for s in students[1:]:
        s.features[:5].set_state_dict(students[0].features[:5].state_dict())
    for s in students:
        s.eval()
    together = Ensemble(students, [1.0, 0.5, 2.0])
    assert (apart.shared, together.shared) == (0, 5)
    logits = [s(x).numpy() / t for s, t in zip(students, (1, 0.5, 2))]
    expected = softmax(np.mean(logits, 0), 1)
    apart.eval()
    for network in (apart, together):
        np.testing.assert_allclose(network(x).numpy(), expected, atol=1e-6)
    pixels = freeze(Ensemble(students, [1.0, 0.5, 2.0], pixels=True))
    np.testing.assert_allclose(pixels(paddle.to_tensor(images)).numpy(), expected, atol=1e-5)


def test_an_export_that_is_not_the_same_is_not_kept(sample, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "load_export",
                        lambda path: lambda x: np.full((len(x), 4), 0.25, np.float32))
    with pytest.raises(InputError, match="predicts differently from its students, by .*; not kept"):
        export.main(["--model_path", weights[0], "--output", str(tmp_path / "exported"),
                     "--format", "paddle"])
    assert os.listdir(tmp_path) == []


def test_paddle_alone_needs_no_onnx_and_several_have_nothing_of_the_first_alone(
        sample, weights, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "paddle2onnx", None)
    folder = tmp_path / "exported"
    export.main(["--model_path", *weights[:2], "--output", str(folder), "--format", "paddle",
                 "paddle"])
    model = load_model([str(folder / "model.pdiparams")])
    assert not {"fold", "epoch", "scores", "temperature"} & set(model.about)
    assert len(model.about["temperatures"]) == 2
    assert model.predict(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 4)


def test_without_the_images_of_the_training_others_must_be_named(weights, tmp_path):
    path = shutil.copy(weights[0], tmp_path)
    about = read_json(os.path.splitext(weights[0])[0] + ".json")
    for data_dir, where in ((str(tmp_path / "gone"), "gone"), (None, "one folder")):
        about["settings"] = {"data_dir": data_dir} if data_dir else {}
        write_json(os.path.splitext(path)[0] + ".json", about)
        with pytest.raises(InputError, match=f"not in .*{where}; name some .* --image_path"):
            export.main(["--model_path", path, "--output", str(tmp_path / "exported")])


def test_wrong_exports_are_one_line(sample, weights, tmp_path):
    for wrong, why in (
            (["--image_path", str(tmp_path)], "no image in"),
            (["--image_path", str(tmp_path), "typo"], "--image_path typo: there is no such image"),
            (["--model_path", *weights, "--format", "int8"], "--format int8: takes one student"),
            (["--output", str(tmp_path / "missing" / "exported")],
             "--output .*: there is no folder .*missing;"),
            (["--model_path", "exported/model.onnx"],
             "--model_path exported/model.onnx: is an export already"),
            (["--model_path", str(tmp_path / "none.pdparams")], "none.pdparams does not exist")):
        with pytest.raises(InputError, match=why):
            export.main(["--model_path", weights[0], "--output", str(tmp_path / "exported"),
                         *wrong])
    assert os.listdir(tmp_path) == []
