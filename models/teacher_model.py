"""The teacher: an ImageNet ResNet50, frozen, with one linear head per fold.

The backbone is the same function in every fold, so it runs once per image. Head k is a multinomial
logistic regression on its pooled features, fitted on the images that student k trains on, never
on fold k: ImageNet's own head knows nothing of the user's categories.
"""
from typing import NamedTuple

import numpy as np
import paddle
from paddle import nn
from paddle.vision.models import resnet50
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

MAX_FITTED = 20_000  # images are plenty for a linear head; 8 kB each in memory


class Backbone(nn.Layer):
    """ResNet50 (He et al. 2016) without its classifier: float32 [B, 3, S, S] -> [B, 2048]."""

    def __init__(self):
        super().__init__()
        self.resnet = resnet50(num_classes=0)

    def forward(self, x):
        return paddle.flatten(self.resnet(x), 1)


class Head(NamedTuple):
    """A fold's linear head: logits = features @ weight + bias. Arrays or Tensors, float32."""
    weight: np.ndarray  # [D, C]
    bias: np.ndarray    # [1, C]
    mean: np.ndarray    # [D], of the features that it was fitted on
    std: np.ndarray     # [D]


def fit_head(features, labels, rows, inverse_reg, balanced, rng):
    """Fit a head on the images `rows`, int [n], with all their augmentations.

    features: float32 [V, N, D], V augmentations of N images; labels: int [N], 0 to C - 1;
    inverse_reg: scikit-learn's C; balanced: whether all categories weigh the same; rng: draws the
    images that are used when there are more than MAX_FITTED. The standardization of the features is
    folded into the weights.
    """
    num_classes = int(labels.max()) + 1
    rows = rows[stratified_subset(labels[rows], MAX_FITTED, rng)]
    # a copy, scaled in place: it is large
    x = features.take(rows, 1).reshape(-1, features.shape[2])
    mean = x.mean(0)
    # in parts, which saves memory
    std = np.concatenate([x[:, i:i + 256].std(0) for i in range(0, x.shape[1], 256)])
    std[std < 1e-12] = 1
    x -= mean
    x /= std
    model = LogisticRegression(C=inverse_reg, max_iter=500,
                               class_weight="balanced" if balanced else None)
    model.fit(x, np.tile(labels[rows], len(features)))
    coef, bias = model.coef_, model.intercept_
    if num_classes == 2:  # scikit-learn keeps a single row for two classes
        coef, bias = np.concatenate([-coef, coef]) / 2, np.concatenate([-bias, bias]) / 2
    weight = coef.T / std[:, None]
    return Head(*(a.astype(np.float32) for a in (weight, (bias - mean @ weight)[None], mean, std)))


def stratified_subset(labels, size, rng):
    """At most `size` positions, int [n], with the mix of categories of all and none left out."""
    if len(labels) <= size:
        return np.arange(len(labels))
    shuffled = rng.permutation(len(labels))
    rank = np.empty(len(labels))  # within the category, from 0 to 1
    for c in np.unique(labels):
        own = labels[shuffled] == c
        rank[own] = np.arange(own.sum()) / own.sum()
    return shuffled[np.argsort(rank, kind="stable")[:size]]


def predict_out_of_fold(features, heads, fold_of):
    """The teacher's probabilities, float [N, C]: row i from the head that never saw image i.

    features: of the plain images, [N, D]; heads: {k: Head}; fold_of: int [N]. Rows of folds without
    a head stay 0.
    """
    probs = np.zeros((len(fold_of), next(iter(heads.values())).bias.shape[1]))
    for k, head in heads.items():
        own = fold_of == k
        probs[own] = softmax(features[own] @ head.weight + head.bias, axis=1)
    return probs
