"""A run in several processes: one is killed, one is stopped, one tells the others why it ends."""
import os
import re
import signal

import numpy as np
import pytest

from conftest import run_program
from real_runs import LINUX, places, started, two_processes
from test_resume import assert_same, train_in
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
def test_several_processes_one_of_them_killed_the_run_ends_the_same(whole):
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
    # more processes than students
    done = run_program(*launch(3), "main.py", "--resume", *places(where, "two"))
    assert done.returncode == 0 and "continues in epoch" in done.stdout, done.stdout + done.stderr
    for k in range(2):
        file = f"best_model_fold{k}.pdparams"
        assert content(where / "two" / "saved" / file) == content(os.path.join(weights, file))


@pytest.mark.skipif(not LINUX, reason="forks")
def test_a_signal_to_one_process_stops_all_and_the_run_ends_the_same(settings, tmp_path,
                                                                     compiled_once):
    (tmp_path / "run").mkdir()
    settings.save_dir = str(tmp_path / "saved")
    done = two_processes("""
import signal
from test_resume import TinyRun, build
from tiny import train_tiny
from utils.images.dataset import load_images
from utils.run.process import Stopped
from utils.settings import Settings

class Signalled(TinyRun):
    def after_step(self, epoch, step):
        if (world.rank, epoch, step) == (1, 1, 2):
            os.kill(os.getpid(), signal.SIGTERM)
        super().after_step(epoch, step)

world.join()
settings = eval(sys.argv[1])
run = Signalled(settings, sys.argv[2], load_images(settings))
run.signals.listen()
try:
    train_tiny(settings, run=run, build=lambda heads: build(settings, heads))
except Stopped as stopped:
    run.__exit__(Stopped, stopped, None)
""", repr(settings), str(tmp_path / "run"))
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert done.stderr.count("stopped; to continue: ") == 2  # from each process
    assert (tmp_path / "run" / "checkpoint-000001-000000004").exists()  # when all have heard
    (tmp_path / "whole").mkdir()
    assert_same(train_in(str(tmp_path / "run"), settings, resuming=True),
                train_in(str(tmp_path / "whole"), settings))


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
