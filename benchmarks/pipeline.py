"""Augmented images per second and core, here and by paddle.vision.transforms; needs no data.

    python benchmarks/pipeline.py                      # 224 pixels, about a minute on 2 cores
    python benchmarks/pipeline.py --image_size 160

Both augment the same images with the settings' defaults. Paddle gets the smaller center crops, and
normalizes arrays, its fastest way. One-core rows are medians of this thread's processor time, taken
in turn, so that other work on the machine does not change the ratios; rows with threads are wall
time.
"""
import os
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
import utils  # before cv2 and paddle

# isort: split
import cv2
import numpy as np
import PIL
from paddle.vision import transforms as T
from PIL import Image

from utils import engine
from utils.command import Parser
from utils.data_utils import AUGMENT, mixed
from utils.images.cache import Rows
from utils.images.read import read_image
from utils.settings import Settings
from utils.threads import prefetch
from utils.transforms import MEAN, STD, augment, center_crop, normalize, square_side, to_square

SQUARES, REPEATS, BATCH = 200, 300, 20
WANTED = 4000  # images/s for which the number of cores is printed


def smooth_image(rng, height, width):
    """Random colors without noise."""
    small = rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def paddle_transforms(s):
    """The same augmentations by Paddle: PIL image or array [S, S, 3] -> float32 [3, S, S]."""
    return T.Compose([
        T.RandomHorizontalFlip(s.flip_horizontal), T.RandomVerticalFlip(s.flip_vertical),
        T.RandomRotation(s.rotation), T.RandomCrop(s.image_size, padding=s.crop_pad),
        T.ColorJitter(s.brightness, s.contrast, s.saturation, s.hue),
        T.Normalize(255 * np.array(MEAN), 255 * np.array(STD), data_format="HWC"),
        T.RandomErasing(s.erasing, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=0), T.Transpose()])


def one_core(works):
    """Median processor seconds of each work(i), taken in turn."""
    times = {name: [] for name in works}
    for i in range(-5, REPEATS):
        for name, work in works.items():
            began = time.thread_time()
            work(i % SQUARES)
            times[name].append(time.thread_time() - began)
    return {name: statistics.median(t[5:]) for name, t in times.items()}


def images_per_second(make, threads, steps=60):
    """Of batches made as in training; make(step) -> batch."""
    began, count = time.perf_counter(), 0
    for batch in prefetch(make, range(steps), threads):
        count += len(batch)
    return count / (time.perf_counter() - began)


def main():
    parser = Parser(__doc__)
    parser.add_argument("--image_size", type=int, default=224, help="pixels (default: 224)")
    s = Settings(image_size=parser.parse_args().image_size)
    engine.keep_memory()
    engine.choose_device("cpu")
    rng, size, side = np.random.default_rng(0), s.image_size, square_side(s.image_size)
    print(f"{utils.processor()}, {utils.CORES} cores, {engine.versions()}, "
          f"Pillow {PIL.__version__}\n")

    with tempfile.TemporaryDirectory() as folder:
        jpeg, cache = os.path.join(folder, "image.jpg"), os.path.join(folder, "cache.npy")
        photo = smooth_image(rng, 384, 512)
        cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tofile(jpeg)
        np.save(cache, np.stack([smooth_image(rng, side, side) for _ in range(SQUARES)]))
        squares, order = Rows(cache), rng.permutation(SQUARES)
        crops = [np.ascontiguousarray(center_crop(squares[i], size)) for i in range(SQUARES)]
        by_pil, by_paddle = [Image.fromarray(crop) for crop in crops], paddle_transforms(s)

        def augmented(i):
            return augment(squares[order[i]], s, np.random.default_rng([s.seed, AUGMENT, 1, i]))

        def mixed_batch(step):
            x = normalize([augmented((BATCH * step + j) % SQUARES) for j in range(BATCH)])
            return mixed(x, np.arange(BATCH), np.arange(BATCH)[::-1], 0.7)
        one, kilobytes = normalize([crops[0]]), os.path.getsize(jpeg) / 1e3
        seconds = one_core({
            f"decode a JPEG of 512x384, {kilobytes:.0f} kB, to a square":
                lambda i: to_square(read_image(jpeg), side),
            "read a square from the cache": lambda i: squares[order[i]],
            "augment": augmented,
            "normalize": lambda i: normalize([crops[i]]),
            "mixup": lambda i: mixed(one, [0], [0], 0.7)})
        seconds |= one_core({  # separately, so that no row finds its data in the processor's cache
            "augment and normalize, here": lambda i: normalize([augmented(i)]),
            "the same by Paddle on PIL images, its default": lambda i: by_paddle(by_pil[i]),
            "the same by Paddle on arrays (OpenCV)": lambda i: by_paddle(crops[i])})
        here, pil, arrays = [*seconds.values()][-3:]
        print(f"| one core, {size} pixels | ms | images/s | relative to here |")
        print(4 * "| --- " + "|")
        for name, t in seconds.items():
            print(f"| {name} | {1000 * t:.3f} | {1 / t:.0f} | {t / here:.2f} |")
        print(f"\nHere is {pil / here:.1f} times as fast as Paddle on PIL images, "
              f"{arrays / here:.1f} times as on arrays.\n")

        counts = sorted({1, utils.CORES})
        rates = {n: [] for n in counts}
        for _ in range(7):
            for n in counts:
                rates[n].append(images_per_second(mixed_batch, n))
        print(f"| batches of {BATCH} as in training, mixed | images/s |\n| --- | --- |")
        for n in counts:
            print(f"| {n} thread{'s' if n > 1 else ''} | {statistics.median(rates[n]):.0f} |")
        print(f"\nComputed from the one-core rows: {WANTED} images/s would need "
              f"{WANTED * here:.1f} cores, mixed {WANTED * (here + seconds['mixup']):.1f}.")


if __name__ == "__main__":
    main()
