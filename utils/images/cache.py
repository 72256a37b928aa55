"""Arrays on disk, and room for them: the cache of squares is a .npy file, and a .json file that
marks it as complete.

Several processes may share a cache folder: one at a time writes into it, the others wait and read.
"""
import contextlib
import glob
import math
import os
import re
import threading
import zlib

import filelock
import numpy as np

from utils.errors import InputError
from utils.files import free_bytes, read_json, write_json, write_whole
from utils.threads import prefetch, progress


class Rows:
    """The rows of a .npy file, such as squares, uint8 [S, S, 3], each read when it is asked for.

    Not a memory map: the pages read through one count as memory of the process (64,000 images at
    224 pixels: 13 GB).
    """

    def __init__(self, path):
        """Raises OSError or ValueError if there is no such file, or not the whole of it."""
        header = np.lib.format.open_memmap(path, mode="r")
        self.start, self.shape, self.dtype = header.offset, header.shape[1:], header.dtype
        self.size = math.prod(self.shape) * self.dtype.itemsize  # bytes
        # a running process keeps the open file even if another one deletes it
        self.file, self.lock = open(path, "rb"), threading.Lock()

    def __getitem__(self, i):
        size, start = self.size, self.start + i * self.size
        if hasattr(os, "pread"):  # lets threads read at the same time
            data = os.pread(self.file.fileno(), size, start)
        else:  # Windows
            with self.lock:
                self.file.seek(start)
                data = self.file.read(size)
        if len(data) < size:
            raise OSError(f"{self.file.name} was cut short during the run")
        return np.frombuffer(data, self.dtype).reshape(self.shape)


def made_once(cache_dir, read, make):
    """read(), or make() if that is None; one of the processes that share cache_dir makes it."""
    found = read()
    if found is not None:
        return found
    lock = filelock.FileLock(os.path.join(cache_dir, ".decoding.lock"))
    with contextlib.suppress(OSError):  # a folder that cannot be written: then none is made in it
        os.makedirs(cache_dir, exist_ok=True)
        try:
            lock.acquire(timeout=1)
        except filelock.Timeout:
            print(f"waiting for another process that prepares images in {cache_dir}")
            lock.acquire()
    try:
        found = read()
        return make() if found is None else found
    finally:
        lock.release()


def cached_squares(cache, decode, count, shape, limit, threads):
    """Squares from the files `cache`.npy and .json, made first if they are missing or outdated.

    decode(i) -> (square, None or UnreadableImage) for each of `count` files; the first shape[0]
    squares are stored, uint8 of `shape`. `limit`: bytes that all caches may take together.
    Returns (Rows, outcomes): of each file the CRC-32 of its square, or why it cannot be used.
    Raises InputError.
    """
    def read():
        try:
            about = read_json(cache + ".json")
            if all(decode(i)[1] for i in about["try_again"]):  # none can be read by now
                return Rows(cache + ".npy"), about["outcomes"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not made yet, or damaged

    def make():
        outcomes, try_again, cache_dir = [], [], os.path.dirname(cache)

        def write(file):
            about = dict(descr="|u1", fortran_order=False, shape=shape)
            np.lib.format.write_array_header_1_0(file, about)
            decoded = progress(prefetch(decode, range(count), threads), "checking images", count,
                               "file")
            for i, (square, error) in enumerate(decoded):
                if i < shape[0]:
                    file.write(square.data)
                outcomes.append(str(error) if error else zlib.crc32(square))
                if error and isinstance(error.__cause__, OSError):
                    try_again.append(i)  # no permission, or a disk or network that failed
        try:
            os.makedirs(cache_dir, exist_ok=True)
            make_room(cache_dir, math.prod(shape), limit, "the image cache",
                      "a smaller --cache_gb")
            with contextlib.suppress(FileNotFoundError):
                os.remove(cache + ".json")  # of squares that are gone or made again
            write_whole(cache + ".npy", write)
            write_json(cache + ".json", dict(outcomes=outcomes, try_again=try_again))
            return Rows(cache + ".npy"), outcomes
        except OSError as e:
            raise InputError(f"cannot write the image cache {cache_dir}: {e.strerror or e}; choose "
                             "another folder with --cache_dir, or a smaller --cache_gb") from e
    return made_once(os.path.dirname(cache), read, make)


def make_room(cache_dir, needed, limit, what, remedy, keep=(), spare=2**20):
    """Delete the oldest caches, and no other files, until `needed` bytes more are below `limit`
    and leave `spare` bytes of the disk free.

    Those in `keep`, paths, stay. Raises InputError, with `what` needs them and a `remedy`, if the
    disk is too small; then none is deleted.
    """
    own = re.compile("[0-9a-f]{24}[.]npy([.]tmp)?")
    entries = [e for e in os.scandir(cache_dir) if own.fullmatch(e.name)]
    for e in entries:
        if e.name.endswith(".tmp"):  # left by a killed run
            os.remove(e.path)
    caches = sorted((e.stat().st_mtime, e.stat().st_size, e.path) for e in entries
                    if e.name.endswith(".npy"))
    total, free = sum(size for _, size, _ in caches), free_bytes(cache_dir)
    limit = min(limit, free + total - spare)
    fits = needed + sum(size for _, size, path in caches if path in keep) <= limit
    for _, size, path in caches:
        if total + needed <= limit or not fits:
            break
        if path in keep:
            continue
        total -= size
        with contextlib.suppress(OSError):  # Windows refuses while a run has it open
            for file in glob.glob(glob.escape(path.removesuffix("npy")) + "*"):
                os.remove(file)
    free = free_bytes(cache_dir)
    if needed > free - spare:
        beside = f" beside {spare / 1e9:.0f} GB that should stay free," if spare > 1e9 else ""
        raise InputError(f"{what} needs {needed / 1e9:.2f} GB{beside} and {cache_dir} has "
                         f"{free / 1e9:.2f} GB free; choose another folder with --cache_dir, or "
                         f"{remedy}")
