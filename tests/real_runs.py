"""Real runs in processes of their own, for tests that stop them."""
import contextlib
import glob
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from conftest import ROOT
from tiny import content

WINDOWS = os.name == "nt"
LINUX = sys.platform.startswith("linux")


def places(where, name):
    return ["--log_dir", str(where / name / "logs"), "--save_dir", str(where / name / "saved")]


@contextlib.contextmanager
def disk(folder, options):
    """A small disk of its own at `folder`; without the right to mount one the test is skipped."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if WINDOWS or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def as_a_terminal():
    """Signals as a terminal's processes have them: a job in the background ignores some."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def started(args, until, **options):
    """Start a run; return the process when it has printed `until`, and its output so far."""
    process = subprocess.Popen([sys.executable, *args], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, encoding="utf-8",
                               preexec_fn=None if WINDOWS else as_a_terminal,
                               env={**os.environ, "PYTHONUTF8": "1"}, **options)
    printed = []
    for line in process.stdout:
        printed.append(line)
        if until in line:
            return process, printed
    raise AssertionError("".join(printed))


def two_processes(code, *args, first=0):
    """Run Python code in two processes of one world; return the one of rank `first`, finished."""
    code = ("import os, sys; sys.path.append('tests'); from utils.distributed import world\n"
            f"rank = {first} if os.fork() else {1 - first}\n"  # loads Paddle only once
            "os.environ |= {'PADDLE_TRAINER_ID': str(rank), 'PADDLE_CURRENT_ENDPOINT': "
            f"os.environ['PADDLE_TRAINER_ENDPOINTS'].split(',')[rank]}}\n{code}")
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        free = [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
    return subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, timeout=80,
        env={**os.environ, "PADDLE_TRAINERS_NUM": "2", "PADDLE_MASTER": free[2],
             "PADDLE_TRAINER_ENDPOINTS": ",".join(free[:2]), "PADDLE_DISTRI_BACKEND": "gloo"})


def assert_same_end(where, name, whole_run, weights):
    (run,) = glob.glob(str(where / name / "logs" / "*"))
    for file in ("out_of_fold.csv", "scalars.csv", "mistakes.csv", "folds.csv"):
        assert content(os.path.join(run, file)) == content(os.path.join(whole_run, file)), file
    reports = [json.loads(content(os.path.join(r, "report.json"))) for r in (run, whole_run)]
    for r in reports:
        r["settings"] = r["run"] = None  # places, and the hour
        for network in r["networks"].values():
            network["ms_alone"] = network["ms_in_batch_of_16"] = None
    assert reports[0] == reports[1]
    for file in (*(f"best_model_fold{k}.pdparams" for k in range(3)), "final_model.pdparams"):
        assert content(where / name / "saved" / file) == content(os.path.join(weights, file))
    assert not glob.glob(os.path.join(run, "checkpoint-*"))
    assert not glob.glob(os.path.join(run, "*.npz*"))
    assert not glob.glob(str(where / name / "saved" / "*.tmp"))
