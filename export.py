"""Turn trained students into a network for other programs: Paddle Inference, or ONNX.

    python export.py --model_path models_saved/best_model_fold0.pdparams              # writes exported/
    python export.py --model_path models_saved/best_model_fold*.pdparams --pixels     # all folds as one, uint8 pixels in
    python export.py --model_path models_saved/best_model_fold0.pdparams --format onnx int8   # a quarter of the size
    python inference.py --model_path exported/model.onnx --image_path photo.jpg       # the same answers

The network gives probabilities: of several students the softmax of the mean of their calibrated logits, their frozen
blocks computed once. about.json beside it says what goes in. An export is compared with the students themselves on real
pictures before it gets its name; int8, which is never quite the same, is judged on the pictures that its student never
saw. Needs requirements-export.txt for ONNX; no GPU.
"""
import argparse
import logging
import os
import tempfile

from utils import runtime  # first: it sets what paddle and cv2 read when they load
import numpy as np
import paddle
from scipy.special import softmax

from inference import expand, find_pictures, load_export, load_model, load_students, predict, read_views
from models.student_model import Ensemble
from utils.checkpoint import EXPORTS, write_json
from utils.cost import milliseconds
from utils.process import new_place, quoted
from utils.settings import InputError
from utils.tables import read_csv
from utils.transforms import normalise

FORMATS = {"paddle": "model.pdiparams", "onnx": "model.onnx", "int8": "model.int8.onnx"}
CHECKED = 64  # pictures; and as many others set the ranges of int8
TOLERANCE = 1e-4  # of a probability


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("what is exported")
    group.add_argument("--model_path", nargs="+", required=True, metavar="FILE", help=".pdparams files of main.py")
    group.add_argument("--image_path", metavar="PATH",
                       help="pictures to compare the answers on (default: those that the students learned from)")
    group = parser.add_argument_group("what comes out")
    group.add_argument("--output", default="exported", metavar="FOLDER", help="a new folder (default: exported)")
    group.add_argument("--format", nargs="+", choices=FORMATS, default=["paddle", "onnx"],
                       help="int8: ONNX with whole numbers, smaller, a little less right (default: paddle onnx)")
    group.add_argument("--pixels", action="store_true",
                       help="build the normalisation in: the network takes uint8 RGB [B, S, S, 3]")
    args = parser.parse_args(argv)
    args.model_path, args.format = expand(args.model_path), [*dict.fromkeys(args.format)]  # each once
    for path in args.model_path:
        if path.endswith(EXPORTS):
            raise InputError(f"--model_path {path}: is an export already; name the .pdparams files that main.py wrote")
    new_place("output", args.output)
    return args


def main(argv=None):
    args = parse(argv)
    runtime.choose_device("cpu")
    about, students, temperatures = load_students(args.model_path)
    size = about["image_size"]
    if len(students) > 1:
        for key in ("fold", "epoch", "scores", "temperature"):  # of the first alone
            about.pop(key, None)
    if "int8" in args.format and len(students) > 1:
        raise InputError("int8 takes one student: only of one are there pictures that it never saw, to judge it by")
    own_part = never_seen(about) if "int8" in args.format else None
    views = some_views(args.image_path or about.get("settings", {}).get("data_dir", "?"), size, 2 * CHECKED)
    views, others = views[::2], views[1::2] or views
    # what the training network says, each student for itself
    with paddle.no_grad():
        expected = softmax(np.mean([s(paddle.to_tensor(normalise(views))).numpy() / t
                                    for s, t in zip(students, temperatures)], axis=0), axis=1)
    about.update(pixels=args.pixels, students=[os.path.basename(p) for p in args.model_path], temperatures=temperatures,
                 input=f"uint8 [B, {size}, {size}, 3], RGB" if args.pixels else
                 f"float32 [B, 3, {size}, {size}], RGB, (value / 255 - mean) / std of `preprocessing`",
                 output="float32 [B, number of categories], probabilities; temperatures are built in")
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(args.output))) as place:
        unfinished = os.path.join(place, "exported")
        os.mkdir(unfinished)
        x, other_x = (np.stack(v) if args.pixels else normalise(v) for v in (views, others))
        write(Ensemble(students, temperatures, args.pixels), size, args, unfinished, other_x)
        write_json(os.path.join(unfinished, "about.json"), about)
        print(f"{len(students)} students, compared with themselves on {len(views)} pictures; {runtime.processor()}, "
              f"{runtime.CORES} cores\n{'':12}{'MB':>8}{'ms, one alone':>16}{'ms, of 16':>12}{'largest difference':>22}")
        for name in args.format:
            check(name, os.path.join(unfinished, FORMATS[name]), x, expected)
        if "int8" in args.format:
            judge(os.path.join(unfinished, FORMATS["int8"]), args.model_path[0], *own_part)
        # formats that others were made of, and nobody asked for
        if "paddle" not in args.format:
            os.remove(runtime.network_file(os.path.join(unfinished, "model")))
            os.remove(os.path.join(unfinished, FORMATS["paddle"]))
        if "int8" in args.format and "onnx" not in args.format:
            os.remove(os.path.join(unfinished, FORMATS["onnx"]))
        os.rename(unfinished, args.output)
    print(f"to use it: python inference.py --model_path {quoted(os.path.join(args.output, FORMATS[args.format[0]]))} "
          "--image_path PICTURE")


def some_views(path, size, most):
    """At most so many views of the pictures at `path`, evenly spread. Raises InputError if there is none."""
    files = find_pictures(path, recursive=True)[0] if os.path.lexists(path) else []
    chosen = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, most).round().astype(int))] if files else []
    views = [v for v, _ in read_views(chosen, size) if v is not None]
    if not views:
        raise InputError(f"no picture in {path} to compare the answers on; name some with --image_path")
    return views


def write(network, size, args, folder, x):
    """Write the formats that are asked for, and those that they are made of; x sets the ranges of int8."""
    prefix, shape = os.path.join(folder, "model"), [None, size, size, 3] if args.pixels else [None, 3, size, size]
    runtime.freeze(network)
    paddle.jit.save(network, prefix, [paddle.static.InputSpec(shape, "uint8" if args.pixels else "float32", "pictures")])
    if args.format == ["paddle"]:
        return
    try:
        import paddle2onnx
        if "int8" in args.format:
            import onnx
            import onnxruntime
            from onnxruntime import quantization
            from onnxruntime.quantization.shape_inference import quant_pre_process
    except (ImportError, ValueError) as e:  # ValueError: with Paddle 2
        raise InputError(f"{e}: ONNX needs Paddle 3, Python 3.12 or older (of paddle2onnx there is no newer build), and pip "
                         "install -r requirements-export.txt; or use --format paddle") from e
    paddle2onnx.export(runtime.network_file(prefix), prefix + ".pdiparams", prefix + ".onnx", opset_version=17,
                       optimize_tool="None", verbose=False)
    if "int8" in args.format:
        logging.disable(logging.WARNING)  # a line for every channel
        onnxruntime.set_default_logger_severity(3)

        class Reader(quantization.CalibrationDataReader):
            left = iter(x)

            def get_next(self):
                return next(({"pictures": one[None]} for one in self.left), None)
        folded = prefix + ".folded.onnx"
        quant_pre_process(prefix + ".onnx", folded, skip_symbolic_shape=True)  # BatchNorm into the convolutions
        # the first two convolutions stay float32: they cost 3 points of accuracy on TrashNet, and hold 1,200 weights
        first = [node.name for node in onnx.load(folded).graph.node if node.op_type == "Conv"][:2]
        quantization.quantize_static(folded, prefix + ".int8.onnx", Reader(), per_channel=True, nodes_to_exclude=first)
        os.remove(folded)


def never_seen(about):
    """(paths, labels int [N]) of the pictures of the student's own part. Raises InputError if they are not all there."""
    try:
        settings = about["settings"]
        folds = read_csv(os.path.join(settings["log_dir"], about["run"], "folds.csv"))
        rows = [(os.path.join(settings["data_dir"], r["path"]), about["categories"].index(r["label"]))
                for r in folds if r["part"] == str(about["fold"])]
    except (OSError, KeyError, ValueError) as e:
        raise InputError(f"int8 is judged on the pictures that the student never saw, which are not known ({e}); run "
                         "export.py in the folder where main.py ran") from e
    if not rows:
        raise InputError(f"int8 is judged on the pictures of fold {about['fold']}, of which folds.csv of its run knows none")
    missing = sum(not os.path.exists(path) for path, _ in rows)
    if missing:
        raise InputError(f"int8 is judged on all {len(rows)} pictures that the student never saw; {missing} of them are no "
                         f"longer in {settings['data_dir']}")
    return [path for path, _ in rows], np.array([label for _, label in rows])


def judge(exported, weights, paths, labels):
    """Print the accuracy of an int8 student and of itself on the pictures of its part, which it never saw."""
    def right(model):
        about, answer, _ = load_model([model])
        probabilities = [p for _, p, _, _ in predict(paths, answer, about["image_size"], 32)]
        if any(p is None for p in probabilities):
            raise InputError("int8 is judged on the pictures that the student never saw; not all of them can be read")
        return np.argmax(probabilities, 1) == labels
    as_int8, as_float = right(exported), right(weights)
    print(f"on {len(labels)} pictures that it never saw: accuracy {as_float.mean():.4f}, as int8 {as_int8.mean():.4f} "
          f"({(as_int8 & ~as_float).sum()} gained, {(as_float & ~as_int8).sum()} lost)")


def check(name, path, x, expected):
    """Print what an export costs. Raises InputError if it does not answer like the students."""
    run = load_export(path)
    answers = np.concatenate([run(x[i:i + 16]) for i in range(0, len(x), 16)])
    difference = np.abs(answers - expected).max()
    print(f"{name:12}{os.path.getsize(path) / 1e6:8.2f}{milliseconds(run, x[:1]):16.2f}"
          f"{milliseconds(run, np.resize(x, (16, *x.shape[1:]))):12.2f}"
          f"{difference:22.1e}")
    same = (answers.argmax(1) == expected.argmax(1)).all()
    if name != "int8" and not (same and difference <= TOLERANCE):
        raise InputError(f"the {name} export answers differently from its students, by {difference:.1e}; not kept")


if __name__ == "__main__":
    runtime.command(main)
