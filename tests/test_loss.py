"""The losses against the formula in NumPy and SciPy, float64."""
import numpy as np
import paddle
import pytest
from scipy.special import log_softmax, rel_entr, softmax

from utils.loss import distillation_loss, feature_loss


def by_hand(z, t, a, b, lam, w, temperature, alpha):
    def weighted_cross_entropy(y):
        each = -log_softmax(z, axis=1)[np.arange(len(y)), y]
        return np.average(each, weights=w[y])
    hard = lam * weighted_cross_entropy(a) + (1 - lam) * weighted_cross_entropy(b)
    kl = rel_entr(softmax(t / temperature, axis=1), softmax(z / temperature, axis=1)).sum(1).mean()
    return alpha * hard + (1 - alpha) * temperature**2 * kl


@pytest.mark.parametrize("lam", [1.0, 0.3])
@pytest.mark.parametrize("weights", [[1, 1, 1], [0.2, 1.0, 3.0]])
@pytest.mark.parametrize("temperature, alpha", [(1, 0.5), (4, 0.5), (4, 1.0), (2, 0.0)])
def test_formula(lam, weights, temperature, alpha):
    rng = np.random.default_rng(0)
    z, t = rng.normal(0, 3, (2, 7, 3))
    a, b = rng.integers(0, 3, (2, 7))
    expected = by_hand(z, t, a, b, lam, np.array(weights, float), temperature, alpha)
    tensors = [paddle.to_tensor(x) for x in (z.astype("float32"), t.astype("float32"), a, b)]
    loss = distillation_loss(*tensors, lam, paddle.to_tensor(np.array(weights, "float32")), temperature, alpha)
    assert loss.shape == []
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-5)  # a hundred of the last bits of float32


def test_no_soft_loss_when_student_agrees_with_teacher():
    z = paddle.randn([5, 4])
    y = paddle.zeros([5], "int64")
    assert abs(distillation_loss(z, z + 3, y, y, 1.0, paddle.ones([4]), 4.0, 0.0).item()) < 1e-5


def test_gradient_of_soft_labels_does_not_shrink_with_temperature():
    """Why the T^2 is there (Hinton et al. 2015): d/dz tends to (z - t) / C for a high temperature."""
    t = paddle.to_tensor([[1.0, -2.0, 1.0]])
    z = paddle.zeros([1, 3])
    z.stop_gradient = False
    y = paddle.zeros([1], "int64")
    distillation_loss(z, t, y, y, 1.0, paddle.ones([3]), 500.0, 0.0).backward()
    np.testing.assert_allclose(z.grad.numpy(), -t.numpy() / 3, rtol=2e-2)  # at 500 a thousandth off


def test_feature_loss_is_the_squared_error_of_standardised_features():
    rng = np.random.default_rng(0)
    features = rng.normal(3, [1, 5, 0.1], (4000, 3))
    mean, std = features.mean(0), features.std(0)
    guess = rng.normal(size=features.shape)
    features[0, 2] += 100  # a thousand deviations off counts as five
    expected = ((guess - np.clip((features - mean) / std, -5, 5))**2).sum() / features.size
    tensors = [paddle.to_tensor(x.astype("float32")) for x in (guess, features, mean, std)]
    np.testing.assert_allclose(feature_loss(*tensors).item(), expected, rtol=1e-4)  # a sum of 12,000 in float32
    np.testing.assert_allclose(feature_loss(tensors[0] * 0, *tensors[1:]).item(), 1, rtol=1e-2)  # guessing the mean
