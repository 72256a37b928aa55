"""One run in several processes: the same program in each, which share out images and students.

    python -m paddle.distributed.launch --nproc_per_node 2 --backend gloo main.py --sample   # CPU
    python -m paddle.distributed.launch --devices 0,1,2,3 main.py --data_dir DIR  # 4 GPUs (not run)

Each process augments its share of a batch and runs it through the teacher and the stem; then all
have the features and maps of all, and each trains the tails of its own students on whole batches.
So no gradient is sent, and a student does not depend on the number of processes. An image costs
83 kB per process at 224 pixels, where averaging gradients would send 22 MB per student and step.
"""
import atexit
import contextlib
import faulthandler
import os
import sys
import threading
import time
import uuid

import filelock
import numpy as np
import paddle
import paddle.distributed as dist

from utils import CORES
from utils.engine import on_gpu
from utils.errors import InputError
from utils.files import read_json, write_json

HEARTBEAT_TIMEOUT = 60  # seconds without a heartbeat after which a process counts as lost
GRACE = 40              # more seconds to end by itself: gloo waits for 30
POLL = 0.02


def print0(*args, **options):
    """print in the first process only."""
    if world.rank == 0:
        print(*args, **options)


def last_line(error):
    """The last line of an error's message, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


class World:
    """The processes of this run; without paddle.distributed.launch there is one."""
    rank, size = 0, 1
    local_size = 1                 # processes on this machine
    lost = ""                      # which process has ended or has no heartbeat, and why
    arrived = passed = rounds = 0  # barriers reached by this process, by all; heartbeats sent
    farewell = ""                  # why this process ends, for the others
    left = False

    def join(self, device="auto"):
        """Connect to the other processes, if paddle.distributed.launch started this one."""
        if self.size > 1 or int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) < 2:
            return
        backend = os.environ.get("PADDLE_DISTRI_BACKEND", "auto")
        if device != "auto" and (device == "cpu") != (backend == "gloo"):
            raise InputError(f"--device {device}: the processes were launched with --backend "
                             f"{backend}; --backend gloo is for the CPU, leave it out for GPUs")
        with self.reported():
            dist.init_parallel_env()
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        endpoints = os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")
        hosts = [e.rsplit(":", 1)[0] for e in endpoints]
        self.local_size = hosts.count(hosts[self.rank])
        if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:  # Paddle prefers them, too
            host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        else:
            host, port = os.environ.get("PADDLE_MASTER", endpoints[0]).rsplit(":", 1)
        self.store = paddle.base.core.TCPStore(host, int(port), False, 0, 900)
        self.thread = threading.Thread(target=self._heartbeat, daemon=True)
        self.thread.start()
        atexit.register(self.leave)

    def _heartbeat(self):
        """Send a heartbeat and look for the others' every second; pass on barriers and ends.

        All talk with the store is here, since it never answers once the connection is lost.
        """
        heard, missed, next_beat, told = [0] * self.size, [0] * self.size, 0, 0
        try:
            while not (self.lost or self.left):
                if told < self.arrived:
                    told += 1
                    self.store.add(f"barrier{told}", 1)
                if self.farewell:
                    self.store.set("farewell", self.farewell)
                    self.store.add("ended", 1)
                    return
                ended = 0
                if time.monotonic() >= next_beat:
                    next_beat = time.monotonic() + 1
                    for rank, before in enumerate(heard):
                        heard[rank] = self.store.add(f"heartbeat{rank}", int(rank == self.rank))
                        missed[rank] = 0 if heard[rank] > before else missed[rank] + 1
                        if missed[rank] > HEARTBEAT_TIMEOUT:
                            self.lost = (f"process {rank} sent no heartbeat for "
                                         f"{HEARTBEAT_TIMEOUT} s")
                    ended = self.store.add("ended", 0)
                    if on_gpu():
                        # waiting for a GPU whose peer is lost may hold the interpreter's lock
                        faulthandler.dump_traceback_later(HEARTBEAT_TIMEOUT + 2 * GRACE, exit=True)
                # after `ended` is read: a process may pass a barrier and end at once
                if self.passed < told and self.store.add(f"barrier{told}", 0) == self.size:
                    self.passed = told
                if ended:
                    self.lost = self.store.get("farewell").decode()
                self.rounds += 1
                time.sleep(POLL)
        except (RuntimeError, ValueError, OSError):
            self.lost = "the first process has ended; its workerlog says why"
        end = time.monotonic() + GRACE
        while not self.left and time.monotonic() < end:
            time.sleep(POLL)
        if not self.left:  # it computes, or waits for the lost process
            print(f"error: {self.lost}", file=sys.stderr, flush=True)
            os._exit(1)

    def leave(self):
        """Stop the heartbeat: this process is done, and may end without ending the others."""
        if self.size > 1:
            self.left = True
            self.thread.join(5)
            faulthandler.cancel_dump_traceback_later()

    def end(self, reason):
        """Tell the other processes why this one ends; they need 2 s to hear it."""
        if self.size > 1 and not (self.lost or self.left):
            reason = f"process {self.rank} ended: {last_line(reason)}"
            self.farewell = reason.encode("utf-8", "backslashreplace").decode()
            time.sleep(2)

    @contextlib.contextmanager
    def reported(self):
        """Turn errors of a lost connection into one line, with the reason if a process gave one."""
        try:
            yield
        except (RuntimeError, ValueError, OSError) as e:
            raise InputError(self.lost or (
                f"process {os.environ['PADDLE_TRAINER_ID']} lost another one ({last_line(e)}); the "
                "workerlog of each says why it ended; between machines, GLOO_SOCKET_IFNAME (for "
                "GPUs NCCL_SOCKET_IFNAME) names the network interface, such as eth0")) from e

    def cores(self):
        """Processor cores for this process, its share of the machine's."""
        return max(1, CORES // self.local_size)

    def barrier(self):
        """Wait for all processes, however long: gloo itself gives up after 30 s."""
        if self.size == 1:
            return
        self.arrived += 1
        rounds, since = self.rounds, time.monotonic()
        while self.passed < self.arrived:
            if self.rounds > rounds:
                rounds, since = self.rounds, time.monotonic()
            if time.monotonic() - since > HEARTBEAT_TIMEOUT:
                self.lost = f"process {self.rank} lost the connection to the others"
            if self.lost and self.passed < self.arrived:  # one that has passed may end at once
                raise InputError(self.lost)
            time.sleep(POLL)

    def share(self, n):
        """This process's share of n rows, int64; the last row repeats where n does not divide."""
        share = -(-n // self.size)
        return np.minimum(np.arange(share * self.rank, share * (self.rank + 1)), n - 1)

    def all_gather(self, x, n):
        """Tensor of this process's share(n) -> Tensor of all n rows."""
        if self.size == 1:
            return x
        shares = []
        with self.reported():
            dist.all_gather(shares, x)
        return paddle.concat(shares)[:n]

    def gather(self, own):
        """Merge the dicts of all processes."""
        if self.size == 1:
            return own
        self.barrier()
        dicts = []
        with self.reported():
            dist.all_gather_object(dicts, own)
        return {key: value for each in dicts for key, value in each.items()}

    def broadcast(self, value):
        """The first process's value, in every process."""
        return self.gather({"value": value} if self.rank == 0 else {})["value"]

    def max(self, numbers):
        """The largest of each number over all processes. Without a barrier: for steps, which all
        take together."""
        if self.size == 1:
            return numbers
        return self.all_gather(paddle.to_tensor([numbers]), self.size).numpy().max(0).tolist()

    def any(self, flag):
        """Whether the flag is set in at least one process."""
        return any(self.gather({self.rank: bool(flag)}).values())


world = World()


@contextlib.contextmanager
def one_writer(folder):
    """Whether this process is the one of this run that writes to the folder; waits for other runs.

    Machines with a folder of their own have a writer each.
    """
    lock = filelock.FileLock(os.path.join(folder, ".filling.lock"))
    run, writer = world.broadcast(uuid.uuid4().hex), os.path.join(folder, ".filling.json")
    try:
        for rank in range(world.size):  # in turn: each sees whether an earlier one has the lock
            if rank == world.rank and not (os.path.exists(writer) and read_json(writer) == run):
                try:
                    lock.acquire(timeout=1)
                except filelock.Timeout:
                    print(f"waiting for another run that stores augmentations in {folder}")
                    lock.acquire()
                write_json(writer, run)
            world.barrier()
        yield lock.is_locked
    finally:
        lock.release()
