"""Copies of a picture, and pictures that the user knows to belong together, are grouped; a group stays in one part.

    python main.py --data_dir DIR --groups groups.csv       # columns path,group; copies are found in any case

A copy is the same picture re-encoded, resized, brightened, cropped by a few per cent, turned by 90 degrees or mirrored.
Found in two steps: which pictures look alike at 8x8 pixels, then whether their details agree at 64x64, at every place.
The second step decides: plain tables and lighting alone make pictures of different objects look alike at first glance.

The first step takes one product of 64 numbers per pair of pictures (invariant), and correlations in all eight
orientations for the few that it leaves: benchmarks/scaling.py has its times. At worst, one background in all pictures,
the second takes 25 ms per picture on an AMD EPYC: NEIGHBOURS bounds it.
"""
import csv
import functools
import hashlib
import io
import json
from pathlib import PurePosixPath

import cv2
import numpy as np
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from utils import runtime
from utils.checkpoint import write_whole
from utils.data_utils import prefetch
from utils.settings import InputError, composed
from utils.tables import guarded

ALIKE = 0.95     # least correlation at 8x8 pixels
AGREE = 0.78     # least agreement of details, at the worst place; on TrashNet no other pair reaches 0.70
FLAT = 1.0       # details that deviate less, in grey levels of 255, are noise: only an identical picture is a copy
NEIGHBOURS = 20  # look-alikes of a picture that are compared in detail: one background in all pictures makes N of them
ROWS = 64        # of the table of correlations at a time: ROWS * N * 16 bytes per thread
VERSION = 1      # raise it when other pairs are found

SYMMETRIES = [(turns, mirror) for mirror in (False, True) for turns in range(4)]


def symmetric(a, turns, mirror, axes=(0, 1)):
    """Turn [S, S, ...] by 90 degrees `turns` times, mirrored first or not; axes: those of its rows and columns."""
    return np.ascontiguousarray(np.rot90(np.flip(a, axes[1]) if mirror else a, turns, axes))


def details(square):
    """What is left of a uint8 square at 64x64 pixels without its lighting: float32 [64, 64, 3], in grey levels."""
    small = cv2.resize(np.ascontiguousarray(square), (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32)
    return small - cv2.GaussianBlur(small, (0, 0), 4, borderType=cv2.BORDER_REFLECT)


def agreement(a, b):
    """How well details `b`, shrunk by up to 6 % and shifted by up to 2 pixels, agree with details `a`; 1 is perfect.

    It is the agreement at the worst place: two objects on one table agree everywhere but where they lie.
    """
    grey, best = a.sum(2), -1.0  # the place is found in grey, at a third of the cost
    for side in (64, 62, 60):
        edge = (side - 60) // 2
        patch = cv2.resize(b, (side, side))[edge:edge + 60, edge:edge + 60]
        _, value, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(grey, patch.sum(2), cv2.TM_CCOEFF_NORMED))
        if value > best:
            best, pair = value, (a[y:y + 60, x:x + 60], patch)
        if best < 0.4:  # most pairs, at a third of the cost
            return best
    strength = [np.linalg.norm(p) for p in pair]
    if max(strength) >= 1.5 * min(strength):  # a red and a pale red disc, say, or nothing
        return -1.0
    there, here = (p / s for p, s in zip(pair, strength))
    difference, both = (cv2.blur(p.sum(2), (14, 14)) for p in ((there - here)**2, there**2 + here**2))
    return 1 - (difference / (both + both.mean())).max()


def invariant(rough):
    """float32 [N, 8, 8] -> [N, 64] of the same norms: products are at least the correlation in every orientation.

    Turned or mirrored, the coefficients (u, v) and (v, u) of the cosine transform change places or signs, no more; so
    absolute values, or those of sum and difference, or the larger and the smaller one, can only come to more. The sum
    stays as it is where both u and v are even: it never changes.
    """
    coefficients = dctn(rough, axes=(1, 2), norm="ortho")
    u, v = np.triu_indices(8)
    a, b = coefficients[:, u, v], coefficients[:, v, u]
    total = np.where(u == v, a, (a + b) / 2**0.5)
    total, difference = np.where(u % 2, abs(total), total), abs(a - b) / 2**0.5
    a, b, mixed = abs(a), abs(b), (u + v) % 2 == 1
    return np.concatenate([np.where(mixed, np.maximum(a, b), total),
                           np.where(mixed, np.minimum(a, b), difference)[:, u != v]], 1).astype(np.float32)


def look_alikes(rough, workers=runtime.CORES):
    """Pairs (i, j), i < j, sorted, of rows of float32 [N, 8, 8], each of norm 1 or 0, that correlate by ALIKE or more.

    In one of the orientations; of each row its NEIGHBOURS nearest.
    """
    n, bounds, flat = len(rough), invariant(rough), rough.reshape(-1, 64)
    turned = [symmetric(rough, *s, axes=(1, 2)).reshape(-1, 64) for s in SYMMETRIES]

    def alike(start):
        rows = slice(start, start + ROWS)
        few = np.flatnonzero((bounds[rows] @ bounds.T).max(0) >= ALIKE - 1e-4)  # 1e-4: rounding
        if not len(few):  # blank pictures
            return np.empty((0, 2), np.int64)
        table = flat[rows] @ turned[0][few].T
        for t in turned[1:]:
            np.maximum(table, flat[rows] @ t[few].T, out=table)
        table[few == np.arange(n)[rows, None]] = 0
        near = np.argpartition(table, -min(NEIGHBOURS, len(few)), 1)[:, -min(NEIGHBOURS, len(few)):]
        i, column = np.nonzero(np.take_along_axis(table, near, 1) >= ALIKE)
        return np.sort(np.c_[i + start, few[near[i, column]]], 1)
    starts = range(0, n, ROWS)
    tables = runtime.progress(prefetch(alike, starts, workers), "comparing pictures", len(starts))
    return np.unique(np.concatenate(list(tables)), axis=0)


def known_copies(pictures, workers=runtime.CORES, near=True):
    """What find_copies finds, kept beside the cache of the pictures for the next run on the same pictures."""
    key = [VERSION, ALIKE, AGREE, FLAT, NEIGHBOURS, near, pictures.paths]
    key = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    path = pictures.cache + ".copies"
    try:
        with open(path, encoding="utf-8") as f:
            known = json.load(f)
        if known["key"] == key:
            return np.array(known["pairs"], np.int64).reshape(-1, 2)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there yet, or damaged
    pairs = find_copies(pictures, workers, near)
    try:
        write_whole(path, lambda f: f.write(json.dumps(dict(key=key, pairs=pairs.tolist())).encode()))
    except OSError:
        pass  # the next run looks again
    return pairs


def find_copies(pictures, workers=runtime.CORES, near=True):
    """Pairs of positions (i, j), i < j, of pictures that are copies of one another, sorted; int64 [P, 2].

    Unless `near`, only identical ones (as stored squares). Of a series of identical pictures the first stands for all. The
    pairs depend on neither `workers` nor the order of the pictures.
    """
    n = len(pictures)

    def look(i):
        square = np.ascontiguousarray(pictures.square(i))
        if not near:
            return hashlib.sha256(square).digest(), None, False
        fine = details(square)
        rough = cv2.resize(cv2.cvtColor(square, cv2.COLOR_RGB2GRAY), (8, 8), interpolation=cv2.INTER_AREA)
        return hashlib.sha256(square).digest(), rough.astype(np.float32) - rough.mean(), fine.std() >= FLAT
    first, pairs, rough = {}, [], np.zeros((n, 8, 8), np.float32)
    looks = prefetch(look, range(n), workers)
    for i, (content, picture, detailed) in enumerate(runtime.progress(looks, "looking for copies", n, "picture")):
        if first.setdefault(content, i) < i:
            pairs.append((first[content], i))
        elif detailed:
            rough[i] = picture / max(np.linalg.norm(picture), 1e-9)

    candidates = look_alikes(rough, workers) if near else ()
    detail = functools.lru_cache(1024)(lambda i: details(pictures.square(i)))  # 50 MB

    def same(pair):
        i, j = pair
        for s in SYMMETRIES:
            if symmetric(rough[j], *s).ravel() @ rough[i].ravel() >= ALIKE:
                a, b = detail(i), symmetric(detail(j), *s)
                if max(agreement(a, b), agreement(b, a)) >= AGREE:
                    return True
        return False
    answers = runtime.progress(prefetch(same, candidates, workers), "confirming copies", len(candidates), "pair")
    pairs += [tuple(pair) for pair, yes in zip(candidates, answers) if yes]
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def read_groups(path, pictures):
    """Pairs of positions (first of its group, another), int64 [P, 2], from a CSV file with columns path and group.

    No file, '', has none. Paths are relative to data_dir with '/', as in folds.csv; other columns are ignored, and so
    are pictures that this run leaves out. Raises InputError with the file and line of whatever cannot be used.
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
        raise InputError(f"--groups {path}, line {data[:e.start].count(10) + 1}: not UTF-8 text; save the file as "
                         "CSV UTF-8") from e
    number = {p: i for i, p in enumerate(pictures.paths)}
    number |= {guarded(p): i for p, i in number.items()}  # as folds.csv has them
    left_out = {p for p, _ in pictures.left_out}
    on_disk = {composed(p): p for p in (*left_out, *number)}
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    groups, first, pairs = {}, {}, []
    try:
        if not {"path", "group"} <= set(rows.fieldnames or ()):
            raise InputError(f"--groups {path}, line 1: the header must name the columns path,group")
        for row in rows:
            picture, group = row["path"], (row["group"] or "").strip()  # a blank too many would make another group
            if picture not in number:
                picture = on_disk.get(composed(picture), picture)
            where = f"--groups {path}, line {rows.line_num}"
            if not picture or not group:
                raise InputError(f"{where}: a path and a group are needed; leave pictures without a group out")
            if groups.setdefault(picture, group) != group:
                raise InputError(f"{where}: {picture} is in group {groups[picture]} already, and here in {group}; "
                                 "keep one of the lines")
            if picture in number:
                i = number[picture]
                if first.setdefault(group, i) != i:
                    pairs.append((first[group], i))
            elif not left_out & {picture, *map(str, PurePosixPath(picture).parents)}:
                raise InputError(f"{where}: no picture {picture} in {pictures.data_dir}; paths are relative to it, "
                                 "such as " + pictures.paths[0])
    except csv.Error as e:
        raise InputError(f"--groups {path}, after line {rows.line_num}: {e}; is a quotation mark unpaired?") from e
    return np.array(pairs, np.int64).reshape(-1, 2)


def group_pictures(n, pairs):
    """Group of each of n pictures, int64 [n], numbered by first appearance: whatever pairs connect is one group."""
    i, j = pairs.T
    graph = coo_array((np.ones(len(i), bool), (i, j)), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def too_large(groups, labels, num_folds):
    """(pictures, of how many of their category) of the largest share of a category that has to stay in one part, if that
    is more than a part should get; else None."""
    shares = [(np.bincount(groups[labels == c]).max(), (labels == c).sum()) for c in np.unique(labels)]
    largest, total = max(shares, key=lambda s: s[0] / s[1])
    return (int(largest), int(total)) if largest > 1 and largest > 1.2 * total / num_folds else None


def copy_rows(pictures, groups):
    """(group, path, label, whether labels differ) of every picture in a group of more than one, by group."""
    members = {}
    for i, g in enumerate(groups):
        members.setdefault(g, []).append(i)
    return [(g, pictures.paths[i], pictures.categories[pictures.labels[i]],
             "yes" if np.ptp(pictures.labels[rows]) else "no")
            for g, rows in members.items() if len(rows) > 1 for i in rows]
