"""From a folder of pictures to checked, cached, partitioned batches.

    pictures = load_pictures("data/sample", image_size=64)      # every file is used, or named with its reason
    parts = stratified_parts(pictures.labels, num_folds=5, seed=42)

A view depends on (seed, epoch, picture), an order on (seed, epoch, part), and neither on threads.
"""
import collections
import contextlib
import hashlib
import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Callable

import cv2
import filelock
import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from utils import runtime
from utils.checkpoint import write_whole
from utils.pictures import UnreadablePicture, read_picture
from utils.settings import InputError, composed
from utils.transforms import square_side, to_square

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jp2", ".avif",
              ".ppm", ".pgm", ".heic", ".heif")
SYSTEM_NAMES = ("thumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin")
NO_COPIES = "where pictures are taken for copies that are none, --copies exact"
CACHE_VERSION = 4  # raise it when a stored square is made differently

# Streams of random numbers: default_rng([seed, stream, ...]) never shares draws between them.
ORDER, VIEW, MIXUP, DROPOUT, HEAD = range(5)


@dataclass
class Pictures:
    """Usable pictures of a data set, and the files that are not."""
    data_dir: str
    paths: list       # N strings, relative to data_dir, '/' between folders
    labels: np.ndarray  # [N] int64, positions in `categories`
    categories: list
    left_out: list    # (path, reason) of every other file
    square: Callable  # square(i) -> uint8 RGB [S, S, 3], S = square_side(image_size)
    cache: str = ""   # the file of the stored squares, without .npy

    def __len__(self):
        return len(self.paths)


class Squares:
    """The uint8 [S, S, 3] squares of a .npy file, each read when asked for.

    Not a memory map of all: what it has read counts as memory of the process (64,000 pictures at 224 pixels: 13 GB).
    """

    def __init__(self, path):
        self.file, self.lock = open(path, "rb"), threading.Lock()  # a run that has it open keeps it, whoever deletes it
        np.lib.format.read_magic(self.file)
        (self.count, *self.shape), _, _ = np.lib.format.read_array_header_1_0(self.file)
        self.start, self.size = self.file.tell(), int(np.prod(self.shape))
        if os.path.getsize(path) != self.start + self.count * self.size:
            raise ValueError(f"{path} is not whole")

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        start = self.start + i * self.size
        if hasattr(os, "pread"):
            data = os.pread(self.file.fileno(), self.size, start)  # threads read side by side: a disk is faster so
        else:  # Windows
            with self.lock:
                self.file.seek(start)
                data = self.file.read(self.size)
        if len(data) < self.size:
            raise OSError(f"{self.file.name} was cut short while this run reads it")
        return np.frombuffer(data, np.uint8).reshape(self.shape)


def is_system(name):
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def walk(folder, recursive=True):
    """Sort the files below a folder into candidates and (path, reason) left out; paths relative, '/' inside."""
    candidates, left_out, pending = [], [], [""]
    while pending:  # not os.walk, which ends at a depth of a thousand folders
        inside = pending.pop()
        try:
            entries = sorted(os.scandir(os.path.join(folder, inside)), key=lambda e: e.name)
        except OSError as e:
            left_out.append((inside.rstrip("/") or ".", e.strerror))
            continue
        folders = []
        for entry in entries:
            path = inside + entry.name
            if is_system(entry.name):
                left_out.append((path, "hidden or system file"))
            elif entry.is_symlink() and os.path.isdir(entry.path):
                left_out.append((path, "a link to a folder"))
            elif entry.is_dir(follow_symlinks=False):
                if recursive:
                    folders.append(path + "/")
                else:
                    left_out.append((path, "a folder"))
            elif os.path.splitext(entry.name)[1].lower() not in EXTENSIONS:
                left_out.append((path, "not a picture file (by its extension)"))
            else:
                candidates.append(path)
        pending += reversed(folders)
    return candidates, left_out


def find_categories(data_dir, wanted=()):
    """Names of the category folders, in order. Raises InputError that says what was looked for."""
    layout = (f"looked for {os.path.join(data_dir, '<category>', '<picture>.jpg')} with one sub-folder per category, "
              "such as Harmful, Kitchen, Other, Recyclable; give another folder with --data_dir, "
              "or try the program on drawn pictures: python main.py --sample")
    if not os.path.isdir(data_dir):
        raise InputError(f"no pictures: there is no folder {data_dir}; {layout}")
    found = sorted(e.name for e in os.scandir(data_dir) if os.path.isdir(e.path) and not is_system(e.name))
    on_disk = {composed(name): name for name in found}
    wanted = [c if c in found else on_disk.get(composed(c), c) for c in wanted]
    missing = [c for c in wanted if c not in found]
    if missing:
        raise InputError(f"--categories {' '.join(missing)}: no such sub-folder of {data_dir}, which has "
                         f"{' '.join(found) or 'none'}")
    categories = wanted or found
    if len(categories) < 2:
        raise InputError(f"at least two categories are needed, {data_dir} has {len(categories)}; {layout}")
    for c in categories:
        try:
            c.encode()
        except UnicodeEncodeError as e:  # VisualDL and the plots would fail, when the training is over
            raise InputError(f"the folder name {c!r} in {data_dir} is not UTF-8; rename it") from e
    return categories


def load_pictures(data_dir, image_size, categories=(), cache_dir="data/cache", cache_gb=16.0, workers=runtime.CORES):
    """Check and decode every file of a data set once, and keep the squares on disk for this and later runs.

    The cache is a .npy file, named after the paths, sizes and times of the files: one changed file makes a new cache. A
    finished one changes only when a file can be read that could not be before. Raises InputError without usable categories.
    """
    categories = find_categories(data_dir, categories)
    candidates, left_out = [], []
    for category in categories:
        files, rest = walk(os.path.join(data_dir, category))
        candidates += [f"{category}/{f}" for f in files]
        left_out += [(f"{category}/{f}", reason) for f, reason in rest]
    for entry in sorted(os.scandir(data_dir), key=lambda e: e.name):
        if entry.name not in categories:
            reason = ("hidden or system file" if is_system(entry.name) else
                      "not one of the categories" if os.path.isdir(entry.path) else "not in a category folder")
            left_out.append((entry.name, reason))

    found = [_fingerprint(data_dir, c) for c in runtime.progress(candidates, "listing files", unit="file")]
    array, reasons, cache = _decode_all(data_dir, found, square_side(image_size), cache_dir, cache_gb, workers)
    rows = [i for i in range(len(candidates)) if i not in reasons]
    left_out += [(candidates[i], reasons[i]) for i in reasons]

    def square(i):
        row = rows[i]
        if row < len(array):
            return array[row]
        try:
            picture = read_picture(os.path.join(data_dir, candidates[row]))
        except UnreadablePicture as e:  # it could be read when the run began
            raise InputError(f"{candidates[row]!r} cannot be read any more: {e}") from e
        if _fingerprint(data_dir, candidates[row]) != found[row]:  # no epoch may see another picture than the others
            raise InputError(f"{candidates[row]!r} has changed since the run began")
        return to_square(picture, square_side(image_size))
    paths = [candidates[r] for r in rows]
    number = {c: i for i, c in enumerate(categories)}
    labels = np.array([number[p.split("/")[0]] for p in paths], np.int64)
    return Pictures(data_dir, paths, labels, categories, sorted(left_out), square, cache)


def _fingerprint(data_dir, path):
    """Path, size, time and readability of a file: if they differ, its picture may have changed, or it can be read now."""
    full = os.path.join(data_dir, path)
    try:
        info = os.stat(full)
        return [path, info.st_size, info.st_mtime_ns, os.access(full, os.R_OK)]
    except OSError as e:
        return [path, e.strerror]


def _decode_all(data_dir, found, side, cache_dir, cache_gb, workers):
    """Return (squares of the first M files, {number: why it is unusable}, cache without .npy); found: fingerprints."""
    candidates = [f[0] for f in found]
    stored = min(len(found), int(cache_gb * 1e9 / (3 * side**2)))
    key = json.dumps([CACHE_VERSION, cv2.__version__, os.path.abspath(data_dir), side, stored, found])
    name = os.path.join(cache_dir, hashlib.sha256(key.encode()).hexdigest()[:24])
    blank, reasons, try_again = np.zeros((side, side, 3), np.uint8), {}, []

    def cached():
        """None where there is none yet, it is damaged, or one more file can be read now."""
        try:
            with open(name + ".json", encoding="utf-8") as f:
                about = json.load(f)
            if any(decode(i)[1] is None for i in about["try_again"]):
                return None
            return Squares(name + ".npy"), {int(i): reason for i, reason in about["reasons"].items()}, name
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def decode(i):
        try:
            return to_square(read_picture(os.path.join(data_dir, candidates[i])), side), None
        except UnreadablePicture as e:
            return blank, e

    def write(file):
        np.lib.format.write_array_header_1_0(file, dict(descr="|u1", fortran_order=False, shape=(stored, *blank.shape)))
        outcomes = prefetch(decode, range(len(candidates)), workers)
        for i, (square, error) in enumerate(runtime.progress(outcomes, "checking pictures", len(candidates), "file")):
            if i < stored:
                file.write(square.data)
            if error:
                reasons[i] = str(error)
                if isinstance(error.__cause__, OSError) and found[i][-1] is True:
                    try_again.append(i)  # the system failed on a file that it calls readable: a disk or network for a moment
    made = cached()
    if made:
        return made
    try:
        os.makedirs(cache_dir, exist_ok=True)
        with _one_at_a_time(cache_dir):
            made = cached()
            if made:  # by another run, meanwhile
                return made
            _make_room(cache_dir, stored * blank.size, cache_gb * 1e9)
            if os.path.exists(name + ".json"):  # of an array that is gone, or is made again
                os.remove(name + ".json")
            write_whole(name + ".npy", write)
            about = json.dumps(dict(reasons=reasons, try_again=try_again)).encode()
            write_whole(name + ".json", lambda f: f.write(about))  # last: with it the cache counts as whole
            return Squares(name + ".npy"), reasons, name
    except OSError as e:
        raise InputError(f"cannot write the picture cache {cache_dir}: {e.strerror or e}; choose another place with "
                         "--cache_dir, or a smaller --cache_gb") from e


def _one_at_a_time(cache_dir):
    """The lock of the cache, held until the `with` ends; the system frees that of a killed process."""
    held = filelock.FileLock(os.path.join(cache_dir, ".decoding.lock"))  # not the name of a run's: both may share a folder
    try:
        return held.acquire(timeout=1)
    except filelock.Timeout:
        print(f"waits for another run that decodes pictures into {cache_dir}")
        return held.acquire()


def _make_room(cache_dir, needed, limit):
    """Drop the oldest caches (no other files) until `needed` bytes more stay below `limit`, and what killed runs left.

    Raises InputError if the disk is too small.
    """
    for e in os.scandir(cache_dir):
        if re.fullmatch(r"[0-9a-f]{24}\.npy\.tmp", e.name):
            os.remove(e.path)
    caches = sorted((e for e in os.scandir(cache_dir) if re.fullmatch(r"[0-9a-f]{24}\.npy", e.name)),
                    key=lambda e: e.stat().st_mtime)
    total = sum(e.stat().st_size for e in caches)
    for e in caches:
        if total + needed <= limit:
            break
        total -= e.stat().st_size
        with contextlib.suppress(OSError):  # a run that has it open keeps it; Windows refuses
            os.remove(e.path)
            for extension in (".json", ".copies"):
                with contextlib.suppress(FileNotFoundError):
                    os.remove(e.path.removesuffix(".npy") + extension)
    free = runtime.room(cache_dir)
    if needed > free - 2**20:
        raise InputError(f"the picture cache needs {needed / 1e9:.2f} GB and {cache_dir} has {free / 1e9:.2f} GB free; "
                         "choose another place with --cache_dir, or a smaller --cache_gb")


def stratified_parts(labels, num_folds, seed, categories=None, groups=None):
    """Cut pictures into `num_folds` parts with the same mix of categories; returns the part of each, int64 [N].

    Student k trains on every part but part k, and is validated on part k. Pictures with the same number in `groups`,
    int [N], stay in one part. Raises InputError if a category has fewer groups (without groups: pictures) than there
    are parts, or is missing from a part since its groups are too large.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    grouped = len(np.unique(groups)) < len(groups)
    names = categories or range(labels.max() + 1)
    counts = [len(np.unique(groups[labels == c])) for c in range(len(names))]
    few = [f"{name} ({n})" for name, n in zip(names, counts) if n < num_folds]
    if few:
        what = "pictures, copies and groups counted once," if grouped else "pictures"
        raise InputError(f"too few {what} for {num_folds} folds in {', '.join(few)}: every category needs one per "
                         "fold; add pictures, lower --num_folds, or name the other categories with --categories"
                         + (f"; {NO_COPIES}" if grouped else ""))
    parts = np.empty(len(labels), np.int64)
    splitter = (StratifiedGroupKFold if grouped else StratifiedKFold)(num_folds, shuffle=True, random_state=seed)
    for k, (_, validation) in enumerate(splitter.split(labels, labels, groups if grouped else None)):
        parts[validation] = k
    missing = [f"{name} (part {k})" for c, name in enumerate(names) for k in range(num_folds)
               if not (labels[parts == k] == c).any()]
    if missing:
        raise InputError(f"groups too large for {num_folds} folds: a part is left without {', '.join(missing)}; add "
                         f"pictures, lower --num_folds, or split the groups of --groups; {NO_COPIES}")
    return parts


def epoch_order(parts, needed, per_part, seed, epoch):
    """The pictures of every step of an epoch: int64 [steps, len(needed) * per_part], columns by part.

    A step takes `per_part` pictures from each part in `needed`. Each part is shuffled by (seed, epoch, part); one
    that runs out before the largest begins again, so that every batch has the same size (BatchNorm).
    """
    steps = -(-int(np.bincount(parts).max()) // per_part)
    columns = []
    for p in needed:
        order = np.random.default_rng([seed, ORDER, epoch, p]).permutation(np.flatnonzero(parts == p))
        columns.append(np.resize(order, (steps, per_part)))
    return np.concatenate(columns, 1)


def prefetch(make, jobs, workers, ahead=2):
    """Yield make(job) for each job, in order, made by a pool of threads up to workers + ahead jobs early.

    Threads, since cv2 releases the interpreter and Paddle's worker processes deadlock. What a job raises is
    raised here.
    """
    pool = ThreadPoolExecutor(workers)
    try:
        pending = collections.deque()
        for job in jobs:
            pending.append(pool.submit(make, job))
            if len(pending) > workers + ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
