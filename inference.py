"""Classify an image, or every image in a folder, with one or several trained students.

    python inference.py --model_path models_saved/best_model_fold0.pdparams --image_path photo.jpg
    python inference.py --model_path models_saved/best_model_fold*.pdparams --image_path folder \\
        --output predictions.csv
    python inference.py --model_path models_saved/best_model_fold0.pdparams --image_path folder \\
        --explain heat

Categories, image size, preprocessing and the temperature that calibrates the confidence (Guo et al.
2017) are read from the JSON beside the weights. Several students are combined by the mean of their
calibrated logits, which was measured to be better than the mean of probabilities but is still
underconfident (benchmarks/ensemble_calibration.py). Needs no GPU. The exit status is 0 if at least
one image was classified.
"""
import argparse
import json
import os
import re
import signal
import sys
import time

from utils.command import run_command
from utils.errors import InputError
from utils.files import check_new

MAX_SHEET = 25  # images on the contact sheet of --show


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("model and images")
    group.add_argument("--model_path", nargs="+", required=True, metavar="FILE",
                       help=".pdparams files of main.py, or one file of export.py")
    group.add_argument("--image_path", required=True, metavar="PATH",
                       help="an image, or a folder of images")
    group.add_argument("--recursive", action="store_true", help="search sub-folders as well")
    group.add_argument("--categories", nargs="+", metavar="NAME",
                       help="stop if the categories of the weights file are not these")
    group = parser.add_argument_group("predictions")
    group.add_argument("--min_confidence", type=float, default=0.0, metavar="X",
                       help="predict 'unsure' below this confidence, 0 to 1 (default: 0); the "
                            "run's report.txt has the accuracy of one student at each threshold; "
                            "several together are less confident and more often unsure")
    group.add_argument("--output", metavar="FILE", help="save to a new .csv or .json file")
    group.add_argument("--explain", metavar="FOLDER",
                       help="save each image beside a heat map of what its prediction is based on, "
                            "in a new folder")
    group.add_argument("--show", action="store_true",
                       help=f"show the first {MAX_SHEET} images with their predictions")
    group = parser.add_argument_group("machine")
    group.add_argument("--batch_size", type=int, default=32, metavar="N",
                       help="images at a time (default: 32)")
    group.add_argument("--use_gpu", action="store_true", help="run on the GPU")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise InputError(f"--batch_size {args.batch_size}: must be at least 1")
    if args.output is not None:
        if not args.output.lower().endswith((".csv", ".json")):
            raise InputError(f"--output {args.output}: must end in .csv or .json")
        check_new("output", args.output)
    if args.explain == "":
        raise InputError("--explain '': the name of the folder is empty")
    if args.explain and os.path.lexists(args.explain):
        raise InputError(f"--explain {args.explain}: exists already; name a new folder, or remove "
                         "it first")
    return args


if __name__ == "__main__":
    # before Paddle loads, which takes seconds: --help and mistyped options answer at once
    run_command(parse)

from utils.engine import choose_device, keep_memory
from utils.predict import UNSURE, check_threshold, expand, find_images, load_model, predict_files
from utils.report.plots import contact_sheet
from utils.tables import printable, write_csv
from utils.threads import progress
from utils.weights import EXPORTS


def main(argv=None):
    args = parse(argv)
    model_paths = expand(args.model_path)
    if model_paths[0].endswith(EXPORTS):
        if args.use_gpu:
            raise InputError("--use_gpu: exports run on the CPU here; leave the option out")
        if args.explain:
            raise InputError("--explain: an export gives probabilities only; name the .pdparams "
                             "files that it was made from")
    keep_memory()
    choose_device("gpu" if args.use_gpu else "cpu")
    paths, other_files = find_images(args.image_path, args.recursive)
    model = load_model(model_paths, args.categories)
    categories = model.about["categories"]
    check_threshold(args.min_confidence, categories)

    rows, unreadable, sheet = [], [], []
    predicted = progress(predict_files(paths, model, args.batch_size), "predicting", len(paths),
                         "image")
    try:
        for path, probabilities, reason, image in predicted:
            if reason:
                unreadable.append((path, reason))
                continue
            category, confidence = model.decide(probabilities, args.min_confidence)
            rows.append([path, category, round(confidence, 6),
                         *(round(float(p), 6) for p in probabilities)])
            predicted.write(f"{printable(path)}  {category}  {confidence:.4f}", file=sys.stdout)
            if args.explain:
                heat_map = model.explain(image, probabilities.argmax())
                save_heat_map(args.explain, len(rows), category, path, heat_map)
            if args.show and len(sheet) < MAX_SHEET:
                sheet.append((image, f"{category} {confidence:.2f}\n{os.path.basename(path)}"))
    finally:  # Ctrl-C and SIGTERM too
        if args.output and rows:
            save(args.output, rows, other_files + unreadable, categories)
            done = len(rows) + len(unreadable)
            if done < len(paths):
                print(f"stopped: {args.output} has the first {done} of {len(paths)} images",
                      file=sys.stderr)

    left_out = other_files + unreadable
    for path, reason in left_out:
        print(f"left out {path!r}: {reason}", file=sys.stderr)
    count = f"{len(rows)} images classified"
    if args.min_confidence:
        count += f", {sum(row[1] == UNSURE for row in rows)} of them '{UNSURE}'"
    print(f"{count}, {len(left_out)} files left out", file=sys.stderr)
    if args.explain and rows:
        print(f"heat maps: {args.explain}", file=sys.stderr)
    if sheet:
        path = time.strftime("predictions-%Y%m%d-%H%M%S.png")
        contact_sheet(*zip(*sheet), path, show=True)
        print(f"images with their predictions: {path}", file=sys.stderr)
    if not rows:
        raise InputError(f"--image_path {args.image_path}: no image there could be classified")


def save(output, rows, left_out, categories):
    """Write the predictions; rows: [path, category, confidence, one probability per category]."""
    header = ["path", "category", "confidence", *(f"p_{c}" for c in categories)]
    if output.lower().endswith(".csv"):
        return write_csv(output, header, rows, mode="x")
    content = {"images": [dict(zip(header, row)) for row in rows],
               "left_out": [{"path": path, "reason": reason} for path, reason in left_out]}
    with open(output, "x", encoding="utf-8", errors="backslashreplace") as f:
        json.dump(content, f, indent=2, ensure_ascii=False)


def save_heat_map(folder, number, category, path, jpeg):
    """Write the bytes of a heat map as <folder>/<number>-<category>-<image's name>.jpg."""
    os.makedirs(folder, exist_ok=True)
    stem = os.path.splitext(os.path.basename(path))[0]
    name = re.sub(r"[^\w.-]+", "_", f"{number:05}-{category}-{stem}")[:60] + ".jpg"
    with open(os.path.join(folder, name), "xb") as f:
        f.write(jpeg)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # saves what is predicted, like Ctrl-C
    run_command(main, memory="lower --batch_size, or close other programs")
