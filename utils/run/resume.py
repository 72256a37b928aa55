"""What a run records about itself; which run --resume continues, and whether all is as it was."""
import dataclasses
import glob
import os
import shutil

import paddle

from models.teacher_model import Head
from utils import processor
from utils.distributed import print0
from utils.engine import has_half, versions
from utils.errors import InputError
from utils.files import read_json, write_json
from utils.images.duplicates import duplicate_rows
from utils.run.checkpoint import PATTERN, checkpoints, read_npz, write_npz
from utils.settings import NEWEST, Settings, shown
from utils.tables import composed, write_csv
from utils.weights import digest

# Where a resumed run found what it needs: the next one looks there, too
PLACES = [f.name for f in dataclasses.fields(Settings)
          if f.metadata["free"] and f.type is str and not f.metadata["choices"]]


def find_run(resume, given):
    """The folder of the run that --resume means. Raises InputError if there is none."""
    if resume == NEWEST:
        return newest_run(given.get("log_dir", Settings.log_dir))
    if os.path.basename(os.path.normpath(resume)) in (os.curdir, os.pardir):
        return os.path.abspath(resume)  # the parent of . would be the run itself
    return os.path.normpath(resume)


def newest_run(log_dir):
    """The newest run in log_dir that can continue, else the newest that is finished."""
    def newest(pattern):
        found = glob.glob(os.path.join(glob.escape(log_dir), "*", pattern))
        path = max(found, key=os.path.getmtime, default=None)
        return path and os.path.join(log_dir, os.path.relpath(path, log_dir).split(os.sep)[0])
    run = newest(PATTERN) or newest("report.json")
    if not run:
        raise InputError(f"nothing to resume in {log_dir}: no run there has saved a checkpoint; "
                         "name another folder with --log_dir, or start a run without --resume")
    last = newest("settings.json")
    if last and not checkpoints(last):
        if not os.path.exists(os.path.join(last, "report.json")):
            print0(f"note: {last} was stopped before its first checkpoint")
        elif checkpoints(run):
            print0(f"note: {last} is newer, but finished")
    return run


def resumed_settings(folder, given):
    """The settings of the run in `folder`, with those `given` now that do not change its result.

    Raises InputError for one that would, and where there is no run.
    """
    path = os.path.join(folder, "settings.json")
    fields = {f.name: f for f in dataclasses.fields(Settings)}
    try:
        saved = read_json(path)
        before = vars(Settings(**{name: saved[name] for name in fields}))
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"--resume {folder}: not a run of this program, {path} cannot be used "
                         f"({e})") from e
    log_dir = os.path.dirname(os.path.normpath(folder)) or "."
    if os.path.realpath(given.get("log_dir", log_dir)) != os.path.realpath(log_dir):
        raise InputError(f"--log_dir {given['log_dir']}: the run {folder} continues where it is; "
                         "leave the option out")
    free = {name: value for name, value in given.items() if fields[name].metadata["free"]}
    for name in given.keys() - free.keys() - {"log_dir"}:
        if composed(given[name]) != composed(before[name]):
            raise InputError(f"--{name} {shown(given[name])}: the run {folder} began with "
                             f"{shown(before[name])}, and another value would change its result; "
                             "leave the option out, or start a new run")
    return Settings(**{**before, **free, "log_dir": log_dir}).check()


def update(folder, settings, names):
    """Record that these settings have changed."""
    path = os.path.join(folder, "settings.json")
    write_json(path, {**read_json(path), **{name: getattr(settings, name) for name in names}})


def is_finished(folder):
    """Whether a run is finished. Raises InputError if it is not and cannot continue."""
    if checkpoints(folder):
        return False
    if not os.path.exists(os.path.join(folder, "report.json")):
        raise InputError(f"{folder} has no checkpoint yet: if it is not running, it was stopped "
                         "before training began; start it again")
    return True


def finish(folder):
    """The report is written: the run is finished, and what --resume needs is removed."""
    for path in checkpoints(folder):  # first: what a kill leaves half deleted does not count
        os.remove(os.path.join(path, "complete"))
    for path in glob.glob(os.path.join(glob.escape(folder), "checkpoint-*")):
        shutil.rmtree(path)
    for path in glob.glob(os.path.join(glob.escape(folder), "start.npz*")):
        os.remove(path)


def record_run(folder, settings, images, fold_of, groups):
    """settings.json, folds.csv, duplicates.csv and left_out.csv: what the run is made of."""
    write_json(os.path.join(folder, "settings.json"),
               {**vars(settings), "versions": versions()})
    labels = [images.categories[i] for i in images.labels]
    for name, header, rows in (
            ("folds", ("path", "label", "fold", "group"),
             zip(images.paths, labels, fold_of, groups)),
            ("duplicates", ("group", "path", "label", "conflict"), duplicate_rows(images, groups)),
            ("left_out", ("path", "reason"), images.left_out)):
        write_csv(os.path.join(folder, f"{name}.csv"), header, rows)


def save_start(folder, images, fold_of, heads, teacher_probs, notes, weights, threads):
    """Write start.npz: what a resumed run must find unchanged, and need not compute again.

    weights: the teacher's and the student's, of utils.weights.imagenet_weights.
    """
    about = dict(paths=images.paths, categories=images.categories, notes=notes,
                 weights=[digest(a) for _, a in weights], machine=machine(threads))
    arrays = {f"head{k}.{name}": a for k, h in heads.items() for name, a in h._asdict().items()}
    write_npz(os.path.join(folder, "start.npz"), about, dict(
        labels=images.labels, checksums=images.checksums, fold_of=fold_of,
        teacher_probs=teacher_probs, **arrays))


def load_start(folder, images, fold_of, weights, threads):
    """(heads, teacher_probs, notes) of a run.

    Raises InputError if images, folds or ImageNet weights are not what they were.
    """
    about, arrays = read_npz(os.path.join(folder, "start.npz"))
    for key, value in machine(threads).items():
        before = about["machine"].get(key, value)
        if value != before:
            print0(f"note: this run began with {key} {before}, now it is {value}: the result may "
                   "differ a little")
    before, now = ({path: (label, checksum) for path, label, checksum in zip(paths, *values)}
                   for paths, *values in (
                       (about["paths"], arrays["labels"].tolist(), arrays["checksums"].tolist()),
                       (images.paths, images.labels.tolist(), images.checksums.tolist())))
    for what, names in (("gone, or cannot be read now", before.keys() - now.keys()),
                        ("new, or could not be read then", now.keys() - before.keys()),
                        ("changed", [p for p in now if now[p] != before.get(p, now[p])])):
        if names:
            raise InputError(f"{images.data_dir} has changed since this run began: {len(names)} "
                             f"images are {what}, such as {min(names)}; restore it, or start a new "
                             "run")
    if about["categories"] != images.categories or (fold_of != arrays["fold_of"]).any():
        raise InputError("the images are divided into other folds than when this run began "
                         "(--groups, or another version of scikit-learn or of this program); start "
                         "a new run")
    for (source, a), before in zip(weights, about["weights"]):
        if digest(a) != before:
            raise InputError(f"{source} holds other weights than those that this run began with")
    folds = sorted({int(key.split(".")[0][len("head"):]) for key in arrays
                    if key.startswith("head")})
    heads = {k: Head(*(arrays[f"head{k}.{name}"] for name in Head._fields)) for k in folds}
    return heads, arrays["teacher_probs"], about["notes"]


def machine(threads):
    """What may change a result in its last digits."""
    return {**versions(), "processor": processor(), "half precision": has_half(),
            "device": paddle.get_device(), "threads": threads}
