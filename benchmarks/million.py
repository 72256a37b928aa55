"""A start of main.py on a very large folder: seconds and memory of each step, then all once more.

    python benchmarks/million.py                                  # a million files; minutes
    python benchmarks/million.py --images 20000 --distinct 2000   # less than a minute

Draws JPEG files of 40x40 pixels into four folders, then hard links to them, and starts as with
--image_size 32 --duplicates exact. Needs 3.9 kB per image in the temporary folder, 4 GB for a
million, and an inode for each distinct one. Memory is the peak of the process without what it had
after the imports. Figures: docs/scaling.md.
"""
import os
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
import utils  # before cv2

# isort: split
import cv2
import numpy as np

from benchmarks.scaling import clocks, peak
from utils import engine
from utils.command import Parser
from utils.folds import assign_folds
from utils.images.dataset import find_categories, list_files, load_images
from utils.images.duplicates import find_groups
from utils.settings import Settings


def draw(folder, count, distinct):
    paths = []
    for i in range(count):
        name = f"{i:07}.jpg"
        if i < distinct:
            paths.append(os.path.join(folder, str(i % 4), name))
            os.makedirs(os.path.dirname(paths[-1]), exist_ok=True)
            image = np.random.default_rng(i).integers(0, 256, (6, 6, 3), np.uint8)
            image = cv2.resize(image, (40, 40), interpolation=cv2.INTER_CUBIC)
            cv2.imencode(".jpg", image)[1].tofile(paths[-1])
        else:
            first = paths[i % distinct]
            os.link(first, os.path.join(os.path.dirname(first), name))


def start(settings, row):
    """The steps of main.py before the first network, a row of the table for each."""
    images = load_images(settings)
    row("list again, decode, check, fill the cache")
    groups = find_groups(images, settings)
    row("find identical images")
    assign_folds(images.labels, 5, 42, images.categories, groups)
    row("cut into five folds, duplicates together")


def main():
    parser = Parser(__doc__)
    parser.add_argument("--images", type=int, default=1000000,
                        help="files in the folder (default: a million)")
    parser.add_argument("--distinct", type=int, default=20000,
                        help="of these, not hard links of another (default: 20000)")
    args = parser.parse_args()
    engine.keep_memory()
    with tempfile.TemporaryDirectory() as place:
        settings = Settings(data_dir=os.path.join(place, "set"), image_size=32, cache_gb=1000,
                            cache_dir=os.path.join(place, "cache"), duplicates="exact")
        draw(settings.data_dir, args.images, args.distinct)
        print(f"{utils.processor()}, {utils.CORES} cores, {engine.versions()}\n\n"
              f"| {args.images} files, {args.distinct} distinct | s | processor time, s | "
              "peak so far, MB |\n| --- | --- | --- | --- |")
        before, times = peak(), [clocks()]

        def row(what):
            times.append(clocks())
            wall, processor = times[-1] - times[-2]
            print(f"| {what} | {wall:.1f} | {processor:.1f} | {peak() - before:.0f} |", flush=True)
        for category in find_categories(settings.data_dir):
            folder = os.path.join(settings.data_dir, category)
            for file in list_files(folder)[0]:
                os.stat(os.path.join(folder, file))
        row("list them, with sizes and times")
        start(settings, row)
        start(settings, lambda _: None)
        row("all of that the second time")


if __name__ == "__main__":
    main()
