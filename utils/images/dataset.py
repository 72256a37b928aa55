"""A folder of images: every file checked and decoded once, the results kept on disk.

    images = load_images(settings)      # every file is used, or left out with a reason
    images.square(0)                    # uint8 RGB [S, S, 3], from which crops are taken
"""
import hashlib
import json
import os
import re
import zlib
from dataclasses import dataclass
from typing import Callable

import numpy as np

from utils import CORES
from utils.errors import InputError
from utils.files import here, quoted
from utils.images.cache import cached_squares
from utils.images.read import DECODERS, UnreadableImage, read_image
from utils.tables import composed, listed, printable
from utils.threads import progress
from utils.transforms import square_side, to_square

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif",
              ".jp2", ".avif", ".ppm", ".pgm", ".heic", ".heif", ".hif", ".jxl")
SYSTEM_NAMES = ("thumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin")
# Sub-folders of a data set that is split already: for training, validation, test
SPLIT = re.compile(r"(?:(?:images?|imgs?|data|set|split)[\W\d_]+)?[\W\d_]*(?:"
                   r"(train|training|训练)|(val|valid|validation|validate|dev|验证)|"
                   r"(test|testing|eval|evaluation|hold_?out|测试))[\W\d_]*"
                   r"(?:set|data|dataset|images?|imgs?|split|集)?[\W\d_]*", re.IGNORECASE)
CACHE_VERSION = 6  # raise it when squares are made differently, or other things are kept of them


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
    """Whether it is the name of a hidden file or of one that a system leaves in folders."""
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


def sub_folders(folder):
    """Names of the sub-folders, in order, without those of systems; none of what is no folder."""
    if not os.path.isdir(folder):
        return []
    return sorted(e.name for e in os.scandir(folder)
                  if os.path.isdir(e.path) and not is_system(e.name))


def find_categories(data_dir, wanted=(), exclude=()):
    """Names of the category folders: those `wanted`, or all in order, without those to `exclude`.

    Raises InputError, also where the sub-folders do not look like categories.
    """
    layout = (f"looked for {os.path.join(data_dir, '<category>', '<image>.jpg')} with one "
              "sub-folder per category, such as Harmful, Kitchen, Other, Recyclable; give another "
              "folder with --data_dir, or try the program on a drawn data set: "
              f"python {here('main.py')} --sample")
    if not os.path.isdir(data_dir):
        raise InputError(f"no images: there is no folder {data_dir}; {layout}")
    found = sub_folders(data_dir)
    on_disk = {composed(name): name for name in found}
    wanted, exclude = ([c if c in found else on_disk.get(composed(c), c) for c in names]
                       for names in (wanted, exclude))
    # the categories of a resumed run are known, and what it excluded may be gone
    option, names = ("categories", wanted) if wanted else ("exclude", exclude)
    missing = [c for c in names if c not in found]
    if missing:
        raise InputError(f"--{option} {' '.join(missing)}: no such sub-folder of {data_dir}, "
                         f"which has {listed(found)}")
    categories = [c for c in wanted or found if c not in exclude]
    if not wanted:
        _check_layout(data_dir, categories)
    if len(categories) < 2:
        left = ("" if categories == found else
                f", of which --categories and --exclude leave: {listed(categories)}")
        raise InputError(f"at least two categories are needed; sub-folders of {data_dir}: "
                         f"{listed(found)}{left}; {layout}")
    for c in categories:
        try:
            c.encode()
        except UnicodeEncodeError as e:  # VisualDL and the plots would fail after the training
            raise InputError(f"the folder name {c!r} in {data_dir} is not UTF-8; rename it") from e
    return categories


def _check_layout(data_dir, names):
    """Raises InputError if these sub-folders are a split of the images, or wrap the categories."""
    kinds = {name: match.lastindex for name in names if (match := SPLIT.fullmatch(name))}
    if len({*kinds.values()}) > 1:
        train = os.path.join(data_dir, min(kinds, key=kinds.get))
        inside = sub_folders(train)
        has = (f"which has the categories {listed(inside)}" if inside else
               "once its images are in one sub-folder per category")
        raise InputError(f"--data_dir {data_dir}: its sub-folders {listed([*kinds])} look like a "
                         "split of one data set, not like categories; name one of them, --data_dir "
                         f"{quoted(train)}, {has} (the program makes folds of its own; to use all "
                         "images, merge the sub-folders); if they are categories after all, name "
                         "them with --categories")
    below, inside = data_dir, names
    while len(inside) == 1:
        below = os.path.join(below, inside[0])
        inside = sub_folders(below)
    if below != data_dir and inside:
        only = printable(names[0])
        raise InputError(f"--data_dir {data_dir}: {only} would be the only category, "
                         f"below it are {listed(inside)}: if these are the categories, --data_dir "
                         f"{quoted(below)}")


def load_images(settings, threads=CORES):
    """Check and decode every file of settings.data_dir; returns Images.

    The squares are kept in settings.cache_dir, in a file named after the paths, sizes, times and
    file numbers of all files: if one of them changes, or two change places, the next run decodes
    all again. Several processes may call this at the same time: one decodes, the others wait.
    Raises InputError.
    """
    data_dir, side = settings.data_dir, square_side(settings.image_size)
    categories = find_categories(data_dir, settings.categories, settings.exclude)
    files, left_out = _list_categories(data_dir, categories)
    prints = [_fingerprint(data_dir, f) for f in progress(files, "listing files", unit="file")]
    stored = min(len(files), int(settings.cache_gb * 1e9 / (3 * side**2)))
    key = [CACHE_VERSION, DECODERS, os.path.abspath(data_dir), side, stored, files, prints]
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


def _fingerprint(data_dir, path):
    """What changes with a file's content: nobody can set st_ctime, the time of the last change.

    On Windows it is the time of creation, and only st_ino tells two files that changed places.
    """
    try:
        info = os.stat(os.path.join(data_dir, path))
        return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino
    except OSError:
        return None
