"""One run on several processes: the pictures of a step are shared out among them, and so are the folds.

    python -m paddle.distributed.launch --nproc_per_node 2 --backend gloo main.py --sample     # two, on the processor
    python -m paddle.distributed.launch --devices 0,1,2,3 main.py --data_dir DIR               # four GPUs (never run here)

Each process draws its share of the views and takes them through teacher and prefix; then all have the features and maps
of all, and each trains the tails of its own folds, on whole batches. So no gradient travels, and a tail, its BatchNorm and
its optimizer do not know how many processes there are. At 224 pixels 83 kB are sent per picture and process, where
averaging gradients would send 22 MB per student and step. At most as many processes as folds have tails to train.

The first process runs main.py and alone prints and writes; the others run follow() and take part where work is shared.
"""
import contextlib
import os
import time

import numpy as np
import paddle
import paddle.distributed as dist

from utils import runtime
from utils.settings import InputError


@contextlib.contextmanager
def reported():
    """What Paddle says of a connection that fails, or of a process that is silent for 30 seconds, on one line."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as e:
        reason = str(e).strip().splitlines()[-1]
        raise InputError(f"process {os.environ['PADDLE_TRAINER_ID']} lost another one ({reason}); each says "
                         "why it ended in its workerlog; between machines GLOO_SOCKET_IFNAME names the network interface, "
                         "such as eth0") from e


class Team:
    """The processes of this run; without paddle.distributed.launch there is one, and nothing is sent."""
    rank, size = 0, 1
    place, here = 0, 1  # the same among those that share this machine

    def join(self):
        """Find the others, if paddle.distributed.launch started this process."""
        if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
            with reported():
                dist.init_parallel_env()
            self.store, self.barriers = paddle.base.core.create_or_get_global_tcp_store(), 0
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            hosts = [e.split(":")[0] for e in os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")]
            self.place, self.here = (h.count(hosts[self.rank]) for h in (hosts[:self.rank], hosts))

    def cores(self):
        """Processor cores for this process: those of the machine are shared out."""
        return max(1, runtime.CORES // self.here)

    def barrier(self, hours=1):
        """Wait for all; a link that is lost just now is noticed only after so many hours."""
        if self.size == 1:
            return
        self.barriers, end = self.barriers + 1, time.monotonic() + 3600 * hours
        with reported():
            self.store.add(f"barrier{self.barriers}", 1)
            while self.store.add(f"barrier{self.barriers}", 0) < self.size:
                if time.monotonic() > end:
                    raise OSError(f"silent for {hours} h")
                time.sleep(0.005)

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

    def broadcast(self, value=None, owner=0, hours=1):
        """What `owner` calls it with, in all processes; they wait for it so long."""
        if self.size == 1:
            return value
        self.barrier(hours)
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
        return fold.index % self.size

    def owns(self, fold):
        return self.owner(fold) == self.rank


team = Team()
PREPARING = 24  # hours: one process may decode pictures, or compare millions of them, while the others wait
