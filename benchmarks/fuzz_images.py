"""Damage images and folders at random: does reading them ever crash, hang, or forget a file?

    python benchmarks/fuzz_images.py --minutes 1             # Linux or macOS; one core is enough
    python benchmarks/fuzz_images.py --minutes 60 --seed 1
    python benchmarks/fuzz_images.py --seed 1 --repeat 4711  # that one again, in this process

Number n of a seed is always the same damaged file, or (every 50th) the same folder of odd names,
links, pipes and damaged files. A child process reads it as training does, twice: the image must be
the same. A crash or hang costs only the child. Failures are kept in fuzz_found/: the file or
folder, its number, and the traceback if there was one. The exit status is 0 if there were none.
"""
import collections
import ctypes
import itertools
import multiprocessing
import os
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import zlib

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]
import utils  # before cv2

# isort: split
import cv2
import numpy as np

from odd_files import FORMATS, KINDS
from utils.command import Parser
from utils.errors import InputError
from utils.images.dataset import EXTENSIONS, load_images
from utils.images.read import UnreadableImage, read_image
from utils.settings import Settings
from utils.transforms import to_square

WHOLE = [*FORMATS.values(),
         *(content for content, outcome in KINDS.values() if not isinstance(outcome, str)),
         *(content for name, (content, _) in KINDS.items() if "float" in name)]
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 10922, 0x7FFFFFFF, 0x80000000,
           0xFFFFFFFF]
TREE_EVERY = 50
HANGS_AFTER = 60  # seconds
FOUND = "fuzz_found"
LIBC, M_PERTURB = ctypes.CDLL(None), -6  # of glibc


def damaged(rng):
    """The bytes of a whole image after one or several changes."""
    def place():  # half of them in the header
        return int(rng.integers(1 + min(len(data), 200 if rng.random() < 0.5 else len(data))))
    data = bytearray(WHOLE[rng.integers(len(WHOLE))])
    for _ in range(rng.geometric(0.4)):
        i, n, kind = place(), int(rng.geometric(0.05)), rng.integers(8)
        if kind == 0:
            data[i:i + 1] = bytes(b ^ 1 << rng.integers(8) for b in data[i:i + 1])
        elif kind == 1:
            data[i:i + n] = rng.bytes(n)
        elif kind == 2:
            order, number = rng.choice(["<I", ">I"]), NUMBERS[rng.integers(len(NUMBERS))]
            data[i:i + 4] = struct.pack(order, number)
        elif kind == 3:
            order, number = rng.choice(["<H", ">H"]), NUMBERS[rng.integers(len(NUMBERS))]
            data[i:i + 2] = struct.pack(order, number & 0xFFFF)
        elif kind == 4:
            del data[i:i + n]
        elif kind == 5:
            data[i:i] = data[i:i + n] * int(rng.integers(1, 20))
        elif kind == 6:
            other = WHOLE[rng.integers(len(WHOLE))]
            data[i:] = other[min(i, len(other)):]
        else:
            data[place():] = bytes(len(data) - i) if rng.random() < 0.5 else b""
    return mended(data) if rng.random() < 0.7 else bytes(data)


def mended(data):
    """A PNG with valid checksums, or the decoder would look no further; other files as they are."""
    if data.startswith(b"\x89PNG"):
        i = 8
        while i + 12 <= len(data):
            end = i + 8 + int.from_bytes(data[i:i + 4], "big")
            data[end:end + 4] = struct.pack(">I", zlib.crc32(data[i + 4:end]))
            i = end + 4
    return bytes(data)


def make_tree(folder, rng, depth=0):
    """A folder of odd names; some cannot be made, and are not there."""
    os.makedirs(folder, exist_ok=True)
    for _ in range(rng.integers(1, 9)):
        letters = [b"a", b" ", b".", b"\n", b"'", b"\xff", b"\xe7\xba\xb8", b"\\", b"-", b"\x1b",
                   b"%s"]
        name = b"".join(rng.choice(letters, rng.integers(1, 30)))
        name += rng.choice([*EXTENSIONS, "", ".JPG", ".txt", "~"]).encode()
        path, kind = os.path.join(folder, name), rng.integers(10)
        try:
            if kind == 0 and depth < 4:
                make_tree(path, rng, depth + 1)
            elif kind == 1:
                target = rng.choice([b".", b"..", b"nowhere", b"/dev/zero", name, b"a.png"])
                os.symlink(target, path)
            elif kind == 2:
                os.mkfifo(path)
            else:
                with open(path, "xb") as f:
                    f.write(WHOLE[rng.integers(len(WHOLE))] if kind > 5 else
                            damaged(rng) if kind > 3 else b"")
        except OSError:
            pass


def check_tree(folder, rng):
    """Scan a folder twice. Raises AssertionError if a file is missing, named twice, or differs."""
    data_dir, cache = os.path.join(folder, "set"), os.path.join(folder, "cache")
    for path in ("a", "b", ""):
        make_tree(os.path.join(os.fsencode(data_dir), path.encode()), rng)
    settings = Settings(data_dir=data_dir, image_size=32, categories=("a", "b"), cache_dir=cache,
                        cache_gb=rng.choice([0, 1e-5, 1]))
    try:
        images = load_images(settings, threads=2)
    except InputError as e:
        assert str(e).startswith("no usable image"), e
        return
    named = [*images.paths, *(p for p, _ in images.left_out)]
    assert len(named) == len(set(named)), "named twice"
    for top, folders, files in os.walk(data_dir):
        for name in files + [f for f in folders if os.path.islink(os.path.join(top, f))]:
            parts = os.path.relpath(os.path.join(top, name), data_dir).split("/")
            above = ["/".join(parts[:i + 1]) for i in range(len(parts))]
            assert sum(a in named for a in above) == 1, above  # itself, or a folder left out
    again = load_images(settings, threads=2)
    assert (again.paths, again.left_out) == (images.paths, images.left_out)
    assert again.digest() == images.digest()
    for i in range(len(images)):
        assert np.array_equal(images.square(i), again.square(i))
        assert images.square(i).shape == (36, 36, 3)


def read_one(seed, n, folder):
    """What came of number n: "decoded", "scanned", or the reason of a refusal."""
    rng = np.random.default_rng([seed, n])
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    if n % TREE_EVERY == 0:
        check_tree(folder, rng)
        return "scanned"
    path = os.path.join(folder, "image")
    with open(path, "wb") as f:
        f.write(damaged(rng))
    seen = []
    for filling in (85, 170):  # of uninitialized memory, which a half-decoded image may show
        if hasattr(LIBC, "mallopt"):
            LIBC.mallopt(M_PERTURB, filling)
        try:
            image = read_image(path)
            assert image.dtype == np.uint8 and to_square(image, 36).shape == (36, 36, 3)
            seen.append(("decoded", image.tobytes()))
        except UnreadableImage as e:
            seen.append((f"refused: {e}", b""))
    assert seen[0] == seen[1], "another image the second time"
    return seen[0][0]


def child(seed, first, folder, pipe):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libpng writes there
    for n in itertools.count(first):
        began = time.perf_counter()
        try:
            outcome, wrong = read_one(seed, n, folder), None
        except Exception:  # whatever comes is what we look for
            outcome, wrong = "WRONG", traceback.format_exc()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory /= 2**20 if sys.platform == "darwin" else 2**10  # MB
        pipe.send((outcome, wrong, time.perf_counter() - began, memory))
        if wrong:
            pipe.recv()  # the parent keeps the folder first


def main():
    parser = Parser(__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: 0)")
    parser.add_argument("--repeat", type=int, metavar="N",
                        help="read only number N of this seed, and print what comes of it")
    args = parser.parse_args()
    os.makedirs(FOUND, exist_ok=True)
    temporary = tempfile.mkdtemp(dir=FOUND)
    folder = os.path.join(temporary, "one")
    if args.repeat is not None:
        print(read_one(args.seed, args.repeat, folder), folder)
        return 0
    counts, slowest, memory = collections.Counter(), (0, None), (0, None)
    n, process = 0, None
    context, began = multiprocessing.get_context("spawn"), time.time()
    while time.time() < began + 60 * args.minutes:
        if process is None:
            pipe, end = context.Pipe()
            arguments = args.seed, n, folder, end
            process = context.Process(target=child, args=arguments, daemon=True)
            process.start()
            end.close()
            started = n
        wrong = None
        try:
            if pipe.poll(HANGS_AFTER + 60 * (n == started)):  # the first one waits for the imports
                outcome, wrong, seconds, used = pipe.recv()
                slowest = max(slowest, (seconds, n))
                memory = max(memory, (used, n), key=lambda m: m[0])
            else:
                outcome = "HANG"
        except EOFError:
            process.join()
            outcome, wrong = "CRASH", f"exit status {process.exitcode}\n"
        counts[outcome] += 1
        if outcome.isupper():
            place = os.path.join(FOUND, f"seed{args.seed}-{n}-{outcome.lower()}")
            if outcome == "HANG":
                process.kill()
                process.join()
            shutil.rmtree(place, ignore_errors=True)
            os.makedirs(folder, exist_ok=True)  # it may not have come so far
            os.rename(folder, place)
            with open(os.path.join(place, "what.txt"), "w", errors="backslashreplace") as f:
                f.write(wrong or f"no answer in {HANGS_AFTER} s\n")
            print(f"{outcome}: {place}")
            if outcome == "WRONG":
                pipe.send("go on")
            else:
                process = None
        n += 1
    if process:
        process.kill()
        process.join()
    shutil.rmtree(temporary)
    print(f"{n} executions in {(time.time() - began) / 60:.1f} minutes, seed {args.seed}, "
          f"OpenCV {cv2.__version__}, {utils.processor()}")
    failures = ("CRASH", "HANG", "WRONG")
    for outcome in [*(o for o, _ in counts.most_common() if o not in failures), *failures]:
        print(f"{counts[outcome]:10}  {outcome}")
    print(f"slowest {slowest[0]:.2f} s (number {slowest[1]}), peak memory of the child "
          f"{memory[0]:.0f} MB (number {memory[1]})")
    return int(any(counts[f] for f in failures))


if __name__ == "__main__":
    sys.exit(main())
