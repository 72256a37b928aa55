"""The process of a run: how Ctrl-C ends it, and the lock that keeps others out of its folder."""
import os
import signal
import socket
import threading
import time

import filelock

from utils.errors import InputError
from utils.files import read_json, write_json


class Stopped(BaseException):
    """Ctrl-C or SIGTERM ended the run; args[0] is the number of the signal."""


class Signals:
    """Ctrl-C and SIGTERM; Windows has Ctrl-C only.

    The first raises Stopped, or while `deferred` only sets `received`, for the run to save itself
    and stop; the second kills.
    """

    def __init__(self):
        self.received, self.deferred, self.before = None, False, {}

    def listen(self):
        if threading.current_thread() is threading.main_thread():  # else Python does not allow it
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle)

    def forget(self):
        """Handle them as before listen()."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def _handle(self, number, _):
        for each in self.before:
            signal.signal(each, signal.SIG_DFL)
        self.received = number
        if not self.deferred:
            raise Stopped(number)
        # not print, which this may have interrupted
        os.write(2, b"\nstopping after this step; press Ctrl-C again to stop now\n")


def lock(folder, advice="wait for it"):
    """Keep a second run out of a folder until the returned lock is released or this process ends.

    Raises InputError that names the process which holds it. A process may lock a folder twice.
    """
    held = filelock.FileLock(os.path.join(os.path.abspath(folder), ".lock"), is_singleton=True)
    holder = os.path.join(folder, ".running.json")
    try:
        held.acquire(timeout=0)
    except filelock.Timeout:
        try:
            who = "process {pid} on {host}, since {since}".format(**read_json(holder))
        except (OSError, ValueError, KeyError):
            who = "another process"
        raise InputError(f"{folder} is in use by {who}; {advice}") from None
    except (OSError, NotImplementedError) as e:
        raise InputError(f"cannot lock {folder}: {e}; choose another folder") from e
    write_json(holder, dict(pid=os.getpid(), host=socket.gethostname(),
                            since=time.strftime("%Y-%m-%d %H:%M:%S")))
    return held
