"""Name the category of a picture, or of every picture in a folder, with one or several trained students.

    python inference.py --model_path models_saved/best_model_fold0.pdparams --image_path photo.jpg
    python inference.py --model_path models_saved/best_model_fold*.pdparams --image_path folder --output answers.csv

Categories, picture size, preprocessing and the temperature that makes confidence mean something (Guo et al. 2017) come
from the JSON beside the weights. Several files average their calibrated logits: measured to be better than averaging
probabilities, yet still too modest (benchmarks/ensemble_calibration.py). Runs on any laptop; the exit status is 0 if
at least one picture was answered.
"""
import argparse
import glob
import json
import os
import sys
import time

from utils import runtime  # first: it sets what paddle and cv2 read when they load
import numpy as np
from scipy.special import softmax

from models.student_model import Student
from utils.checkpoint import load_into, read_about, read_arrays
from utils.data_utils import UnreadablePicture, prefetch, read_picture, walk
from utils.plots import contact_sheet
from utils.settings import InputError
from utils.tables import printable, write_csv
from utils.transforms import eval_view, normalise, square_side, to_square

SHEET = 25  # pictures on the contact sheet of --show
UNSURE = "unsure"


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", nargs="+", required=True, metavar="FILE", help=".pdparams files of main.py")
    parser.add_argument("--image_path", required=True, metavar="PATH", help="a picture, or a folder of pictures")
    parser.add_argument("--recursive", action="store_true", help="look into the sub-folders too")
    parser.add_argument("--categories", nargs="+", metavar="NAME", help="only checked against those of the weights file")
    parser.add_argument("--min_confidence", type=float, default=0.0, metavar="X",
                        help=f"answer '{UNSURE}' below this confidence, 0 to 1; the run's report.txt says which one "
                             "makes how many of the answers right (default: 0)")
    parser.add_argument("--output", metavar="FILE", help="save the answers as .csv or .json")
    parser.add_argument("--batch_size", type=int, default=32, metavar="N", help="pictures at a time (default: 32)")
    parser.add_argument("--use_gpu", action="store_true", help="run on the GPU")
    parser.add_argument("--show", action="store_true", help=f"show the first {SHEET} pictures with their answers")
    args = parser.parse_args(argv)
    # Windows shells pass * on as it is
    args.model_path = [f for pattern in args.model_path for f in sorted(glob.glob(pattern)) or [pattern]]
    if args.batch_size < 1:
        raise InputError(f"--batch_size {args.batch_size}: must be at least 1")
    if not 0 <= args.min_confidence <= 1:
        raise InputError(f"--min_confidence {args.min_confidence}: must be at least 0 and at most 1")
    if args.output:
        if not args.output.lower().endswith((".csv", ".json")):
            raise InputError(f"--output {args.output}: must end in .csv or .json")
        if os.path.exists(args.output):
            raise InputError(f"--output {args.output}: exists already; choose another name, or remove it first")
        if not os.path.isdir(os.path.dirname(args.output) or "."):
            raise InputError(f"--output {args.output}: there is no folder {os.path.dirname(args.output)}")
    return args


def load_students(paths, categories=None):
    """Return (what the files' JSON says of the first, students). All files must agree with each other.

    A student is compiled, takes pictures float32 [B, 3, S, S] and gives calibrated logits, array [B, C].
    """
    abouts = [read_about(p) for p in paths]
    about = abouts[0]
    for path, other in zip(paths, abouts):
        for key in ("categories", "image_size"):
            if other[key] != about[key]:
                raise InputError(f"{paths[0]} and {path} do not belong together: {key} {about[key]} and {other[key]}")
    if categories and list(categories) != about["categories"]:
        raise InputError(f"--categories {' '.join(categories)} differs from the weights file, whose categories are "
                         f"{' '.join(about['categories'])}, in this order; leave the option out")
    students = []
    for path, own in zip(paths, abouts):
        student = Student(len(own["categories"]), own["freeze_depth"])
        load_into(student, read_arrays(path), path)
        run = runtime.frozen(student, [3, about["image_size"], about["image_size"]], runtime.CORES)
        students.append(lambda x, run=run, t=own.get("temperature", 1.0): run(x).numpy() / t)
    return about, students


def predict(paths, students, image_size, batch_size):
    """Yield (path, probabilities [C] or None, reason or None, uint8 view or None), in the order of `paths`.

    Reading runs in threads ahead of the networks; memory holds a few batches, however many pictures there are.
    """
    def load(path):
        try:
            return eval_view(to_square(read_picture(path), square_side(image_size)), image_size), None
        except UnreadablePicture as e:
            return None, str(e)

    def load_batch(start):
        return [load(p) for p in paths[start:start + batch_size]]
    starts = range(0, len(paths), batch_size)
    for start, loaded in zip(starts, prefetch(load_batch, starts, runtime.CORES)):
        views = [v for v, _ in loaded if v is not None]
        if views:
            x = normalise(views)
            answers = iter(softmax(np.mean([s(x) for s in students], axis=0), axis=1))
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
    runtime.choose_device("gpu" if args.use_gpu else "cpu")
    paths, left_out = find_pictures(args.image_path, args.recursive)
    about, students = load_students(args.model_path, args.categories)
    categories = about["categories"]
    if args.min_confidence and UNSURE in categories:
        raise InputError(f"--min_confidence: one of the categories is itself called '{UNSURE}'; leave the option out")
    rows, sheet = [], []
    bar = runtime.progress(predict(paths, students, about["image_size"], args.batch_size), "predicting", len(paths),
                           "picture")
    for path, probabilities, reason, view in bar:
        if reason:
            left_out.append((path, reason))
            continue
        confidence = float(probabilities.max())
        answer = categories[probabilities.argmax()] if confidence >= args.min_confidence else UNSURE
        rows.append([path, answer, round(confidence, 6), *(round(float(p), 6) for p in probabilities)])
        bar.write(f"{printable(path)}  {answer}  {confidence:.4f}", file=sys.stdout)
        if args.show and len(sheet) < SHEET:
            sheet.append((view, f"{answer} {confidence:.2f}\n{os.path.basename(path)}"))
    for path, reason in left_out:
        print(f"left out {path!r}: {reason}", file=sys.stderr)
    unsure = f", {sum(r[1] == UNSURE for r in rows)} of them with '{UNSURE}'" if args.min_confidence else ""
    print(f"{len(rows)} pictures answered{unsure}, {len(left_out)} files left out", file=sys.stderr)

    if args.output and rows:
        save(args.output, rows, left_out, categories)
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
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except MemoryError:
        sys.exit("error: out of memory; lower --batch_size, or close other programs")
    except KeyboardInterrupt:
        sys.exit(130)
