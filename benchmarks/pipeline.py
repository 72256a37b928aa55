"""Pictures: how many training views a second and core, here and by paddle.vision.transforms. Needs no data.

    python benchmarks/pipeline.py                      # 224 pixels, about a minute on 2 cores
    python benchmarks/pipeline.py --image_size 160

All take the same augmentations with the settings' defaults, of the same pictures. Paddle's are given the smaller central
cut, and they normalise arrays, its fastest way. One-core rows are medians of processor time of this thread, all rows in
turn, so that other work on the machine does not change the ratios; rows with threads are wall time.
"""
import argparse
import os
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
from utils import runtime  # noqa: E402
import cv2  # noqa: E402
import numpy as np  # noqa: E402
import PIL  # noqa: E402
from paddle.vision import transforms as T  # noqa: E402
from PIL import Image  # noqa: E402

from utils.data_utils import VIEW, Squares, prefetch  # noqa: E402
from utils.pictures import read_picture  # noqa: E402
from utils.settings import Settings  # noqa: E402
from utils.train_utils import mixed  # noqa: E402
from utils.transforms import MEAN, STD, eval_view, normalise, square_side, to_square, train_view  # noqa: E402

SQUARES, REPEATS, BATCH, WANTED = 200, 300, 20, 4000  # WANTED: pictures/s to name the cores for


def smooth_picture(rng, height, width):
    """Random colours without noise."""
    return cv2.resize(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8), (width, height),
                      interpolation=cv2.INTER_CUBIC)


def paddle_way(s):
    """The same augmentations by Paddle: PIL image or array [S, S, 3] -> float32 [3, S, S]."""
    return T.Compose([
        T.RandomHorizontalFlip(s.flip_horizontal), T.RandomVerticalFlip(s.flip_vertical), T.RandomRotation(s.rotation),
        T.RandomCrop(s.image_size, padding=s.crop_pad), T.ColorJitter(s.brightness, s.contrast, s.saturation, s.hue),
        T.Normalize(255 * np.array(MEAN), 255 * np.array(STD), data_format="HWC"),
        T.RandomErasing(s.erasing, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=0), T.Transpose()])


def one_core(works):
    """Median processor seconds of each work(i), all in turn."""
    times = {name: [] for name in works}
    for i in range(-5, REPEATS):
        for name, work in works.items():
            began = time.thread_time()
            work(i % SQUARES)
            times[name].append(time.thread_time() - began)
    return {name: statistics.median(t[5:]) for name, t in times.items()}


def batches_per_second(make, threads, steps=60):
    """Of train()'s own prefetch."""
    began, count = time.perf_counter(), 0
    for x in prefetch(make, range(steps), threads):
        count += len(x)
    return count / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_size", type=int, default=224, help="pixels (default: 224)")
    s = Settings(image_size=parser.parse_args().image_size)
    runtime.keep_memory()
    runtime.choose_device("cpu")
    rng, size, side = np.random.default_rng(0), s.image_size, square_side(s.image_size)
    print(f"{runtime.processor()}, {runtime.CORES} cores, {runtime.versions()}, Pillow {PIL.__version__}\n")

    with tempfile.TemporaryDirectory() as folder:
        jpeg, cache = os.path.join(folder, "picture.jpg"), os.path.join(folder, "cache.npy")
        cv2.imencode(".jpg", smooth_picture(rng, 384, 512), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tofile(jpeg)
        np.save(cache, np.stack([smooth_picture(rng, side, side) for _ in range(SQUARES)]))
        squares, order = Squares(cache), rng.permutation(SQUARES)
        cuts = [np.ascontiguousarray(eval_view(square, size)) for square in map(squares.__getitem__, range(SQUARES))]
        pictures, views, by_paddle = [Image.fromarray(cut) for cut in cuts], cuts, paddle_way(s)

        def view(i):
            return train_view(squares[order[i]], s, np.random.default_rng([s.seed, VIEW, 1, i]))
        one = normalise([views[0]])
        seconds = one_core({
            f"decode a JPEG of 512x384, {os.path.getsize(jpeg) / 1e3:.0f} kB, to a square": lambda i: to_square(
                read_picture(jpeg), side),
            "read a square from the cache": lambda i: squares[order[i]],
            "the random view": view,
            "normalise": lambda i: normalise([views[i]]),
            "mixup": lambda i: mixed(one, [0], [0], 0.7)})
        seconds |= one_core({  # apart: nothing finds in the processor's cache what the row before it has read
            "view and normalise, here": lambda i: normalise([view(i)]),
            "the same by Paddle on PIL images, its default": lambda i: by_paddle(pictures[i]),
            "the same by Paddle on arrays (OpenCV)": lambda i: by_paddle(cuts[i])})
        here, pil, arrays = [*seconds.values()][-3:]
        print(f"| one core, {size} pixels | ms | pictures/s | times of here |\n| --- | --- | --- | --- |")
        for name, t in seconds.items():
            print(f"| {name} | {1000 * t:.3f} | {1 / t:.0f} | {t / here:.2f} |")
        print(f"\nHere is {pil / here:.1f} times as fast as Paddle on PIL images, {arrays / here:.1f} times as on arrays.\n")

        counts = sorted({1, runtime.CORES})
        rates = {n: [] for n in counts}
        for _ in range(7):
            for n in counts:
                rates[n].append(batches_per_second(
                    lambda step: mixed(normalise([view((BATCH * step + j) % SQUARES) for j in range(BATCH)]),
                                       np.arange(BATCH), np.arange(BATCH)[::-1], 0.7), n))
        print(f"| batches of {BATCH} as train() takes them, mixed | pictures/s |\n| --- | --- |")
        for n in counts:
            print(f"| {n} thread{'s' if n > 1 else ''} | {statistics.median(rates[n]):.0f} |")
        print(f"\nComputed from the one-core rows: {WANTED} pictures/s would need {WANTED * here:.1f} cores, mixed "
              f"{WANTED * (here + seconds['mixup']):.1f}.")


if __name__ == "__main__":
    main()
