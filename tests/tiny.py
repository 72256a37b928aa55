"""Tiny networks, heads and trainings, which several files of tests share."""
from types import SimpleNamespace

import numpy as np
import paddle

from conftest import Quiet
from main import train
from models.teacher_model import Head
from utils import train_utils
from utils.folds import assign_folds
from utils.images.dataset import load_images
from utils.store import open_store
from utils.teacher import fit_heads
from utils.train_utils import build_student, frozen_stem

RANDOM = "random weights", None


class TinyBackbone(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 5, 4, stride=4)

    def forward(self, x):
        x = paddle.nn.functional.relu(self.conv(x))
        return paddle.flatten(paddle.nn.functional.adaptive_avg_pool2d(x, 1), 1)


def weights_of(student):
    return {k: v.numpy() for k, v in student.network.state_dict().items()}


def assert_same_weights(student, other):
    for name, value in weights_of(student).items():
        np.testing.assert_array_equal(value, weights_of(other)[name], err_msg=name)


def tiny_set(settings):
    """The tiny set, and the fold of each of its images."""
    images = load_images(settings)
    return images, assign_folds(images.labels, settings.num_folds, settings.seed)


def any_head(features=5, classes=3):
    shapes = (features, classes), (1, classes), features
    return Head(*(np.zeros(shape, "f") for shape in shapes), np.ones(features, "f"))


def tiny_teacher():
    paddle.seed(5)
    return train_utils.compiled(TinyBackbone(), [3, 32, 32])


def tiny_heads(settings, images, fold_of):
    features = np.random.default_rng(0).normal(size=(1, len(images), 5)).astype("float32")
    return fit_heads(features, images.labels, fold_of, settings)


def train_tiny(settings, folds=(0, 1, 2, 3), square=None, threads=2, watch=None, build=None,
               run=None, teacher=None):
    """Train students of `folds` (3: the final model) on the tiny set; returns {name: TrainState}.

    square(plain) replaces images.square; build(heads) the students; watch(teacher, students) the
    teacher, before training; run: a Run, else nothing is kept.
    """
    images, fold_of = tiny_set(settings)
    if square:
        images.square = square(images.square)
    run = run or Quiet(settings, threads)
    run.teacher_weights = run.student_weights = RANDOM
    teacher = teacher or tiny_teacher()
    store = open_store(teacher, images, run)
    if store:
        store.fill()
    heads = tiny_heads(settings, images, fold_of)
    students = build(heads) if build else [
        build_student(k, images.labels, fold_of, heads[k], settings) for k in folds]
    if watch:
        teacher = watch(teacher, students)
    stem = frozen_stem(students, settings, threads)
    run.start(students)
    train(students, images, fold_of, teacher, stem, run, store)
    return {s.name: s for s in students}


def opened(settings, teacher=None, **weights):
    """(the Store, or None without the option; images)"""
    images = load_images(settings)
    run = SimpleNamespace(**dict(settings=settings, threads=2, teacher_weights=RANDOM,
                                 student_weights=RANDOM) | weights)
    store = open_store(teacher or tiny_teacher(), images, run)
    if store:
        store.fill()
    return store, images


def content(path):
    with open(path, "rb") as f:
        return f.read()


class Cut(BaseException):
    """Stands in for a killed process."""


class Counted:
    """A network that counts the images that it is asked for, and fails after `most`."""

    def __init__(self, most=10**9):
        self.network, self.images, self.most = tiny_teacher(), 0, most

    def __call__(self, x):
        self.images += len(x)
        if self.images > self.most:
            raise Cut
        return self.network(x)
