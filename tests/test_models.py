"""Networks: fast paths equal the plain ones, frozen is frozen, heads are logistic regression."""
import cv2
import numpy as np
import paddle
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models.depthwise import Depthwise, stack, unstack
from models.student_model import BLOCKS, Student, dropout_mask
from models.teacher_model import predict_out_of_fold
from utils.engine import BFLOAT16, compiled
from utils.errors import InputError
from utils.explain import heat_maps
from utils.images.dataset import Images
from utils.settings import Settings
from utils.teacher import extract_features, fit_heads


@pytest.fixture
def float64():
    """Networks in float64, where two ways to compute the same agree on every processor.

    In float32 they do not: a ReLU next to 0, or a BatchNorm of a few nearly equal numbers,
    amplifies the last bit.
    """
    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype("float32")


@pytest.mark.parametrize("size, stride",
                         [(2, 1), (5, 1), (7, 1), (10, 2), (7, 2), (14, 1), (14, 2)])
def test_depthwise_of_a_stack_equals_paddles_own(float64, size, stride):
    paddle.seed(0)
    layer = Depthwise(6, 6, 3, stride, 1, groups=6, bias_attr=False)
    x = paddle.randn([4, 6, size, size])
    x.stop_gradient = False
    results = []
    for stacked in (4, 0):
        layer.stacked = stacked
        out = unstack(layer(stack(x)), 4) if stacked else layer(x)
        (out * paddle.cos(out.detach())).sum().backward()
        results.append([out.numpy(), x.grad.numpy(), layer.weight.grad.numpy()])
        x.clear_grad()
        layer.weight.clear_grad()
    for ours, theirs in zip(*results):
        # sums of up to 784 products of numbers around 1
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_stacked_tail_learns_as_the_plain_one(float64):
    """Equal gradients in each of three steps, and equal weights after them."""
    results = []
    for stacked in (True, False):
        paddle.seed(3)
        student = Student(4, 12, scale=0.5)
        learning = [p for p in student.parameters() if not p.stop_gradient]
        optimizer = paddle.optimizer.Momentum(1e-3, parameters=learning)
        student.train()
        maps, gradients = student.stem(paddle.randn([6, 3, 96, 96])).detach(), []
        for _ in range(3):
            x = maps
            if not stacked:
                for block in student.features[12:]:
                    x = block(x)
            logits = student.head(student.pool(maps) if stacked else x.mean([2, 3]))
            paddle.nn.functional.cross_entropy(logits, paddle.arange(6) % 4).backward()
            gradients.append(np.concatenate([p.grad.numpy().ravel() for p in learning]))
            optimizer.step()
            optimizer.clear_grad()
        weights = np.concatenate([v.numpy().ravel() for v in student.state_dict().values()])
        results.append([*gradients, weights])
    assert (results[0][0] != results[1][0]).any()  # there are two ways
    for ours, theirs in zip(*results):
        assert ours.dtype == np.float64
        assert np.linalg.norm(ours - theirs) <= 1e-9 * np.linalg.norm(theirs)


@pytest.mark.parametrize("depth", [0, 14, BLOCKS])
def test_stem_and_tail_make_the_student(depth):
    paddle.seed(1)
    student = Student(3, depth, scale=0.25)
    student.eval()
    x = paddle.randn([2, 3, 64, 64])
    stem = compiled(student.features[:depth], [3, 64, 64]) if depth else paddle.to_tensor
    with paddle.no_grad():
        plain, fast = student(x), student.tail(stem(x.numpy()))
    np.testing.assert_allclose(plain.numpy(), fast.numpy(), atol=1e-4)  # as compiled promises
    trainable = {n for n, p in student.named_parameters() if not p.stop_gradient}
    assert not any(n.startswith(f"features.{i}.") for i in range(depth) for n in trainable)
    blocks = {n.split(".")[1] for n in trainable if n.startswith("features")}
    assert blocks == {str(i) for i in range(depth, BLOCKS)}


def test_frozen_network_equals_the_dynamic_graph_at_any_batch_size_and_in_any_threads():
    paddle.seed(2)
    net = paddle.nn.Sequential(paddle.nn.Conv2D(3, 3, 1), paddle.nn.BatchNorm2D(3),
                               paddle.vision.models.resnet18(num_classes=7))
    for norm in net.sublayers():
        if isinstance(norm, paddle.nn.BatchNorm2D):  # as of a trained network
            for value, least in ((norm.weight, 0.05), (norm.bias, 0.5), (norm._mean, 0.5),
                                 (norm._variance, 0.005)):
                value.set_value(paddle.uniform(value.shape, min=least, max=3 * least))
    net[0].bias.set_value(paddle.uniform([3], min=0.5, max=1.5))
    batches = [np.random.default_rng(n).normal(size=(n, 3, 64, 64)).astype("float32")
               for n in (5, 1, 3)]
    net.eval()
    with paddle.no_grad():
        plain = [net(paddle.to_tensor(x)).numpy() for x in batches]
    for threads in (1, 2):
        run = compiled(net, [3, 64, 64], threads)
        for x, expected in zip(batches, plain):
            # as compiled promises; sums in another order differ by 1e-6, a wrong layer by much more
            np.testing.assert_allclose(run(x).numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_half_precision_says_nearly_the_same_and_the_same_in_any_batch():
    paddle.seed(2)
    net = paddle.vision.models.resnet18(num_classes=7)
    whole, half = (compiled(net, [3, 64, 64], threads=2, half=half) for half in (False, True))
    x = np.random.default_rng(0).normal(size=(6, 3, 64, 64)).astype("float32")
    expected, got = whole(x).numpy(), half(x).numpy()
    # as `compiled` promises: bfloat16 has 8 bits
    np.testing.assert_allclose(got, expected, atol=0.02 * np.abs(expected).max())
    for rows in (slice(0, 1), slice(1, 4), slice(2, 6)):
        np.testing.assert_array_equal(half(x[rows]).numpy(), got[rows])
    assert (got != expected).any() == BFLOAT16


def test_frozen_blocks_stay_in_eval_mode():
    student = Student(3, 14, scale=0.25)
    student.train()
    modes = [{layer.training for layer in block.sublayers(include_self=True)}
             for block in student.features]
    assert modes == [{False}] * 14 + [{True}] * 5


def test_dropout_mask_keeps_the_expectation():
    mask = dropout_mask([200, 1000], 0.3, np.random.default_rng(0))
    assert abs((mask == 0).mean() - 0.3) < 0.01 and abs(mask.mean() - 1) < 0.01
    none = dropout_mask([2, 3], 0.0, np.random.default_rng(0))
    np.testing.assert_array_equal(none, np.ones((2, 3)))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_heads_are_scikit_learns_logistic_regression(classes, class_weights):
    rng = np.random.default_rng(0)
    labels = np.arange(90) % classes
    features = rng.normal(size=(1, 90, 12)) * rng.uniform(0.1, 9, 12) + labels[None, :, None] * 0.7
    features = features.astype("float32")
    features[..., 3] = 5  # a feature that never changes
    fold_of = np.arange(90) // classes % 3
    settings = Settings(class_weights=class_weights, head_c=0.3, num_folds=3, folds=(2, 0))
    heads = fit_heads(features, labels, fold_of, settings)
    ours = predict_out_of_fold(features[0], heads, fold_of)
    for k in (0, 2):
        model = make_pipeline(StandardScaler(), LogisticRegression(
            C=0.3, max_iter=500, class_weight=None if class_weights == "none" else "balanced"))
        model.fit(features[0, fold_of != k], labels[fold_of != k])
        expected = model.predict_proba(features[0, fold_of == k])
        np.testing.assert_allclose(ours[fold_of == k], expected, atol=2e-3)  # both stop at 1e-4
    assert (ours[fold_of == 1] == 0).all()


def test_of_many_images_fewer_views_are_taken_and_that_is_said(monkeypatch, capsys):
    monkeypatch.setattr("utils.teacher.MAX_FITTED", 25)
    squares = np.random.default_rng(0).integers(0, 256, (10, 36, 36, 3), np.uint8)
    images = Images("", [""] * 10, np.arange(10) % 2, ["a", "b"], [], squares.__getitem__,
                    np.zeros(10, int))
    for asked, taken, said in ((1, 1, ""), (2, 2, ""), (4, 2, "--head_views 4 is lowered to 2")):
        features = extract_features(lambda x: paddle.to_tensor(x.mean((2, 3))), images,
                                    Settings(image_size=32, head_views=asked), 1)
        assert features.shape == (1 + taken, 10, 3)
        assert said in capsys.readouterr().out if said else not capsys.readouterr().out


def test_features_that_are_not_finite_end_the_run_with_a_line():
    images = Images("", [""] * 2, np.arange(2), ["a", "b"], [],
                    lambda i: np.zeros((36, 36, 3), np.uint8), np.zeros(2, int))
    with pytest.raises(InputError, match="not finite numbers; are --teacher_weights"):
        extract_features(lambda x: paddle.to_tensor(x.mean((2, 3)) + np.inf), images,
                         Settings(image_size=32), 1)


def test_heads_of_a_large_set_are_fitted_on_a_sample_of_it(monkeypatch):
    monkeypatch.setattr("models.teacher_model.MAX_FITTED", 30)
    rng = np.random.default_rng(0)
    labels = (np.arange(80) % 20 == 0).astype(int)  # one in 20 is rare
    fold_of = np.arange(80) // 2 % 4
    features = (rng.normal(size=(1, 80, 6)) + 3 * labels[None, :, None]).astype("float32")
    heads = fit_heads(features, labels, fold_of, Settings(num_folds=4))
    assert (predict_out_of_fold(features[0], heads, fold_of).argmax(1) == labels).mean() > 0.9
    features[:, fold_of == 1] = 1e3
    again = fit_heads(features, labels, fold_of, Settings(num_folds=4, folds=(1,)))
    np.testing.assert_array_equal(again[1].weight, heads[1].weight)


def test_head_k_never_sees_fold_k():
    rng = np.random.default_rng(0)
    labels, fold_of = np.arange(60) % 3, np.arange(60) // 3 % 4
    features = rng.normal(size=(2, 60, 8)).astype("float32")
    before = fit_heads(features, labels, fold_of, Settings(num_folds=4))
    features[:, fold_of == 1] = rng.normal(size=(2, 15, 8)) * 50
    labels[fold_of == 1] = rng.permutation(labels[fold_of == 1])
    after = fit_heads(features, labels, fold_of, Settings(num_folds=4))
    same = [all(np.array_equal(a, b) for a, b in zip(before[k], after[k])) for k in range(4)]
    assert same == [False, True, False, False]


def test_heat_maps_are_grad_cam():
    paddle.seed(2)
    students = [Student(4, 3, scale=0.25) for _ in range(2)]
    x = np.random.default_rng(0).normal(size=(3, 3, 96, 64)).astype("float32")
    heat = heat_maps(students, [1.0, 2.0], x, np.array([3, 0, 2]))
    for i, category in enumerate((3, 0, 2)):
        total = 0
        for student, temperature in zip(students, (1.0, 2.0)):
            features = paddle.to_tensor(x[i:i + 1])
            for block in student.features:
                features = block(features).detach()
            features.stop_gradient = False
            logit = student.head(features.mean([2, 3]))[0, category] / temperature
            # equation 1 of the paper
            alpha = paddle.grad(logit, features)[0].mean([2, 3], keepdim=True)
            total += (alpha * features).sum(1)[0].numpy()  # equation 2
        expected = np.maximum(total, 0)
        assert expected.shape == (3, 2)
        expected = cv2.resize(expected / max(expected.max(), 1e-12), (64, 96),
                              interpolation=cv2.INTER_CUBIC)
        np.testing.assert_allclose(heat[i], np.clip(expected, 0, 1), atol=1e-4)  # drawn in 256
    assert (heat.max((1, 2)) == 1).any()
