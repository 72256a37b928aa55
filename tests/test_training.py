"""The proof of the side-by-side idea: it changes no weight, and no student learns from its fold."""
import dataclasses
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from conftest import Quiet
from main import train
from models.student_model import Student, freeze
from models.teacher_model import Head
from utils import store, train_utils
from utils.data_utils import AUGMENT, assign_folds, epoch_order, mixup
from utils.images.dataset import load_images
from utils.loss import label_loss
from utils.teacher import check_augmented, extract_features, fit_heads
from utils.train_utils import build_student, evaluate, finish_epoch, frozen_stem, learning_rate
from utils.transforms import augment, normalize

pytestmark = pytest.mark.usefixtures("compiled_once")


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


def can_only_get_worse(student):
    """With a patience of 1 it stops after an epoch."""
    student.history = [dict(val_accuracy=2.0, val_balanced_accuracy=2.0, val_loss=0.0)]
    student.best_epoch = 1


def any_head(features=5, classes=3):
    shapes = (features, classes), (1, classes), features
    return Head(*(np.zeros(shape, "f") for shape in shapes), np.ones(features, "f"))


def train_tiny(settings, folds, square=None, threads=2, watch=None, build=None):
    """Train students of `folds` on the tiny set; returns {name: TrainState}.

    square(plain) replaces images.square; build(heads) the students; watch(teacher, students) the
    teacher, before training.
    """
    images, fold_of = tiny_set(settings)
    if square:
        images.square = square(images.square)
    paddle.seed(5)
    teacher = train_utils.compiled(TinyBackbone(), [3, 32, 32])
    features = np.random.default_rng(0).normal(size=(1, len(images), 5)).astype("float32")
    heads = fit_heads(features, images.labels, fold_of, settings)
    students = build(heads) if build else [
        build_student(k, images.labels, fold_of, heads[k], settings) for k in folds]
    if watch:
        teacher = watch(teacher, students)
    stem = frozen_stem(students, settings, threads)
    train(students, images, fold_of, teacher, stem, Quiet(settings, threads))
    return {s.name: s for s in students}


@pytest.fixture
def one_by_one(monkeypatch, compiled_once):
    """Frozen networks that compute each image alone, in one thread.

    How the predictor adds up may depend on the size of the batch, and training amplifies the last
    bit; with these, students see the very same numbers whatever trains beside them.
    """
    known = train_utils.compiled

    def compiled(layer, shape, *_, **__):
        alone = known(layer, shape)
        return lambda x: paddle.concat([alone(x[i:i + 1]) for i in range(len(x))])
    monkeypatch.setattr(train_utils, "compiled", compiled)
    monkeypatch.setattr(store, "compiled", compiled)


@pytest.mark.parametrize("depth", [0, 14])
def test_side_by_side_equals_one_at_a_time(settings, one_by_one, depth):
    settings.freeze_depth = depth
    together = train_tiny(settings, [0, 1, 2])
    for k in range(3):
        (alone,) = train_tiny(settings, [k]).values()
        assert_same_weights(alone, together[f"fold{k}"])
        np.testing.assert_array_equal(alone.probabilities, together[f"fold{k}"].probabilities)
    first, second = (weights_of(together[name])["hidden.weight"] for name in ("fold0", "fold1"))
    assert (first != second).any()


def test_the_fast_ways_equal_the_plain_ones(settings, monkeypatch):
    """Predictor, stacked tails and multi-tensor Adam, against Paddle as it comes.

    Each has a stricter test of its own: the first two in test_models.py, Adam below.
    """
    settings.image_size, settings.base_lr = 64, 1e-5
    settings.warmup_epochs, settings.num_epochs = 0, 1
    start = {}

    def watch(teacher, students):
        start.update((s.name, weights_of(s)) for s in students)
        return teacher

    def moved(student):
        """How training moved the weights. Without biases before a BatchNorm and other vectors whose
        gradient is rounding, which Adam turns into whole steps."""
        return np.concatenate([(value - start[student.name][name]).ravel()
                               for name, value in weights_of(student).items() if value.ndim > 1])
    fast = train_tiny(settings, [0, 1, 2], watch=watch)

    def plain(layer, *_):
        freeze(layer)
        return paddle.no_grad()(lambda x: layer(paddle.to_tensor(x)))
    adam = paddle.optimizer.Adam
    monkeypatch.setattr(train_utils, "compiled", plain)
    monkeypatch.setattr("models.student_model.MAX_STACKED_SIDE", 0)
    monkeypatch.setattr(paddle.optimizer, "Adam",
                        lambda *args, use_multi_tensor, **options: adam(*args, **options))
    for name, slow in train_tiny(settings, [0, 1, 2]).items():
        ours, theirs = moved(fast[name]), moved(slow)
        # They differ by 0.1 to 1 %, by processor, since Adam makes a whole step of the smallest
        # gradient; students of two folds differ by 130 %, ten times the weight decay by 9 %
        assert 0 < np.linalg.norm(ours - theirs) <= 0.05 * np.linalg.norm(theirs)
        for key in ("train_loss", "val_loss"):
            np.testing.assert_allclose(fast[name].history[0][key], slow.history[0][key], rtol=1e-4)
        np.testing.assert_allclose(fast[name].probabilities[-1], slow.probabilities[-1], atol=1e-4)


def test_pixels_of_fold_k_change_no_weight_of_student_k(settings):
    images, fold_of = tiny_set(settings)
    before = train_tiny(settings, [0, 1, 2, 3])
    after = train_tiny(settings, [0, 1, 2, 3], lambda square: lambda i: (
        255 - square(i) if fold_of[i] == 1 else square(i)))
    for k, name in enumerate(("fold0", "fold1", "fold2", "final")):
        same = [np.array_equal(value, weights_of(after[name])[key])
                for key, value in weights_of(before[name]).items()]
        assert all(same) if k == 1 else not all(same)


def test_the_final_model_learns_from_all_changes_no_student_and_follows_the_folds(
        settings, one_by_one):
    settings.num_epochs, settings.mixup_alpha = 5, 0.0
    seen, order = [], epoch_order(tiny_set(settings)[1], range(3), settings, 0)

    def watch(teacher, students):
        def pool(x, plain=students[-1].network.pool):
            seen.append(len(x))
            return plain(x)
        students[-1].network.pool = pool
        return teacher
    alone, together = train_tiny(settings, [0, 1, 2]), train_tiny(settings, [0, 1, 2, 3],
                                                                  watch=watch)
    for name, student in alone.items():
        assert_same_weights(student, together[name])
        np.testing.assert_array_equal(student.probabilities, together[name].probabilities)
    final = together["final"]
    assert seen == [order.shape[1]] * 5 * len(order) and set(order.ravel()) == set(range(27))
    means = {key: np.mean([[h[key] for h in s.history] for s in alone.values()], 0)
             for key in ("val_balanced_accuracy", "val_loss")}
    for key, values in means.items():
        np.testing.assert_allclose([h[key] for h in final.history], values, rtol=1e-12)
    best = np.lexsort((means["val_loss"], -means["val_balanced_accuracy"].round(12)))[0]
    assert final.best_epoch == best + 1 and not final.probabilities


def test_same_seed_same_weights_whatever_the_threads(settings, monkeypatch):
    compiled = train_utils.compiled
    with monkeypatch.context() as patch:  # threads of the predictor may change the order of sums
        patch.setattr(train_utils, "compiled", lambda layer, shape, *_: compiled(layer, shape))
        first = train_tiny(settings, [0, 1, 2], threads=2)
        second = train_tiny(settings, [0, 1, 2], threads=1)
        settings.seed += 1
        (other,) = train_tiny(settings, [0]).values()
    for name in first:
        assert_same_weights(first[name], second[name])
    assert (weights_of(first["fold0"])["hidden.weight"] != weights_of(other)["hidden.weight"]).any()


def test_a_teacher_that_no_student_learns_from_is_not_computed(settings):
    batches = []

    def watch(teacher, _):
        return lambda x: batches.append(len(x)) or teacher(x)
    train_tiny(settings, [0, 1], watch=watch)
    assert batches
    batches.clear()
    train_tiny(settings.without_teacher(), [0, 1], watch=watch)
    settings.freeze_depth = 19  # where the feature loss cannot change the student
    train_tiny(settings, [0, 1], watch=watch)
    assert not batches


def test_once_all_students_have_stopped_controls_go_on_without_the_teacher(settings):
    images, fold_of = tiny_set(settings)
    settings.num_epochs, batches = 3, []

    def build(heads):
        control = settings.without_teacher()
        return [build_student(1, images.labels, fold_of, heads[1],
                              dataclasses.replace(s, patience=p), name=name)
                for s, name, p in ((settings, "fold", 1), (control, "control", 9))]

    def watch(teacher, students):
        can_only_get_worse(students[0])
        return lambda x: batches.append(len(x)) or teacher(x)
    trained = train_tiny(settings, [1], watch=watch, build=build)
    assert [len(s.history) for s in trained.values()] == [2, 3] and len(batches) == 5


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


def test_teacher_and_student_see_the_same_mixed_image(settings):
    settings.freeze_depth, settings.warmup_epochs = 0, 0
    seen_by_teacher, seen_by_student = [], []

    def watch(teacher, students):
        network = students[0].network
        pool = network.pool

        def watched_pool(x):
            if network.training:
                seen_by_student.append(x.numpy())
            return pool(x)
        network.pool = watched_pool
        return lambda x: seen_by_teacher.append(np.array(x)) or teacher(x)
    train_tiny(settings, [1], watch=watch)
    assert len(seen_by_teacher) == len(seen_by_student) > 2
    for t, s in zip(seen_by_teacher, seen_by_student):
        np.testing.assert_array_equal(t, s)  # of a lone student's own fold nothing is computed
        assert len(t) == 4


def test_loss_gets_the_labels_and_the_weight_of_the_images_that_were_mixed(settings, monkeypatch):
    """Mixup starts after the warm-up; lam, both labels and the rate belong to the mixed image."""
    settings.freeze_depth, settings.num_epochs = 0, 3
    images, fold_of = tiny_set(settings)
    seen, calls = [], []

    def watch(teacher, _):
        return lambda x: seen.append(np.array(x)) or teacher(x)

    def watched_loss(logits, a, b, lam, class_weights):
        calls.append((a.numpy(), b.numpy(), lam))
        return label_loss(logits, a, b, lam, class_weights)
    monkeypatch.setattr(train_utils, "label_loss", watched_loss)
    student = train_tiny(settings, [1], watch=watch)["fold1"]
    steps = len(calls) // 3
    assert len(seen) == len(calls) == 3 * steps
    for n, (x, (a, b, lam)) in enumerate(zip(seen, calls)):
        epoch, step = divmod(n, steps)
        rows = epoch_order(fold_of, [0, 2], settings, epoch)[step]
        plain = normalize([augment(images.square(i), settings, np.random.default_rng(
            [settings.seed, AUGMENT, epoch, i])) for i in rows])
        np.testing.assert_array_equal(a, images.labels[rows])
        assert lam == 1 if epoch == 0 else 0 <= lam < 1
        for i in range(4):
            partners = [j for j in (i, i ^ 1)
                        if np.allclose(x[i], lam * plain[i] + (1 - lam) * plain[j], atol=1e-5)]
            assert partners and b[i] in images.labels[rows[partners]]
    last = learning_rate(3 * steps - 1, 3 * steps, steps, settings.base_lr)
    np.testing.assert_allclose([student.optimizer.get_lr(), student.history[-1]["learning_rate"]],
                               last)


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


def test_a_lone_student_goes_on_and_stopped_ones_cost_nothing(settings):
    settings.num_epochs, settings.patience = 6, 1
    sizes = []

    def watch(teacher, students):
        can_only_get_worse(students[0])
        can_only_get_worse(students[1])
        students[2].settings = dataclasses.replace(settings, patience=9)
        return lambda x: sizes.append(len(x)) or teacher(x)
    trained = train_tiny(settings, [0, 1, 2], watch=watch)
    assert [len(s.history) for s in trained.values()] == [2, 2, 6]
    assert sizes[:5] == [6] * 5 and sizes[5:] == [4] * 25


def test_controls_start_alike_see_the_same_batches_and_learn_without_the_teacher(settings):
    images, fold_of = tiny_set(settings)
    start, seen = {}, {}

    def build(heads):
        pair = [build_student(1, images.labels, fold_of, heads[1], s, name=name)
                for s, name in ((settings, "fold1"), (settings.without_teacher(), "control1"))]
        for s in pair:
            start[s.name], seen[s.name] = weights_of(s), []

            def head(pooled, mask=None, s=s, plain=s.network.head):
                if mask is not None:
                    seen[s.name].append(mask.numpy())
                return plain(pooled, mask)

            def pool(x, s=s, plain=s.network.pool):
                if s.network.training:
                    seen[s.name].append(x.numpy())
                return plain(x)
            s.network.head, s.network.pool = head, pool
        return pair

    def train_pair(scale):
        pair = train_tiny(settings, [1], build=build,
                          watch=lambda teacher, _: lambda x: teacher(x) * scale)
        return {name: weights_of(s) for name, s in pair.items()}
    end = train_pair(1)
    for name, value in start["fold1"].items():
        np.testing.assert_array_equal(value, start["control1"][name], err_msg=name)
    assert len(seen["fold1"]) == len(seen["control1"]) > 4
    for a, b in zip(seen["fold1"], seen["control1"]):
        np.testing.assert_array_equal(a, b)
    assert (end["fold1"]["hidden.weight"] != end["control1"]["hidden.weight"]).any()
    other_teacher = train_pair(3)
    for name, value in end["control1"].items():
        np.testing.assert_array_equal(value, other_teacher["control1"][name], err_msg=name)
    assert (end["fold1"]["hidden.weight"] != other_teacher["fold1"]["hidden.weight"]).any()


@pytest.mark.parametrize("off", ["alpha", "feature_weight"])
def test_each_signal_of_the_teacher_reaches_the_student(settings, off):
    settings.alpha, settings.feature_weight = (1.0, 8.0) if off == "alpha" else (0.5, 0.0)
    left = train_tiny(settings, [1])["fold1"]
    assert (left.regressor is None) == (off == "feature_weight")
    none = train_tiny(settings.without_teacher(), [1])["fold1"]
    assert (weights_of(left)["hidden.weight"] != weights_of(none)["hidden.weight"]).any()


def test_students_that_need_other_batches_are_refused_and_their_own_settings_count(settings):
    images, fold_of = tiny_set(settings)

    def build(**changes):
        return lambda heads: [build_student(0, images.labels, fold_of, heads[0],
                                            dataclasses.replace(settings, **changes))]
    with pytest.raises(ValueError, match="mixup_alpha"):
        train_tiny(settings, [0], build=build(mixup_alpha=0.0))
    with pytest.raises(ValueError, match="freeze_depth"):
        train_tiny(settings, [0], build=build(freeze_depth=3))
    plain, other = (train_tiny(settings, [0], build=build(dropout=p))["fold0"] for p in (0.5, 0.1))
    assert (weights_of(plain)["hidden.weight"] != weights_of(other)["hidden.weight"]).any()


def test_mixup_partners_stay_inside_the_fold():
    partner, lam = mixup([0, 2, 3], 4, 5, 0.4, np.random.default_rng(1))
    assert (partner // 4 == np.arange(12) // 4).all() and sorted(partner) == list(range(12))
    assert 0 < lam < 1
    two, lam_two = mixup([2], 4, 5, 0.4, np.random.default_rng(1))
    assert lam_two == lam and (two == partner[4:8] - 4).all()


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
    images = Images(square, np.arange(n) % len(categories), list(categories))
    fold_of = assign_folds(images.labels, 3, 0)
    features = extract_features(teacher, images, settings, 2)
    heads = fit_heads(features, images.labels, fold_of, settings)
    capsys.readouterr()
    notes = check_augmented(teacher, features, heads, images, fold_of, settings)
    assert [note.split("--")[-1] for note in notes] == [f"{option} 0" for option in told]
    assert capsys.readouterr().out == "".join(f"note: {note}\n" for note in notes)
    plain = dataclasses.replace(settings, flip_horizontal=0.0, flip_vertical=0.0, rotation=0.0,
                                hue=0.0)
    assert check_augmented(teacher, features, heads, images, fold_of, plain) == []


@dataclasses.dataclass
class Images:
    square: object
    labels: np.ndarray
    categories: list

    def __len__(self):
        return len(self.labels)
