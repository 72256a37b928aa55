"""Duplicates, and images that the user says belong together, form groups; no group is split.

    python main.py --data_dir DIR --groups groups.csv       # columns path,group

A duplicate is the same image re-encoded, resized, brightened, cropped by a few per cent, turned by
90 degrees or mirrored. They are found in two steps: which images look alike at 8x8 pixels, then
whether their details agree at 64x64, everywhere in the image. The second step decides: a plain
table and the same light make images of different objects look alike at 8x8.

The first step takes one product of 64 numbers for each pair of images (invariant), and correlations
in all eight orientations for the few that are left; benchmarks/scaling.py measures it. The second
one takes at worst, if all images have the same background, 25 ms per image on an AMD EPYC:
NEIGHBORS limits it.
"""
import collections
import contextlib
import csv
import functools
import hashlib
import io
import os
from pathlib import PurePosixPath

import cv2
import numpy as np
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from utils import CORES
from utils.errors import InputError
from utils.files import read_json, write_json
from utils.images.cache import made_once
from utils.tables import composed, unguarded
from utils.threads import prefetch, progress

ALIKE = 0.95     # least correlation at 8x8 pixels
AGREE = 0.78     # least agreement of details; on TrashNet no other pair reaches 0.70
FLAT = 1.0       # details of less deviation, in gray levels of 255, are noise: exact ones only
NEIGHBORS = 20   # look-alikes compared with an image: without a limit, N on one background
ROWS = 64        # rows of the correlation table at a time: ROWS * N * 16 bytes per thread
VERSION = 2      # raise it when a change of this file finds other pairs

ORIENTATIONS = [(turns, mirror) for mirror in (False, True) for turns in range(4)]


def orient(a, turns, mirror, axes=(0, 1)):
    """Mirror [S, S, ...] or not, then turn it by 90 degrees `turns` times; axes: rows, columns."""
    mirrored = np.flip(a, axes[1]) if mirror else a
    return np.ascontiguousarray(np.rot90(mirrored, turns, axes))


def details(square):
    """A uint8 square at 64x64 pixels without its lighting: float32 [64, 64, 3], in gray levels."""
    small = cv2.resize(np.ascontiguousarray(square), (64, 64), interpolation=cv2.INTER_AREA)
    small = small.astype(np.float32)
    return small - cv2.GaussianBlur(small, (0, 0), 4, borderType=cv2.BORDER_REFLECT)


def agreement(a, b):
    """How well details `b`, shrunk by up to 6 % and shifted by up to 2 pixels, agree with `a`.

    1 is perfect. It is measured where the two differ most: two objects photographed on the same
    table agree everywhere else.
    """
    gray, best = a.sum(2), -1.0  # gray is enough to find the place, at a third of the cost
    for side in (64, 62, 60):
        edge = (side - 60) // 2
        patch = cv2.resize(b, (side, side))[edge:edge + 60, edge:edge + 60]
        match = cv2.matchTemplate(gray, patch.sum(2), cv2.TM_CCOEFF_NORMED)
        _, value, _, (x, y) = cv2.minMaxLoc(match)
        if value > best:
            best, pair = value, (a[y:y + 60, x:x + 60], patch)
        if best < 0.4:  # most pairs end here, at a third of the cost
            return best
    norms = [np.linalg.norm(p) for p in pair]
    if max(norms) >= 1.5 * min(norms):  # a red and a pale red disc, or a disc and nothing
        return -1.0
    a, b = (p / norm for p, norm in zip(pair, norms))
    difference, both = (cv2.blur(p.sum(2), (14, 14)) for p in ((a - b)**2, a**2 + b**2))
    return 1 - (difference / (both + both.mean())).max()


def invariant(rough):
    """float32 [N, 8, 8] -> [N, 64], whose products are upper bounds of the correlations in all
    eight orientations; norms stay.

    Turning or mirroring an image only swaps the coefficients (u, v) and (v, u) of its cosine
    transform or changes their signs. So absolute values, those of sum and difference, or the
    larger and the smaller of the two give at least as much. Where u and v are even the sum stays
    as it is, since it never changes.
    """
    coefficients = dctn(rough, axes=(1, 2), norm="ortho")
    u, v = np.triu_indices(8)
    a, b = coefficients[:, u, v], coefficients[:, v, u]
    total = np.where(u == v, a, (a + b) / 2**0.5)
    total, difference = np.where(u % 2, abs(total), total), abs(a - b) / 2**0.5
    a, b, mixed = abs(a), abs(b), (u + v) % 2 == 1
    first = np.where(mixed, np.maximum(a, b), total)
    second = np.where(mixed, np.minimum(a, b), difference)[:, u != v]
    return np.concatenate([first, second], 1).astype(np.float32)


def look_alikes(rough, threads=CORES):
    """Pairs (i, j), i < j, of images that correlate by at least ALIKE in one of the orientations.

    rough: float32 [N, 8, 8], each of norm 1 or 0. Of each image the NEIGHBORS nearest count.
    Returns int64 [P, 2], sorted.
    """
    n, bounds, flat = len(rough), invariant(rough), rough.reshape(-1, 64)
    turned = [orient(rough, *o, axes=(1, 2)).reshape(-1, 64) for o in ORIENTATIONS]

    def compare(start):
        rows = slice(start, start + ROWS)
        columns = np.flatnonzero((bounds[rows] @ bounds.T).max(0) >= ALIKE - 1e-4)  # rounding
        if not len(columns):  # blank images
            return np.empty((0, 2), np.int64)
        table = flat[rows] @ turned[0][columns].T
        for t in turned[1:]:
            np.maximum(table, flat[rows] @ t[columns].T, out=table)
        table[columns == np.arange(n)[rows, None]] = 0
        count = min(NEIGHBORS, len(columns))
        nearest = np.argpartition(table, -count, 1)[:, -count:]
        i, k = np.nonzero(np.take_along_axis(table, nearest, 1) >= ALIKE)
        return np.sort(np.c_[i + start, columns[nearest[i, k]]], 1)
    starts = range(0, n, ROWS)
    pairs = progress(prefetch(compare, starts, threads), "comparing images", len(starts))
    return np.unique(np.concatenate(list(pairs)), axis=0)


def find_groups(images, settings, threads=CORES):
    """Groups of images that must stay in one fold, int64 [N]: duplicates, and --groups."""
    found = find_duplicates(images, threads, settings.duplicates == "near")
    given = read_groups(settings.groups, images)
    return group_images(len(images), np.concatenate([found, given]))


def find_duplicates(images, threads=CORES, near=True):
    """Pairs of rows (i, j), i < j, of images that are duplicates, sorted; int64 [P, 2].

    Unless `near`, only those with identical squares. Of several identical images the first is
    paired with each of the others. The pairs depend on neither `threads` nor the order of the
    images. They are kept beside the image cache for the next run, and for the other processes.
    """
    path, key = f"{images.cache}.duplicates.json", [VERSION, near, images.digest()]

    def read():
        try:
            known = read_json(path)
            if known["key"] == key:
                return np.array(known["pairs"], np.int64).reshape(-1, 2)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not made yet, or damaged

    def make():
        pairs = exact_duplicates(images, threads)
        pairs = sorted(pairs + near_duplicates(images, pairs, threads) if near else pairs)
        with contextlib.suppress(OSError):  # then the next run looks again
            write_json(path, dict(key=key, pairs=pairs))
        return np.array(pairs, np.int64).reshape(-1, 2)
    return made_once(os.path.dirname(images.cache), read, make)


def exact_duplicates(images, threads=CORES):
    """Pairs (first, another) of rows with identical squares: list of (int, int)."""
    checksums = images.checksums.tolist()
    counts = collections.Counter(checksums)
    shared = [i for i, c in enumerate(checksums) if counts[c] > 1]

    def content(i):
        return hashlib.sha256(np.ascontiguousarray(images.square(i))).digest()
    contents = prefetch(content, shared, threads)
    first, pairs = {}, []
    for i, c in zip(shared, progress(contents, "exact duplicates", len(shared), "image")):
        if first.setdefault(c, i) < i:
            pairs.append((first[c], i))
    return pairs


def near_duplicates(images, exact, threads=CORES):
    """Pairs (i, j), i < j, of rows whose images look alike and agree in detail: list of (int, int).

    The second ones of the pairs `exact` are not compared: the first stands for them.
    """
    n, repeated = len(images), {j for _, j in exact}
    rough = np.zeros((n, 8, 8), np.float32)

    def look(i):
        if i in repeated:
            return 0
        square = np.ascontiguousarray(images.square(i))
        gray = cv2.cvtColor(square, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(gray, (8, 8), interpolation=cv2.INTER_AREA)
        small = small.astype(np.float32) - small.mean()
        return small / max(np.linalg.norm(small), 1e-9) if details(square).std() >= FLAT else 0
    looks = prefetch(look, range(n), threads)
    for i, small in enumerate(progress(looks, "near duplicates", n, "image")):
        rough[i] = small
    candidates = look_alikes(rough, threads)
    detail = functools.lru_cache(1024)(lambda i: details(images.square(i)))  # 50 MB

    def same(pair):
        i, j = pair
        for o in ORIENTATIONS:
            if orient(rough[j], *o).ravel() @ rough[i].ravel() >= ALIKE:
                a, b = detail(i), orient(detail(j), *o)
                if max(agreement(a, b), agreement(b, a)) >= AGREE:
                    return True
        return False
    answers = progress(prefetch(same, candidates, threads), "confirming", len(candidates), "pair")
    return [tuple(pair) for pair, yes in zip(candidates.tolist(), answers) if yes]


def read_groups(path, images):
    """Read a CSV file with the columns path and group; '' means no file and no groups.

    Columns may be separated by commas, semicolons or tabs, and named Path and Group. Paths are
    relative to data_dir with '/', as in folds.csv; other columns are ignored, and so are images
    that this run leaves out. Returns pairs of rows (first of its group, another), int64
    [P, 2]. Raises InputError that names the line which cannot be used.
    """
    if not path:
        return np.empty((0, 2), np.int64)
    try:
        with open(path, "rb") as f:
            data = f.read()
        text = data.decode("utf-8-sig")  # Excel writes a byte order mark
    except OSError as e:
        raise InputError(f"--groups {path}: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        line = data[:e.start].count(10) + 1
        raise InputError(f"--groups {path}, line {line}: not UTF-8 text; save the file as CSV "
                         "UTF-8") from e
    row_of = {p: i for i, p in enumerate(images.paths)}
    left_out = {p for p, _ in images.left_out}
    on_disk = {composed(p): p for p in (*left_out, *row_of)}
    groups, first, pairs, lines = {}, {}, [], None
    try:
        # Excel writes semicolons where the comma is the decimal point
        for delimiter in ",;\t":
            header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
            if {"path", "group"} <= {name.strip().lower() for name in header}:
                break
        else:
            raise InputError(f"--groups {path}, line 1: the header must have the columns path and "
                             "group, separated by a comma, a semicolon or a tab")
        lines = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
        lines.fieldnames = [name.strip().lower() for name in lines.fieldnames]
        for line in lines:
            where = f"--groups {path}, line {lines.line_num}"
            image, group = line["path"] or "", (line["group"] or "").strip()
            if image not in row_of:
                image = composed(unguarded(image))  # as folds.csv has it
                image = on_disk.get(image, image)
            if not image or not group:
                raise InputError(f"{where}: a path and a group are needed; leave out images "
                                 "without a group")
            if groups.setdefault(image, group) != group:
                raise InputError(f"{where}: {image} is in group {groups[image]} already, and here "
                                 f"in {group}; keep one of the lines")
            if image in row_of:
                i = row_of[image]
                if first.setdefault(group, i) != i:
                    pairs.append((first[group], i))
            elif not left_out & {image, *map(str, PurePosixPath(image).parents)}:
                raise InputError(f"{where}: no image {image} in {images.data_dir}; paths are "
                                 f"relative to it, such as {images.paths[0]}")
    except csv.Error as e:
        line = lines.line_num if lines else 0
        raise InputError(f"--groups {path}, after line {line}: {e}; is a quotation mark "
                         "unpaired?") from e
    return np.array(pairs, np.int64).reshape(-1, 2)


def group_images(n, pairs):
    """Groups, int64 [n], numbered by first appearance: whatever pairs connect is one group."""
    i, j = pairs.T
    graph = coo_array((np.ones(len(i), bool), (i, j)), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def oversized_group(groups, labels, num_folds):
    """(images of the group, images of its category) if a group has more of a category than a fold
    should get; of several the largest; else None."""
    shares = [(np.bincount(groups[labels == c]).max(), (labels == c).sum())
              for c in np.unique(labels)]
    largest, total = max(shares, key=lambda s: s[0] / s[1])
    too_large = largest > 1 and largest > 1.2 * total / num_folds
    return (int(largest), int(total)) if too_large else None


def duplicate_rows(images, groups):
    """(group, path, label, 'yes' if labels differ else 'no') of all images that share a group."""
    members = collections.defaultdict(list)
    for i, g in enumerate(groups):
        members[g].append(i)
    return [(g, images.paths[i], images.categories[images.labels[i]],
             "yes" if np.ptp(images.labels[rows]) else "no")
            for g, rows in members.items() if len(rows) > 1 for i in rows]
