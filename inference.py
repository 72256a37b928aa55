"""Name the category of a picture, or of every picture in a folder, with one or several trained students.

    python inference.py --model_path models_saved/best_model_fold0.pdparams --image_path photo.jpg
    python inference.py --model_path models_saved/best_model_fold*.pdparams --image_path folder --output answers.csv
    python inference.py --model_path models_saved/best_model_fold0.pdparams --image_path folder --explain heat

Categories, picture size, preprocessing and the temperature that makes confidence mean something (Guo et al. 2017) come
from the JSON beside the weights. Several files average their calibrated logits: measured to be better than averaging
probabilities, yet still too modest (benchmarks/ensemble_calibration.py). Needs no GPU; the exit status is 0 if
at least one picture was answered.
"""
import argparse
import glob
import json
import os
import re
import signal
import sys
import time

from utils import runtime  # first: it sets what numpy, paddle and cv2 read when they load
import numpy as np

from models.student_model import Ensemble, Student
from utils.checkpoint import EXPORTS, load_into, read_about, read_arrays
from utils.data_utils import prefetch, walk
from utils.explain import explain
from utils.pictures import UnreadablePicture, read_picture
from utils.plots import contact_sheet
from utils.process import new_place
from utils.settings import InputError, composed
from utils.tables import printable, write_csv
from utils.transforms import normalise, whole_view

SHEET = 25  # pictures on the contact sheet of --show
UNSURE = "unsure"


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("what is asked, and of whom")
    group.add_argument("--model_path", nargs="+", required=True, metavar="FILE",
                       help=".pdparams files of main.py, or one file of export.py")
    group.add_argument("--image_path", required=True, metavar="PATH", help="a picture, or a folder of pictures")
    group.add_argument("--recursive", action="store_true", help="look into the sub-folders too")
    group.add_argument("--categories", nargs="+", metavar="NAME", help="only checked against those of the weights file")
    group = parser.add_argument_group("answers")
    group.add_argument("--min_confidence", type=float, default=0.0, metavar="X",
                       help=f"answer '{UNSURE}' below this confidence, 0 to 1; the run's report.txt says which one "
                            "makes how many of one student's answers right; several together are more modest, and answer "
                            "fewer (default: 0)")
    group.add_argument("--output", metavar="FILE", help="save the answers as .csv or .json, a new file")
    group.add_argument("--explain", metavar="FOLDER", help="draw beside each picture where the answer comes from, as a "
                       "heat map, into a new folder")
    group.add_argument("--show", action="store_true", help=f"show the first {SHEET} pictures with their answers")
    group = parser.add_argument_group("machine")
    group.add_argument("--batch_size", type=int, default=32, metavar="N", help="pictures at a time (default: 32)")
    group.add_argument("--use_gpu", action="store_true", help="run on the GPU")
    args = parser.parse_args(argv)
    args.model_path = expand(args.model_path)
    if args.batch_size < 1:
        raise InputError(f"--batch_size {args.batch_size}: must be at least 1")
    if args.output is not None:
        if not args.output.lower().endswith((".csv", ".json")):
            raise InputError(f"--output {args.output}: must end in .csv or .json")
        new_place("output", args.output)
    if args.use_gpu and args.model_path[0].endswith(EXPORTS):
        raise InputError("--use_gpu: exports run on the processor here; leave the option out")
    if args.explain is not None:
        if not args.explain:
            raise InputError("--explain '': the name of the folder is empty")
        if args.model_path[0].endswith(EXPORTS):
            raise InputError("--explain: an export gives answers only; name the .pdparams files that it was made of")
        if os.path.lexists(args.explain):
            raise InputError(f"--explain {args.explain}: exists already; name a new folder, or remove it first")
    return args


def expand(patterns):
    """The files that the patterns name: shells of Windows do not expand *."""
    files = []
    for pattern in patterns:
        folder, name = os.path.split(pattern)
        within = glob.escape(folder) if os.path.isdir(folder) else folder  # its name may have brackets
        files += [pattern] if os.path.exists(pattern) else sorted(glob.glob(os.path.join(within, name))) or [pattern]
    return files


def load_students(paths, categories=None):
    """Return (the JSON beside the first file, [Student], [temperature]). All files must agree with each other.

    Of several runs it names all, and the settings on which they agree.
    """
    abouts = [read_about(p) for p in paths]
    about = abouts[0]
    for path, other in zip(paths, abouts):
        for key in ("categories", "image_size"):
            if other[key] != about[key]:
                raise InputError(f"{paths[0]} and {path} do not belong together: {key} {about[key]} and {other[key]}")
    check_categories(about, categories)
    runs = list(dict.fromkeys(own.get("run", "") for own in abouts))
    if len(runs) > 1:
        agreed = {k: v for k, v in about.get("settings", {}).items()
                  if all(own.get("settings", {}).get(k) == v for own in abouts)}
        about = {**about, "run": ", ".join(runs), "settings": agreed, "num_folds": agreed.get("num_folds")}
    students = []
    for path, own in zip(paths, abouts):
        students.append(Student(len(own["categories"]), own["freeze_depth"]))
        load_into(students[-1], read_arrays(path), path)
        students[-1].eval()
    return about, students, [own.get("temperature", 1.0) for own in abouts]


def check_categories(about, wanted):
    if wanted and composed(tuple(wanted)) != composed(tuple(about["categories"])):
        raise InputError(f"--categories {' '.join(wanted)} differs from the weights file, whose categories are "
                         f"{' '.join(about['categories'])}, in this order; leave the option out")


def check_threshold(min_confidence, categories):
    if not 0 <= min_confidence <= 1:
        raise InputError(f"--min_confidence {min_confidence}: must be at least 0 and at most 1")
    if min_confidence and UNSURE in categories:
        raise InputError(f"--min_confidence: one of the categories is itself called '{UNSURE}'; leave the option out")


def load_export(path):
    """run(x) of a file of export.py: array in, probabilities out, array [B, C]. Raises InputError if it is damaged."""
    if path.endswith(".pdiparams"):
        prefix = os.path.splitext(path)[0]
        if runtime.network_file(prefix).endswith(".json") and runtime.versions()["paddle"].startswith("2."):
            # reading it would kill the process
            raise InputError(f"{path} was exported with Paddle 3, and this is Paddle 2: export it again with this version")
        try:
            run = runtime.predictor(prefix, runtime.CORES)
        except (RuntimeError, ValueError) as e:  # a page of Paddle's C++
            raise InputError(f"{path} and {runtime.network_file(prefix)} are not a usable Paddle model") from e
        return lambda x: run(x).numpy()
    try:
        import onnxruntime  # here: nothing else needs it
    except ImportError as e:
        raise InputError(f"{path} needs ONNX Runtime: pip install -r requirements-export.txt") from e
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = runtime.CORES, 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # it has no class of its own for a damaged file
        raise InputError(f"{path} is not a usable ONNX model: {e}") from e
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def load_model(paths, categories=None):
    """Return (what the JSON says, answer, explain) of files of main.py, or of one export.

    answer takes uint8 views, each [S, S, 3], and gives probabilities [B, C]. explain takes one view and the number of its
    category, and gives the heat map as a JPEG (utils/explain.py); of an export, which gives answers only, it is None.
    """
    if paths[0].endswith(EXPORTS):
        if len(paths) > 1:
            raise InputError(f"--model_path {' '.join(paths)}: an export holds all its folds, give it alone")
        about = read_about(paths[0])
        check_categories(about, categories)
        run = load_export(paths[0])
        return about, (lambda views: run(np.stack(views) if about["pixels"] else normalise(views))), None
    about, students, temperatures = load_students(paths, categories)
    size = about["image_size"]
    run = runtime.compiled(Ensemble(students, temperatures), [3, size, size], runtime.CORES)
    return (about, lambda views: run(normalise(views)).numpy(),
            lambda view, category: explain(students, temperatures, view, category))


def read_views(paths, image_size):
    """[(uint8 view, None) or (None, why it cannot be read)] of every path."""
    views = []
    for path in paths:
        try:
            views.append((whole_view(read_picture(path), image_size), None))
        except UnreadablePicture as e:
            views.append((None, str(e)))
    return views


def predict(paths, answer, image_size, batch_size):
    """Yield (path, probabilities [C] or None, reason or None, uint8 view or None), in the order of `paths`.

    Reading runs in threads ahead of the network; memory holds a few batches, however many pictures there are.
    """
    starts = range(0, len(paths), batch_size)
    read = prefetch(lambda start: read_views(paths[start:start + batch_size], image_size), starts, runtime.CORES)
    for start, loaded in zip(starts, read):
        views = [v for v, _ in loaded if v is not None]
        answers = iter(answer(views) if views else ())
        for path, (view, reason) in zip(paths[start:], loaded):
            yield path, None if view is None else next(answers), reason, view


def find_pictures(path, recursive):
    """(pictures, [(path, reason)] of other files) of a picture or a folder."""
    if os.path.isdir(path):
        files, left_out = walk(path, recursive)
        return [os.path.join(path, f) for f in files], [(os.path.join(path, f), why) for f, why in left_out]
    if not os.path.lexists(path):
        raise InputError(f"--image_path {path}: there is no such picture or folder")
    return [path], []


def main(argv=None):
    args = parse(argv)
    runtime.keep_memory()
    runtime.choose_device("gpu" if args.use_gpu else "cpu")
    paths, left_out = find_pictures(args.image_path, args.recursive)
    about, answer_of, explain_of = load_model(args.model_path, args.categories)
    categories = about["categories"]
    check_threshold(args.min_confidence, categories)
    rows, sheet, no_pictures = [], [], len(left_out)
    bar = runtime.progress(predict(paths, answer_of, about["image_size"], args.batch_size), "predicting", len(paths),
                           "picture")
    try:
        for path, probabilities, reason, view in bar:
            if reason:
                left_out.append((path, reason))
                continue
            confidence = float(probabilities.max())
            answer = categories[probabilities.argmax()] if confidence >= args.min_confidence else UNSURE
            rows.append([path, answer, round(confidence, 6), *(round(float(p), 6) for p in probabilities)])
            bar.write(f"{printable(path)}  {answer}  {confidence:.4f}", file=sys.stdout)
            if args.explain:
                os.makedirs(args.explain, exist_ok=True)
                stem = os.path.splitext(os.path.basename(path))[0]
                name = re.sub(r"[^\w.-]+", "_", f"{len(rows):05}-{answer}-{stem}")[:60] + ".jpg"
                with open(os.path.join(args.explain, name), "xb") as f:
                    f.write(explain_of(view, probabilities.argmax()))
            if args.show and len(sheet) < SHEET:
                sheet.append((view, f"{answer} {confidence:.2f}\n{os.path.basename(path)}"))
    finally:
        if args.output and rows:
            save(args.output, rows, left_out, categories)
            done = len(rows) + len(left_out) - no_pictures
            if done < len(paths):
                print(f"stopped: {args.output} has the first {done} of {len(paths)} pictures", file=sys.stderr)
    for path, reason in left_out:
        print(f"left out {path!r}: {reason}", file=sys.stderr)
    unsure = f", {sum(r[1] == UNSURE for r in rows)} of them with '{UNSURE}'" if args.min_confidence else ""
    print(f"{len(rows)} pictures answered{unsure}, {len(left_out)} files left out", file=sys.stderr)
    if args.explain and rows:
        print(f"heat maps: {args.explain}", file=sys.stderr)
    if sheet:
        path = time.strftime("predictions-%Y%m%d-%H%M%S.png")
        contact_sheet(*zip(*sheet), path, show=True)
        print(f"drawn in {path}", file=sys.stderr)
    if not rows:
        raise InputError(f"nothing in {args.image_path} could be predicted")


def save(output, rows, left_out, categories):
    """rows: [path, category, confidence, one probability per category]"""
    header = ["path", "category", "confidence", *(f"p_{c}" for c in categories)]
    if output.lower().endswith(".csv"):
        return write_csv(output, header, rows, mode="x")
    with open(output, "x", encoding="utf-8", errors="backslashreplace") as f:
        json.dump({"pictures": [dict(zip(header, r)) for r in rows],
                   "left_out": [{"path": p, "reason": r} for p, r in left_out]}, f, indent=2, ensure_ascii=False)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # saves the answers that there are, as Ctrl-C does
    runtime.command(main, memory="lower --batch_size, or close other programs")
