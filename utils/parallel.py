"""One run on several processes: the pictures of a step are shared out among them, and so are the folds.

    python -m paddle.distributed.launch --nproc_per_node 2 --backend gloo main.py --sample     # two, on the processor
    python -m paddle.distributed.launch --devices 0,1,2,3 main.py --data_dir DIR               # four GPUs (never run here)

Each process draws its share of the views and takes them through teacher and prefix; then all have the features and maps
of all, and each trains the tails of its own folds, on whole batches. So no gradient travels, and a tail, its BatchNorm and
its optimizer do not know how many processes there are. At 224 pixels 83 kB are sent per picture and process, where
averaging gradients would send 22 MB per student and step. Processes beyond the number of folds have no tail to train; they
only share the frozen networks.

The first process runs main.py and alone prints and writes; the others run follow() and take part where work is shared.
"""
import atexit
import contextlib
import os
import sys
import threading
import time

import numpy as np
import paddle
import paddle.distributed as dist

from utils import runtime
from utils.process import stops
from utils.settings import InputError

SILENT = 60  # seconds without a sign of life, after which a process is taken for lost
GRACE = 40   # seconds more, in which it ends by itself if it waits for Paddle, which gives up after 30
POLL = 0.005


def last_line(error):
    """Of what an error says, or its name if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


@contextlib.contextmanager
def reported():
    """What another process said when it ended, or Paddle of a connection that fails or is silent for 30 s, on one line."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as e:
        if team.lost:
            raise InputError(team.lost) from e
        reason = last_line(e)
        raise InputError(f"process {os.environ['PADDLE_TRAINER_ID']} lost another one ({reason}); each says "
                         "why it ended in its workerlog; between machines GLOO_SOCKET_IFNAME names the network interface, "
                         "such as eth0") from e


class Team:
    """The processes of this run; without paddle.distributed.launch there is one, and nothing is sent."""
    rank, size = 0, 1
    local_rank, local_size = 0, 1  # the same among the processes on this machine
    folds = ()          # numbers of the folds that are trained
    lost = ""           # which of the others has ended or fallen silent, and why
    last_words = ""     # why this one ends

    def join(self):
        """Find the others, if paddle.distributed.launch started this process."""
        if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
            with reported():
                dist.init_parallel_env()
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            endpoints = os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")
            hosts = [e.split(":")[0] for e in endpoints]
            self.local_rank, self.local_size = (h.count(hosts[self.rank]) for h in (hosts[:self.rank], hosts))
            host, port = os.environ.get("PADDLE_MASTER", endpoints[0]).split(":")
            self.store = paddle.base.core.TCPStore(host, int(port), False, 0, 900)
            self.reached = self.passed = self.rounds = 0  # barriers, by this process and by all; rounds of the listener
            self.called, self.left = threading.Event(), threading.Event()
            self.listener = threading.Thread(target=self._listen, daemon=True)
            self.listener.start()
            atexit.register(self.leave)

    def _listen(self):
        """Tell of barriers and of the end, and every second give a sign of life and see whether the others gave one.

        In a thread: where the link is lost, what it asks of the first process is never answered.
        """
        signs, missed, looked, told = [0] * self.size, [0] * self.size, 0, 0
        try:
            while not self.lost and not self.left.is_set():
                if told < self.reached:
                    told += 1
                    self.store.add(f"barrier{told}", 1)
                if self.passed < told and self.store.add(f"barrier{told}", 0) == self.size:
                    self.called.clear()
                    self.passed = told
                if self.last_words:
                    self.store.set("why", self.last_words)
                    self.store.add("ended", 1)
                    return
                if time.monotonic() - looked >= 1:
                    looked = time.monotonic()
                    for rank, before in enumerate(signs):
                        signs[rank] = self.store.add(f"alive{rank}", int(rank == self.rank))
                        missed[rank] = 0 if signs[rank] > before else missed[rank] + 1  # no times: a laptop may sleep
                        if missed[rank] > SILENT:
                            self.lost = f"process {rank} has been silent for {SILENT} s"
                    if self.store.add("ended", 0):
                        self.lost = self.store.get("why").decode()
                self.rounds += 1
                time.sleep(POLL) if self.called.is_set() else self.called.wait(1)
        except (RuntimeError, ValueError, OSError):
            self.lost = "the first process has ended; its workerlog says why"
        if not self.left.wait(GRACE):  # it works alone, or a GPU waits for ever
            print(f"error: {self.lost}" + (f"; {stops.advice}" if stops.advice else ""), file=sys.stderr, flush=True)
            os._exit(1)

    def leave(self):
        """From now on the others may end."""
        if self.size > 1:
            self.left.set()
            self.called.set()
            self.listener.join(5)

    def end(self, why):
        """Tell the others why this process ends; takes the 2 s that they need to hear it."""
        if self.size > 1 and not self.lost:
            why = f"process {self.rank} ended: {last_line(why)}"
            self.last_words = why.encode("utf-8", "backslashreplace").decode()  # names of files are any bytes
            self.called.set()
            time.sleep(2)

    def cores(self):
        """Processor cores for this process: those of the machine are shared out."""
        return max(1, runtime.CORES // self.local_size)

    def barrier(self):
        """Wait for all, however long: one may decode pictures, or compare millions of them, while the others wait."""
        if self.size == 1:
            return
        self.reached += 1
        self.called.set()
        rounds, unheard = self.rounds, 0
        while self.passed < self.reached:
            unheard = unheard + 1 if self.rounds == rounds else 0
            rounds = self.rounds
            if unheard > SILENT / POLL:
                self.lost = f"process {self.rank} has not heard of the others for {SILENT} s"
            if self.lost:
                raise InputError(self.lost)
            time.sleep(POLL)

    def rows(self, n):
        """The share of this process in n rows, int64; the last one again where they do not come out even."""
        share = -(-n // self.size)
        return np.minimum(np.arange(share * self.rank, share * (self.rank + 1)), n - 1)

    def all_gather(self, x, n):
        """Tensor of the rows(n) of each process -> Tensor of all n."""
        if self.size == 1:
            return x
        shares = []
        with reported():
            dist.all_gather(shares, x)
        return paddle.concat(shares)[:n]

    def broadcast(self, value=None, owner=0):
        """Return in every process the value that `owner` passes."""
        if self.size == 1:
            return value
        self.barrier()
        box = [value]
        with reported():
            dist.broadcast_object_list(box, src=owner)
        return box[0]

    def any(self, flag):
        """Whether it is true in any of the processes."""
        if self.size == 1:
            return flag
        flag = paddle.to_tensor([int(bool(flag))])
        with reported():
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def owner(self, fold):
        """The process that trains a fold, and its control."""
        return self.folds.index(fold.index) % self.size if self.size > 1 else 0

    def owns(self, fold):
        return self.owner(fold) == self.rank


team = Team()
