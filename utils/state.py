"""The state of a run, kept while it trains, so that it can go on after any stop as if there had been none.

    python main.py --resume                          # goes on with the newest run in --log_dir that has not ended
    python main.py --resume logs/20260101-120000     # or with this one

A state is `state-<epoch>-<step>.npz` in the folder of the run: every student, its optimizer and its scores after that
step; `start.npz` holds what never changes: parts, heads, pictures. No random state is needed: order, views, mixup and
dropout depend on (seed, epoch, picture or step). Both are plain arrays, read without running code, and an .npz carries
a checksum of each array: a damaged state is noticed, and the one before it is used.

A state is three times the trainable weights: 67 MB per student with the default freeze_depth, of which two are kept.
"""
import glob
import json
import os
import shutil
import time
import zlib

from utils import runtime  # noqa: F401  before paddle
import numpy as np
import paddle

from models.teacher_model import Head
from utils.checkpoint import load_into, read_about, set_aside, write_whole
from utils.data_utils import prefetch
from utils.process import Stopped, stops
from utils.settings import InputError

SECONDS = 60  # an epoch that ends sooner after the last save is not saved: short epochs would write all the time


class Keeper:
    """Saves the state of a run in training, and ends the run between two steps if a signal asked for it.

    Raises InputError at once where the disk is too small for two states.
    """

    def __init__(self, folder, folds, minutes):
        self.folder, self.folds, self.minutes, self.saved = folder, folds, minutes, time.time()
        needed = 2 * sum(3 * a.nbytes for f in folds for name, a in _arrays(f).items() if not name.startswith("optim"))
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise InputError(f"the state of this run takes {needed / 1e9:.2f} GB and {folder} has {free / 1e9:.2f} GB "
                             "free; make room, or choose another place with --log_dir")

    def __enter__(self):
        stops.training = True
        return self

    def __exit__(self, *_):
        stops.training = False

    def after_step(self, epoch, step):
        """`step` steps of the epoch (both counted from 0) are done. Raises Stopped, saved, if a stop was asked for."""
        if stops.asked or time.time() - self.saved >= 60 * self.minutes:
            self.save(epoch, step)

    def after_epoch(self, epoch):
        """Epoch `epoch` (counted from 1) is over, weights and scores are written."""
        if stops.asked or time.time() - self.saved >= min(SECONDS, 60 * self.minutes):
            self.save(epoch, 0)

    def save(self, epoch, step):
        arrays = {f"{f.name}.{key}": a for f in self.folds for key, a in _arrays(f).items()}
        scores = {f.name: dict(history=f.history, best_accuracy=f.best_accuracy, best_epoch=f.best_epoch,
                               failed=f.failed) for f in self.folds}
        unfinished = glob.glob(os.path.join(glob.escape(self.folder), "state-*.tmp"))
        for path in _states(self.folder)[1:] + unfinished:  # the newest is kept until this one is whole
            os.remove(path)
        _write(os.path.join(self.folder, f"state-{epoch:06}-{step:09}.npz"), dict(scores=scores), arrays)
        self.saved, stops.advice = time.time(), f"to go on: {resume_command(self.folder)}"
        if stops.asked:
            raise Stopped(stops.asked)


def _arrays(fold):
    """{name: array} of all that changes in a fold while it trains, but its scores."""
    arrays = {f"student.{k}": v.numpy() for k, v in fold.student.state_dict().items()}
    if fold.regressor:
        arrays |= {f"regressor.{k}": v.numpy() for k, v in fold.regressor.state_dict().items()}
    arrays |= {f"optimizer.{k}": v.numpy() for k, v in _moments(fold.optimizer).items()}
    if fold.sums is not None:
        arrays["sums"] = fold.sums.numpy()
    if fold.probabilities:
        arrays["probabilities"] = np.stack(fold.probabilities)
    return arrays


def _moments(optimizer):
    """{parameter and kind: Tensor} of the state of Adam, none before its first step. Paddle ends the names with a number
    that depends on which fold's first step came first."""
    return {k.rsplit("_", 1)[0]: v for k, v in optimizer.state_dict().items() if isinstance(v, paddle.Tensor)}


def restore(folder, folds):
    """Set the folds as the newest whole state has them; returns where training goes on, (epoch, steps of it done)."""
    states = _states(folder)
    for path in states:
        try:
            about, arrays = _read(path)
            break
        except InputError as e:
            print(f"note: {e}; the state before it is used")
    else:
        raise InputError(f"no state in {folder} is whole; start the run again")
    for f in folds:
        mine = {k[len(f.name) + 1:]: v for k, v in arrays.items() if k.startswith(f.name + ".")}

        def under(name):
            return {k[len(name) + 1:]: v for k, v in mine.items() if k.startswith(name + ".")}
        layers = {"student": f.student, **({"regressor": f.regressor} if f.regressor else {})}
        if under("optimizer"):  # Paddle makes the moments in a step: take one, then set all to what it was
            sum(p.sum() for layer in layers.values() for p in layer.parameters() if not p.stop_gradient).backward()
            f.optimizer.step()
            f.optimizer.clear_grad()
            for key, value in _moments(f.optimizer).items():
                value.set_value(under("optimizer")[key])
        for name, layer in layers.items():
            load_into(layer, under(name), path)
        f.sums = paddle.to_tensor(mine["sums"]) if "sums" in mine else None
        f.probabilities = list(mine.get("probabilities", []))
        for key, value in about["scores"][f.name].items():
            setattr(f, key, value)
    return tuple(int(n) for n in os.path.basename(path)[:-len(".npz")].split("-")[1:])


def keep_start(folder, pictures, parts, heads, teacher, teacher_weights, threads):
    """Write start.npz: what a resumed run must find unchanged (pictures, parts, weights), or need not compute again."""
    about = dict(paths=pictures.paths, categories=pictures.categories, trunk=digest(teacher_weights[1]),
                 versions=runtime.versions(), threads=threads)
    arrays = {f"head{k}.{name}": a for k, head in heads.items() for name, a in head._asdict().items()}
    _write(os.path.join(folder, "start.npz"), about, dict(
        labels=pictures.labels, checksums=checksums(pictures, threads), parts=parts, teacher=teacher, **arrays))


def read_start(folder, pictures, parts, teacher_weights, threads):
    """(heads, teacher's probabilities) of a run. Raises InputError if pictures, parts or weights are not as they were."""
    if not _states(folder):
        raise InputError(f"{folder} has saved no state: it was stopped before its students began; start the run again")
    about, arrays = _read(os.path.join(folder, "start.npz"))
    before = dict(zip(about["paths"], zip(arrays["labels"].tolist(), arrays["checksums"].tolist())))
    now = dict(zip(pictures.paths, zip(pictures.labels.tolist(), checksums(pictures, threads).tolist())))
    for what, names in (("gone", before.keys() - now), ("new", now.keys() - before),
                        ("changed", [p for p in now if now[p] != before.get(p, now[p])])):
        if names:
            raise InputError(f"{pictures.data_dir} is not as it was when this run began: {len(names)} pictures are {what}, "
                             f"such as {sorted(names)[0]}; put them back, or start a new run")
    if about["categories"] != pictures.categories or not np.array_equal(parts, arrays["parts"]):
        raise InputError("the pictures are cut into other parts than when this run began (--groups, or another version "
                         "of scikit-learn or of this program); start a new run")
    if about["trunk"] != digest(teacher_weights[1]):
        raise InputError(f"{teacher_weights[0]} holds other weights than those that this run began with")
    for key, value in {**runtime.versions(), "threads": threads}.items():
        old = {**about["versions"], "threads": about["threads"]}[key]
        if value != old:
            print(f"note: this run began with {key} {old}, now it is {value}: the last bits of the result may differ")
    folds = {int(k.split(".")[0][len("head"):]) for k in arrays if k.startswith("head")}
    return {k: Head(*(arrays[f"head{k}.{name}"] for name in Head._fields)) for k in sorted(folds)}, arrays["teacher"]


def checksums(pictures, threads):
    """CRC-32 of every stored square, int64 [N]."""
    return np.fromiter(prefetch(lambda i: zlib.crc32(np.ascontiguousarray(pictures.square(i))), range(len(pictures)),
                                threads), np.int64, len(pictures))


def digest(arrays):
    """A number that changes with any of {name: array}; None stays None."""
    if arrays is None:
        return None
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(np.ascontiguousarray(arrays[name]), zlib.crc32(name.encode(), total))
    return total


def ended(folder):
    return not _states(folder) and os.path.exists(os.path.join(folder, "report.json"))


def end(folder):
    """The report is written: from here on the run counts as finished."""
    for path in _states(folder) + [os.path.join(folder, "start.npz")]:
        os.remove(path)


def resume_command(folder):
    return f'python main.py --resume "{folder}"' if " " in folder else f"python main.py --resume {folder}"


def _states(folder):
    """Paths of the states in a folder, the newest first."""
    return sorted(glob.glob(os.path.join(glob.escape(folder), "state-*-*.npz")), reverse=True)


def _write(path, about, arrays):
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    try:
        write_whole(path, lambda f: np.savez(f, about=text, **arrays))
    except OSError as e:
        raise InputError(f"cannot save the state of this run in {os.path.dirname(path)}: {e.strerror or e}; make room "
                         "there") from e


def _read(path):
    """(about, {name: array}). Raises InputError if the file is not whole."""
    try:
        with np.load(path, allow_pickle=False) as f:
            arrays = {k: f[k] for k in f.files}  # reading an array to its end checks its checksum
        return json.loads(arrays.pop("about").tobytes()), arrays
    except Exception as e:  # a damaged zip file raises almost anything
        raise InputError(f"{path} is damaged ({e or type(e).__name__})") from e


def take_back(save_dir, run, folds, path_of):
    """Before a run goes on: its best weights lie in save_dir, brought back from save_dir/<run> if another run has
    set them aside. Raises InputError if they are gone. path_of(fold): where they belong."""
    aside = os.path.join(save_dir, run)

    def ours(path):
        try:
            return read_about(path)["run"] == run and os.path.exists(path)
        except (InputError, KeyError):
            return False
    missing = [f for f in folds if f.best_epoch and not ours(path_of(f))]
    if missing and os.path.isdir(aside):
        moved = set_aside(save_dir)
        if moved:
            print(f"weights of another run moved to {moved}")
        for name in os.listdir(aside):
            os.replace(os.path.join(aside, name), os.path.join(save_dir, name))
        os.rmdir(aside)
        missing = [f for f in missing if not ours(path_of(f))]
    if missing:
        raise InputError(f"{path_of(missing[0])} of run {run} is gone; start a new run")
