"""Real runs that are stopped, killed, short of disk or of memory, or in each other's way."""
import contextlib
import glob
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

import main
from conftest import ROOT, SHORT, run_program
from test_training import any_head
from utils.distributed import world
from utils.errors import InputError
from utils.files import write_whole
from utils.settings import Settings
from utils.train_utils import build_student

WINDOWS = os.name == "nt"
LINUX = sys.platform.startswith("linux")


@pytest.fixture(scope="module")
def whole(sample, tmp_path_factory):
    """(a folder, the sample run's command line, its folder, the folder of its weights)"""
    where, _ = sample
    args = ["main.py", "--sample", *SHORT, "--data_dir", str(where / "sample"),
            "--cache_dir", str(where / "cache")]
    run = min(glob.glob(str(where / "logs" / "*")))
    return tmp_path_factory.mktemp("stops"), args, run, str(where / "saved")


def places(where, name):
    return ["--log_dir", str(where / name / "logs"), "--save_dir", str(where / name / "saved")]


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


def content(path):
    with open(path, "rb") as f:
        return f.read()


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


@pytest.mark.skipif(WINDOWS, reason="signals of Unix")
def test_stopped_by_ctrl_c_terminated_and_killed_it_ends_the_same(whole, capsys):
    where, args, *whole_run = whole
    process, printed = started([*args, *places(where, "stopped")], "each epoch")
    with pytest.raises(InputError, match=f"is in use by process {process.pid} on "):
        main.main([*args[1:], *places(where, "stopped")])
    with pytest.raises(InputError, match=f"by process {process.pid} on .*; "
                                         "that run has not stopped"):
        main.main(["--resume", "--log_dir", str(where / "stopped" / "logs"),
                   "--save_dir", str(where / "elsewhere")])
    process.send_signal(signal.SIGINT)
    printed += process.stdout.readlines()
    assert process.wait() == 130
    (run,) = glob.glob(str(where / "stopped" / "logs" / "*"))
    command = f"python main.py --resume {run}"
    assert printed[-1] == f"stopped; to continue: {command}\n"
    cache = str(where / "stopped" / "cache")
    for end in (signal.SIGHUP, signal.SIGKILL):  # SIGTERM: below, by the launcher
        # the checkpoint has everything that is needed
        (where / "stopped" / "saved" / "best_model_fold0.json").unlink(missing_ok=True)
        process, printed = started([*command.split()[1:], "--save_minutes", "0",
                                    "--cache_dir", cache], "each epoch")
        assert "\ncontinues in epoch " in "".join(printed)
        time.sleep(0.5)
        process.send_signal(end)
        printed += process.stdout.readlines()
        if end != signal.SIGKILL:
            assert process.wait() == 128 + end
            assert printed[-1] == f"stopped; to continue: {command}\n"
    assert process.wait() == -signal.SIGKILL
    recorded = json.loads(content(os.path.join(run, "settings.json")))
    # places are kept, other options are not
    assert recorded["cache_dir"] == cache and recorded["save_minutes"] == 10
    main.main(["--resume", "--log_dir", str(where / "stopped" / "logs")])
    assert_same_end(where, "stopped", *whole_run)
    capsys.readouterr()
    with pytest.raises(SystemExit) as finished:
        main.main(["--resume", run])
    assert finished.value.code == 0
    assert capsys.readouterr().out.startswith(f"{run} is finished; its report: ")


@pytest.mark.skipif(WINDOWS, reason="signals of Unix")
def test_before_the_first_checkpoint_there_is_nothing_to_continue(whole):
    where, args, *_ = whole
    process, printed = started([*args, *places(where, "early")], "fold 0:")
    process.send_signal(signal.SIGINT)
    printed += process.stdout.readlines()
    assert process.wait() == 130 and printed[-1] == "stopped; nothing new is saved\n"
    with pytest.raises(InputError, match="nothing to resume"):
        main.main(["--resume", "--log_dir", str(where / "early" / "logs")])


@pytest.mark.skipif(WINDOWS, reason="signals of Unix")
def test_a_second_ctrl_c_stops_at_once():
    code = ("import time; from utils.run.process import Signals; s = Signals(); s.listen()\n"
            "s.deferred = True\n"
            "print('ready', flush=True); time.sleep(5); print('waits', flush=True); time.sleep(60)")
    process, _ = started(["-c", code], "ready")
    process.send_signal(signal.SIGINT)
    said = process.stdout.readline() + process.stdout.readline()
    assert said == "\nstopping soon; press Ctrl-C again to stop now\n"
    process.send_signal(signal.SIGTERM)  # as Paddle's launcher does
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=4) == -signal.SIGINT


@pytest.mark.skipif(WINDOWS, reason="signals of Unix")
def test_a_closed_terminal_stops_once_and_nohup_goes_on():
    code = ("import os, signal, sys; from utils.run.process import Signals; s = Signals()\n"
            "nohup = 'nohup' in sys.argv\n"
            "signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)\n"
            "s.listen(); s.deferred = True\n"
            "for _ in range(2): os.kill(os.getpid(), signal.SIGHUP)\n"  # shell and system
            "s.forget(); print(s.received)")
    for args, received in (([], "1\n"), (["nohup"], "None\n")):
        done = run_program("-c", code, *args)
        assert done.returncode == 0 and done.stdout == received, done.stderr


@pytest.mark.skipif(WINDOWS, reason="a pipe of Unix")
def test_a_closed_output_ends_a_run_without_a_traceback(whole):
    where, args, *_ = whole
    process, _ = started([*args, *places(where, "closed")], "fold 0:")
    errors = process.stdout
    errors.close()  # standard output and error, as of `2>&1 | head`
    assert process.wait(timeout=100) == 141
    done = subprocess.run([sys.executable, "main.py", "--help"], cwd=ROOT, stderr=subprocess.PIPE,
                          preexec_fn=lambda: os.close(1))
    assert done.returncode == 0 and done.stderr == b""


@pytest.mark.skipif(WINDOWS, reason="needs a small tmpfs")
def test_a_disk_too_small_for_the_weights_is_named_before_training(whole, tmp_path):
    where, args, *_ = whole
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(tmp_path)],
                      capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        with pytest.raises(InputError, match="weights of this run take 7. MB and .* has 8 MB free; "
                                             ".* --save_dir"):
            main.main([*args[1:], *places(where, "tiny"), "--save_dir", str(tmp_path)])
        assert os.listdir(where / "tiny" / "logs") == []
        with open(tmp_path / "fill", "wb", buffering=0) as f, contextlib.suppress(OSError):
            while True:
                f.write(bytes(2**16))
        with pytest.raises(OSError, match="No space left on device: '.*weights'"):
            write_whole(str(tmp_path / "weights"), lambda f: f.write(b"1"))
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.skipif(not LINUX, reason="Paddle launches processes without a GPU on Linux only")
def test_several_processes_one_killed_then_all_stopped_the_run_ends_the_same(whole):
    where, args, _, weights = whole

    def launch(processes):
        return ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes),
                "--backend", "gloo", "--log_dir", str(where / "two" / "launch")]
    process, printed = started([*launch(2), *args, *places(where, "two"), "--folds", "0", "1",
                                "--save_minutes", "0.02"], "epoch 1/3")
    children = content(f"/proc/{process.pid}/task/{process.pid}/children").split()
    (last,) = [int(pid) for pid in children
               if b"PADDLE_TRAINER_ID=1\0" in content(f"/proc/{int(pid)}/environ")]
    os.kill(last, signal.SIGKILL)
    printed += process.stdout.readlines()
    printed = "".join(printed)
    assert process.wait() and re.search(r"rank=\[[01, ]*1[01, ]*\] was aborted", printed), printed
    # more processes than students, and a Ctrl-C, which Paddle's launcher passes on as SIGTERM
    process, printed = started([*launch(3), "main.py", "--resume", *places(where, "two")],
                               "continues in epoch")
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    process.wait()
    log = content(where / "two" / "launch" / "workerlog.0").decode()
    assert "stopped; to continue: " in log, log
    resumed = run_program("main.py", "--resume", *places(where, "two"))  # alone
    assert resumed.returncode == 0 and "continues in epoch" in resumed.stdout, resumed.stderr
    for k in range(2):
        file = f"best_model_fold{k}.pdparams"
        assert content(where / "two" / "saved" / file) == content(os.path.join(weights, file))


@pytest.mark.parametrize("who, last_words, at_work, heard", [
    (1, "world.end('no room for \\udcff')", "world.barrier()",
     "process 1 ended: no room for \\udcff"),
    (1, "os.kill(os.getpid(), 9)", "world.barrier()", "process 1 sent no heartbeat for 3 s"),
    (0, "os.kill(os.getpid(), 9)", "world.barrier()", "the first process has ended"),
    (1, "world.end('the disk is full')", "time.sleep(90)",
     "error: process 1 ended: the disk is full"),
])
@pytest.mark.skipif(not LINUX, reason="Paddle launches processes without a GPU on Linux only")
def test_a_process_hears_that_another_one_ended_on_any_machine(who, last_words, at_work, heard):
    code = ("import os, time; from utils import distributed\n"
            "distributed.HEARTBEAT_TIMEOUT, distributed.GRACE = 3, 1; world = distributed.world\n"
            f"world.join()\nworld.barrier()\n"
            f"if world.rank == {who}: {last_words}; os._exit(1)\n{at_work}")
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        free = [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
    processes = [subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, env={
            **os.environ, "PADDLE_TRAINER_ID": str(rank), "PADDLE_TRAINERS_NUM": "2",
            "PADDLE_MASTER": free[2], "PADDLE_TRAINER_ENDPOINTS": ",".join(free[:2]),
            "PADDLE_CURRENT_ENDPOINT": free[rank], "PADDLE_DISTRI_BACKEND": "gloo"})
        for rank in (0, 1)]
    other = processes[1 - who]
    assert heard in other.communicate(timeout=80)[1] and other.returncode == 1


def test_a_device_that_contradicts_the_launch_is_one_line(monkeypatch):
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    monkeypatch.setenv("PADDLE_DISTRI_BACKEND", "gloo")
    with pytest.raises(InputError, match="--device gpu: the processes were launched with "
                                         "--backend"):
        world.join("gpu")


def test_some_folds_are_shared_out_as_evenly_as_all(monkeypatch):
    monkeypatch.setattr(world, "size", 2)
    settings, labels = Settings(folds=(0, 2, 4)), np.arange(40) % 4
    students = [build_student(k, labels, np.arange(40) // 4 % 5, any_head(classes=4), settings)
                for k in settings.folds]
    assert [s.rank for s in students] == [0, 1, 0]


@pytest.mark.skipif(WINDOWS, reason="needs a small tmpfs")
def test_a_full_disk_ends_the_run_with_one_line_and_what_was_there_stays(whole, tmp_path):
    where, args, *_ = whole
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=800m", "none", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        (small / "logs").mkdir()
        (small / "mine").write_text("mine")
        process, printed = started([*args, "--log_dir", str(small / "logs"),
                                    "--save_dir", str(tmp_path / "saved"),
                                    "--save_minutes", "0"], "epoch 1/3")
        with open(small / "fill", "wb", buffering=0) as f:  # somebody else fills the disk
            with contextlib.suppress(OSError):
                while True:
                    f.write(bytes(2**16))
        printed += process.stdout.readlines()
        assert process.wait() == 1
        assert "error: " in printed[-1] and "No space left on device" in printed[-1]
        assert "to continue: python main.py --resume" in printed[-1]
        assert "Traceback" not in "".join(printed)
        (small / "fill").unlink()
        assert (small / "mine").read_text() == "mine"
        complete = glob.glob(str(small / "logs" / "*" / "checkpoint-*" / "complete"))
        files = glob.glob(os.path.join(os.path.dirname(max(complete)), "*.npz"))
        assert len(files) == 4
        assert all(zipfile.ZipFile(file).testzip() is None for file in files)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.skipif(not LINUX, reason="needs a limit of memory")
def test_memory_that_runs_out_names_the_setting_to_lower(whole):
    import resource
    where, args, *_ = whole
    process, printed = started([*args, *places(where, "memory"), "--batch_size", "400"],
                               "each epoch")
    with open(f"/proc/{process.pid}/statm", encoding="ascii") as f:
        in_use = int(f.read().split()[0]) * resource.getpagesize()
    limit = in_use + 2**27
    resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
    printed += process.stdout.readlines()
    assert process.wait() == 1
    assert "error: out of memory; lower --batch_size" in printed[-1], "".join(printed)
    assert "Traceback" not in "".join(printed)


@pytest.mark.skipif(not LINUX, reason="limits the memory as Linux does")
def test_a_network_that_runs_out_of_memory_says_so_and_takes_smaller_batches():
    """Wherever it runs out: with each of these limits it comes further."""
    found = subprocess.run([sys.executable, "-c", """
import resource
from utils.engine import compiled
import numpy as np
from paddle.vision.models import mobilenet_v2

run = compiled(mobilenet_v2(scale=0.25), [3, 64, 64])
x = np.random.rand(400, 3, 64, 64).astype("float32")
expected = run(x[:4]).numpy()
for more in (64, 32, 16, 8, 4, 0):
    with open("/proc/self/statm", encoding="ascii") as f:
        limit = int(f.read().split()[0]) * resource.getpagesize() + more * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, -1))
    try:
        run(x)
    except MemoryError:
        print("failed")
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    assert (run(x[:4]).numpy() == expected).all()"""], cwd=ROOT, capture_output=True, text=True,
                           timeout=120)
    assert found.returncode == 0 and "failed" in found.stdout, found.stderr
