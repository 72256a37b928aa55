"""Inference with trained students: start-up, milliseconds per image, whole folders, memory.

    python benchmarks/inference.py                   # 224 pixels, folders of 500 and 2,000 images
    python benchmarks/inference.py --images 400      # on a laptop; 2:19 on 2 busy AMD EPYC cores

Draws images and makes five students that share their frozen blocks, like those of one run, from
random weights, in a temporary folder. The ways to run them take turns in this process, with pauses,
since threads of one that still wait for work slow down the next. Peak memory is that of separate
processes. The ONNX row needs requirements-export.txt.
"""
import collections
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
sys.path[0] = ROOT  # not this folder, whose inference.py is this file
import utils  # before cv2, numpy and paddle

# isort: split
import cv2
import numpy as np
import paddle

import export
from benchmarks.pipeline import smooth_image
from models.student_model import Ensemble, Student
from utils.command import Parser
from utils.engine import choose_device, keep_memory, versions
from utils.errors import InputError
from utils.predict import (
    find_images,
    load_export,
    load_model,
    load_students,
    predict_files,
    read_images,
)
from utils.threads import prefetch
from utils.transforms import normalize
from utils.weights import arrays_of, save_weights

STUDENTS = 5
DIFFERENT = 48  # images; the others are hard links to them
ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
from utils.predict import find_images, load_model, predict_files
model = load_model(sys.argv[3:])
for _ in predict_files(find_images(sys.argv[2])[0], model):
    pass
with open("/proc/self/status") as f:  # getrusage would include the parent's memory
    print(next(int(line.split()[1]) / 1e3 for line in f if line.startswith("VmHWM")))
"""


def make_students(folder, size):
    """Paths of weights files like those of main.py, with random weights."""
    paths, stem = [], None
    x = paddle.to_tensor(np.random.default_rng(0).normal(size=(8, 3, size, size)).astype("float32"))
    for k in range(STUDENTS):
        student = Student(6, 14)
        stem = stem or student.features[:14].state_dict()
        student.features[:14].set_state_dict(stem)
        student.eval()
        for layer in student.sublayers():
            # BatchNorm takes the statistics of x, or all images would get the same prediction
            if hasattr(layer, "_momentum"):
                layer._momentum, layer.training = 0.0, True
        with paddle.no_grad():
            student(x)
        paths.append(os.path.join(folder, f"student{k}.pdparams"))
        save_weights(paths[-1], arrays_of(student),
                     dict(categories=list("abcdef"), image_size=size, freeze_depth=14))
    return paths


def make_folder(folder, count):
    os.makedirs(folder)
    for i in range(count):
        path = os.path.join(folder, f"{i:06}.jpg")
        if i < DIFFERENT:
            image = smooth_image(np.random.default_rng(i), 384, 512)
            cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tofile(path)
        else:
            os.link(os.path.join(folder, f"{i % DIFFERENT:06}.jpg"), path)
    return folder


def in_turn(works, rounds, calls):
    """{name: median seconds of a call}: rounds of `calls` calls each, after one to warm up."""
    times = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            time.sleep(0.3)
            for i in range(-1, calls):
                began = time.perf_counter()
                work()
                times[name] += [time.perf_counter() - began] if i >= 0 else []
    return {name: statistics.median(t) for name, t in times.items()}


def seconds_of(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main():
    parser = Parser(__doc__)
    parser.add_argument("--image_size", type=int, default=224, help="pixels (default: 224)")
    parser.add_argument("--images", type=int, default=2000,
                        help="in the folder; peak memory is measured with a quarter of them, too "
                             "(default: 2000)")
    args = parser.parse_args()
    keep_memory()
    choose_device("cpu")
    print(f"{utils.processor()}, {utils.CORES} cores, {versions()}\n")
    with tempfile.TemporaryDirectory() as place:
        paths = make_students(place, args.image_size)
        quarter = make_folder(os.path.join(place, "quarter"), args.images // 4)
        whole = make_folder(os.path.join(place, "whole"), args.images)
        measure_start(paths[0], os.path.join(whole, "000000.jpg"))
        measure_ways(paths, find_images(whole)[0][:32], args.image_size, place)
        measure_folder(load_model(paths[:1]), find_images(whole)[0])
        measure_memory((quarter, whole), paths[0])


def run_process(*arguments):
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True,
                          text=True).stdout


def measure_start(weights, image):
    program = os.path.join(ROOT, "inference.py")
    print("| start, a process each | s |\n| --- | --- |")
    for what, command in (
            ("inference.py --help", (program, "--help")),
            ("until one image is classified",
             (program, "--model_path", weights, "--image_path", image))):
        seconds = [seconds_of(lambda: run_process(*command)) for _ in range(3)]
        print(f"| {what} | {statistics.median(seconds):.1f} |", flush=True)


def measure_ways(paths, files, size, place):
    _, [student], [temperature] = load_students(paths[:1])
    single = [load_model([path]).predict for path in paths]

    def dynamic(images):
        with paddle.no_grad():
            logits = student(paddle.to_tensor(normalize(images)))
            return paddle.nn.functional.softmax(logits).numpy()
    ways = {"dynamic graph": dynamic, "here": single[0]}
    try:
        prefix = os.path.join(place, "model")
        export.write_paddle(Ensemble([student], [temperature]), size, prefix)
        export.write_onnx(prefix)
        session = load_export(prefix + ".onnx")
        ways["ONNX Runtime, of the export"] = lambda images: session(normalize(images))
    except InputError as e:
        print(f"\nno ONNX: {e}")
    ways[f"{STUDENTS} students as one network, here"] = load_model(paths).predict
    ways[f"{STUDENTS} students one after another"] = lambda images: [run(images) for run in single]
    images = [image for image, _ in read_images(files, size)]

    def milliseconds(count, rounds, calls):
        works = {name: lambda way=way: way(images[:count]) for name, way in ways.items()}
        return {k: 1000 * t / count for k, t in in_turn(works, rounds, calls).items()}
    alone, batch = milliseconds(1, 7, 5), milliseconds(32, 3, 1)
    print("\n| ms per image, normalization included | one image | of a batch of 32 | largest "
          "difference |\n| --- | --- | --- | --- |")
    for name, way in ways.items():
        difference = np.abs(way(images) - dynamic(images)).max() if "students" not in name else None
        print(f"| {name} | {alone[name]:.1f} | {batch[name]:.1f} | "
              f"{'' if difference is None else format(difference, '.0e')} |", flush=True)


def measure_folder(model, files):
    size, seconds = model.about["image_size"], collections.Counter()
    images = [image for image, _ in read_images(files[:32], size)]

    def read(batch):
        return read_images(batch, size)
    for i in range(0, len(files), len(files) // 5):  # in turn: other work on the machine meets all
        some = files[i:i + len(files) // 5]
        batches = [some[j:j + 32] for j in range(0, len(some), 32)]
        seconds["reading alone"] += seconds_of(lambda: [*prefetch(read, batches, utils.CORES)])
        seconds["computing alone"] += seconds_of(
            lambda: [model.predict(images[:len(batch)]) for batch in batches])
        seconds["both, predict_files"] += seconds_of(lambda: [*predict_files(some, model)])
    print(f"\n| a folder of {len(files)} images of 512x384 | s | images/s |\n| --- | --- | --- |")
    for what, t in seconds.items():
        print(f"| {what} | {t:.1f} | {len(files) / t:.0f} |")
    *apart, together = seconds.values()
    print(f"\nTogether takes {together / sum(apart):.2f} of the sum.")


def measure_memory(folders, weights):
    print("\n| images | peak memory, MB |\n| --- | --- |")
    for folder in folders:
        peak = float(run_process("-c", ALONE, ROOT, folder, weights))
        print(f"| {len(os.listdir(folder))} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
