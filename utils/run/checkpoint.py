"""Checkpoints: a run that is stopped at any moment continues as if it had not been.

    python main.py --resume                          # the newest run in --log_dir
    python main.py --resume logs/20260101-120000     # this one

logs/<run>/checkpoint-<epoch>-<step>/ has a file per student, <name>.npz, written by the process
that trains it: its weights now and at its best epoch, Adam's moments, and its scores; and
`complete`, written last. Several machines need a shared folder for this. No random state is needed:
order, augmentation, mixup and dropout depend on (seed, epoch, image or step). The files are plain
arrays with checksums, read without running code; a damaged checkpoint is noticed, and the one
before it, which is kept, is used.
"""
import glob
import json
import os
import shutil
import zipfile

import numpy as np
import paddle

from utils.distributed import world
from utils.errors import InputError
from utils.files import free_bytes, write_whole
from utils.weights import arrays_of, load_into

PATTERN = os.path.join("checkpoint-*-*", "complete")
SCORES = ("history", "best_epoch", "failed")


def checkpoints(folder):
    """The complete checkpoints of a run, the newest first."""
    found = glob.glob(os.path.join(glob.escape(folder), PATTERN))
    return sorted(map(os.path.dirname, found), reverse=True)


def check_space(folder, students):
    """Raises InputError if the disk is too small for two checkpoints."""
    numbers = sum(v.size for s in students for layer in s.layers.values()
                  for v in layer.state_dict().values())
    probabilities = sum(s.settings.num_epochs * len(s.images) * len(s.class_weights)
                        for s in students)
    needed = 2 * 4 * (4 * numbers + probabilities)  # float32: weights, two moments, best weights
    files = glob.glob(os.path.join(glob.escape(folder), "checkpoint-*", "*"))
    free = free_bytes(folder) + sum(map(os.path.getsize, files))
    if needed > free:
        raise InputError(f"the checkpoints of this run take {needed / 1e9:.2f} GB and {folder} has "
                         f"{free / 1e9:.2f} GB free; make room, choose another place with "
                         "--log_dir, or lower --num_epochs")


def save_checkpoint(folder, students, epoch, step, keep=None):
    """Write a checkpoint after `step` steps of `epoch`, both from 0; returns its path.

    Each process writes its own students. Of the other checkpoints only `keep` stays; if that is of
    this very point, nothing is written.
    """
    path = os.path.join(folder, f"checkpoint-{epoch:06}-{step:09}")
    if path == keep:
        return path
    if world.rank == 0:
        for old in glob.glob(os.path.join(glob.escape(folder), "checkpoint-*")):
            if old != keep:
                shutil.rmtree(old)
        os.mkdir(path)
    world.barrier()
    for student in students:
        if student.rank == world.rank:
            scores = {key: getattr(student, key) for key in SCORES}
            write_npz(os.path.join(path, f"{student.name}.npz"), scores, student_arrays(student))
    world.barrier()
    if world.rank == 0:
        write_whole(os.path.join(path, "complete"), lambda f: None)
    return path


def load_checkpoint(folder, students):
    """Put the students into the state of the newest checkpoint that is not damaged.

    Returns (its path, epoch, step). Raises InputError if there is none.
    """
    for path in world.broadcast(checkpoints(folder)):  # all processes take the same one
        saved, problem = [], None
        try:
            saved = [read_npz(os.path.join(path, f"{s.name}.npz")) for s in students]
        except InputError as e:
            problem = e
            print(f"note: {e}; the checkpoint before it is tried")
        if not world.any(problem):
            break
    else:
        raise InputError(f"no checkpoint in {folder} is complete; start the run again")
    for student, (scores, arrays) in zip(students, saved):
        set_student(student, scores, arrays, path)
    epoch, step = map(int, os.path.basename(path).split("-")[1:])
    return path, epoch, step


def student_arrays(student):
    """{name: array} of everything that training changes in a student, but its scores."""
    arrays = {f"{name}.{k}": v for name, layer in student.layers.items()
              for k, v in arrays_of(layer).items()}
    arrays |= {f"best.{k}": v for k, v in student.best_weights.items()}
    arrays |= {f"optimizer.{k}": v.numpy() for k, v in moments(student.optimizer).items()}
    arrays["running"] = student.running.numpy()
    if student.probabilities:
        arrays["probabilities"] = np.stack(student.probabilities)
    return arrays


def set_student(student, scores, arrays, source):
    """The inverse of student_arrays: put a student into the state of these scores and arrays."""
    if any(key.startswith("optimizer.") for key in arrays):
        # Paddle creates the moments in a step: take one, then overwrite everything
        trainable = [p for layer in student.layers.values() for p in layer.parameters()
                     if not p.stop_gradient]
        sum(p.sum() for p in trainable).backward()
        student.optimizer.step()
        student.optimizer.clear_grad()
        for key, value in moments(student.optimizer).items():
            value.set_value(arrays[f"optimizer.{key}"])
    for name, layer in student.layers.items():
        load_into(layer, arrays, source, f"{name}.")
    student.running = paddle.to_tensor(arrays["running"])
    student.probabilities = list(arrays.get("probabilities", []))
    student.best_weights = {key.removeprefix("best."): value for key, value in arrays.items()
                            if key.startswith("best.")}
    for key in SCORES:
        setattr(student, key, scores[key])


def moments(optimizer):
    """{parameter and kind: Tensor}: the state of Adam, empty before its first step.

    Paddle ends the names with a number that depends on which student came first: it is cut off.
    """
    return {key.rsplit("_", 1)[0]: value for key, value in optimizer.state_dict().items()
            if isinstance(value, paddle.Tensor)}


def write_npz(path, about, arrays):
    """Write arrays and a JSON-able dict, whole or not at all. Raises InputError if it cannot."""
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)

    def savez(f):  # np.savez of numpy 1 prints a traceback when the disk is full
        with zipfile.ZipFile(f, "w") as archive:
            for name, array in {"about": text, **arrays}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    try:
        write_whole(path, savez)
    except OSError as e:
        raise InputError(f"cannot save a checkpoint in {os.path.dirname(path)}: {e.strerror or e}; "
                         "make room there") from e


def read_npz(path):
    """(about, {name: array}) of write_npz. Raises InputError if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as f:
            arrays = {key: f[key] for key in f.files}  # reading an array checks its CRC-32
        return json.loads(arrays.pop("about").tobytes()), arrays
    except MemoryError:
        raise
    except Exception as e:  # a damaged zip file raises almost anything
        raise InputError(f"{path} is damaged ({e or type(e).__name__})") from e
