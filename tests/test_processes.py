"""A run in several processes: one is killed, all are stopped, one tells the others why it ends."""
import os
import re
import signal

import numpy as np
import pytest

from conftest import run_program
from real_runs import LINUX, places, started, two_processes
from tiny import any_head, content
from utils.distributed import world
from utils.errors import InputError
from utils.settings import Settings
from utils.train_utils import build_student


def launched(launcher, rank):
    """The process of this rank which Paddle's launcher has started."""
    children = content(f"/proc/{launcher.pid}/task/{launcher.pid}/children").split()
    (pid,) = [int(pid) for pid in children
              if b"PADDLE_TRAINER_ID=%d\0" % rank in content(f"/proc/{int(pid)}/environ")]
    return pid


@pytest.mark.skipif(not LINUX, reason="Paddle launches processes without a GPU on Linux only")
def test_several_processes_one_killed_then_all_stopped_the_run_ends_the_same(whole):
    where, args, _, weights = whole

    def launch(processes):
        return ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes),
                "--backend", "gloo", "--log_dir", str(where / "two" / "launch")]
    process, printed = started([*launch(2), *args, *places(where, "two"), "--folds", "0", "1",
                                "--no_final_model", "--save_minutes", "0"], "epoch 1/3")
    os.kill(launched(process, 1), signal.SIGKILL)
    printed += process.stdout.readlines()
    printed = "".join(printed)
    assert process.wait() and re.search(r"rank=\[[01, ]*1[01, ]*\] was aborted", printed), printed
    # more processes than students, and a signal to one of them, on which all save and stop
    process, printed = started([*launch(3), "main.py", "--resume", *places(where, "two")],
                               " s: mean ")  # the first epoch: now each saves before it stops
    assert "continues in epoch" in "".join(printed)
    os.kill(launched(process, 2), signal.SIGTERM)  # after a Ctrl-C the launcher kills in 4 s
    process.stdout.read()
    process.wait()
    log = content(where / "two" / "launch" / "workerlog.0").decode()
    assert "stopped; to continue: " in log, log
    done = run_program(*launch(2), "main.py", "--resume", *places(where, "two"))
    assert done.returncode == 0 and "continues in epoch" in done.stdout, done.stdout + done.stderr
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
    done = two_processes(
        "import time; from utils import distributed\n"
        "distributed.HEARTBEAT_TIMEOUT, distributed.GRACE = 3, 1\n"
        "world.join()\nworld.barrier()\n"
        f"if world.rank == {who}: {last_words}; os._exit(1)\n{at_work}", first=1 - who)
    assert heard in done.stderr and done.returncode == 1


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
