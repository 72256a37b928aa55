"""Classify images with the final model of a training, or with any of its students.

    python inference.py --image_path photo.jpg         # models_saved/final_model.pdparams
    python inference.py --image_path folder --output predictions.csv
    python inference.py --image_path folder --explain heat
    python inference.py --model_path models_saved/best_model_fold*.pdparams --image_path folder

Categories, image size, preprocessing and the temperature that calibrates the confidence (Guo et al.
2017) are read from the JSON beside the weights. Several students are combined by the mean of their
calibrated logits, which was measured to be better than the mean of probabilities but is still
underconfident (benchmarks/ensemble_calibration.py). Needs no GPU. The exit status is 0 if at least
one image was classified.
"""
import collections
import contextlib
import json
import os
import re
import sys
import time

from utils.command import Parser, run_command
from utils.errors import InputError
from utils.files import check_new
from utils.settings import FINAL_MODEL

MAX_LEFT_OUT = 20  # files that are named for each reason
MAX_SHEET = 25  # images on the contact sheet of --show


def parse(argv=None):
    parser = Parser(__doc__)
    group = parser.add_argument_group("model and images")
    group.add_argument("--model_path", nargs="+", metavar="FILE", default=[FINAL_MODEL],
                       help=".pdparams files of main.py, or one file of export.py; or their folder "
                            f"(default: {FINAL_MODEL})")
    group.add_argument("--image_path", nargs="+", required=True, metavar="PATH",
                       help="images, folders of images, or patterns such as '*.jpg'")
    group.add_argument("--recursive", action="store_true", help="search sub-folders as well")
    group.add_argument("--categories", nargs="+", metavar="NAME",
                       help="stop if the categories of the weights file are not these")
    group = parser.add_argument_group("predictions")
    group.add_argument("--min_confidence", type=float, default=0.0, metavar="X",
                       help="predict 'unsure' below this confidence, 0 to 1 (default: 0); the "
                            "run's report.txt has the accuracy of one student at each threshold; "
                            "several together are less confident and more often unsure")
    group.add_argument("--output", metavar="FILE", type=os.path.expanduser,
                       help="save to a new .csv or .json file")
    group.add_argument("--explain", metavar="FOLDER", type=os.path.expanduser,
                       help="save each image beside a heat map of what its prediction is based on, "
                            "in a new folder")
    group.add_argument("--show", action="store_true",
                       help=f"open a window with the first {MAX_SHEET} images and their "
                            "predictions, and save it as predictions-<time>.png")
    group = parser.add_argument_group("machine")
    group.add_argument("--batch_size", type=int, default=32, metavar="N",
                       help="images at a time (default: 32)")
    group.add_argument("--use_gpu", action="store_true", help="run on the GPU if there is one")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise InputError(f"--batch_size {args.batch_size}: must be at least 1")
    if args.output is not None:
        if not args.output.lower().endswith((".csv", ".json")):
            raise InputError(f"--output {args.output}: must end in .csv or .json")
        check_new("output", args.output)
    if args.explain is not None:
        check_new("explain", args.explain)
    return args


if __name__ == "__main__":
    # before Paddle loads, which takes seconds: --help and mistyped options answer at once
    run_command(parse)

from utils.engine import choose_device, keep_memory, try_gpu
from utils.predict import (
    UNSURE,
    check_threshold,
    find_images,
    find_weights,
    load_model,
    predict_files,
)
from utils.run.process import Signals
from utils.tables import printable, write_csv
from utils.threads import progress
from utils.weights import EXPORTS


def main(argv=None):
    args = parse(argv)
    model_paths = find_weights(args.model_path)
    exported = any(path.endswith(EXPORTS) for path in model_paths)
    if exported and args.explain:
        raise InputError("--explain: an export gives probabilities only; name the .pdparams files "
                         "that it was made from")
    keep_memory()
    select_device(args.use_gpu, exported)
    paths, other_files = find_images(args.image_path, args.recursive)
    model = load_model(model_paths, args.categories)
    categories = model.about["categories"]
    check_threshold(args.min_confidence, categories)

    rows, unreadable, sheet = [], [], []
    predicted = progress(predict_files(paths, model, args.batch_size), "predicting", len(paths),
                         "image")
    signals = Signals(deferred=True)  # after Ctrl-C what is predicted is still saved
    signals.listen()
    try:
        for path, probabilities, reason, image in predicted:
            if reason:
                unreadable.append((path, reason))
            else:
                category, confidence = model.decide(probabilities, args.min_confidence)
                rows.append([path, category, round(confidence, 6),
                             *(round(float(p), 6) for p in probabilities)])
                predicted.write(f"{printable(path)}  {category}  {confidence:.4f}",
                                file=sys.stdout)
                if args.explain:
                    heat_map = model.explain(image, probabilities.argmax())
                    save_heat_map(args.explain, len(rows), category, path, heat_map)
                if args.show and len(sheet) < MAX_SHEET:
                    sheet.append((image,
                                  f"{category} {confidence:.2f}\n{os.path.basename(path)}"))
            if signals.received:
                break
    finally:
        tried_all = len(unreadable) == len(paths)  # a .json file names them
        if args.output and (rows or tried_all and args.output.lower().endswith(".json")):
            save(args.output, rows, other_files + unreadable, categories)
            done = len(rows) + len(unreadable)
            if done < len(paths):
                print(f"stopped: {args.output} has the first {done} of {len(paths)} images",
                      file=sys.stderr)
    signals.forget()
    if signals.received:
        raise SystemExit(128 + signals.received)

    left_out, reasons = other_files + unreadable, collections.Counter()
    for path, reason in left_out:
        reasons[reason] += 1
        if reasons[reason] <= MAX_LEFT_OUT:
            print(f"left out {path!r}: {reason}", file=sys.stderr)
    for reason, times in reasons.items():
        if times > MAX_LEFT_OUT:
            print(f"left out {times - MAX_LEFT_OUT} more: {reason}; --output with a .json file "
                  "names them all", file=sys.stderr)
    count = f"{len(rows)} images classified"
    if args.min_confidence:
        count += f", {sum(row[1] == UNSURE for row in rows)} of them '{UNSURE}'"
    print(f"{count}, {len(left_out)} files left out", file=sys.stderr)
    if args.explain and rows:
        print(f"heat maps: {args.explain}", file=sys.stderr)
    if sheet:
        from utils.report.plots import contact_sheet  # loads Matplotlib
        path = time.strftime("predictions-%Y%m%d-%H%M%S.png")
        contact_sheet(*zip(*sheet), path, show=True)
        print(f"images with their predictions: {path}", file=sys.stderr)
    if not rows:
        raise InputError(f"--image_path {' '.join(args.image_path)}: no image there could be "
                         "classified")


def select_device(use_gpu, exported):
    """Take the GPU if it is asked for and usable; a note says so where it is not."""
    if use_gpu:
        problem = "exports run on the CPU here" if exported else try_gpu()
        if not problem:
            return
        print(f"note: --use_gpu: {problem}; continues on the CPU", file=sys.stderr)
    choose_device("cpu")


def save(output, rows, left_out, categories):
    """Write the predictions; rows: [path, category, confidence, one probability per category]."""
    header = ["path", "category", "confidence", *(f"p_{c}" for c in categories)]
    content = {"images": [dict(zip(header, row)) for row in rows],
               "left_out": [{"path": path, "reason": reason} for path, reason in left_out]}
    try:
        if output.lower().endswith(".csv"):
            write_csv(output, header, rows, mode="x")
        else:
            with open(output, "x", encoding="utf-8", errors="backslashreplace") as f:
                json.dump(content, f, indent=2, ensure_ascii=False)
    except FileExistsError:  # it was not there when the program began
        raise
    except OSError as e:  # a full disk
        with contextlib.suppress(FileNotFoundError):
            os.remove(output)
        raise InputError(f"--output {output}: {e.strerror}; the predictions are printed "
                         "above") from e


def save_heat_map(folder, number, category, path, jpeg):
    """Write the bytes of a heat map as <folder>/<number>-<category>-<image's name>.jpg."""
    os.makedirs(folder, exist_ok=True)
    stem = os.path.splitext(os.path.basename(path))[0]
    name = re.sub(r"[^\w.-]+", "_", f"{number:05}-{category}-{stem}")[:60] + ".jpg"
    with open(os.path.join(folder, name), "xb") as f:
        f.write(jpeg)


if __name__ == "__main__":
    run_command(main, memory="lower --batch_size, or close other programs")
