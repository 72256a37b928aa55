"""Files and folders: written whole or not at all, and checked before anything is computed."""
import contextlib
import itertools
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time

from utils.errors import InputError


def write_whole(path, write):
    """Write a file through a temporary one beside it, so that `path` is complete before and after.

    write(file) gets the file, opened for bytes. Raises OSError that names `path`, also where the
    disk is full, and nothing half-written stays.
    """
    unfinished = f"{path}.tmp"
    try:
        with open(unfinished, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        for attempt in range(21):
            try:
                os.replace(unfinished, path)
                break
            except PermissionError:  # Windows, while another program reads the file
                if sys.platform != "win32" or attempt == 20:
                    raise
                time.sleep(0.1)
    except BaseException as e:  # Ctrl-C too
        if isinstance(e, OSError):
            e.filename = e.filename or path
        if os.path.exists(unfinished):
            os.remove(unfinished)
        raise


def write_json(path, content):
    """Write indented JSON, whole or not at all; characters that UTF-8 cannot encode are escaped."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_whole(path, lambda f: f.write(text.encode(errors="backslashreplace")))


def read_json(path):
    """Raises OSError or ValueError."""
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def new_folder(parent, name):
    """Make parent/name, or parent/name-2, -3, ... if that exists; returns its path."""
    for number in itertools.count(1):
        path = os.path.join(parent, name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            os.makedirs(path)
            return path


def free_bytes(folder):
    """Free space on the disk of a folder; infinite where the disk does not say."""
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else math.inf


def check_writable(option, folder):
    """Make a folder if need be.

    Raises InputError that names the option if no file can be written there.
    """
    probe = os.path.join(folder, f".try{os.getpid()}")
    try:
        os.makedirs(folder, exist_ok=True)
        open(probe, "xb").close()
        os.remove(probe)
    except OSError as e:
        raise InputError(f"cannot write to --{option} {folder}: {e.strerror}; choose another "
                         "folder") from e


def check_new(option, path):
    """Raises InputError that names the option unless `path` is free and can be created."""
    parent = os.path.dirname(os.path.abspath(path))
    if not path:
        raise InputError(f"--{option} '': the name is empty")
    if os.path.lexists(path):
        raise InputError(f"--{option} {path}: exists already; choose another name, or remove it "
                         "first")
    if not os.path.isdir(parent):
        raise InputError(f"--{option} {path}: there is no folder {parent}; make it first, or "
                         "choose another name")
    check_writable(option, parent)


def quoted(path):
    """The path as an argument in a command that the program prints."""
    return subprocess.list2cmdline([path]) if os.name == "nt" else shlex.quote(path)


def here(name):
    """A file of this program as an argument in a command, for the folder where the user is."""
    path = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), name)
    try:
        return quoted(min(os.path.relpath(path), path, key=len))
    except ValueError:  # another drive of Windows
        return quoted(path)
