"""The process of a run: how Ctrl-C ends it, and the lock that keeps others out of its folder."""
import os
import select
import signal
import socket
import stat
import threading
import time

import filelock

from utils.command import discard
from utils.errors import InputError
from utils.files import read_json, write_json

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


class Stopped(BaseException):
    """A signal ended the run; args[0] is its number."""


class Signals:
    """Ctrl-C, SIGTERM, and SIGHUP of a closed terminal; Windows has Ctrl-C only.

    The first raises Stopped, or while `deferred` only sets `received`, for the program to save what
    it has and stop. A second Ctrl-C kills. Other signals are ignored from then on: Paddle's
    launcher sends SIGTERM twice, and a terminal that is closed may send SIGHUP twice.
    """

    def __init__(self, deferred=False):
        self.received, self.deferred, self.before = None, deferred, {}

    def listen(self):
        """Take SIGINT, SIGTERM and SIGHUP from here on."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python does not allow it
        for number in filter(None, (signal.SIGINT, signal.SIGTERM, HANGUP)):
            if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN:  # by nohup
                self.before[number] = signal.signal(number, self._handle)

    def forget(self):
        """Handle them as before listen()."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def _handle(self, number, _):
        for each in self.before:
            kills = each == number == signal.SIGINT
            signal.signal(each, signal.SIG_DFL if kills else signal.SIG_IGN)
        self.received = number
        if number == HANGUP:
            for stream in (1, 2):  # writing to the terminal, or to `| tee`, fails from now on
                broken = select.poll()
                broken.register(stream, 0)
                if stat.S_ISCHR(os.fstat(stream).st_mode) or broken.poll(0):
                    discard(stream)
        if not self.deferred:
            raise Stopped(number)
        again = "; press Ctrl-C again to stop now" if number == signal.SIGINT else ""
        os.write(2, f"\nstopping soon{again}\n".encode())  # not print, which this may interrupt


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
