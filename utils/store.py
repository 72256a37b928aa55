"""What the frozen networks compute of augmented images, kept on disk (--stored_augmentations V).

Each image is augmented V times, once and for all. The teacher's features and the stem's maps of
these V versions and of the plain image, version 0, go into files below --cache_dir; every epoch of
this run, and of later ones with the same images, networks and augmentations, reads one version of
each image instead of computing it. Shen and Xing 2022 store crops and soft labels in this way.

    store = open_store(teacher, images, run)             # has the versions that the heads need
    store.fill()                                         # computes the others, or finds them there
    versions = store.versions(epoch)                     # int64 [N]: which one an epoch takes
    maps = store.read("maps", rows, versions[rows])      # float32 [n, C, H, W], in any thread

A file has a row for each version of each image, float16: all images of version 0, then those of
version 1, ... The JSON beside it says how many rows are complete: the next run fills the rest.
"""
import contextlib
import hashlib
import json
import math
import os
import time

import numpy as np
import paddle

from utils.data_utils import STORED, stored_version
from utils.distributed import one_writer, print0, world
from utils.engine import compiled, when_used
from utils.errors import InputError
from utils.files import read_json, write_json
from utils.images.cache import Rows, make_room
from utils.teacher import fitted_augmentations, half_precision
from utils.threads import prefetch, progress
from utils.weights import arrays_of, digest, new_student

FORMAT = 2  # raise it when the networks, the augmentations or the files are made differently
BATCH = 16  # images that a network takes at a time, always: its rounding may depend on the number
SAVE_SECONDS = 20  # between two records of how far the filling is
SPARE = 4e9  # bytes of the disk that an optional store leaves free: for checkpoints, and for others


class NoRoom(InputError):
    """The limit or the disk is too small for what is to be stored."""


class Store:
    """Features and maps of all versions of N images; `names` says which of the two it has."""

    def __init__(self, files, folder, images, run, optional=False):
        self.files, self.folder, self.images, self.run = files, folder, images, run
        self.optional = optional
        self.settings, self.num_images = run.settings, len(images)
        self.of = {file.name: file for file in files}
        self.names = [*self.of]

    def fill(self, count=None):
        """Compute the missing rows of versions 0 to `count` (default: the last).

        All processes call this. Raises NoRoom before anything is computed; InputError.
        """
        count = self.settings.stored_augmentations if count is None else count
        wanted = (count + 1) * self.num_images
        if not world.any(any(file.done < wanted for file in self.files)):
            return
        with contextlib.suppress(OSError):
            os.makedirs(self.folder, exist_ok=True)
        if world.any(not (os.path.isdir(self.folder) and os.access(self.folder, os.W_OK))):
            raise NoRoom(self.cannot("no permission to write"))
        try:
            fill_rows(self, wanted)
        except OSError as e:
            raise InputError(self.cannot(e.strerror or e)) from e

    def cannot(self, why):
        return (f"cannot store augmentations in {self.folder}: {why}; choose another place with "
                "--cache_dir, or start a run with --stored_augmentations 0")

    def versions(self, epoch):
        """The version of each image that an epoch takes, int64 [N], from 1 to V.

        In V epochs an image passes through its V versions, each image in an order of its own.
        """
        count = self.settings.stored_augmentations
        rng = np.random.default_rng([self.settings.seed, STORED, epoch // count])
        orders = rng.permuted(np.tile(np.arange(1, count + 1), (self.num_images, 1)), axis=1)
        return orders[:, epoch % count]

    def read(self, name, images, versions):
        """"features" or "maps" of versions of images, both int [n]: float32 [n, ...]."""
        places = (versions * self.num_images + images).tolist()
        rows = self.of[name].rows
        return np.stack([rows[place] for place in places]).astype(np.float32)


class File:
    """The outputs of one frozen network in the store: a .npy file, and .json with its progress."""

    def __init__(self, folder, name, content, length, network):
        """content: all that decides the outputs; length: rows; network: x -> outputs."""
        self.name, self.length, self.network = name, length, network
        key = hashlib.sha256(json.dumps([name, content]).encode()).hexdigest()[:24]
        self.path = os.path.join(folder, key + ".npy")
        self.about = os.path.join(folder, key + ".json")
        self.look()

    def look(self):
        """Set .rows, and .done, the number of complete ones, as they are on the disk now."""
        self.rows, self.done = None, 0
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not made, or damaged
            self.rows, self.done = Rows(self.path), read_json(self.about)["done"]

    def remove(self):
        """Delete both files, if they exist."""
        self.rows, self.done = None, 0
        for path in (self.about, self.path):
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)

    def create(self, shape):
        """Take all the space now: a disk that is full later does not matter."""
        self.remove()
        with open(self.path, "wb") as f:
            np.lib.format.write_array_header_1_0(f, dict(
                descr="<f2", fortran_order=False, shape=(self.length, *shape)))
            f.flush()
            size = f.tell() + self.length * 2 * math.prod(shape)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(f.fileno(), 0, size)
            else:
                f.truncate(size)
            self.save(f, 0)
        self.look()

    def save(self, f, done):
        """Record that `done` rows are complete, once they are on the disk."""
        f.flush()
        os.fsync(f.fileno())
        self.done = max(self.done, done)
        write_json(self.about, dict(done=self.done))


def open_store(teacher, images, run, optional=False):
    """The Store of --stored_augmentations; None if that is 0.

    What the heads need is computed here, and the space for all of it taken on the disk; Store.fill
    computes the rest, once check_teacher has accepted the teacher. teacher: x -> features [B, D];
    run: a Run, or anything with its settings, threads, teacher_weights and student_weights, and
    with `optional` its notes. optional: leave SPARE of the disk free, and without room say so, set
    the option to 0 and return None. All processes call this. Raises NoRoom and InputError as
    Store.fill does.
    """
    settings = run.settings
    count, side, depth = (settings.stored_augmentations, settings.image_size,
                          settings.freeze_depth)
    if not count:
        return None
    folder, length = os.path.join(settings.cache_dir, "stored"), (count + 1) * len(images)
    content = [FORMAT, images.digest(), side, settings.seed, settings.augmentation, count]
    half, files = half_precision(settings), []
    if settings.has_teacher:
        precision = half and paddle.get_device().split(":")[0]  # bfloat16 or float16
        files.append(File(folder, "features", [*content, digest(run.teacher_weights[1]), precision],
                          length, teacher))
    if depth:
        stem = new_student(2, settings, run.student_weights).features[:depth]
        files.append(File(folder, "maps", [*content, digest(arrays_of(stem)), depth], length,
                          when_used(lambda: compiled(stem, [3, side, side], run.threads))))
    else:
        print0("note: with --freeze_depth 0 no maps are stored: students train on the pixels of "
               "the stored augmentations, drawn again in every epoch")
    done = min((file.done for file in files if file.done < length), default=length)
    if files and done == length:
        print0(f"note: {count} augmentations of each image, stored by an earlier run in {folder}, "
               "are used again")
    elif 0 < done < length:
        print0(f"continues to store augmentations after {done} of {length}")
    store = Store(files, folder, images, run, optional)
    try:
        store.fill(min(fitted_augmentations(settings, len(images)), count))
    except NoRoom as e:
        if not optional:
            raise
        note = f"{e}; this run makes new augmentations in every epoch, which takes longer"
        print0(f"note: {note}")
        run.notes.append(note)
        settings.stored_augmentations = 0
        return None
    for file in files:
        with contextlib.suppress(OSError):  # those not used for the longest time make room first
            os.utime(file.path)
    return store


def fill_rows(store, wanted):
    """Compute those of the first `wanted` rows that are missing.

    All processes share the work, one of each machine writes.
    """
    files, folder, images, run = store.files, store.folder, store.images, store.run
    settings, per_step = run.settings, BATCH * world.size
    length = min(-(-wanted // per_step) * per_step, files[0].length)  # whole steps
    with one_writer(folder) as writes, contextlib.ExitStack() as stack:
        for file in files:
            file.look()  # another run may have filled it meanwhile
        missing = [file for file in files if world.any(file.done < length)]
        black = np.zeros([1, 3, settings.image_size, settings.image_size], np.float32)
        # this also compiles the networks, in every process before one waits for another
        shapes = {file: file.network(black).shape[1:] for file in missing if not file.rows}
        problem = make_files(store, shapes) if writes else ""
        problem = max(world.gather({world.rank: problem}).values())  # in all processes the same
        if problem:
            for file in shapes if writes else ():  # where another machine has no room
                file.remove()
            raise NoRoom(problem)
        done = min((file.done for file in missing), default=length)
        done = min(world.gather({world.rank: done} if writes else {}).values())
        outputs = {file: stack.enter_context(open(file.path, "r+b"))
                   for file in missing if writes}

        def make(begin):
            places = np.minimum(begin + BATCH * world.rank + np.arange(BATCH), length - 1)
            versions, rows = np.divmod(places, len(images))
            return stored_version(images, rows, settings, versions)
        jobs, saved = range(done, length, per_step), time.monotonic()
        bar = stack.enter_context(progress(None, "storing augmentations", files[0].length, "image"))
        bar.update(done)
        try:
            for begin, x in zip(jobs, prefetch(make, jobs, run.threads)):
                end = min(begin + per_step, length)
                for file in missing:
                    values = world.all_gather(file.network(x), per_step)[:end - begin].numpy()
                    with np.errstate(over="ignore"):
                        values = values.astype("<f2")
                    if not np.isfinite(values).all():
                        raise InputError(f"the {file.name} of a frozen network are not finite in "
                                         "float16; are its weights those of ImageNet? "
                                         "--stored_augmentations 0 stores none")
                    if writes:
                        outputs[file].seek(file.rows.start + begin * file.rows.size)
                        outputs[file].write(values.data)
                bar.update(end - done)
                done = end
                if time.monotonic() - saved > SAVE_SECONDS:
                    for file, f in outputs.items():
                        file.save(f, done)
                    saved = time.monotonic()
        finally:  # Ctrl-C, too
            for file, f in outputs.items():
                file.save(f, done)
        world.barrier()
        for file in files:
            file.look()
        world.barrier()  # no other run makes room before all have opened the files


def make_files(store, shapes):
    """Make the files that do not exist; shapes: {file: shape of a row} of these.

    Returns "", or why there is no room, with the numbers.
    """
    settings, new = store.settings, list(shapes)
    if not new:
        return ""
    sizes = {file: file.length * 2 * math.prod(file.rows.shape if file.rows else shapes[file])
             for file in store.files}
    count, total, limit = (settings.stored_augmentations, sum(sizes.values()),
                           settings.store_gb * 1e9)
    if total > limit:
        fit = int(limit / total * (count + 1)) - 1  # beside the plain image
        return (f"--stored_augmentations {count}: they take {total / 1e9:.3f} GB, more than "
                f"--store_gb {settings.store_gb:g}; raise it, or start a run with "
                f"--stored_augmentations {max(fit, 0)}")
    try:
        make_room(store.folder, sum(sizes[file] for file in new), limit, "--stored_augmentations",
                  "fewer of them", [file.path for file in store.files],
                  SPARE if store.optional else 2**20)
        for file in new:
            file.create(shapes[file])
    except InputError as e:
        return str(e)
    except OSError as e:  # a quota, of which the disk does not tell
        return store.cannot(e.strerror or e)
    return ""
