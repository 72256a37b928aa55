"""The process of a run: how Ctrl-C ends it, and the lock that keeps a second run out of its folder."""
import json
import os
import shlex
import signal
import socket
import subprocess
import time

import filelock

from utils.checkpoint import write_json
from utils.settings import InputError


class Stopped(BaseException):
    """Ctrl-C or SIGTERM ended the run; args[0] is the number of the signal."""


class Stops:
    """Ctrl-C and SIGTERM: the first ends the run, in training at the end of the step, else at once (but for heads that are
    being fitted); a second kills.

    Windows knows Ctrl-C alone: it ends processes in other ways without asking.
    """

    def __init__(self):
        self.asked, self.training = None, False
        self.advice = ""  # how to go on, once there is something to go on with

    def listen(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._heard)

    def _heard(self, number, _):
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        self.asked = number
        if not self.training:
            raise Stopped(number)
        os.write(2, b"\nstops after this step; once more to stop at once\n")  # print may be in the middle of a line


stops = Stops()


def writable(option, folder):
    """Make a folder unless it is there. Raises InputError, naming the option, if no file can be written into it."""
    probe = os.path.join(folder, f".try{os.getpid()}")
    try:
        os.makedirs(folder, exist_ok=True)
        open(probe, "xb").close()
        os.remove(probe)
    except OSError as e:
        raise InputError(f"cannot write to --{option} {folder}: {e.strerror}; choose another folder") from e


def new_place(option, path):
    """Raise InputError, naming the option, unless a file or folder can be made that is not there yet."""
    parent = os.path.dirname(os.path.abspath(path))
    if os.path.lexists(path or "."):
        raise InputError(f"--{option} {path}: exists already; choose another name, or remove it first")
    if not os.path.isdir(parent):
        raise InputError(f"--{option} {path}: there is no folder {parent}; make it first, or choose another name")
    writable(option, parent)


def quoted(path):
    """The path for a command that the program prints: in quotes if its shell needs them."""
    return subprocess.list2cmdline([path]) if os.name == "nt" else shlex.quote(path)


def lock(folder, advice="wait for it"):
    """Refuse a second run into a folder for as long as this process lives; the system frees the lock of a killed one.

    Keep what is returned. Raises InputError that names the process, and gives the advice. A process may lock a folder again:
    a notebook keeps what a stopped run has held.
    """
    held = filelock.FileLock(os.path.join(os.path.abspath(folder), ".lock"), is_singleton=True)
    holder = os.path.join(folder, ".running.json")
    try:
        held.acquire(timeout=0)
    except filelock.Timeout:
        try:
            with open(holder, encoding="utf-8") as f:
                who = "process {pid} on {host}, since {since}".format(**json.load(f))
        except (OSError, ValueError, KeyError):
            who = "another process"
        raise InputError(f"{folder} is in use by {who}; {advice}") from None
    except (OSError, NotImplementedError) as e:
        raise InputError(f"cannot lock {folder}: {e}; choose another folder") from e
    about = dict(pid=os.getpid(), host=socket.gethostname(), since=time.strftime("%Y-%m-%d %H:%M:%S"))
    write_json(holder, about)
    return held
