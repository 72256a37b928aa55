"""One student: what moves in it, its loss, its optimizer, its learning rate and its best epoch."""
import dataclasses
import os
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from models.student_model import Student
from real_runs import LINUX
from tiny import any_head, assert_same_weights, tiny_set, train_tiny, weights_of
from utils.data_utils import epoch_order
from utils.train_utils import (
    build_student,
    evaluate,
    finish_epoch,
    frozen_stem,
    learning_rate,
    still_training,
)

pytestmark = pytest.mark.usefixtures("compiled_once")


def test_frozen_parameters_and_statistics_do_not_move(settings):
    before = {}

    def watch(teacher, students):
        before.update(weights_of(students[0]))
        return teacher
    after = weights_of(train_tiny(settings, [0], watch=watch)["fold0"])
    frozen = [n for n in before if n.startswith("features.") and int(n.split(".")[1]) < 14]
    assert len(frozen) > 150
    assert all(np.array_equal(before[n], after[n]) for n in frozen)
    moved = [n for n in before if n not in frozen and not np.array_equal(before[n], after[n])]
    assert {n.rsplit(".", 1)[1] for n in moved} == {"weight", "bias", "_mean", "_variance"}


def test_frozen_blocks_do_not_move_in_the_dynamic_graph_either():
    paddle.seed(0)
    student = Student(3, 14, scale=0.25)
    optimizer = paddle.optimizer.SGD(1.0, parameters=student.parameters())
    before = {k: v.numpy() for k, v in student.state_dict().items()}
    student.train()
    student(paddle.randn([4, 3, 32, 32])).square().mean().backward()
    optimizer.step()
    moved = {k for k, v in student.state_dict().items() if not np.array_equal(v.numpy(), before[k])}
    assert moved and not any(k.startswith(f"features.{i}.") for i in range(14) for k in moved)


def test_learning_rate():
    rates = [learning_rate(s, 100, 10, 0.1) for s in range(100)]
    np.testing.assert_allclose(rates[:10], np.linspace(0.01, 0.1, 10))
    assert rates[10] == 0.1 and np.all(np.diff(rates[10:]) < 0) and 0 < rates[-1] < 1e-4
    np.testing.assert_allclose(rates[55], 0.05)
    assert learning_rate(0, 10, 0, 0.1) == 0.1


def test_evaluation_scores_each_image_by_its_own_student(settings):
    images, fold_of = tiny_set(settings)
    fold_of[:4] = 0  # folds of different sizes
    settings.freeze_depth = 0
    students = [build_student(k, images.labels, fold_of, any_head(), settings) for k in range(3)]
    together = evaluate(students, paddle.to_tensor, images, settings, 2)
    for student in students:
        p = together[student.name]
        assert p.shape == (len(student.images), 3)
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)  # float32
        alone = evaluate([student], paddle.to_tensor, images, settings, 1)[student.name]
        np.testing.assert_allclose(alone, p, atol=1e-5)  # other batches, sums in another order


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_evaluations_keep_no_memory(settings):
    """Once Paddle Inference has been used, a thread that ends leaves 15 MB behind."""
    images, fold_of = tiny_set(settings)
    students = [build_student(k, images.labels, fold_of, any_head(), settings) for k in range(3)]
    frozen_stem(students, settings, 2)(np.zeros([1, 3, 32, 32], np.float32))

    def resident():
        evaluate(students, lambda x: paddle.ones([len(x), 96, 14, 14]), images, settings, 2)
        with open("/proc/self/statm", encoding="ascii") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    megabytes = [resident() for _ in range(20)]
    assert megabytes[-1] - megabytes[4] < 50, megabytes


def test_a_loss_that_is_not_finite_stops_its_student_alone(settings, one_by_one):
    (alone,) = train_tiny(settings, [1]).values()

    def watch(teacher, students):
        network, calls = students[0].network, []
        pool = network.pool

        def broken(x):
            calls.append(network.training)
            return pool(x) * (float("nan") if sum(calls) == 3 else 1)
        network.pool = broken
        return teacher
    first, second = train_tiny(settings, [0, 1], watch=watch).values()
    images, fold_of = tiny_set(settings)
    rows = epoch_order(fold_of, [0, 1, 2], settings, 0)[2][2:]
    for words in ("epoch 1, step 3 of 5", "learning rate 0.0006;", "lower --base_lr",
                  f"images {', '.join(images.paths[i] for i in rows)})"):
        assert words in first.failed
    assert first.stopped and not first.history and not second.failed
    assert_same_weights(alone, second)


def test_class_weights_are_counted_outside_the_fold(settings):
    fold_of, labels = np.arange(60) % 3, np.arange(60) // 3 % 4

    def class_weights():
        return [build_student(k, labels, fold_of, any_head(classes=4), settings)
                .class_weights.numpy() for k in range(3)]
    before = class_weights()
    labels = np.where((fold_of == 1) & (labels < 3), 3, labels)
    after = class_weights()
    assert [np.array_equal(a, b) for a, b in zip(before, after)] == [False, True, False]
    # N / (C * count)
    np.testing.assert_allclose(after[0], [40 / 4 / 5, 40 / 4 / 5, 40 / 4 / 5, 40 / 4 / 25])


def test_optimizer_is_adam_with_an_l2_penalty(settings):
    """Kingma and Ba 2015, algorithm 1; the gradient has weight_decay * weight added."""
    settings.weight_decay = 0.01
    student = build_student(0, np.arange(40) % 4, np.arange(40) % 3, any_head(classes=4), settings)
    parameters = {n: p for n, p in student.network.named_parameters() if not p.stop_gradient}
    expected = {n: p.numpy().astype("float64") for n, p in parameters.items()}
    first, second = (dict.fromkeys(expected, 0) for _ in range(2))
    for t in (1, 2, 3):
        student.optimizer.set_lr(1e-3 * t)
        for n, p in parameters.items():
            rng = np.random.default_rng([t, p.size])
            p.grad = paddle.to_tensor(rng.normal(size=p.shape).astype("float32"))
            g = p.grad.numpy() + 0.01 * expected[n]
            first[n] = 0.9 * first[n] + 0.1 * g
            second[n] = 0.999 * second[n] + 0.001 * g**2
            expected[n] = expected[n] - 1e-3 * t * (first[n] / (1 - 0.9**t)) / (
                np.sqrt(second[n] / (1 - 0.999**t)) + 1e-8)
        for p in student.regressor.parameters():
            p.grad = paddle.zeros(p.shape)
        student.optimizer.step()
        student.optimizer.clear_grad()
    for n, p in parameters.items():  # float32: 1e-7 of weights about 1, three steps of 1e-3
        np.testing.assert_allclose(p.numpy(), expected[n], rtol=0, atol=1e-6, err_msg=n)


def test_the_final_model_trains_as_long_as_a_fold_does(settings):
    settings = dataclasses.replace(settings, num_folds=2, patience=3)
    labels, fold_of, order = np.arange(80) // 2 % 2, np.arange(80) % 2, np.zeros((1, 2), int)
    students = [build_student(k, labels, fold_of, any_head(classes=2), settings) for k in range(3)]
    images = SimpleNamespace(labels=labels, paths=list(map(str, range(80))))
    # each fold improves in time, but their mean is below that of the first epoch for three
    right, trained = [[36, 38, 20, 20, 40, 0, 0, 0], [20, 16, 24, 28, 38, 0, 0, 0]], []
    for epoch, counts in enumerate(zip(*right)):
        trained.append([s.name for s in still_training(students)])
        probabilities = {}
        for student, count in zip(students, counts):
            predicted = labels[student.images] ^ (np.arange(40) >= count)
            probabilities[student.name] = np.eye(2, dtype="float32")[predicted]
        for student in students:
            student.running = paddle.ones([4])
        finish_epoch(students, probabilities, images, fold_of, order, epoch)
    assert trained == [["fold0", "fold1", "final"]] * 8 and still_training(students) == []
    assert students[2].best_epoch == 5


def test_a_weight_of_the_final_model_that_is_not_finite_is_not_kept(settings):
    labels, fold_of, order = np.arange(20) % 2, np.arange(20) // 2 % 3, np.zeros((1, 2), int)
    fold, final = (build_student(k, labels, fold_of, any_head(classes=2), settings) for k in (0, 3))
    images = SimpleNamespace(labels=labels, paths=list(map(str, range(20))))
    final.network.classifier.bias.set_value(paddle.full([2], float("nan")))
    fold.running = final.running = paddle.ones([4])
    p = np.full((len(fold.images), 2), 0.5, "float32")
    finish_epoch([fold, final], {"fold0": p}, images, fold_of, order, 0)
    assert "no longer a finite number" in final.failed and not final.best_weights
    assert not fold.failed and fold.best_epoch == 1


@pytest.mark.parametrize("class_weights, best", [("balanced", 2), ("none", 3)])
def test_the_best_epoch_wants_what_the_loss_wants_and_of_equals_the_lower_loss(
        settings, class_weights, best):
    settings = dataclasses.replace(settings, class_weights=class_weights, patience=2)
    labels, fold_of, order = np.repeat([0, 1], [16, 4]), np.arange(20) % 2, np.zeros((1, 2), int)
    student = build_student(0, labels, fold_of, any_head(classes=2), settings)
    images = SimpleNamespace(labels=labels, paths=list(map(str, range(20))))
    ones = [[0.1] * 10, [0.1] * 5 + [0.9] * 5, [0.01] * 8 + [0.1] * 2, [0.1] * 10, [0.1] * 10]
    stopped = []
    for epoch, p in enumerate(ones):
        student.running = paddle.ones([4])
        probs = np.stack([1 - np.array(p), p], 1).astype("float32")
        finish_epoch([student], {"fold0": probs}, images, fold_of, order, epoch)
        stopped.append(student.stopped)
    scores = [0.8, 0.7, 0.8, 0.8, 0.8], [0.5, 0.8125, 0.5, 0.5, 0.5]
    for key, values in zip(("val_accuracy", "val_balanced_accuracy"), scores):
        assert [h[key] for h in student.history] == values[:best + 2]
    assert student.best_epoch == best and stopped.index(True) == best + 1
