"""The proof of the side-by-side idea: it changes no weight, and no student learns from its fold."""
import dataclasses

import numpy as np
import paddle
import pytest

from models.student_model import freeze
from tiny import assert_same_weights, tiny_set, train_tiny, weights_of
from utils import loss, train_utils
from utils.data_utils import AUGMENT, epoch_order, mixup
from utils.loss import label_loss
from utils.train_utils import build_student, learning_rate
from utils.transforms import augment, normalize

pytestmark = pytest.mark.usefixtures("compiled_once")


def can_only_get_worse(student):
    """With a patience of 1 it stops after an epoch."""
    student.history = [dict(val_accuracy=2.0, val_balanced_accuracy=2.0, val_loss=0.0)]
    student.best_epoch = 1


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
    monkeypatch.setattr(loss, "label_loss", watched_loss)
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
