"""The losses against their formulas in NumPy and SciPy, float64."""
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle.nn import functional as F
from scipy.special import log_softmax, rel_entr, softmax

from models.teacher_model import Head
from utils.loss import feature_loss, label_loss, soft_label_loss, student_loss
from utils.settings import Settings


def by_hand(z, t, a, b, lam, w, temperature, alpha):
    def weighted_cross_entropy(y):
        each = -log_softmax(z, axis=1)[np.arange(len(y)), y]
        return np.average(each, weights=w[y])
    hard = lam * weighted_cross_entropy(a) + (1 - lam) * weighted_cross_entropy(b)
    kl = rel_entr(softmax(t / temperature, axis=1), softmax(z / temperature, axis=1)).sum(1).mean()
    return alpha * hard + (1 - alpha) * temperature**2 * kl


def tensor(x):
    return paddle.to_tensor(np.asarray(x, "float32"))


@pytest.mark.parametrize("lam", [1.0, 0.3])
@pytest.mark.parametrize("weights", [[1, 1, 1], [0.2, 1.0, 3.0]])
@pytest.mark.parametrize("temperature, alpha", [(1, 0.5), (4, 0.5), (4, 1.0), (2, 0.0)])
@pytest.mark.parametrize("feature_weight", [0.0, 8.0])
def test_formula(lam, weights, temperature, alpha, feature_weight):
    """alpha * CE + (1 - alpha) * T^2 * KL + feature_weight * MSE, with mixup and class weights."""
    rng = np.random.default_rng(0)
    z, features = rng.normal(0, 3, (7, 3)), rng.normal(size=(7, 5))
    head = rng.normal(0, 3, (5, 3)), rng.normal(size=(1, 3)), rng.normal(size=5), np.full(5, 2.0)
    t = features @ head[0] + head[1]
    a, b = rng.integers(0, 3, (2, 7))
    pooled, regressed = rng.normal(size=(7, 4)), rng.normal(size=(7, 5))
    settings = Settings(temperature=temperature, alpha=alpha, feature_weight=feature_weight)
    student = SimpleNamespace(settings=settings, head=Head(*map(tensor, head)),
                              class_weights=tensor(weights), regressor=lambda _: tensor(regressed))
    loss = student_loss(student, tensor(pooled), tensor(z), paddle.to_tensor(a),
                        paddle.to_tensor(b), lam, tensor(features))
    assert loss.shape == []
    expected = by_hand(z, t, a, b, lam, np.array(weights, float), temperature, alpha)
    standardized = np.clip((features - head[2]) / head[3], -5, 5)
    expected += feature_weight * ((regressed - standardized)**2).mean()
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-5)  # float32


def test_weighted_cross_entropy_and_its_gradient_are_paddles():
    rng = np.random.default_rng(0)
    labels = paddle.to_tensor(rng.integers(0, 3, 16))
    weights = paddle.to_tensor([0.2, 1.0, 3.0], "float64")
    results = []
    for loss in (lambda z: label_loss(z, labels, None, 1, weights),
                 lambda z: F.cross_entropy(z, labels, weight=weights)):
        z = paddle.to_tensor(np.random.default_rng(1).normal(0, 3, (16, 3)), stop_gradient=False)
        value = loss(z)
        value.backward()
        results.append(np.append(z.grad.numpy(), value.item()))
    assert results[0].dtype == np.float64
    np.testing.assert_allclose(*results, rtol=1e-13)


def test_no_soft_loss_when_student_agrees_with_teacher():
    z = paddle.randn([5, 4])
    assert abs(soft_label_loss(z, z + 3, 4.0).item()) < 1e-5


def test_gradient_of_soft_labels_does_not_shrink_with_temperature():
    """Why they are weighted with T^2 (Hinton et al. 2015): for a high temperature, T^2 * d/dz tends
    to (z - t) / C."""
    t = paddle.to_tensor([[1.0, -2.0, 1.0]])
    z = paddle.zeros([1, 3])
    z.stop_gradient = False
    (500.0**2 * soft_label_loss(z, t, 500.0)).backward()
    np.testing.assert_allclose(z.grad.numpy(), -t.numpy() / 3, rtol=2e-2)  # a limit


def test_feature_loss_is_the_squared_error_of_standardized_features():
    rng = np.random.default_rng(0)
    features = rng.normal(3, [1, 5, 0.1], (4000, 3))
    mean, std = features.mean(0), features.std(0)
    predicted = rng.normal(size=features.shape)
    features[0, 2] += 100  # a thousand deviations off counts as five
    expected = ((predicted - np.clip((features - mean) / std, -5, 5))**2).sum() / features.size
    tensors = [paddle.to_tensor(x.astype("float32")) for x in (predicted, features, mean, std)]
    np.testing.assert_allclose(feature_loss(*tensors).item(), expected, rtol=1e-4)  # 12,000 terms
    of_the_mean = feature_loss(tensors[0] * 0, *tensors[1:])
    np.testing.assert_allclose(of_the_mean.item(), 1, rtol=1e-2)
