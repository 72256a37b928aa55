"""A start of main.py on a very large folder: seconds and memory of each step, and of all of them the second time.

    python benchmarks/million.py                                     # a million files; minutes on 2 cores
    python benchmarks/million.py --pictures 20000 --distinct 2000    # for a laptop: less than a minute

Draws JPEG files of 40x40 pixels into four folders, then hard links to them, and starts as with --image_size 32 --copies
exact. Needs 3.9 kB a picture in the temporary folder, 4 GB for a million, and an inode for each distinct one. Memory is
the largest of the process so far, Paddle and the rest, just loaded, not counted in it. Figures: docs/scaling.md.
"""
import argparse
import os
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
from utils import runtime  # noqa: E402
import cv2  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.scaling import clocks, peak  # noqa: E402
from utils.copies import group_pictures, known_copies  # noqa: E402
from utils.data_utils import find_categories, load_pictures, stratified_parts, walk  # noqa: E402

both = "{0[0]:.1f} | {0[1]:.1f}".format


def draw(folder, count, distinct):
    paths = []
    for i in range(count):
        if i < distinct:
            paths.append(os.path.join(folder, str(i % 4), f"{i:07}.jpg"))
            os.makedirs(os.path.dirname(paths[-1]), exist_ok=True)
            picture = np.random.default_rng(i).integers(0, 256, (6, 6, 3), np.uint8)
            cv2.imencode(".jpg", cv2.resize(picture, (40, 40), interpolation=cv2.INTER_CUBIC))[1].tofile(paths[-1])
        else:
            os.link(paths[i % distinct], os.path.join(os.path.dirname(paths[i % distinct]), f"{i:07}.jpg"))


def start(folder, cache, row):
    """The steps of main.py before the first network, a row of the table for each."""
    pictures = load_pictures(folder, 32, cache_dir=cache, cache_gb=1000)
    row("list again, decode, check, fill the cache")
    groups = group_pictures(len(pictures), known_copies(pictures, near=False))
    row("find identical pictures")
    stratified_parts(pictures.labels, 5, 42, pictures.categories, groups)
    row("cut into five parts, copies together")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000000, help="files in the folder (default: a million)")
    parser.add_argument("--distinct", type=int, default=20000, help="of them not hard links of another (default: 20000)")
    args = parser.parse_args()
    runtime.keep_memory()
    with tempfile.TemporaryDirectory() as place:
        folder, cache = os.path.join(place, "set"), os.path.join(place, "cache")
        draw(folder, args.pictures, args.distinct)
        print(f"{runtime.processor()}, {runtime.CORES} cores, {runtime.versions()}\n\n| {args.pictures} files, "
              f"{args.distinct} distinct | s | processor time, s | peak so far, MB |\n| --- | --- | --- | --- |")
        before, times = peak(), [clocks()]

        def row(what):
            times.append(clocks())
            print(f"| {what} | {both(times[-1] - times[-2])} | {peak() - before:.0f} |", flush=True)
        for category in find_categories(folder):
            for file in walk(os.path.join(folder, category))[0]:
                os.stat(os.path.join(folder, category, file))
        row("list them, with sizes and times")
        start(folder, cache, row)
        start(folder, cache, lambda _: None)
        row("all of that the second time")


if __name__ == "__main__":
    main()
