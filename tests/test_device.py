"""Which device and cores are taken, and half precision. No GPU is needed: Paddle is told that it
has one."""
import os
import subprocess
import sys

import numpy as np
import paddle
import pytest
from paddle.vision.models import resnet18

from conftest import ROOT
from utils import cores, engine, processor
from utils.engine import choose_device, to_device
from utils.errors import InputError
from utils.settings import Settings
from utils.teacher import load_teacher

PAGES = """
--------------------------------------
C++ Traceback (most recent call last):
--------------------------------------
0   paddle::pybind::static_api_conv2d
----------------------
Error Message Summary:
----------------------
PreconditionNotMetError: Cannot load cudnn shared library.
  [Hint: cudnn_dso_handle should not be null.] (at cudnn.cc:60)
"""


@pytest.fixture
def a_gpu(monkeypatch):
    """Paddle counts a GPU. Selecting it fails in earnest, since this Paddle has no CUDA."""
    if paddle.device.is_compiled_with_cuda():
        pytest.skip("there may be a GPU")
    monkeypatch.setattr(paddle.device, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 1)


def test_gpus_are_not_counted_where_the_cpu_is_asked_for(monkeypatch):
    monkeypatch.setattr(paddle.device, "is_compiled_with_cuda", lambda: 1 / 0)
    assert choose_device("cpu") == "cpu"


@pytest.mark.parametrize("message, cause", [
    (None, "PaddlePaddle is not compiled with CUDA"),
    (PAGES, "the GPU does not work: PreconditionNotMetError: Cannot load cudnn shared library."),
    ("(External) CUDA error(209), no kernel image.\n  [Hint: none]", "(209), no kernel image."),
    ("", "RuntimeError"),
])
def test_a_gpu_that_fails_is_a_note_with_auto_and_an_error_with_gpu(a_gpu, monkeypatch, capsys,
                                                                    message, cause):
    known = paddle.set_device

    def fail(device):
        if device == "gpu":
            raise RuntimeError(message)
        return known(device)
    if message is not None:
        monkeypatch.setattr(paddle, "set_device", fail)
    assert choose_device("auto") == "cpu" == paddle.get_device()
    printed = capsys.readouterr().err
    assert printed.startswith("note: the GPU does not work: ") and printed.count("\n") == 1
    assert cause in printed and "Hint" not in printed
    with pytest.raises(InputError, match="^the GPU does not work: [^\n]*; leave the GPU option"):
        choose_device("gpu")


def test_a_gpu_that_computes_nonsense_is_not_used(a_gpu, monkeypatch, capsys):
    monkeypatch.setattr(paddle, "set_device", lambda device: None)
    assert choose_device("auto") == "gpu"
    monkeypatch.setattr(engine.F, "conv2d", lambda x, weight: paddle.zeros([1, 4, 6, 6]))
    assert choose_device("auto") == "cpu"
    assert "wrong numbers" in capsys.readouterr().err


def test_arrays_arrive_unchanged_and_tensors_stay():
    x = np.random.default_rng(0).normal(size=(2, 3)).astype("float32")
    sent = to_device(x)
    np.testing.assert_array_equal(sent.numpy(), x)
    assert sent.dtype == paddle.float32 and to_device(sent) is sent


def test_no_half_computes_the_teacher_in_float32(monkeypatch):
    monkeypatch.setattr("utils.teacher.Backbone", lambda: resnet18(num_classes=7))
    x = np.random.default_rng(0).normal(size=(4, 3, 64, 64)).astype("float32")

    def features(no_half):
        return load_teacher(("", None), Settings(image_size=64, no_half=no_half), 1)(x).numpy()
    paddle.seed(Settings().seed)
    network = resnet18(num_classes=7)
    network.eval()
    with paddle.no_grad():
        expected = network(paddle.to_tensor(x)).numpy()
    error, half_error = (np.abs(features(no_half) - expected).max() / np.abs(expected).max()
                         for no_half in (True, False))
    assert error < 1e-4  # as `compiled` promises
    assert (half_error > 1e-4) == engine.BFLOAT16


def test_an_amd_processor_computes_with_the_widest_instructions_it_has(monkeypatch):
    """By the system's own list of them; what the user has set is left as it is."""
    if not os.path.exists("/proc/cpuinfo") or "AMD" not in processor():
        pytest.skip("no AMD processor, or no list")
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        flags = set(next(line for line in f if line.startswith("flags")).split())
    wide = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
    widest = "7" if wide <= flags else "5" if "avx2" in flags else "None"
    for given, expected in ((None, widest), ("4", "4")):
        monkeypatch.delenv("MKL_DEBUG_CPU_TYPE", raising=False)
        if given:
            monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", given)
        code = "import os, utils; print(os.environ.get('MKL_DEBUG_CPU_TYPE'))"
        said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                              text=True)
        assert said.stdout == f"{expected}\n"


def test_a_containers_quota_of_cores_is_kept(tmp_path):
    quota, allowed = tmp_path / "cpu.max", cores(str(tmp_path / "nowhere"))
    for text, expected in (("max 100000", allowed), ("100000 100000", 1), ("50000 100000", 1),
                           ("99900000000 100000", allowed), ("nonsense", allowed),
                           ("100000 0", allowed), ("", allowed)):
        quota.write_text(text)
        assert cores(str(quota)) == expected
