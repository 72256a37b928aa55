"""Real runs that are stopped, killed, short of disk or of memory, or in each other's way."""
import contextlib
import errno
import glob
import json
import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest

import main
from conftest import ROOT, run_program
from real_runs import LINUX, WINDOWS, assert_same_end, disk, places, started
from tiny import content
from utils.errors import InputError
from utils.files import write_whole
from utils.run.run import Run


@pytest.mark.skipif(WINDOWS, reason="signals of Unix")
def test_stopped_by_ctrl_c_and_killed_it_ends_the_same(whole, compiled_once, capsys):
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
    for end in (signal.SIGHUP, signal.SIGKILL):
        # the checkpoint has everything that is needed
        (where / "stopped" / "saved" / "best_model_fold0.json").unlink(missing_ok=True)
        process, printed = started([*command.split()[1:], "--save_minutes", "0", "--device", "cpu",
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
    assert recorded["cache_dir"] == cache
    assert recorded["save_minutes"] == 10 and recorded["device"] == "auto"
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
    assert process.wait() == 130 and printed[-1] == (
        "stopped; training had not begun; the same command uses what is cached\n")
    with pytest.raises(InputError, match="nothing to resume"):
        main.main(["--resume", "--log_dir", str(where / "early" / "logs")])


@pytest.mark.skipif(WINDOWS, reason="signals of Unix")
def test_ctrl_c_while_a_script_loads_shows_no_traceback():
    code = ("from utils.command import run_command\nrun_command(lambda: None)\n"
            "print('loading', flush=True)\nimport time\ntime.sleep(60)\n")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, encoding="utf-8")
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "" and process.returncode == -signal.SIGINT


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


def test_a_disk_too_small_for_the_weights_is_named_before_training(whole, tmp_path):
    where, args, *_ = whole
    with disk(tmp_path, "size=8m"):
        with pytest.raises(InputError, match="weights of this run take 7. MB and .* has 8 MB free; "
                                             ".* --save_dir"):
            main.main([*args[1:], *places(where, "tiny"), "--save_dir", str(tmp_path)])
        assert os.listdir(where / "tiny" / "logs") == []
        with open(tmp_path / "fill", "wb", buffering=0) as f, contextlib.suppress(OSError):
            while True:
                f.write(bytes(2**16))
        with pytest.raises(OSError, match="No space left on device: '.*weights'"):
            write_whole(str(tmp_path / "weights"), lambda f: f.write(b"1"))


def test_a_full_disk_ends_the_run_with_one_line_and_what_was_there_stays(whole, tmp_path):
    where, args, *_ = whole
    with disk(tmp_path / "small", "size=800m") as small:
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


@pytest.mark.parametrize("error, message", [
    (OSError("cache.npy was cut short during the run"), "cache.npy was cut short during the run"),
    (OSError(errno.ENOSPC, "No space left on device"), ".*No space left on device: 'logs/x'"),
    (OSError(errno.ENOSPC, "No space left on device", "f.csv"), ".*No space left.*: 'f.csv'"),
])
def test_an_error_of_a_file_says_what_and_where(error, message):
    run = Run({})
    run.folder, run.hint = "logs/x", "to continue: python main.py --resume logs/x"
    with pytest.raises(InputError, match=f"^{message}; {run.hint}$"):
        run.__exit__(type(error), error, None)


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
