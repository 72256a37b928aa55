"""--stored_augmentations: trained from what is on disk as from the networks, and filled once."""
import os
import shutil

import numpy as np
import paddle
import pytest

from test_resume import assert_same, build, train_in
from tiny import (
    RANDOM,
    Counted,
    any_head,
    assert_same_weights,
    opened,
    tiny_set,
    tiny_teacher,
    train_tiny,
    weights_of,
)
from utils import data_utils, train_utils
from utils import store as store_module
from utils import teacher as teacher_module
from utils.train_utils import build_student, frozen_stem

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.mark.parametrize("depth", [0, 14])
def test_one_version_without_mixup_equals_training_on_these_images(
        settings, monkeypatch, one_by_one, depth):
    """Bit for bit, once the outputs of the networks are rounded to float16."""
    settings.mixup_alpha, settings.freeze_depth = 0.0, depth
    with monkeypatch.context() as m:
        m.setattr(data_utils, "augmented", lambda images, rows, settings, epoch:
                  data_utils.stored_version(images, rows, settings, [1] * len(rows)))
        known = train_utils.compiled
        m.setattr(train_utils, "compiled", lambda *args: lambda x, network=known(*args):
                  paddle.to_tensor(network(x).numpy().astype("float16").astype("float32")))
        live = train_tiny(settings)
    settings.stored_augmentations = 1
    assert_same(train_tiny(settings), live)


def test_with_a_full_store_no_frozen_network_is_compiled(versions, monkeypatch):
    first = train_tiny(versions)
    for module in (store_module, teacher_module, train_utils):
        monkeypatch.setattr(module, "compiled", None)
    again = train_tiny(versions, teacher=teacher_module.load_teacher(RANDOM, versions, 2))
    assert_same(again, first)


def test_what_is_stored_is_what_the_networks_say_of_each_version(versions):
    store, images = opened(versions)
    rows, teacher = np.arange(len(images)), tiny_teacher()
    stem = frozen_stem([build_student(0, images.labels, tiny_set(versions)[1],
                                      any_head(), versions)], versions, 2)
    for v in range(4):
        x = data_utils.stored_version(images, rows, versions, [v] * len(rows))
        if v == 0:
            np.testing.assert_array_equal(x, data_utils.plain(images, rows, versions))
        for name, network in (("features", teacher), ("maps", stem)):
            found, expected = store.read(name, rows, np.full(len(rows), v)), network(x).numpy()
            assert found.dtype == np.float32 and found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    read = store.read("maps", np.array([5, 2]), np.array([1, 3]))
    np.testing.assert_array_equal(read[1], store.read("maps", rows, np.full(len(rows), 3))[2])


def test_every_version_of_every_image_comes_equally_often_in_an_order_of_its_own(versions):
    store, images = opened(versions)
    taken = np.stack([store.versions(epoch) for epoch in range(12)])
    for block in range(4):
        assert (np.sort(taken[3 * block:3 * block + 3], 0) == [[1], [2], [3]]).all()
    assert len({tuple(column) for column in taken.T}) > 20
    np.testing.assert_array_equal(taken[7], store.versions(7))  # whatever came before


def test_mixup_mixes_maps_and_features_alike_within_the_fold(versions):
    versions.warmup_epochs = 0
    store, images = opened(versions)
    fold_of = tiny_set(versions)[1]
    order = data_utils.epoch_order(fold_of, range(3), versions, 1)
    batches = [*data_utils.train_batches(images, fold_of, order, versions, 1, 0, 2, store)]
    assert len(batches) == len(order)
    for batch, rows in zip(batches, order):
        rng = np.random.default_rng([versions.seed, data_utils.MIXUP, 1, batch.step])
        partner, lam = data_utils.mixup([0, 1, 2], len(rows) // 3, 3, versions.mixup_alpha, rng)
        assert batch.x is None and batch.lam == lam < 1
        assert (fold_of[rows] == fold_of[rows[partner]]).all()
        np.testing.assert_array_equal(batch.labels_b, images.labels[rows[partner]])
        for name in ("features", "maps"):
            own, other = (store.read(name, r, store.versions(1)[r]) for r in (rows, rows[partner]))
            np.testing.assert_allclose(batch.stored[name], lam * own + (1 - lam) * other,
                                       atol=1e-5)


def test_pixels_of_fold_k_change_no_weight_of_student_k(versions, tmp_path):
    fold_of = tiny_set(versions)[1]
    before = [*train_tiny(versions).values()]
    versions.cache_dir = str(tmp_path / "another")
    after = [*train_tiny(versions, square=lambda square: lambda i: (
        255 - square(i) if fold_of[i] == 1 else square(i))).values()]
    for k in range(4):
        same = [np.array_equal(value, weights_of(after[k])[key])
                for key, value in weights_of(before[k]).items()]
        assert all(same) if k == 1 else not all(same)


@pytest.mark.parametrize("depth", [0, 14])
def test_side_by_side_equals_one_at_a_time(versions, one_by_one, depth):
    versions.freeze_depth = depth
    together = train_tiny(versions, build=lambda heads: build(versions, heads))
    for k in range(2):  # the final model does not train alone
        (alone,) = train_tiny(versions, [k]).values()
        assert_same_weights(alone, together[alone.name])
        np.testing.assert_array_equal(alone.probabilities, together[alone.name].probabilities)
    first, second, *others = together.values()
    assert (weights_of(first)["hidden.weight"] != weights_of(second)["hidden.weight"]).any()
    assert [(s.name, len(s.history)) for s in others] == [("control1", 2), ("final", 2)]


def test_stopped_it_ends_with_the_same_weights_even_if_the_store_is_gone(versions, tmp_path):
    versions.num_epochs = 3
    for name in ("whole", "run"):
        (tmp_path / name).mkdir()

    whole, folder = train_in(str(tmp_path / "whole"), versions), str(tmp_path / "run")
    assert train_in(folder, versions, [(1, 2)]) is None
    assert train_in(folder, versions, [(2, 1)], resuming=True) is None
    shutil.rmtree(os.path.join(versions.cache_dir, "stored"))
    assert_same(train_in(folder, versions, resuming=True), whole)


def test_without_a_teachers_loss_only_maps_and_without_frozen_blocks_only_features(versions,
                                                                                  capsys):
    counted = Counted()
    assert opened(versions.without_teacher(), counted)[0].names == ["maps"] and not counted.images
    assert "freeze_depth" not in capsys.readouterr().out
    versions.freeze_depth = 0
    assert opened(versions)[0].names == ["features"]
    assert "note: with --freeze_depth 0 no maps are stored" in capsys.readouterr().out
    assert opened(versions.without_teacher())[0].names == []
    assert capsys.readouterr().out.count("stor") == 2  # the same note, and nothing of continuing
    versions.stored_augmentations = 0
    assert opened(versions)[0] is None


def test_pixels_are_drawn_again_where_no_maps_are_stored(versions):
    versions.freeze_depth, versions.mixup_alpha = 0, 0.0
    store, images = opened(versions)
    fold_of = tiny_set(versions)[1]
    order = data_utils.epoch_order(fold_of, range(3), versions, 2)
    for batch, rows in zip(data_utils.train_batches(images, fold_of, order, versions, 2, 0, 2,
                                                    store), order):
        x = data_utils.stored_version(images, rows, versions, store.versions(2)[rows])
        np.testing.assert_array_equal(batch.x, x)
        np.testing.assert_allclose(batch.stored["features"], tiny_teacher()(x).numpy(), rtol=1e-3,
                                   atol=1e-4)
