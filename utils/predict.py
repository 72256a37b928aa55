"""What inference.py, export.py and serve.py share: trained students, and images to classify.

    model = load_model(["models_saved/best_model_fold0.pdparams"])
    paths, left_out = find_images("photos")
    for path, probabilities, reason, image in predict_files(paths, model):
        ...
"""
import glob
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from models.student_model import Ensemble, Student
from utils import CORES
from utils.engine import PADDLE_2, compiled, network_file, predictor
from utils.errors import InputError
from utils.explain import explain
from utils.files import here
from utils.images.dataset import list_files, sub_folders
from utils.images.read import UnreadableImage, read_image
from utils.settings import FINAL
from utils.tables import composed, listed
from utils.threads import prefetch
from utils.transforms import normalize, preprocess
from utils.weights import (
    EXPORTS,
    about_path,
    export_checksum,
    load_into,
    read_about,
    read_student,
)

UNSURE = "unsure"
# What --model_path takes of a folder: of main.py, or of export.py
WEIGHTS = (FINAL, "*.pdparams", "model.pdiparams", "model.onnx", "*.onnx")


class Model(NamedTuple):
    """Students of main.py, or an export of them, ready to predict."""
    about: dict        # the JSON beside the weights
    predict: Callable  # list of uint8 RGB images, each [S, S, 3] -> float32 probabilities [B, C]
    explain: Callable | None  # (image, category) -> heat map as a JPEG; None for an export

    def decide(self, probabilities, min_confidence=0.0):
        """(category, confidence) of probabilities [C]; 'unsure' for one below min_confidence."""
        confidence = float(probabilities.max())
        if confidence < min_confidence:
            return UNSURE, confidence
        return self.about["categories"][probabilities.argmax()], confidence


def load_model(paths, categories=None):
    """Load .pdparams files of one or several students, or a single file of export.py.

    categories: what the user expects them to be. Raises InputError if files cannot be used, do not
    belong together, or have other categories.
    """
    if any(path.endswith(EXPORTS) for path in paths):
        if len(paths) > 1:
            raise InputError(f"--model_path {' '.join(paths)}: an export already holds all its "
                             "students; name one file")
        about = read_about(paths[0])
        check_categories(about, categories)
        run = load_export(paths[0])
        if export_checksum(paths[0], about) not in about.get("checksums", ()):
            raise InputError(f"{paths[0]} and {about_path(paths[0])} do not belong together; copy "
                             "both from one export again, or export again if it was made with an "
                             "earlier version")
        prepare = np.stack if about.get("pixels") else normalize
        return Model(about, lambda images: run(prepare(images)), None)
    about, students, temperatures = load_students(paths, categories)
    size = about["image_size"]
    run = compiled(Ensemble(students, temperatures), [3, size, size], CORES)
    return Model(about, lambda images: run(normalize(images)).numpy(),
                 lambda image, category: explain(students, temperatures, image, category))


def load_students(paths, categories=None):
    """Load .pdparams files. Returns (about, [Student] in eval mode, [temperature]).

    Of several students, `about` names all runs and has the settings that are the same in all.
    Raises InputError as load_model does.
    """
    abouts, students = zip(*map(one_student, paths))
    for path, about in zip(paths, abouts):
        for key in ("categories", "image_size"):
            if about[key] != abouts[0][key]:
                raise InputError(f"{paths[0]} and {path} do not belong together: {key} "
                                 f"{abouts[0][key]} and {about[key]}")
    check_categories(abouts[0], categories)
    for path, about in zip(paths, abouts):
        if "temperature" not in about:
            print(f"note: {path}: its run is not finished, so its confidence is not calibrated",
                  file=sys.stderr)
    return _shared(abouts), [*students], [about.get("temperature", 1.0) for about in abouts]


def one_student(path):
    """(the JSON beside a .pdparams file, its Student in eval mode). Raises InputError."""
    about, arrays = read_student(path)
    student = Student(len(about["categories"]), about["freeze_depth"])
    load_into(student, arrays, path)
    student.eval()
    return about, student


def _shared(abouts):
    first, *others = ({k: v for k, v in about.items() if k != "checksum"} for about in abouts)
    if not others:
        return first
    settings = {k: v for k, v in first.get("settings", {}).items()
                if all(other.get("settings", {}).get(k) == v for other in others)}
    about = {k: v for k, v in first.items() if k not in ("fold", "epoch", "scores", "temperature")}
    runs = dict.fromkeys(about.get("run", "") for about in abouts)  # each once, in order
    return about | {"run": ", ".join(runs), "settings": settings,
                    "num_folds": settings.get("num_folds")}


def load_export(path):
    """run(x) of a file of export.py: array in, float32 probabilities [B, C] out, on the CPU.

    Raises InputError if the file is damaged, or needs another Paddle or ONNX Runtime.
    """
    if path.endswith(".pdiparams"):
        network = network_file(os.path.splitext(path)[0])
        if network.endswith(".json") and PADDLE_2:
            # reading it would kill the process
            raise InputError(f"{path} was exported with Paddle 3, and this is Paddle 2: export it "
                             "again with this version")
        try:
            run = predictor(os.path.splitext(path)[0], CORES)
        except (RuntimeError, ValueError) as e:  # a page of Paddle's C++
            raise InputError(f"{path} and {network} are not a usable Paddle model") from e
        return lambda x: run(x).numpy()
    try:
        import onnxruntime  # optional
    except ImportError as e:
        raise InputError(
            f"{path} needs ONNX Runtime: pip install -r {here('requirements-export.txt')}") from e
    onnxruntime.disable_telemetry_events()  # on Windows; elsewhere utils/__init__.py
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = CORES, 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # ONNX Runtime has no class of its own for a damaged file
        raise InputError(f"{path} is not a usable ONNX model: {e}") from e
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def check_categories(about, wanted):
    """Raise InputError unless the categories that the user named are those of the weights."""
    if wanted and composed(tuple(wanted)) != composed(tuple(about["categories"])):
        raise InputError(f"--categories {' '.join(wanted)}: differs from the weights file, whose "
                         f"categories are {' '.join(about['categories'])}, in this order; leave "
                         "the option out")


def check_threshold(min_confidence, categories):
    """Raise InputError unless 0 <= min_confidence <= 1 and 'unsure' is no category."""
    if not 0 <= min_confidence <= 1:
        raise InputError(f"--min_confidence {min_confidence}: must be at least 0 and at most 1")
    if min_confidence and UNSURE in categories:
        raise InputError(f"--min_confidence: one of the categories is itself called '{UNSURE}'; "
                         "leave the option out")


def expand(patterns):
    """The paths that the patterns name, for shells that do not expand * and ~, as on Windows."""
    paths = []
    for pattern in map(os.path.expanduser, patterns):
        folder, name = os.path.split(pattern)
        if os.path.isdir(folder):
            folder = glob.escape(folder)  # its name may have brackets
        matches = [] if os.path.exists(pattern) else sorted(
            glob.glob(os.path.join(folder, name), recursive=True))
        paths += matches or [pattern]
    return paths


def find_weights(patterns):
    """The files of --model_path; of a folder the first kind of WEIGHTS that is in it.

    Raises InputError if a folder has none.
    """
    paths = []
    for path in expand(patterns):
        found = [path]
        if os.path.isdir(path):
            kinds = (sorted(glob.glob(os.path.join(glob.escape(path), kind))) for kind in WEIGHTS)
            found = next(filter(None, kinds), [])
            if not found:
                raise InputError(f"--model_path {path}: is a folder without {', '.join(WEIGHTS)}; "
                                 f"its sub-folders: {listed(sub_folders(path))}")
            print(f"note: --model_path {path}: is a folder, of which are taken: "
                  f"{listed([os.path.basename(f) for f in found])}", file=sys.stderr)
        paths += found
    # best_model_fold* names the JSON files as well
    return [p for p in paths if os.path.splitext(p)[0] + ".pdparams" not in paths
            or not p.endswith(".json")]


def find_images(patterns, recursive=False):
    """([path], [(path, reason)] of the files left out) of images, folders and patterns of them.

    patterns: one or several. Raises InputError if one does not exist, or if there are only
    sub-folders and they are not searched.
    """
    paths, left_out = [], []
    for path in expand([patterns] if isinstance(patterns, str) else patterns):
        files, rest = list_files(path, recursive) if os.path.isdir(path) else ([""], [])
        if not os.path.lexists(path):
            raise InputError(f"--image_path {path}: there is no such image or folder")
        paths += [os.path.join(path, f) if f else path for f in files]
        left_out += [(os.path.join(path, f), reason) for f, reason in rest]
    folders = [path for path, reason in left_out if reason == "a folder"]
    if folders and not paths:
        raise InputError("--image_path: no image there; add --recursive to search the sub-folders, "
                         f"{listed(folders)}")
    return [*dict.fromkeys(paths)], [*dict.fromkeys(left_out)]


def read_images(paths, image_size):
    """Read and preprocess files: [(uint8 RGB [S, S, 3], None) or (None, why it is unreadable)]."""
    images = []
    for path in paths:
        try:
            images.append((preprocess(read_image(path), image_size), None))
        except UnreadableImage as e:
            images.append((None, str(e)))
    return images


def predict_files(paths, model, batch_size=32):
    """Yield (path, probabilities [C] or None, reason or None, image or None) in the given order.

    reason: why a file cannot be read; image: uint8 RGB [S, S, 3], as the network sees it. Threads
    read ahead of the network; only a few batches are in memory at a time.
    """
    size = model.about["image_size"]
    batches = [paths[i:i + batch_size] for i in range(0, len(paths), batch_size)]
    for batch, loaded in zip(batches, prefetch(lambda b: read_images(b, size), batches, CORES)):
        images = [image for image, _ in loaded if image is not None]
        predicted = iter(model.predict(images) if images else ())
        for path, (image, reason) in zip(batch, loaded):
            yield path, None if image is None else next(predicted), reason, image
