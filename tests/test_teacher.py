"""The teacher: when it computes, whether it knows enough, and what augmentations do to it."""
import dataclasses

import numpy as np
import paddle
import pytest

from tiny import train_tiny
from utils.errors import InputError
from utils.folds import assign_folds
from utils.images.dataset import Images
from utils.settings import Settings
from utils.teacher import check_augmented, check_teacher, extract_features, fit_heads

pytestmark = pytest.mark.usefixtures("compiled_once")


@dataclasses.dataclass
class Drawn:
    square: object
    labels: np.ndarray
    categories: list

    def __len__(self):
        return len(self.labels)


SIDES = {"left": np.s_[:, :18], "right": np.s_[:, 18:], "top": np.s_[:18], "bottom": np.s_[18:]}


@pytest.mark.parametrize("categories, told", [
    (("left", "right"), ["flip_horizontal"]), (("top", "bottom"), ["flip_vertical"]),
    (("left", "right", "top", "bottom"), ["flip_horizontal", "flip_vertical", "rotation"]),
    (("left", "right", "red", "blue"), ["flip_horizontal"]), (("red", "blue"), ["hue"]),
    (("dark", "bright"), [])])
def test_an_augmentation_that_destroys_the_label_is_noted(settings, capsys, categories, told):
    """With a teacher that sees sides, colors and brightness."""
    settings = dataclasses.replace(
        settings, hue=0.5 if "hue" in told else 0.1, rotation=180.0 if "rotation" in told else 0.0)
    n = 20 * len(categories)

    def square(i):
        image = np.random.default_rng(i).integers(70, 90, (36, 36, 3), np.uint8)
        name = categories[i % len(categories)]
        if name in SIDES:
            image[SIDES[name]] += 100
        elif name == "bright":
            image += 100
        elif name != "dark":
            image[..., 0 if name == "red" else 2] += 100
        return image

    def teacher(x):
        red, green, blue = x.mean((2, 3)).T
        columns, rows = x.mean((1, 2)), x.mean((1, 3))
        sides = [v[:, :16].mean(1) - v[:, 16:].mean(1) for v in (columns, rows)]
        return paddle.to_tensor(np.stack([red - blue, red + green + blue, *sides], 1))
    images = Drawn(square, np.arange(n) % len(categories), list(categories))
    fold_of = assign_folds(images.labels, 3, 0)
    features = extract_features(teacher, images, settings, 2)
    heads = fit_heads(features, images.labels, fold_of, settings)
    capsys.readouterr()
    notes = check_augmented(teacher, features, heads, images, fold_of, settings)
    assert [note.split("--")[-1] for note in notes] == [f"{option} 0" for option in told]
    assert capsys.readouterr().out == "".join(f"note: {note}\n" for note in notes)
    # a mirrored side is never recognized, whatever the other categories
    assert all("no longer recognizes 100% of" in note for note in notes if "flip" in note)
    plain = dataclasses.replace(settings, flip_horizontal=0.0, flip_vertical=0.0, rotation=0.0,
                                hue=0.0)
    assert check_augmented(teacher, features, heads, images, fold_of, plain) == []


def test_a_teacher_that_no_student_learns_from_is_not_computed(settings):
    batches = []

    def watch(teacher, _):
        return lambda x: batches.append(len(x)) or teacher(x)
    train_tiny(settings, [0, 1], watch=watch)
    assert batches
    batches.clear()
    train_tiny(settings.without_teacher(), [0, 1], watch=watch)
    # where the feature loss cannot change the student
    settings.freeze_depth, settings.alpha = 19, 1.0
    train_tiny(settings, [0, 1], watch=watch)
    assert not batches


def test_a_teacher_that_knows_nothing_ends_the_run_if_a_student_learns_from_it(capsys):
    labels, fold_of = np.arange(40) % 2, np.arange(40) // 2 % 5
    images = Images("", [""] * 40, labels, ["a", "b"], [], None, np.zeros(40, int))
    knows_nothing = np.tile([0.6, 0.4], (40, 1))
    for learns in (dict(), dict(feature_weight=0.0, alpha=0.9)):
        with pytest.raises(InputError, match="the teacher is close to chance .* accuracy 0.500, "
                                             ".*--alpha 1 --feature_weight 0"):
            check_teacher(knows_nothing, images, fold_of, Settings(folds=(0, 1), **learns))
    check_teacher(np.eye(2)[labels], images, fold_of, Settings(folds=(0, 1)))
    alone = Settings(folds=(0, 1), feature_weight=0.0, alpha=1.0)
    check_teacher(knows_nothing, images, fold_of, alone)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("note: the teacher is close to chance")
    assert sum("note" in line for line in printed) == 1
