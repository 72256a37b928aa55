"""Weights files: written whole or not at all, read without running code from them.

A `.pdparams` file is a pickle, and unpickling a stranger's file can run anything. Here only NumPy arrays come out of
one; honest files from `paddle.save` and Paddle's own downloads are nothing else. What a person wants to know of a
file (categories, preprocessing, fold, scores, settings) is readable JSON beside it.
"""
import json
import math
import os
import pickle
import re
import shutil
import sys
import time

import numpy as np
from paddle.utils.download import WEIGHTS_HOME, get_weights_path_from_url
from paddle.vision.models import mobilenetv2, resnet

from utils import runtime
from utils.settings import BLOCKS, DOWNLOAD, RANDOM, InputError
from utils.transforms import MEAN, STD, square_side

_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("collections", "OrderedDict"), ("_codecs", "encode"),
            *((module, name) for module in _NUMPY for name in ("_reconstruct", "scalar"))}
EXPORTS = (".onnx", ".pdiparams")  # files that export.py writes


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}")
        if module in _NUMPY:  # where NumPy 2 and NumPy 1 keep it
            return {"_reconstruct": np.zeros(0).__reduce__()[0], "scalar": np.float32(0).__reduce__()[0]}[name]
        return super().find_class(module, name)


def read_arrays(path):
    """{name: array} of a .pdparams file, without running code from it. Raises InputError with what does not fit."""
    try:
        with open(path, "rb") as f:
            content = _ArraysOnly(f, encoding="latin1").load()  # latin1: files that Python 2 wrote
    except OSError as e:
        raise InputError(f"cannot read the weights file {path}: {e.strerror or e}") from e
    except Exception as e:  # a damaged pickle raises almost anything
        raise InputError(f"{path} is not a usable weights file: {e or 'it is damaged'}") from e
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a weights file: it holds no table of arrays")
    arrays = {k: v for k, v in content.items() if isinstance(v, np.ndarray) and v.dtype.kind in "fiu"}
    broken = [k for k, v in arrays.items() if v.dtype.kind == "f" and not np.isfinite(v).all()]
    if broken:
        raise InputError(f"{path}: not a finite number in {_some(broken)}")
    return arrays


def _some(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def load_into(layer, arrays, source, prefix=""):
    """Copy `arrays` into a layer, strictly: every parameter and statistic must be there and fit.

    Names in the file are those in the layer behind `prefix`; what else the file holds is left alone.
    """
    own = layer.state_dict()
    arrays = {k[len(prefix):]: v for k, v in arrays.items() if k.startswith(prefix)}
    missing = [k for k in own if k not in arrays]
    wrong = [f"{k} {list(arrays[k].shape)} instead of {own[k].shape}" for k in own
             if k in arrays and list(arrays[k].shape) != list(own[k].shape)]
    wrong += [f"{k} of type {arrays[k].dtype} (bfloat16?)" for k in own if k in arrays and arrays[k].dtype.kind != "f"]
    if missing or wrong:
        raise InputError(f"{source} does not fit {type(layer).__name__}: " + "; ".join(
            f"{what} {_some(names)}" for what, names in (("missing", missing), ("misshapen", wrong)) if names))
    layer.set_state_dict({k: arrays[k].astype(v.numpy().dtype) for k, v in own.items()})


def imagenet_weights(option, value):
    """What --teacher_weights or --student_weights names: (where it is, arrays), or ("random weights", None).

    Raises InputError if it cannot be read, or cannot be downloaded.
    """
    if value == RANDOM:
        return "random weights", None
    path = value
    if value == DOWNLOAD:
        urls = {"teacher_weights": resnet.model_urls["resnet50"],
                "student_weights": mobilenetv2.model_urls["mobilenetv2_1.0"]}
        url, md5 = urls[option]
        try:
            path = get_weights_path_from_url(url, md5)
        except Exception as e:  # Paddle raises whatever its network library raised
            raise InputError(f"cannot download ImageNet weights from {url} ({type(e).__name__}); fetch the file another "
                             f"way and put it into {WEIGHTS_HOME}, or name a local copy: --{option} FILE") from e
    return path, read_arrays(path)


def write_whole(path, write):
    """Write a file through a temporary one in the same folder, so that `path` is always whole: before, or after."""
    unfinished = f"{path}.tmp"
    try:
        with open(unfinished, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        for attempt in range(21):
            try:
                os.replace(unfinished, path)
                break
            except PermissionError:  # Windows: somebody reads the file just now
                if sys.platform != "win32" or attempt == 20:
                    raise
                time.sleep(0.1)
    except BaseException:  # Ctrl-C too
        if os.path.exists(unfinished):
            os.remove(unfinished)  # a full disk needs the room
        raise


def arrays_of(layer):
    """{name: array} of a layer's parameters and statistics, copied."""
    return {k: np.array(v.numpy()) for k, v in layer.state_dict().items()}


def save_weights(path, arrays, about):
    """Write {name: array} to `path` and the dict `about` as JSON beside it."""
    write_whole(path, lambda f: pickle.dump(arrays, f, protocol=4))
    write_json(about_path(path), about)


def write_json(path, content):
    """Readable JSON, whole or not at all; what UTF-8 cannot hold of a file's name is escaped."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_whole(path, lambda f: f.write(text.encode(errors="backslashreplace")))


def weights_path(settings, fold):
    return os.path.join(settings.save_dir, f"best_model_fold{fold.index}.pdparams")


def describe(fold, run, settings, pictures):
    """The JSON beside a weights file: all that inference or a reader needs to know."""
    return {
        "categories": pictures.categories, "image_size": settings.image_size,
        "preprocessing": {"square": square_side(settings.image_size), "centre_crop": settings.image_size,
                          "channels": "RGB", "mean": MEAN, "std": STD,
                          "steps": "turn as EXIF says; cut the central square of the whole picture; resize it to `square` "
                                   "pixels (OpenCV's INTER_AREA to make it smaller, INTER_CUBIC to make it larger); cut its "
                                   "centre of `centre_crop` pixels; (value / 255 - mean) / std"},
        "architecture": "MobileNetV2", "freeze_depth": settings.freeze_depth, "fold": fold.index,
        "num_folds": settings.num_folds, "epoch": fold.best_epoch, "scores": fold.history[fold.best_epoch - 1], "run": run,
        "settings": vars(settings), "versions": runtime.versions()}


def update_about(path, **changes):
    """Add to the JSON beside a weights file, or change it; raises InputError like read_about."""
    write_json(about_path(path), {**read_about(path), **changes})


def about_path(path):
    """best_model_fold0.pdparams -> best_model_fold0.json; of an export, whose network may be a .json, about.json"""
    if path.endswith(EXPORTS):
        return os.path.join(os.path.dirname(path), "about.json")
    return os.path.splitext(path)[0] + ".json"


def read_about(path):
    """The JSON beside a weights file. Raises InputError if it is missing or not of this program."""
    try:
        with open(about_path(path), encoding="utf-8") as f:
            about = json.load(f)
        categories, size, depth = (about[k] for k in ("categories", "image_size", "freeze_depth"))
        if not (isinstance(categories, list) and len(categories) > 1 and all(isinstance(c, str) for c in categories)
                and isinstance(size, int) and 32 <= size <= 1024 and isinstance(depth, int) and 0 <= depth <= BLOCKS):
            raise ValueError("categories, image_size or freeze_depth is not what main.py writes")
        temperature = about.get("temperature", 1.0)  # a run that has not ended has not calibrated its students
        if not (isinstance(temperature, (int, float)) and 0 < temperature < math.inf):
            raise ValueError(f"temperature {temperature!r} is not a positive number")
    except FileNotFoundError as e:
        missing = path if not os.path.exists(path) else about_path(path)
        raise InputError(f"{missing} does not exist; " + (
            "an export is the folder that export.py wrote, with about.json" if path.endswith(EXPORTS) else
            "a student is two files, FILE.pdparams and FILE.json (python main.py writes them to models_saved)")) from e
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"{about_path(path)} does not describe a student of this program: {e}") from e
    return about


def set_aside(save_dir, but=None):
    """Move the weights of an earlier run from save_dir to save_dir/<that run>; returns the folder, or None.

    Those of the run `but` stay. Weights go before the JSON that says whose they are, so that a call that was cut short is
    completed by the next.
    """
    os.makedirs(save_dir, exist_ok=True)
    runs = {}
    for name in sorted(os.listdir(save_dir), reverse=True):
        if not re.fullmatch(r"best_model_fold\d+\.(pdparams|json)", name):
            continue
        try:
            with open(about_path(os.path.join(save_dir, name)), encoding="utf-8") as f:
                run = os.path.basename(json.load(f)["run"])
                runs[name] = "" if run in (os.curdir, os.pardir) else run
        except (OSError, ValueError, KeyError, TypeError):
            runs[name] = ""  # nobody knows whose it is
    old = [name for name, run in runs.items() if run != but]
    if not old:
        return None
    name = max(runs[n] for n in old) or time.strftime("before-%Y%m%d-%H%M%S")
    folder = os.path.join(save_dir, name)
    if os.path.lexists(folder) and (not os.path.isdir(folder) or set(old) & set(os.listdir(folder))):
        folder = new_folder(save_dir, name)
    os.makedirs(folder, exist_ok=True)
    for name in old:
        shutil.move(os.path.join(save_dir, name), os.path.join(folder, name))
    return folder


def new_folder(parent, name):
    """Make parent/name, or parent/name-2, -3 ... if that is taken; returns its path."""
    for number in range(1, 10_000):
        path = os.path.join(parent, name if number == 1 else f"{name}-{number}")
        try:
            os.makedirs(path)
            return path
        except FileExistsError:
            continue
    raise InputError(f"cannot make a folder {name} in {parent}: too many of that name")
