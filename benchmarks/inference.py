"""The trained student in use: start, milliseconds per picture by every way to run it, folders, memory. Random weights do.

    python benchmarks/inference.py                     # 224 pixels, folders of 500 and 2,000 pictures
    python benchmarks/inference.py --pictures 400      # on a laptop; 2:19 on 2 busy AMD EPYC cores

Draws pictures and makes five students of one run (as folds, they share their frozen blocks) in a temporary folder. Ways to
run are compared with one another in turn in this one process, at rest between them: threads of one that still wait for work
would slow down the next. Peak memory is that of processes of their own. The ONNX row needs requirements-export.txt.
"""
import argparse
import collections
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
sys.path[0] = ROOT  # not this folder, whose inference.py is this file
from utils import runtime  # noqa: E402
import cv2  # noqa: E402
import numpy as np  # noqa: E402
import paddle  # noqa: E402

import export  # noqa: E402
from inference import find_pictures, load_export, load_model, load_students, predict, read_views  # noqa: E402
from benchmarks.pipeline import smooth_picture  # noqa: E402
from models.student_model import Ensemble, Student  # noqa: E402
from utils.checkpoint import arrays_of, save_weights  # noqa: E402
from utils.data_utils import prefetch  # noqa: E402
from utils.settings import InputError  # noqa: E402
from utils.transforms import normalise  # noqa: E402

STUDENTS, DIFFERENT = 5, 48  # pictures that are not hard links of another
ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
import inference
about, answer, _ = inference.load_model(sys.argv[3:])
for _ in inference.predict(inference.find_pictures(sys.argv[2], False)[0], answer, about["image_size"], 32):
    pass
with open("/proc/self/status") as f:  # not getrusage: that knows the parent's memory too
    print(next(int(line.split()[1]) / 1e3 for line in f if line.startswith("VmHWM")))
"""


def make_students(folder, size):
    """Paths of weights files as main.py leaves them, from random numbers."""
    paths, frozen, x = [], None, paddle.to_tensor(np.random.default_rng(0).normal(size=(8, 3, size, size)).astype("float32"))
    for k in range(STUDENTS):
        student, paths = Student(6, 14), [*paths, os.path.join(folder, f"student{k}.pdparams")]
        frozen = frozen or student.features[:14].state_dict()
        student.features[:14].set_state_dict(frozen)
        student.eval()
        for layer in student.sublayers():  # statistics of x: without them every answer would be the same
            if hasattr(layer, "_momentum"):
                layer._momentum, layer.training = 0.0, True
        with paddle.no_grad():
            student(x)
        save_weights(paths[-1], arrays_of(student), dict(categories=list("abcdef"), image_size=size, freeze_depth=14))
    return paths


def make_folder(folder, count):
    os.makedirs(folder)
    for i in range(count):
        path = os.path.join(folder, f"{i:06}.jpg")
        if i < DIFFERENT:
            picture = smooth_picture(np.random.default_rng(i), 384, 512)
            cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tofile(path)
        else:
            os.link(os.path.join(folder, f"{i % DIFFERENT:06}.jpg"), path)
    return folder


def in_turn(works, rounds, calls):
    """{name: median seconds of a call}, rounds of so many calls each, one more before."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_size", type=int, default=224, help="pixels (default: 224)")
    parser.add_argument("--pictures", type=int, default=2000,
                        help="in the folder; peak memory is measured of a quarter of them, too (default: 2000)")
    args = parser.parse_args()
    size = args.image_size
    runtime.keep_memory()
    runtime.choose_device("cpu")
    print(f"{runtime.processor()}, {runtime.CORES} cores, {runtime.versions()}\n")
    with tempfile.TemporaryDirectory() as place:
        paths = make_students(place, size)
        quarter, whole = (make_folder(os.path.join(place, name), n)
                          for name, n in (("quarter", args.pictures // 4), ("whole", args.pictures)))
        one, program = os.path.join(whole, "000000.jpg"), os.path.join(ROOT, "inference.py")

        def run(*arguments):
            return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout
        print("| start, a process each | s |\n| --- | --- |")
        ask = program, "--model_path", paths[0], "--image_path", one
        for what, command in (("inference.py --help", (program, "--help")), ("until one picture is answered", ask)):
            print(f"| {what} | {statistics.median(seconds_of(lambda: run(*command)) for _ in range(3)):.1f} |", flush=True)

        _, (student,), temperatures = load_students(paths[:1])
        five, each = load_model(paths)[1], [load_model([p])[1] for p in paths]
        answer = each[0]

        def dynamic(views):
            with paddle.no_grad():
                return paddle.nn.functional.softmax(student(paddle.to_tensor(normalise(views)))).numpy()
        ways = {"dynamic graph": dynamic, "here": answer}
        try:
            options = argparse.Namespace(format=["onnx"], pixels=False)
            export.write(Ensemble([student], temperatures), size, options, place, None)
            session = load_export(os.path.join(place, "model.onnx"))
            ways["ONNX Runtime, of the export"] = lambda views: session(normalise(views))
        except InputError as e:
            print(f"\nno ONNX: {e}")
        ways |= {f"{STUDENTS} students as one network, here": five,
                 f"{STUDENTS} students one after another": lambda views: [run_one(views) for run_one in each]}
        views = [v for v, _ in read_views(find_pictures(whole, False)[0][:32], size)]
        found = {n: in_turn({name: lambda way=way: way(views[:n]) for name, way in ways.items()}, rounds, calls)
                 for n, rounds, calls in ((1, 7, 5), (32, 3, 1))}
        print("\n| ms per picture, normalising included | one alone | of a batch of 32 | largest difference |\n"
              "| --- | --- | --- | --- |")
        for name, way in ways.items():
            far = "" if "students" in name else f"{np.abs(way(views) - dynamic(views)).max():.0e}"
            print(f"| {name} | {1000 * found[1][name]:.1f} | {1000 * found[32][name] / 32:.1f} | {far} |", flush=True)

        files, seconds = find_pictures(whole, False)[0], collections.Counter()
        for i in range(0, len(files), len(files) // 5):  # in turn: other work on the machine meets all three
            some = files[i:i + len(files) // 5]
            seconds["reading alone"] += seconds_of(lambda: list(prefetch(
                lambda at: read_views(some[at:at + 32], size), range(0, len(some), 32), runtime.CORES)))
            seconds["computing alone"] += seconds_of(lambda: [
                answer(views[:len(some) - at]) for at in range(0, len(some), 32)])
            seconds["both, inference.predict"] += seconds_of(lambda: list(predict(some, answer, size, 32)))
        print(f"\n| a folder of {len(files)} pictures of 512x384 | s | pictures/s |\n| --- | --- | --- |")
        for what, t in seconds.items():
            print(f"| {what} | {t:.1f} | {len(files) / t:.0f} |")
        *apart, together = seconds.values()
        print(f"\nTogether takes {together / sum(apart):.2f} of the sum.\n\n| pictures | peak memory, MB |\n| --- | --- |")
        for folder in (quarter, whole):
            print(f"| {len(os.listdir(folder))} | {float(run('-c', ALONE, ROOT, folder, paths[0])):.0f} |", flush=True)


if __name__ == "__main__":
    main()
