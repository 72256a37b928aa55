"""Export trained students as a network for other programs: Paddle Inference or ONNX.

    python export.py                              # models_saved/final_model.pdparams to exported/
    python export.py --format onnx int8
    python export.py --model_path models_saved/best_model_fold*.pdparams --pixels
    python inference.py --model_path exported/model.onnx --image_path photo.jpg

Several students become one network: their frozen blocks run once, and the mean of their calibrated
logits gives the probabilities. about.json beside the network describes input and output. An export
is compared with the students on real images before it is kept. int8, a quarter of the size, is
never exactly the same: its accuracy is compared on the validation images of its student, of the
final model on its training images. ONNX needs requirements-export.txt. Needs no GPU.
"""
import logging
import os
import tempfile

from utils.command import Parser, run_command
from utils.errors import InputError
from utils.files import check_new, here, quoted, write_json
from utils.settings import FINAL_MODEL

FORMATS = {"paddle": "model.pdiparams", "onnx": "model.onnx", "int8": "model.int8.onnx"}
COMPARED = 64  # images; as many others set the ranges of int8
TOLERANCE = 1e-4  # of a probability
ONNX_NEEDS = ("--format: {}; ONNX needs Paddle 3, Python 3.12 or older (paddle2onnx has no newer "
              "build), and pip install -r {}; or use --format paddle")


def parse(argv=None):
    parser = Parser(__doc__)
    group = parser.add_argument_group("students")
    group.add_argument("--model_path", nargs="+", metavar="FILE", default=[FINAL_MODEL],
                       help=".pdparams files of main.py, or their folder (default: "
                            f"{FINAL_MODEL})")
    group.add_argument("--image_path", nargs="+", metavar="PATH",
                       help="images to compare predictions on (default: those of the training)")
    group = parser.add_argument_group("export")
    group.add_argument("--output", default="exported", metavar="FOLDER", type=os.path.expanduser,
                       help="a new folder (default: exported)")
    group.add_argument("--format", nargs="+", choices=FORMATS, default=["paddle", "onnx"],
                       help="int8: quantized ONNX, smaller and slightly less accurate "
                            "(default: paddle onnx)")
    group.add_argument("--pixels", action="store_true",
                       help="include the normalization: the network takes uint8 RGB [B, S, S, 3]")
    args = parser.parse_args(argv)
    check_new("output", args.output)
    return args


if __name__ == "__main__":
    # before Paddle loads, which takes seconds: --help and mistyped options answer at once
    run_command(parse)

import numpy as np
import paddle
from scipy.special import softmax

from models.student_model import Ensemble, freeze
from utils import CORES, processor
from utils.engine import choose_device, network_file, save_network
from utils.predict import (
    find_images,
    find_weights,
    load_export,
    load_model,
    load_students,
    predict_files,
    read_images,
)
from utils.report.cost import milliseconds
from utils.tables import read_csv
from utils.transforms import normalize
from utils.weights import EXPORTS, export_checksum


def main(argv=None):
    args = parse(argv)
    model_paths, formats = find_weights(args.model_path), [*dict.fromkeys(args.format)]  # each once
    for path in model_paths:
        if path.endswith(EXPORTS):
            raise InputError(f"--model_path {path}: is an export already; name the .pdparams files "
                             "that main.py wrote")
    choose_device("cpu")
    about, students, temperatures = load_students(model_paths)
    if "int8" in formats and len(students) > 1:
        raise InputError("--format int8: takes one student, since its accuracy is measured on the "
                         "images that the student was validated on")
    validation = validation_images(about) if "int8" in formats else None

    size = about["image_size"]
    data_dir = about.get("settings", {}).get("data_dir", "")
    if not (args.image_path or os.path.isdir(data_dir)):
        raise InputError(f"the images of the training are not in {data_dir or 'one folder'}; name "
                         "some to compare predictions on with --image_path")
    images = some_images(args.image_path or [data_dir], size, 2 * COMPARED)
    images, others = images[::2], images[1::2] or images
    with paddle.no_grad():  # what the export must predict: each student as it was trained
        x = paddle.to_tensor(normalize(images))
        logits = [student(x).numpy() / t for student, t in zip(students, temperatures)]
    expected = softmax(np.mean(logits, axis=0), axis=1)
    about.update(
        pixels=args.pixels, temperatures=temperatures,
        students=[os.path.basename(path) for path in model_paths],
        input=f"uint8 [B, {size}, {size}, 3], RGB" if args.pixels else
        f"float32 [B, 3, {size}, {size}], RGB, (value / 255 - mean) / std of `preprocessing`",
        output="float32 [B, number of categories], probabilities; temperatures are built in")

    prepare = np.stack if args.pixels else normalize
    parent = os.path.dirname(os.path.abspath(args.output))
    with tempfile.TemporaryDirectory(dir=parent) as place:  # renamed once everything is checked
        folder = os.path.join(place, "exported")
        prefix = os.path.join(folder, "model")
        os.mkdir(folder)
        write_paddle(Ensemble(students, temperatures, args.pixels), size, prefix)
        if formats != ["paddle"]:
            write_onnx(prefix)
        if "int8" in formats:
            write_int8(prefix, prepare(others))
        files = {name: os.path.join(folder, FORMATS[name]) for name in formats}
        about["checksums"] = [export_checksum(file, about) for file in files.values()]
        write_json(os.path.join(folder, "about.json"), about)
        print(f"{len(students)} students, compared with their export on {len(images)} images; "
              f"{processor()}, {CORES} cores\n"
              f"{'':12}{'MB':>8}{'ms, one image':>16}{'ms, of 16':>12}{'largest difference':>22}")
        for name, file in files.items():
            compare(name, file, prepare(images), expected)
        if "int8" in formats:
            evaluate_int8(files["int8"], model_paths[0], *validation,
                          "validation" if about["fold"] is not None else "training")
        if "onnx" not in formats and "int8" in formats:  # int8 was made from it
            os.remove(prefix + ".onnx")
        if "paddle" not in formats:  # ONNX was made from it
            os.remove(network_file(prefix))
            os.remove(prefix + ".pdiparams")
        os.rename(folder, args.output)
    model = quoted(os.path.join(args.output, FORMATS[formats[0]]))
    print(f"to use it: python {here('inference.py')} --model_path {model} --image_path IMAGE")


def some_images(source, size, count):
    """At most `count` preprocessed images from the paths in `source`, evenly spread.

    Raises InputError if there is none.
    """
    files = find_images(source, recursive=True)[0]
    chosen = np.unique(np.linspace(0, len(files) - 1, count).round().astype(int)) if files else []
    images = [image for image, _ in read_images([files[i] for i in chosen], size)
              if image is not None]
    if not images:
        raise InputError(f"no image in {' '.join(source)} to compare predictions on; name some "
                         "with --image_path")
    return images


def validation_images(about):
    """(paths, labels int64 [N]) of the images on which one student was validated; for the final
    model, which has none, of all.

    Raises InputError if the run does not tell, or if images are missing.
    """
    why = "--format int8: its accuracy is measured on images of the run"
    try:
        settings = about["settings"]
        table = read_csv(os.path.join(settings["log_dir"], about["run"], "folds.csv"))
        rows = [row for row in table if about["fold"] in (None, int(row["fold"]))]
        paths = [os.path.join(settings["data_dir"], row["path"]) for row in rows]
        labels = np.array([about["categories"].index(row["label"]) for row in rows])
    except (OSError, KeyError, ValueError) as e:
        raise InputError(f"{why}, which are not known ({e}); run export.py in the folder where "
                         "main.py ran") from e
    if not rows:
        raise InputError(f"{why}, and folds.csv of its run has none in fold {about['fold']}")
    missing = sum(not os.path.exists(path) for path in paths)
    if missing:
        raise InputError(f"{why}; {missing} of {len(paths)} are no longer in "
                         f"{settings['data_dir']}")
    return paths, labels


def write_paddle(network, size, prefix):
    """Write an Ensemble as Paddle Inference reads it: <prefix>.pdiparams and the network file."""
    shape, dtype = (([None, size, size, 3], "uint8") if network.pixels else
                    ([None, 3, size, size], "float32"))
    save_network(freeze(network), prefix, paddle.static.InputSpec(shape, dtype, "images"))


def write_onnx(prefix):
    """Write <prefix>.onnx from what write_paddle wrote. Raises InputError without ONNX."""
    try:
        import paddle2onnx
    except (ImportError, ValueError) as e:  # ValueError: with Paddle 2
        raise InputError(ONNX_NEEDS.format(e, here('requirements-export.txt'))) from e
    paddle2onnx.export(network_file(prefix), prefix + ".pdiparams", prefix + ".onnx",
                       opset_version=17, optimize_tool="None", verbose=False)


def write_int8(prefix, x):
    """Write <prefix>.int8.onnx from <prefix>.onnx; the inputs x set the ranges of the integers."""
    try:
        import onnx
        import onnxruntime
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as e:
        raise InputError(ONNX_NEEDS.format(e, here('requirements-export.txt'))) from e
    logging.disable(logging.WARNING)  # one line per channel
    onnxruntime.set_default_logger_severity(3)
    onnxruntime.disable_telemetry_events()  # as utils/predict.py

    class Reader(quantization.CalibrationDataReader):
        inputs = iter(x)

        def get_next(self):
            return next(({"images": one[None]} for one in self.inputs), None)
    folded = prefix + ".folded.onnx"  # BatchNorm folded into the convolutions
    quant_pre_process(prefix + ".onnx", folded, skip_symbolic_shape=True)
    # The first eight convolutions stay float32: they have few weights, and six of them as int8 cost
    # 5 points of accuracy on TrashNet. So does the end, from the classifier on: an int8 probability
    # is a multiple of 1/255. Weights have 7 bits: a processor without VNNI adds two products in 16
    # bits, which overflow with weights of 8
    nodes = onnx.load(folded).graph.node
    convolutions = [node.name for node in nodes if node.op_type == "Conv"]
    classifier = max(i for i, node in enumerate(nodes) if node.op_type in ("Gemm", "MatMul"))
    exact = convolutions[:8] + [node.name for node in nodes[classifier:]]
    quantization.quantize_static(folded, prefix + ".int8.onnx", Reader(), per_channel=True,
                                 reduce_range=True, nodes_to_exclude=exact)
    os.remove(folded)


def compare(name, path, x, expected):
    """Print size, speed and difference of an export. Raises InputError if it predicts differently.

    x: inputs; expected: the students' probabilities [B, C]. int8 may differ.
    """
    run = load_export(path)
    found = np.concatenate([run(x[i:i + 16]) for i in range(0, len(x), 16)])
    difference = np.abs(found - expected).max()
    alone, batch = milliseconds(run, x[:1]), milliseconds(run, np.resize(x, (16, *x.shape[1:])))
    size = os.path.getsize(path) / 1e6
    print(f"{name:12}{size:8.2f}{alone:16.2f}{batch:12.2f}{difference:22.1e}")
    same = (found.argmax(1) == expected.argmax(1)).all() and difference <= TOLERANCE
    if name != "int8" and not same:
        raise InputError(f"the {name} export predicts differently from its students, by "
                         f"{difference:.1e}; not kept")


def evaluate_int8(export_path, weights_path, paths, labels, kind):
    """Print the accuracy of an int8 export beside its student's, on images of validation_images."""
    def right(model_path):
        predicted = [p for _, p, _, _ in predict_files(paths, load_model([model_path]))]
        if any(p is None for p in predicted):
            raise InputError("--format int8: not all images of the run can be read")
        return np.argmax(predicted, 1) == labels
    as_int8, as_float = right(export_path), right(weights_path)
    print(f"on its {len(labels)} {kind} images: accuracy {as_float.mean():.4f}, as int8 "
          f"{as_int8.mean():.4f} ({(as_int8 & ~as_float).sum()} gained, "
          f"{(as_float & ~as_int8).sum()} lost)")


if __name__ == "__main__":
    run_command(main)
