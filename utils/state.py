"""The state of a run, kept while it trains, so that it can go on after any stop as if there had been none.

    python main.py --resume                          # goes on with the newest run in --log_dir that has not ended
    python main.py --resume logs/20260101-120000     # or with this one

A state is `state-<epoch>-<step>.npz` in the folder of the run: every student, its optimizer and its scores after that
step; `start.npz` holds what never changes: parts, heads, pictures. No random state is needed: order, views, mixup and
dropout depend on (seed, epoch, picture or step). Both are plain arrays, read without running code, and an .npz carries
a checksum of each array: a damaged state is noticed, and the one before it is used.

A state has the network twice (now, and at its best epoch) and Adam's two moments of all that learns; two are kept.
"""
import glob
import json
import os
import time
import zipfile
import zlib

import numpy as np
import paddle

from models.teacher_model import Head
from utils import runtime
from utils.checkpoint import arrays_of, load_into, write_whole
from utils.data_utils import prefetch
from utils.parallel import team
from utils.process import Stopped, quoted, stops
from utils.settings import InputError

SCORES = ("history", "best_accuracy", "best_epoch", "failed")  # of a fold: what is no array
SECONDS = 60  # an epoch that ends sooner after the last save is not saved: short epochs would write all the time


class Checkpointer:
    """Saves the state of a run in training, and ends the run between two steps if a signal asked for it.

    Raises InputError at once where the disk is too small for two states.
    """

    def __init__(self, folder, folds, minutes):
        self.folder, self.folds, self.minutes, self.saved = folder, folds, minutes, time.monotonic()
        self.whole = None  # the newest state that is known to be whole
        self.advice = f"to go on: python main.py --resume {quoted(folder)}"
        numbers = sum(v.size for f in folds for layer in (f.student, f.regressor) if layer
                      for v in layer.state_dict().values())
        answers = sum(f.settings.num_epochs * len(f.pictures) * len(f.class_weights) for f in folds)  # of all epochs
        needed = 2 * 4 * (4 * numbers + answers)  # two states; float32; weight, two moments, best weight
        free = runtime.room(folder) + sum(map(os.path.getsize, _states(folder)))
        if needed > free:
            raise InputError(f"the state of this run takes {needed / 1e9:.2f} GB and {folder} has {free / 1e9:.2f} GB "
                             "free; make room, choose another place with --log_dir, or lower --num_epochs")

    def __enter__(self):
        stops.training = True
        return self

    def __exit__(self, kind, *_):
        stops.training = False
        if stops.asked and not kind:
            raise Stopped(stops.asked)

    def after_step(self, epoch, step):
        """`step` steps of the epoch (both counted from 0) are done. Raises Stopped, saved, if a stop was asked for."""
        if team.any(stops.asked or time.monotonic() - self.saved >= 60 * self.minutes):
            self.save(epoch, step)

    def after_epoch(self, epoch):
        """Epoch `epoch` (counted from 1) is over, weights and scores are written."""
        team.barrier()  # a slow disk may have taken longer than Paddle lets the others wait in any()
        if team.any(stops.asked or time.monotonic() - self.saved >= min(SECONDS, 60 * self.minutes)):
            self.save(epoch, 0)

    def save(self, epoch, step):
        """Write a state, unless this point has one; the one before it is kept, all others go. Raises Stopped if asked."""
        path = os.path.join(self.folder, f"state-{epoch:06}-{step:09}.npz")
        if path != self.whole:
            for old in glob.glob(os.path.join(glob.escape(self.folder), "state-*")):
                if old != self.whole:
                    os.remove(old)
            arrays = {f"{name}.{key}": a for name, own in gathered(self.folds).items() for key, a in own.items()}
            _write(path, dict(scores={f.name: {key: getattr(f, key) for key in SCORES} for f in self.folds}), arrays)
            self.whole = path
            team.barrier()
        self.saved, stops.advice = time.monotonic(), self.advice
        if stops.asked:
            raise Stopped(stops.asked)

    def restore(self):
        """Set the folds as the newest whole state has them; returns where training goes on, (epoch, steps of it done)."""
        for path in _states(self.folder):
            try:
                about, arrays = _read(path)
                break
            except InputError as e:
                print(f"note: {e}; the state before it is used")
        else:
            raise InputError(f"no state in {self.folder} is whole; start the run again")
        for f in self.folds:
            mine = {k[len(f.name) + 1:]: v for k, v in arrays.items() if k.startswith(f.name + ".")}
            _set(f, mine, about["scores"][f.name], path)
        self.whole, stops.advice = path, self.advice
        return tuple(int(n) for n in os.path.basename(path)[:-len(".npz")].split("-")[1:])


def _arrays(fold):
    """{name: array} of all that changes in a fold while it trains, but its scores."""
    arrays = {f"student.{k}": v for k, v in arrays_of(fold.student).items()}
    arrays |= {f"best.{k}": v for k, v in fold.best_weights.items()}
    if fold.regressor:
        arrays |= {f"regressor.{k}": v for k, v in arrays_of(fold.regressor).items()}
    arrays |= {f"optimizer.{k}": v.numpy() for k, v in _moments(fold.optimizer).items()}
    if fold.sums is not None:
        arrays["sums"] = fold.sums.numpy()
    if fold.probabilities:
        arrays["probabilities"] = np.stack(fold.probabilities)
    return arrays


def _set(fold, arrays, scores, source):
    """Make a fold as it was when its _arrays and scores were taken."""
    layers = {"student": fold.student, **({"regressor": fold.regressor} if fold.regressor else {})}
    if any(k.startswith("optimizer.") for k in arrays):
        # Paddle makes the moments in a step: take one, then set all to what it was
        sum(p.sum() for layer in layers.values() for p in layer.parameters() if not p.stop_gradient).backward()
        fold.optimizer.step()
        fold.optimizer.clear_grad()
        for key, value in _moments(fold.optimizer).items():
            value.set_value(arrays[f"optimizer.{key}"])
    for name, layer in layers.items():
        load_into(layer, arrays, source, f"{name}.")
    fold.sums = paddle.to_tensor(arrays["sums"]) if "sums" in arrays else None
    fold.probabilities = list(arrays.get("probabilities", []))
    fold.best_weights = {k.removeprefix("best."): v for k, v in arrays.items() if k.startswith("best.")}
    for key in SCORES:
        setattr(fold, key, scores[key])


def gathered(folds):
    """{name: arrays} of all folds, each from the process that trains it; all processes must take part."""
    return {f.name: team.broadcast(_arrays(f) if team.owns(f) else None, team.owner(f)) for f in folds}


def help_save(folds):
    """What the other processes do while the first one saves: give it their folds, and wait until they are written."""
    gathered(folds)
    team.barrier()


def hand_out(folds):
    """The folds of the first process, which a resumed run has read, to the others."""
    for f in folds:
        arrays, scores = team.broadcast((_arrays(f), {key: getattr(f, key) for key in SCORES}) if team.rank == 0 else None)
        if team.rank:
            _set(f, arrays, scores, "the first process")


def _moments(optimizer):
    """{parameter and kind: Tensor} of the state of Adam, none before its first step.

    Paddle ends the names with a number that depends on which fold's first step came first: it is cut off.
    """
    return {k.rsplit("_", 1)[0]: v for k, v in optimizer.state_dict().items() if isinstance(v, paddle.Tensor)}


def keep_start(folder, pictures, sums, parts, heads, teacher, teacher_weights, threads):
    """Write start.npz: what a resumed run must find unchanged (pictures, parts, weights), or need not compute again."""
    about = dict(paths=pictures.paths, categories=pictures.categories, trunk=digest(teacher_weights[1]),
                 machine=_machine(threads))
    arrays = {f"head{k}.{name}": a for k, head in heads.items() for name, a in head._asdict().items()}
    _write(os.path.join(folder, "start.npz"), about, dict(
        labels=pictures.labels, checksums=sums, parts=parts, teacher=teacher, **arrays))


def read_start(folder, pictures, sums, parts, teacher_weights, threads):
    """(heads, teacher's probabilities) of a run. Raises InputError if pictures, parts or weights are not as they were."""
    about, arrays = _read(os.path.join(folder, "start.npz"))
    for key, value in _machine(threads).items():
        if value != about["machine"].get(key, value):
            print(f"note: this run began with {key} {about['machine'][key]}, now it is {value}: the result may differ a "
                  "little")
    before = dict(zip(about["paths"], zip(arrays["labels"].tolist(), arrays["checksums"].tolist())))
    now = dict(zip(pictures.paths, zip(pictures.labels.tolist(), sums.tolist())))
    for what, names in (("gone, or cannot be read now", before.keys() - now),
                        ("new, or could not be read then", now.keys() - before),
                        ("changed", [p for p in now if now[p] != before.get(p, now[p])])):
        if names:
            raise InputError(f"{pictures.data_dir} is not as it was when this run began: {len(names)} pictures are "
                             f"{what}, such as {sorted(names)[0]}; make it as it was, or start a new run")
    if about["categories"] != pictures.categories or not np.array_equal(parts, arrays["parts"]):
        raise InputError("the pictures are cut into other parts than when this run began (--groups, or another version "
                         "of scikit-learn or of this program); start a new run")
    if about["trunk"] != digest(teacher_weights[1]):
        raise InputError(f"{teacher_weights[0]} holds other weights than those that this run began with")
    folds = {int(k.split(".")[0][len("head"):]) for k in arrays if k.startswith("head")}
    return {k: Head(*(arrays[f"head{k}.{name}"] for name in Head._fields)) for k in sorted(folds)}, arrays["teacher"]


def _machine(threads):
    return {**runtime.versions(), "processor": runtime.processor(), "bfloat16": runtime.BFLOAT16,
            "device": paddle.get_device(), "threads": threads}


def checksums(pictures, threads, rows=None):
    """CRC-32 of every stored square, or of those of `rows`: int64 [N]."""
    rows = range(len(pictures)) if rows is None else rows
    sums = prefetch(lambda i: zlib.crc32(np.ascontiguousarray(pictures.square(i))), rows, threads)
    return np.fromiter(runtime.progress(sums, "checksums", len(rows), "picture"), np.int64, len(rows))


def same_share(pictures, sums, threads):
    """Whether the pictures have these checksums; the processes of a machine share them out, for all read its one copy."""
    rows = range(team.local_rank, len(pictures), team.local_size)
    return np.array_equal(checksums(pictures, threads, rows), sums[rows])


def names_digest(pictures):
    """A number that changes with any path or category."""
    return digest(dict(labels=pictures.labels,
                       paths=np.frombuffer("\0".join(pictures.paths).encode(errors="surrogateescape"), np.uint8)))


def digest(arrays):
    """A number that changes with any of {name: array}; None stays None."""
    if arrays is None:
        return None
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(np.ascontiguousarray(arrays[name]), zlib.crc32(name.encode(), total))
    return total


def ended(folder):
    """Whether a run has ended. Raises InputError if it has not, and saved nothing to go on with."""
    if _states(folder):
        return False
    if not os.path.exists(os.path.join(folder, "report.json")):
        raise InputError(f"{folder} has saved no state yet: if it does not run, it was stopped before its "
                         "students began; start it again")
    return True


def end(folder):
    """The report is written: from here on the run counts as ended."""
    for pattern in ("state-*", "start.npz*"):
        for path in glob.glob(os.path.join(glob.escape(folder), pattern)):
            os.remove(path)


def _states(folder):
    """Paths of the states in a folder, the newest first."""
    return sorted(glob.glob(os.path.join(glob.escape(folder), "state-*-*.npz")), reverse=True)


def _write(path, about, arrays):
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)

    def savez(f):  # as np.savez, but closed in any case: that of numpy 1 prints a traceback when the disk is full
        with zipfile.ZipFile(f, "w") as archive:
            for name, array in {"about": text, **arrays}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    try:
        write_whole(path, savez)
    except OSError as e:
        raise InputError(f"cannot save the state of this run in {os.path.dirname(path)}: {e.strerror or e}; make room "
                         "there") from e


def _read(path):
    """(about, {name: array}). Raises InputError if the file is not whole."""
    try:
        with np.load(path, allow_pickle=False) as f:
            arrays = {k: f[k] for k in f.files}  # reading an array to its end checks its checksum
        return json.loads(arrays.pop("about").tobytes()), arrays
    except (OSError, MemoryError):
        raise  # says nothing of the file
    except Exception as e:  # a damaged zip file raises almost anything
        raise InputError(f"{path} is damaged ({e or type(e).__name__})") from e
