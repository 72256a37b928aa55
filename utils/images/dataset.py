"""A folder of images: every file checked and decoded once, the results kept on disk.

    images = load_images(settings)      # every file is used, or left out with a reason
    images.square(0)                    # uint8 RGB [S, S, 3], from which crops are taken
"""
import hashlib
import json
import os
import zlib
from dataclasses import dataclass
from typing import Callable

import cv2
import numpy as np

from utils import CORES
from utils.errors import InputError
from utils.images.cache import cached_squares
from utils.images.read import UnreadableImage, read_image
from utils.settings import composed
from utils.threads import progress
from utils.transforms import square_side, to_square

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif",
              ".jp2", ".avif", ".ppm", ".pgm", ".heic", ".heif")
SYSTEM_NAMES = ("thumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin")
CACHE_VERSION = 5  # raise it when squares are made differently, or other things are kept of them


@dataclass
class Images:
    """The usable images of a data set, and the files that are left out."""
    data_dir: str
    paths: list  # N strings, relative to data_dir, with '/' between folders
    labels: np.ndarray  # int64 [N], indices into `categories`
    categories: list
    left_out: list  # (path, reason) of every other file
    square: Callable  # square(i) -> uint8 RGB [S, S, 3], S = square_side(image_size)
    checksums: np.ndarray  # int64 [N], CRC-32 of each square
    cache: str = ""  # path of the stored squares, without .npy

    def __len__(self):
        return len(self.paths)

    def digest(self):
        """An int that changes with any path, category, label or checksum."""
        content = [self.paths, self.categories, self.labels.tolist(), self.checksums.tolist()]
        return zlib.crc32(json.dumps(content).encode())


def is_system(name):
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def list_files(folder, recursive=True):
    """Image files (by their extension) below a folder, and (path, reason) of what is left out.

    Paths are relative to `folder`, with '/' between folders.
    """
    files, left_out, folders = [], [], [""]
    while folders:  # not os.walk, which fails at a depth of 1000 folders before Python 3.12
        inside = folders.pop()
        try:
            entries = sorted(os.scandir(os.path.join(folder, inside)), key=lambda e: e.name)
        except OSError as e:
            left_out.append((inside.rstrip("/") or ".", e.strerror))
            continue
        below = []
        for entry in entries:
            path = inside + entry.name
            if is_system(entry.name):
                left_out.append((path, "hidden or system file"))
            elif entry.is_symlink() and os.path.isdir(entry.path):
                left_out.append((path, "a link to a folder"))
            elif entry.is_dir(follow_symlinks=False) and recursive:
                below.append(path + "/")
            elif entry.is_dir(follow_symlinks=False):
                left_out.append((path, "a folder"))
            elif os.path.splitext(entry.name)[1].lower() not in EXTENSIONS:
                left_out.append((path, "not an image file (by its extension)"))
            else:
                files.append(path)
        folders += reversed(below)
    return files, left_out


def find_categories(data_dir, wanted=()):
    """Names of the category folders: those `wanted`, or all in order. Raises InputError."""
    layout = (f"looked for {os.path.join(data_dir, '<category>', '<image>.jpg')} with one "
              "sub-folder per category, such as Harmful, Kitchen, Other, Recyclable; give another "
              "folder with --data_dir, or try the program on a drawn data set: "
              "python main.py --sample")
    if not os.path.isdir(data_dir):
        raise InputError(f"no images: there is no folder {data_dir}; {layout}")
    found = sorted(e.name for e in os.scandir(data_dir)
                   if os.path.isdir(e.path) and not is_system(e.name))
    on_disk = {composed(name): name for name in found}
    wanted = [c if c in found else on_disk.get(composed(c), c) for c in wanted]
    missing = [c for c in wanted if c not in found]
    if missing:
        raise InputError(f"--categories {' '.join(missing)}: no such sub-folder of {data_dir}, "
                         f"which has {' '.join(found) or 'none'}")
    categories = wanted or found
    if len(categories) < 2:
        raise InputError("at least two categories are needed, "
                         f"{data_dir} has {len(categories)}; {layout}")
    for c in categories:
        try:
            c.encode()
        except UnicodeEncodeError as e:  # VisualDL and the plots would fail after the training
            raise InputError(f"the folder name {c!r} in {data_dir} is not UTF-8; rename it") from e
    return categories


def load_images(settings, threads=CORES):
    """Check and decode every file of settings.data_dir; returns Images.

    The squares are kept in settings.cache_dir, in a file named after the paths, sizes and times of
    all files: if one of them changes, the next run decodes all again. Several processes may call
    this at the same time: one decodes, the others wait. Raises InputError.
    """
    data_dir, side = settings.data_dir, square_side(settings.image_size)
    categories = find_categories(data_dir, settings.categories)
    files, left_out = _list_categories(data_dir, categories)
    times = [_size_and_time(data_dir, f) for f in progress(files, "listing files", unit="file")]
    stored = min(len(files), int(settings.cache_gb * 1e9 / (3 * side**2)))
    key = [CACHE_VERSION, cv2.__version__, os.path.abspath(data_dir), side, stored, files, times]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    cache = os.path.join(settings.cache_dir, name)

    def decode(i):
        """(square of file i, None) or (black, the error)."""
        try:
            return to_square(read_image(os.path.join(data_dir, files[i])), side), None
        except UnreadableImage as e:
            return np.zeros((side, side, 3), np.uint8), e

    squares, outcomes = cached_squares(cache, decode, len(files), (stored, side, side, 3),
                                       settings.cache_gb * 1e9, threads)
    used = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, int)]
    left_out += [(f, outcome) for f, outcome in zip(files, outcomes) if isinstance(outcome, str)]
    if not used:
        some = "".join(f"; {path!r}: {reason}" for path, reason in sorted(left_out)[:3])
        raise InputError(f"no usable image in {data_dir}, {len(left_out)} files left out{some}")
    paths, checksums = [files[i] for i in used], np.array([outcomes[i] for i in used], np.int64)

    def square(i):
        if used[i] < stored:
            return squares[used[i]]
        now, error = decode(used[i])
        if error:
            raise InputError(f"{paths[i]!r} cannot be read any more: {error}") from error
        if zlib.crc32(now) != checksums[i]:  # every epoch must see the same image
            raise InputError(f"{paths[i]!r} has changed since the run began")
        return now
    number = {c: i for i, c in enumerate(categories)}
    labels = np.array([number[p.split("/")[0]] for p in paths], np.int64)
    return Images(data_dir, paths, labels, categories, sorted(left_out), square, checksums, cache)


def _list_categories(data_dir, categories):
    """list_files of all categories, with paths relative to data_dir; all else is left out."""
    files, left_out = [], []
    for category in categories:
        found, rest = list_files(os.path.join(data_dir, category))
        files += [f"{category}/{f}" for f in found]
        left_out += [(f"{category}/{f}", reason) for f, reason in rest]
    for entry in os.scandir(data_dir):
        if entry.name not in categories:
            left_out.append((entry.name, "hidden or system file" if is_system(entry.name) else
                             "not one of the categories" if os.path.isdir(entry.path) else
                             "not in a category folder"))
    return files, left_out


def _size_and_time(data_dir, path):
    try:
        info = os.stat(os.path.join(data_dir, path))
        return info.st_size, info.st_mtime_ns
    except OSError:
        return None
