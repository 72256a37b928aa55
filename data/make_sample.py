"""Draw the sample set: images of four kinds of garbage, made of shapes, textures and clutter.

    python data/make_sample.py                # 4 x 60 images in data/sample, two seconds
    python main.py --sample                   # draws them if need be, and trains on them

It is for trying the program without a download; a figure reached on it says nothing about garbage.
"""
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
import utils  # noqa: F401  before cv2

# isort: split
import cv2
import numpy as np

SIDE = 128


def color(rng, hue, spread=12, saturation=(90, 255), value=(90, 240)):
    """A random BGR color about a hue in degrees."""
    hsv = (hue + rng.normal(0, spread)) % 360 / 2, rng.integers(*saturation), rng.integers(*value)
    bgr = cv2.cvtColor(np.uint8([[hsv]]), cv2.COLOR_HSV2BGR)[0, 0]
    return tuple(int(c) for c in bgr)


def background(rng):
    """A tint with a gradient, grain, and clutter of lines and specks in any color."""
    base = color(rng, rng.uniform(0, 360), saturation=(0, 50), value=(60, 230))
    ramp = np.linspace(-1, 1, SIDE)
    shade = 12 * (ramp[:, None] * rng.normal() + ramp[None] * rng.normal())
    image = base + shade[..., None] + rng.normal(0, rng.uniform(2, 10), (SIDE, SIDE, 1))
    image = np.clip(image, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(0, 3)):
        a, b = (tuple(int(x) for x in rng.integers(0, SIDE, 2)) for _ in range(2))
        c = color(rng, rng.uniform(0, 360), saturation=(0, 70))
        if rng.random() < 0.5:
            cv2.line(image, a, b, c, int(rng.integers(1, 4)), cv2.LINE_AA)
        else:
            cv2.circle(image, a, int(rng.integers(2, 9)), c, -1, cv2.LINE_AA)
    return image


def harmful(canvas, rng):
    """A battery: a long dark body, a bright end with a cap, and rings."""
    w, h = int(rng.integers(22, 34)), int(rng.integers(60, 80))
    x, y = (SIDE - w) // 2, (SIDE - h) // 2
    bright = color(rng, rng.choice([0, 40, 130, 220]), saturation=(200, 255), value=(190, 255))
    dark = color(rng, 230, saturation=(0, 120), value=(20, 70))
    cv2.rectangle(canvas, (x, y), (x + w, y + h), dark, -1)
    cv2.rectangle(canvas, (x, y), (x + w, y + h // 5), bright, -1)
    cap = color(rng, 50, saturation=(0, 40), value=(150, 230))
    cv2.rectangle(canvas, (x + w // 3, y - 7), (x + 2 * w // 3, y), cap, -1)
    for at in range(y + h - 7, y + h // 3, -14):
        cv2.line(canvas, (x, at), (x + w, at), bright, 6)


def kitchen(canvas, rng):
    """Leaves with a vein, and bent strips of peel."""
    for _ in range(rng.integers(4, 7)):
        center, angle = (int(x) for x in SIDE / 2 + rng.normal(0, 18, 2)), rng.uniform(0, 360)
        center, length = tuple(center), int(rng.integers(12, 22))
        if rng.random() < 0.6:
            c = color(rng, rng.choice([70, 95, 120]), saturation=(140, 255), value=(70, 200))
            cv2.ellipse(canvas, center, (length, length // 2), angle, 0, 360, c, -1)
            cv2.ellipse(canvas, center, (length, 1), angle, 0, 360, tuple(x // 2 for x in c), -1)
        else:
            c = color(rng, rng.choice([25, 40, 55]), saturation=(170, 255), value=(120, 240))
            end, width = rng.uniform(120, 240), int(rng.integers(5, 10))
            cv2.ellipse(canvas, center, (length, length), angle, 0, end, c, width)


def other(canvas, rng):
    """A crumpled tissue: one pale ball full of folds."""
    c = color(rng, rng.uniform(0, 360), saturation=(0, 40), value=(170, 255))
    angle = np.linspace(0, 2 * np.pi, 18, endpoint=False)
    outline = SIDE / 2 + np.c_[np.cos(angle), np.sin(angle)] * rng.uniform(28, 42, (18, 1))
    cv2.fillPoly(canvas, [outline.astype(np.int32)], c)
    for _ in range(rng.integers(14, 26)):
        a = SIDE / 2 + rng.normal(0, 10, 2)
        shade = rng.uniform(0.5, 0.8)
        fold = tuple(int(x * shade) for x in c)
        b = a + rng.normal(0, 9, 2)
        cv2.line(canvas, a.astype(int).tolist(), b.astype(int).tolist(), fold, 2)


def recyclable(canvas, rng):
    """A bottle: wide body, narrow neck, cap, label, and a glint."""
    w, h = int(rng.integers(28, 40)), int(rng.integers(48, 62))
    x, y = (SIDE - w) // 2, SIDE // 2 - h // 3
    c = color(rng, rng.choice([215, 195, 165]), saturation=(110, 230), value=(130, 240))
    cv2.rectangle(canvas, (x, y), (x + w, y + h), c, -1)
    left, right = x + w // 3, x + 2 * w // 3  # of the neck
    cv2.fillPoly(canvas, [np.array([(x, y), (x + w, y), (right, y - 14), (left, y - 14)])], c)
    cv2.rectangle(canvas, (left, y - 24), (right, y - 14), color(rng, rng.uniform(0, 360)), -1)
    label = color(rng, rng.uniform(0, 360), value=(170, 250))
    cv2.rectangle(canvas, (x, y + h // 3), (x + w, y + 2 * h // 3), label, -1)
    cv2.line(canvas, (x + w // 5, y + 3), (x + w // 5, y + h - 3), (245, 245, 245), 4)


DRAWN = {"Harmful": harmful, "Kitchen": kitchen, "Other": other, "Recyclable": recyclable}
CATEGORIES = tuple(DRAWN)


def draw(category, rng):
    """One image, uint8 BGR [SIDE, SIDE, 3]: the object turned, scaled and moved on a cluttered
    background."""
    canvas = np.zeros((SIDE, SIDE, 3), np.uint8)  # black: nothing here
    DRAWN[category](canvas, rng)
    angle, scale = rng.uniform(0, 360), rng.uniform(1.0, 1.25)
    turn = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), angle, scale)
    turn[:, 2] += rng.uniform(-15, 15, 2)
    free = (canvas == 0).all(2).astype(np.float32)
    free = cv2.warpAffine(free, turn, (SIDE, SIDE), borderValue=1)
    image = cv2.warpAffine(canvas, turn, (SIDE, SIDE)) + free[..., None] * background(rng)
    return cv2.convertScaleAbs(image, alpha=rng.uniform(0.85, 1.15), beta=rng.uniform(-10, 10))


def make_sample(folder, per_category=60, seed=7):
    """Draw the set into `folder`, unless it exists. Returns whether it was drawn."""
    folder = os.path.normpath(folder)  # without a slash at the end
    if os.path.exists(folder):
        return False
    unfinished = f"{folder}.{os.getpid()}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)  # of a killed process that had this number
    try:
        for number, category in enumerate(CATEGORIES):
            os.makedirs(os.path.join(unfinished, category))
            for i in range(per_category):
                image = draw(category, np.random.default_rng([seed, number, i]))
                path = os.path.join(unfinished, category, f"{i:03}.png")
                cv2.imencode(".png", image)[1].tofile(path)
        os.rename(unfinished, folder)
    except BaseException as e:  # Ctrl-C too
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(e, OSError) and os.path.exists(folder):
            return False  # another run was faster
        raise
    return True


if __name__ == "__main__":
    target = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sample")
    print(f"{'drew' if make_sample(target) else 'already there:'} {target}")
