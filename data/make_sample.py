"""Draw the sample set: pictures of four kinds of garbage, made of shapes, textures and clutter.

    python data/make_sample.py                # 4 x 60 pictures in data/sample, two seconds
    python main.py --sample                   # draws them if need be, and trains on them

It is for trying the program out without a download. Colours and shapes overlap between the categories, so the task
is neither trivial nor hopeless; a figure reached on it says nothing about garbage.
"""
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
import utils  # noqa: E402, F401  before cv2
import cv2  # noqa: E402
import numpy as np  # noqa: E402

SIDE = 128


def colour(rng, hue, spread=12, saturation=(90, 255), value=(90, 240)):
    """A random BGR colour about a hue in degrees."""
    hsv = np.uint8([[[(hue + rng.normal(0, spread)) % 360 / 2, rng.integers(*saturation), rng.integers(*value)]]])
    return tuple(int(c) for c in cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0])


def background(rng):
    """A tint with a gradient, grain, and clutter of lines and specks in any colour."""
    base = np.array(colour(rng, rng.uniform(0, 360), saturation=(0, 30), value=(130, 230)), np.float32)
    ramp = np.linspace(-1, 1, SIDE)
    shade = 12 * (ramp[:, None] * rng.normal() + ramp[None] * rng.normal())
    picture = base + shade[..., None] + rng.normal(0, rng.uniform(2, 10), (SIDE, SIDE, 1))
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(0, 5)):
        a, b = (tuple(int(x) for x in rng.integers(0, SIDE, 2)) for _ in range(2))
        c = colour(rng, rng.uniform(0, 360), saturation=(20, 140))
        if rng.random() < 0.5:
            cv2.line(picture, a, b, c, int(rng.integers(1, 4)), cv2.LINE_AA)
        else:
            cv2.circle(picture, a, int(rng.integers(2, 9)), c, -1, cv2.LINE_AA)
    return picture


def harmful(canvas, rng):
    """A battery: a long body with two bands and a cap."""
    w, h = int(rng.integers(20, 32)), int(rng.integers(56, 80))
    x, y = (SIDE - w) // 2, (SIDE - h) // 2
    cv2.rectangle(canvas, (x, y), (x + w, y + h), colour(rng, rng.choice([0, 0, 15, 210])), -1)
    band = int(h * rng.uniform(0.2, 0.35))
    cv2.rectangle(canvas, (x, y), (x + w, y + band), colour(rng, 40, saturation=(60, 200)), -1)
    cv2.rectangle(canvas, (x + w // 3, y - 7), (x + 2 * w // 3, y), colour(rng, 50, saturation=(0, 40)), -1)
    for i in range(int(rng.integers(1, 4))):
        at = y + band + 8 + 9 * i
        cv2.line(canvas, (x, at), (x + w, at), colour(rng, 0, saturation=(0, 30), value=(10, 60)), 3)


def kitchen(canvas, rng):
    """Peel and leaves: a few bent, ragged blobs."""
    for _ in range(rng.integers(2, 5)):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 12))
        radius = rng.uniform(10, 30) * rng.uniform(0.6, 1.2, 12)
        centre = SIDE / 2 + rng.normal(0, 14, 2)
        outline = np.c_[np.cos(angle) * radius * rng.uniform(0.5, 1), np.sin(angle) * radius] + centre
        c = colour(rng, rng.choice([110, 95, 70, 25]), saturation=(110, 255), value=(60, 220))
        cv2.fillPoly(canvas, [outline.astype(np.int32)], c, cv2.LINE_AA)
        tip = outline[int(rng.integers(12))].astype(int).tolist()
        cv2.line(canvas, centre.astype(int).tolist(), tip, tuple(x // 2 for x in c), 2, cv2.LINE_AA)


def other(canvas, rng):
    """A crumpled tissue: one pale ball full of folds."""
    c = colour(rng, rng.uniform(0, 360), saturation=(0, 70), value=(140, 250))
    angle = np.linspace(0, 2 * np.pi, 18, endpoint=False)
    outline = SIDE / 2 + np.c_[np.cos(angle), np.sin(angle)] * rng.uniform(24, 42, (18, 1))
    cv2.fillPoly(canvas, [outline.astype(np.int32)], c, cv2.LINE_AA)
    for _ in range(rng.integers(10, 22)):
        a = SIDE / 2 + rng.normal(0, 14, 2)
        shade = rng.uniform(0.6, 0.9)
        fold = tuple(int(x * shade) for x in c)
        cv2.line(canvas, a.astype(int).tolist(), (a + rng.normal(0, 10, 2)).astype(int).tolist(), fold, 2, cv2.LINE_AA)


def recyclable(canvas, rng):
    """A bottle: wide body, narrow neck, label, and a glint."""
    w, h = int(rng.integers(26, 40)), int(rng.integers(46, 62))
    x, y = (SIDE - w) // 2, SIDE // 2 - h // 3
    c = colour(rng, rng.choice([205, 205, 185, 110]), saturation=(90, 230), value=(90, 230))
    cv2.rectangle(canvas, (x, y), (x + w, y + h), c, -1)
    cv2.fillPoly(canvas, [np.array([(x, y), (x + w, y), (x + 2 * w // 3, y - 14), (x + w // 3, y - 14)])], c)
    cv2.rectangle(canvas, (x + w // 3, y - 28), (x + 2 * w // 3, y - 14), colour(rng, rng.uniform(0, 360)), -1)
    cv2.rectangle(canvas, (x, y + h // 3), (x + w, y + 2 * h // 3), colour(rng, rng.uniform(0, 360), value=(170, 250)), -1)
    cv2.line(canvas, (x + w // 5, y + 3), (x + w // 5, y + h - 3), (245, 245, 245), 2)


DRAWN = {"Harmful": harmful, "Kitchen": kitchen, "Other": other, "Recyclable": recyclable}
CATEGORIES = tuple(DRAWN)


def draw(category, rng):
    """One picture, uint8 BGR [SIDE, SIDE, 3]: the object turned, scaled and moved on a cluttered background, with
    something of another category half out of the frame now and then."""
    picture = background(rng)
    objects = [(category, rng.uniform(1.0, 1.45), rng.normal(0, 7, 2))]
    if rng.random() < 0.25:
        side = rng.uniform(0, 2 * np.pi)
        objects.insert(0, (rng.choice(CATEGORIES), 0.6, 62 * np.array([np.cos(side), np.sin(side)])))
    for name, scale, shift in objects:
        canvas = np.full_like(picture, 1)  # colour 1 1 1 stands for "nothing here"
        DRAWN[name](canvas, rng)
        turn = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), rng.uniform(0, 360), scale)
        turn[:, 2] += shift
        mask = cv2.warpAffine((canvas != 1).any(2).astype(np.uint8) * 255, turn, (SIDE, SIDE))
        layer = cv2.warpAffine(canvas, turn, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)
        share = mask[..., None] / 255
        picture = (share * layer + (1 - share) * picture).astype(np.uint8)
    return cv2.convertScaleAbs(picture, alpha=rng.uniform(0.85, 1.15), beta=rng.uniform(-10, 10))


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
                picture = draw(category, np.random.default_rng([seed, number, i]))
                cv2.imencode(".png", picture)[1].tofile(os.path.join(unfinished, category, f"{i:03}.png"))
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
