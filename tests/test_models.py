"""Networks: the fast paths equal the plain ones, frozen means frozen, the teacher's heads are logistic regression."""
import cv2
import numpy as np
import paddle
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models.depthwise import Depthwise, stack, unstack
from models.student_model import Student, dropout_mask
from models.teacher_model import extract_features, fit_heads, teacher_predictions
from utils import runtime
from utils.data_utils import Pictures
from utils.explain import heat_maps
from utils.settings import BLOCKS, InputError, Settings


@pytest.fixture
def float64(monkeypatch):
    """Networks in float64, where two ways to compute the same agree to many digits on every processor. In float32 they do
    not: a unit of ReLU next to 0, or a BatchNorm of a few nearly equal numbers, makes much of the last bit."""
    monkeypatch.setattr(Depthwise, "places", {})  # a cache of float32 matrices
    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype("float32")


@pytest.mark.parametrize("size, stride", [(2, 1), (5, 1), (7, 1), (10, 2), (7, 2), (14, 1), (14, 2)])
def test_depthwise_of_a_stack_equals_paddles_own(float64, size, stride):
    paddle.seed(0)
    layer = Depthwise(6, 6, 3, stride, 1, groups=6, bias_attr=False)
    x = paddle.randn([4, 6, size, size])
    x.stop_gradient = False
    results = []
    for pictures in (4, 0):
        layer.pictures = pictures
        out = unstack(layer(stack(x)), 4) if pictures else layer(x)
        (out * paddle.cos(out.detach())).sum().backward()
        results.append([out.numpy(), x.grad.numpy(), layer.weight.grad.numpy()])
        x.clear_grad()
        layer.weight.clear_grad()
    for ours, theirs in zip(*results):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)  # sums of up to 784 products of numbers about 1


def test_stacked_tail_learns_as_the_plain_one(float64):
    """Equal gradients in each of three steps, and equal weights after them."""
    results = []
    for stacked in (True, False):
        paddle.seed(3)
        student = Student(4, 12, scale=0.5)
        learning = [p for p in student.parameters() if not p.stop_gradient]
        optimizer = paddle.optimizer.Momentum(1e-3, parameters=learning)
        student.train()
        maps, gradients = student.prefix(paddle.randn([6, 3, 96, 96])).detach(), []
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
        results.append([*gradients, np.concatenate([v.numpy().ravel() for v in student.state_dict().values()])])
    assert (results[0][0] != results[1][0]).any()  # there are two ways
    for ours, theirs in zip(*results):
        assert ours.dtype == np.float64 and np.linalg.norm(ours - theirs) <= 1e-9 * np.linalg.norm(theirs)


@pytest.mark.parametrize("depth", [0, 14, BLOCKS])
def test_prefix_and_tail_make_the_student(depth):
    paddle.seed(1)
    student = Student(3, depth, scale=0.25)
    student.eval()
    x = paddle.randn([2, 3, 64, 64])
    prefix = runtime.compiled(student.features[:depth], [3, 64, 64]) if depth else paddle.to_tensor
    with paddle.no_grad():
        plain, fast = student(x), student.tail(prefix(x.numpy()))
    np.testing.assert_allclose(plain.numpy(), fast.numpy(), atol=1e-4)  # as runtime.compiled promises
    trainable = {n for n, p in student.named_parameters() if not p.stop_gradient}
    assert not any(n.startswith(f"features.{i}.") for i in range(depth) for n in trainable)
    assert {n.split(".")[1] for n in trainable if n.startswith("features")} == {str(i) for i in range(depth, BLOCKS)}


def test_frozen_network_equals_the_dynamic_graph_at_any_batch_size_and_in_any_threads():
    paddle.seed(2)
    net = paddle.vision.models.resnet18(num_classes=7)
    for threads in (1, 2):
        run = runtime.compiled(net, [3, 64, 64], threads)
        for batch in (5, 1, 3):
            x = np.random.default_rng(batch).normal(size=(batch, 3, 64, 64)).astype("float32")
            with paddle.no_grad():
                expected = net(paddle.to_tensor(x)).numpy()
            # as compiled promises; sums in another order differ by 1e-6, a wrong layer by much more
            np.testing.assert_allclose(run(x).numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_half_precision_says_nearly_the_same_and_the_same_in_any_batch():
    paddle.seed(2)
    net = paddle.vision.models.resnet18(num_classes=7)
    whole, half = (runtime.compiled(net, [3, 64, 64], threads=2, half=half) for half in (False, True))
    x = np.random.default_rng(0).normal(size=(6, 3, 64, 64)).astype("float32")
    expected, got = whole(x).numpy(), half(x).numpy()
    np.testing.assert_allclose(got, expected, atol=0.02 * np.abs(expected).max())  # as compiled promises: bfloat16 has 8 bits
    for rows in (slice(0, 1), slice(1, 4), slice(2, 6)):
        np.testing.assert_array_equal(half(x[rows]).numpy(), got[rows])
    assert (got != expected).any() == runtime.BFLOAT16


def test_frozen_blocks_stay_in_eval_mode():
    student = Student(3, 14, scale=0.25)
    student.train()
    modes = [{layer.training for layer in block.sublayers(include_self=True)} for block in student.features]
    assert modes == [{False}] * 14 + [{True}] * 5


def test_dropout_mask_keeps_the_expectation():
    mask = dropout_mask([200, 1000], 0.3, np.random.default_rng(0))
    assert abs((mask == 0).mean() - 0.3) < 0.01 and abs(mask.mean() - 1) < 0.01
    np.testing.assert_array_equal(dropout_mask([2, 3], 0.0, np.random.default_rng(0)), np.ones((2, 3)))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_heads_are_scikit_learns_logistic_regression(classes, class_weights):
    rng = np.random.default_rng(0)
    labels = np.arange(90) % classes
    features = (rng.normal(size=(1, 90, 12)) * rng.uniform(0.1, 9, 12) + labels[None, :, None] * 0.7).astype("float32")
    features[..., 3] = 5  # a feature that never changes
    parts = np.arange(90) // classes % 3
    settings = Settings(class_weights=class_weights, head_c=0.3)
    heads = fit_heads(features, labels, parts, [2, 0], settings)
    ours = teacher_predictions(features[0], heads, parts)
    for k in (0, 2):
        model = make_pipeline(StandardScaler(), LogisticRegression(
            C=0.3, max_iter=500, class_weight=None if class_weights == "none" else "balanced"))
        model.fit(features[0, parts != k], labels[parts != k])
        np.testing.assert_allclose(ours[parts == k], model.predict_proba(features[0, parts == k]),
                                   atol=2e-3)  # both stop where the gradient is below 1e-4, and need not stop at the same place
    assert (ours[parts == 1] == 0).all()


def test_of_many_pictures_fewer_views_are_taken_and_that_is_said(monkeypatch, capsys):
    monkeypatch.setattr("models.teacher_model.MANY", 25)
    squares = np.random.default_rng(0).integers(0, 256, (10, 36, 36, 3), np.uint8)
    pictures = Pictures("", [""] * 10, np.arange(10) % 2, ["a", "b"], [], squares.__getitem__)
    for asked, taken, said in ((1, 1, ""), (2, 2, ""), (4, 2, "--head_views 4 is lowered to 2")):
        features = extract_features(lambda x: paddle.to_tensor(x.mean((2, 3))), pictures,
                                    Settings(image_size=32, head_views=asked), 1)
        assert features.shape == (1 + taken, 10, 3)
        assert said in capsys.readouterr().out if said else not capsys.readouterr().out


def test_features_that_are_not_finite_end_the_run_with_a_line():
    pictures = Pictures("", [""] * 2, np.arange(2), ["a", "b"], [], lambda i: np.zeros((36, 36, 3), np.uint8))
    with pytest.raises(InputError, match="not finite numbers; are --teacher_weights"):
        extract_features(lambda x: paddle.to_tensor(x.mean((2, 3)) + np.inf), pictures, Settings(image_size=32), 1)


def test_heads_of_a_large_set_are_fitted_on_a_sample_of_it(monkeypatch):
    monkeypatch.setattr("models.teacher_model.MANY", 30)
    rng = np.random.default_rng(0)
    labels, parts = (np.arange(80) % 20 == 0).astype(int), np.arange(80) // 2 % 4  # one of 20 is rare
    features = (rng.normal(size=(1, 80, 6)) + 3 * labels[None, :, None]).astype("float32")
    heads = fit_heads(features, labels, parts, [0, 1, 2, 3], Settings())
    assert (teacher_predictions(features[0], heads, parts).argmax(1) == labels).mean() > 0.9
    features[:, parts == 1] = 1e3
    again = fit_heads(features, labels, parts, [1], Settings())
    np.testing.assert_array_equal(again[1].weight, heads[1].weight)


def test_head_k_never_sees_part_k():
    rng = np.random.default_rng(0)
    labels, parts = np.arange(60) % 3, np.arange(60) // 3 % 4
    features = rng.normal(size=(2, 60, 8)).astype("float32")
    before = fit_heads(features, labels, parts, [0, 1, 2, 3], Settings())
    features[:, parts == 1] = rng.normal(size=(2, 15, 8)) * 50
    labels[parts == 1] = rng.permutation(labels[parts == 1])
    after = fit_heads(features, labels, parts, [0, 1, 2, 3], Settings())
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
            alpha = paddle.grad(logit, features)[0].mean([2, 3], keepdim=True)  # equation 1 of the paper
            total += (alpha * features).sum(1)[0].numpy()  # equation 2
        expected = np.maximum(total, 0)
        assert expected.shape == (3, 2)
        expected = cv2.resize(expected / max(expected.max(), 1e-12), (64, 96), interpolation=cv2.INTER_CUBIC)
        np.testing.assert_allclose(heat[i], np.clip(expected, 0, 1), atol=1e-4)  # of 1; it is drawn in 256 steps
    assert (heat.max((1, 2)) == 1).any()
