"""Several processes: the weights of one, bit for bit; a killed one stops the rest, and the run goes on with other numbers."""
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from utils.checkpoint import read_arrays

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Paddle launches CPU processes on Linux only")


def start(folder, processes, *options):
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes), "--backend", "gloo", "--log_dir",
              str(folder / "launch")] if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, *launch, os.path.join(ROOT, "main.py"), "--log_dir", str(folder / "logs"), "--save_dir",
         str(folder / "saved"), *options], cwd=folder.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def weights(folder):
    return {(path.name, key): value for path in (folder / "saved").glob("*.pdparams")
            for key, value in read_arrays(str(path)).items()}


def test_processes_make_the_same_weights_and_survive_a_kill(tmp_path):
    options = ("--sample", "--image_size", "32", "--num_folds", "2", "--num_epochs", "3", "--warmup_epochs", "1", "--head_views",
               "0", "--save_minutes", "0.05", "--threads", "1")
    one = start(tmp_path / "one", 1, *options)
    assert "report.html" in one.communicate()[0]
    expected = weights(tmp_path / "one")

    three = start(tmp_path / "three", 3, *options)
    end = time.monotonic() + 120
    while not list((tmp_path / "three").glob("logs/*/state-00000[12]-*")) and time.monotonic() < end:
        time.sleep(0.1)
    workers = [p for p in psutil.Process(three.pid).children(recursive=True) if p.environ().get("PADDLE_TRAINER_ID") == "2"]
    workers[0].send_signal(signal.SIGKILL)
    said = three.communicate(timeout=60)[0]
    assert three.returncode and re.search(r"rank=\[[012, ]*2[012, ]*\] was aborted", said), said[-3000:]
    assert not psutil.pid_exists(workers[0].pid) and not (tmp_path / "three/logs/report.html").exists()

    two = start(tmp_path / "three", 2, "--resume")
    said = two.communicate(timeout=200)[0]
    assert two.returncode == 0 and "goes on in epoch" in said and "report.html" in said
    found = weights(tmp_path / "three")
    assert found.keys() == expected.keys() and len({name for name, _ in found}) == 2
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=str(key))
