"""Weights files: written whole or not at all, and read without running code from them.

A `.pdparams` file is a pickle, and unpickling a stranger's file can run anything. Here only NumPy
arrays come out of one; files of `paddle.save` and Paddle's downloads hold nothing else. The JSON
beside it says what the weights are: categories, preprocessing, fold, scores, settings.
"""
import math
import os
import pickle
import re
import shutil
import time
import zlib

import numpy as np
import paddle
from paddle.utils.download import WEIGHTS_HOME, get_weights_path_from_url
from paddle.vision.models import mobilenetv2, resnet

from models import MEAN, STD
from models.student_model import BLOCKS, Student
from utils.engine import network_file, versions
from utils.errors import InputError
from utils.files import free_bytes, new_folder, read_json, write_json, write_whole
from utils.settings import DOWNLOAD, FINAL, RANDOM
from utils.tables import listed
from utils.transforms import square_side

EXPORTS = (".onnx", ".pdiparams")  # files of export.py
URLS = {"teacher_weights": resnet.model_urls["resnet50"],
        "student_weights": mobilenetv2.model_urls["mobilenetv2_1.0"]}
PREPROCESSING = (
    "turn the image as EXIF says; crop its central square; resize that to `square` pixels (OpenCV: "
    "INTER_AREA to shrink, INTER_CUBIC to enlarge); crop the central `center_crop` pixels; "
    "(value / 255 - mean) / std")

_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")  # of NumPy 1 and NumPy 2
_ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("collections", "OrderedDict"),
            ("_codecs", "encode"), *((m, n) for m in _NUMPY for n in ("_reconstruct", "scalar"))}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}")
        if module in _NUMPY:  # both functions, from whichever NumPy is installed
            array, number = np.zeros(0), np.float32(0)
            return {"_reconstruct": array.__reduce__()[0], "scalar": number.__reduce__()[0]}[name]
        return super().find_class(module, name)


def read_arrays(path):
    """{name: array} of a .pdparams file, without running code from it.

    Raises InputError if the file is missing or damaged, holds anything but arrays, or holds
    numbers that are not finite.
    """
    try:
        with open(path, "rb") as f:
            content = _ArraysOnly(f, encoding="latin1").load()  # latin1: files of Python 2
    except OSError as e:
        raise InputError(f"cannot read the weights file {path}: {e.strerror or e}") from e
    except Exception as e:  # a damaged pickle raises almost anything
        raise InputError(f"{path} is not a usable weights file: {e or 'it is damaged'}") from e
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a weights file: it holds no table of arrays")
    arrays = {k: v for k, v in content.items()
              if isinstance(k, str) and isinstance(v, np.ndarray) and v.dtype.kind in "fiu"}
    broken = [k for k, v in arrays.items() if v.dtype.kind == "f" and not np.isfinite(v).all()]
    if broken:
        raise InputError(f"{path}: not a finite number in {listed(broken, 3)}")
    return arrays


def load_into(layer, arrays, source, prefix=""):
    """Copy arrays into a layer. Raises InputError, naming `source`, unless all of its arrays fit.

    The array of the layer's `name` is the file's `prefix + name`; others in the file are ignored.
    """
    own = layer.state_dict()
    arrays = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    missing = [k for k in own if k not in arrays]
    there = [k for k in own if k in arrays]
    wrong = [f"{k} {list(arrays[k].shape)} instead of {own[k].shape}" for k in there
             if list(arrays[k].shape) != list(own[k].shape)]
    wrong += [f"{k} of type {arrays[k].dtype} (bfloat16?)" for k in there
              if arrays[k].dtype.kind != "f"]
    problems = [f"{what} {listed(names, 3)}" for what, names in (("missing", missing),
                                                              ("misshapen", wrong)) if names]
    if problems:
        raise InputError(f"{source} does not fit {type(layer).__name__}: {'; '.join(problems)}")
    layer.set_state_dict({k: arrays[k].astype(v.numpy().dtype) for k, v in own.items()})


def imagenet_weights(option, value):
    """What --teacher_weights or --student_weights names: (file, {name: array}).

    ("random weights", None) for 'random'. Raises InputError if a file cannot be read or downloaded.
    """
    if value == RANDOM:
        return "random weights", None
    path = value
    if value == DOWNLOAD:
        url, md5 = URLS[option]
        try:
            path = get_weights_path_from_url(url, md5)
        except Exception as e:  # whatever Paddle's network library raises
            raise InputError(
                f"cannot download ImageNet weights from {url} ({type(e).__name__}); fetch the file "
                f"another way and put it into {WEIGHTS_HOME}, or name a local copy: "
                f"--{option} FILE") from e
    return path, read_arrays(path)


def new_student(num_classes, settings, weights):
    """A Student with the weights of imagenet_weights, or random ones that depend on the seed only.

    Its frozen blocks are the same in every fold.
    """
    paddle.seed(settings.seed)
    network, (source, arrays) = Student(num_classes, settings.freeze_depth), weights
    if arrays:
        load_into(network.features, arrays, source, "features.")
    return network


def arrays_of(layer):
    """{name: array} of a layer's parameters and statistics, copied."""
    return {k: np.array(v.numpy()) for k, v in layer.state_dict().items()}


def digest(arrays):
    """CRC-32 of {name: array}, whatever their order; None of None."""
    if arrays is None:
        return None
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(np.ascontiguousarray(arrays[name]), zlib.crc32(name.encode(), crc))
    return crc


def save_weights(path, arrays, about):
    """Write {name: array} to `path`, and the dict `about` with their checksum as JSON beside it."""
    write_whole(path, lambda f: pickle.dump(arrays, f, protocol=4))
    write_json(about_path(path), {**about, "checksum": checksum(arrays, about)})


def checksum(arrays, about):
    """CRC-32 of weights and the name of their run; categories may be renamed by hand."""
    return zlib.crc32(about.get("run", "").encode(), digest(arrays))


def export_checksum(path, about):
    """CRC-32 of an export's files, and of what its about.json says of the input."""
    crc = zlib.crc32(f"{about['image_size']} {about.get('pixels')}".encode())
    network = [] if path.endswith(".onnx") else [network_file(os.path.splitext(path)[0])]
    for file in (path, *network):
        with open(file, "rb") as f:
            crc = zlib.crc32(f.read(), crc)
    return crc


def read_student(path):
    """(the JSON beside a weights file, {name: array}).

    Raises InputError as read_about and read_arrays do, and if the two do not belong together.
    """
    about, arrays = read_about(path), read_arrays(path)
    if about.get("checksum") != checksum(arrays, about):
        raise InputError(f"{path} and {about_path(path)} do not belong together: one of them is of "
                         "another student; copy both files from one run again (if a run is just "
                         "writing there, try again)")
    return about, arrays


def weights_path(settings, fold):
    """The file of a student; fold num_folds: of the final model."""
    name = FINAL if fold == settings.num_folds else f"best_model_fold{fold}.pdparams"
    return os.path.join(settings.save_dir, name)


def check_room(settings, num_classes, resuming):
    """Raises InputError if the disk of save_dir is too small for the students' best weights."""
    paths = [weights_path(settings, k) for k in settings.held_out]
    with paddle.utils.unique_name.guard():
        arrays = Student(num_classes, settings.freeze_depth).state_dict().values()
    # A file is written whole before the one that it replaces goes; those of a resumed run are there
    needed = 4 * sum(v.size for v in arrays) * (len(paths) + 1)
    free = free_bytes(settings.save_dir) + sum(
        os.path.getsize(path) for path in paths if resuming and os.path.exists(path))
    if needed > free:
        raise InputError(f"the weights of this run take {needed / 1e6:.0f} MB and "
                         f"{settings.save_dir} has {free / 1e6:.0f} MB free; make room, or choose "
                         "another place with --save_dir")


def describe(student, run, settings, categories):
    """The JSON beside a student's weights: what inference and a reader need to know.

    student: TrainState, of which the best epoch was saved; run: name of the run's folder. The
    final model has no fold; its scores in validation are the means of the folds'.
    """
    return {
        "categories": categories, "image_size": settings.image_size,
        "preprocessing": {"square": square_side(settings.image_size),
                          "center_crop": settings.image_size, "channels": "RGB",
                          "mean": MEAN, "std": STD, "steps": PREPROCESSING},
        "architecture": "MobileNetV2", "freeze_depth": settings.freeze_depth,
        "fold": None if student.is_final else student.fold, "num_folds": settings.num_folds,
        "epoch": student.best_epoch,
        "scores": student.history[student.best_epoch - 1], "run": run,
        "settings": vars(settings), "versions": versions()}


def about_path(path):
    """best_model_fold0.pdparams -> best_model_fold0.json; of an export: about.json beside it."""
    if path.endswith(EXPORTS):  # whose network may itself be a .json
        return os.path.join(os.path.dirname(path), "about.json")
    return os.path.splitext(path)[0] + ".json"


def read_about(path):
    """The JSON beside a weights file. Raises InputError if there is none of this program."""
    try:
        about = read_json(about_path(path))
        categories, size, depth = (about[k] for k in ("categories", "image_size", "freeze_depth"))
        if not (isinstance(categories, list) and len(categories) > 1
                and all(isinstance(c, str) for c in categories)
                and len(set(categories)) == len(categories)
                and isinstance(size, int) and 32 <= size <= 1024
                and isinstance(depth, int) and 0 <= depth <= BLOCKS):
            raise ValueError("categories, image_size or freeze_depth is not what main.py writes")
        temperature = about.get("temperature", 1.0)  # set when the run is finished
        if not (isinstance(temperature, (int, float)) and 0 < temperature < math.inf):
            raise ValueError(f"temperature {temperature!r} is not a positive number")
    except FileNotFoundError as e:
        missing = path if not os.path.exists(path) else about_path(path)
        raise InputError(f"{missing} does not exist; " + (
            "an export is the folder that export.py wrote, with about.json"
            if path.endswith(EXPORTS) else
            "a student is two files, FILE.pdparams and FILE.json (python main.py writes them to "
            "models_saved)")) from e
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(
            f"{about_path(path)} does not describe a student of this program: {e}") from e
    return about


def update_about(path, **changes):
    """Change or add entries of the JSON beside a weights file. Raises as read_about does."""
    write_json(about_path(path), {**read_about(path), **changes})


def move_earlier_weights(save_dir, but=None):
    """Move the weights of earlier runs from save_dir to save_dir/<the run's name>.

    Those of the run `but` stay. Returns the folder, or None if nothing was moved. If it is cut
    short, the next call completes it: weights are moved before the JSON that names their run.
    """
    os.makedirs(save_dir, exist_ok=True)
    run_of = {}
    for name in sorted(os.listdir(save_dir), reverse=True):  # .pdparams before .json
        if not re.fullmatch(r"(best_model_fold\d+|final_model)\.(pdparams|json)", name):
            continue
        try:
            run = os.path.basename(read_json(about_path(os.path.join(save_dir, name)))["run"])
        except (OSError, ValueError, KeyError, TypeError):
            run = ""  # unknown
        run_of[name] = "" if run in (os.curdir, os.pardir) else run
    names = [name for name, run in run_of.items() if run != but]
    if not names:
        return None
    run = max(run_of[name] for name in names) or time.strftime("before-%Y%m%d-%H%M%S")
    folder = os.path.join(save_dir, run)
    if os.path.lexists(folder) and (not os.path.isdir(folder)
                                    or set(names) & set(os.listdir(folder))):
        folder = new_folder(save_dir, run)
    os.makedirs(folder, exist_ok=True)
    for name in names:
        shutil.move(os.path.join(save_dir, name), os.path.join(folder, name))
    return folder
