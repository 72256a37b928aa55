"""The teacher: an ImageNet ResNet50, frozen for good, with one linear head per fold.

The trunk is the same function in every fold, so it runs once per picture; head k is fitted on the pictures that
student k trains on, never on part k. Fitting is multinomial logistic regression on the pooled features: a 1000-class
head says nothing of the user's categories, and a random one nothing at all.
"""
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import paddle
from paddle import nn
from paddle.vision.models import resnet50
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from utils import runtime
from utils.checkpoint import load_into
from utils.data_utils import HEAD, VIEW, prefetch
from utils.parallel import team
from utils.settings import InputError
from utils.transforms import eval_view, normalise, train_view

MANY = 20_000  # pictures that are plenty for a linear head; beyond it memory counts (8 kB per picture and view)


class Head(NamedTuple):
    """One fold's linear head: logits = features @ weight + bias; arrays or Tensors."""
    weight: np.ndarray  # float32 [D, C]
    bias: np.ndarray    # float32 [1, C]
    mean: np.ndarray    # float32 [D], of the features that it was fitted on
    std: np.ndarray     # float32 [D]


class Trunk(nn.Layer):
    """ResNet50 (He et al. 2016) without its classifier: float32 [B, 3, S, S] -> [B, 2048]."""

    def __init__(self):
        super().__init__()
        self.resnet = resnet50(num_classes=0)

    def forward(self, x):
        return paddle.flatten(self.resnet(x), 1)


def load_trunk(source, arrays, settings, threads):
    """A compiled trunk with weights from checkpoint.imagenet_weights, or from the seed if it has none.

    In bfloat16 if every process can: features need not be exact, only alike in fitting the heads and in teaching.
    """
    paddle.seed(settings.seed)
    trunk = Trunk()
    if arrays:
        load_into(trunk.resnet, arrays, source)
    return runtime.compiled(trunk, [3, settings.image_size, settings.image_size], threads,
                            half=not team.any(not runtime.BFLOAT16))


def extract_features(trunk, pictures, settings, threads):
    """Features of V views of every picture: float32 [V, N, D]. View 0 is the plain one, the others are augmented.

    `trunk` is compiled. At most MANY augmented views are taken in all, so of more than MANY pictures only the plain one.
    Returns None in every process but the first. Raises InputError if they are not all finite.
    """
    augmented, size = min(settings.head_views, MANY // len(pictures)), 16 * team.size
    if augmented < settings.head_views and not team.rank:
        print(f"note: --head_views {settings.head_views} is lowered to {augmented}: so many pictures need fewer")
    jobs = [(v, np.arange(i, min(i + size, len(pictures))))
            for v in range(augmented + 1) for i in range(0, len(pictures), size)]

    def make(job):
        v, rows = job
        rows = rows[team.rows(len(rows))]
        if v == 0:
            return normalise([eval_view(pictures.square(i), settings.image_size) for i in rows])
        # Counted down from the last 32-bit number: no epoch of the training ever draws the same view.
        epoch = 2**32 - v
        return normalise([train_view(pictures.square(i), settings,
                                     np.random.default_rng([settings.seed, VIEW, epoch, i])) for i in rows])
    out = None
    for (v, rows), x in zip(jobs, runtime.progress(prefetch(make, jobs, threads), "teacher's features", len(jobs))):
        f = team.all_gather(trunk(x), len(rows)).numpy()
        if team.rank:  # the first process alone fits the heads
            continue
        if out is None:
            out = np.empty((augmented + 1, len(pictures), f.shape[1]), np.float32)
        out[v, rows] = f
        if not np.isfinite(f).all():
            raise InputError("the teacher's features are not finite numbers; are --teacher_weights those of a ResNet50?")
    return out


def fit_heads(features, labels, parts, folds, settings, threads=1):
    """Fit head k on every view of every picture outside part k, for each k in `folds`.

    Of more than MANY pictures a random MANY are fitted on. features: [V, N, D]. Returns {k: Head}; the
    standardisation of the features is folded into its weights.
    """
    num_classes = int(labels.max()) + 1

    def fit(k):
        rows = np.flatnonzero(parts != k)
        if len(rows) > MANY:
            rows = np.random.default_rng([settings.seed, HEAD, k]).permutation(rows)
            rank = np.empty(len(rows))  # within its category, 0 to 1: the first MANY keep the mix, and every category
            for c in range(num_classes):
                mine = labels[rows] == c
                rank[mine] = np.arange(mine.sum()) / max(mine.sum(), 1)
            rows = rows[np.argsort(rank, kind="stable")[:MANY]]
        x = features.take(rows, 1).reshape(-1, features.shape[2])  # one copy, scaled in place below: it is large
        mean = x.mean(0)
        std = np.concatenate([x[:, c:c + 256].std(0) for c in range(0, x.shape[1], 256)])  # of all: one more copy of x
        std[std < 1e-12] = 1
        model = LogisticRegression(C=settings.head_c, max_iter=500,
                                   class_weight="balanced" if settings.class_weights == "balanced" else None)
        x -= mean
        x /= std
        model.fit(x, np.tile(labels[rows], len(features)))
        coef, bias = model.coef_, model.intercept_
        if num_classes == 2:  # scikit-learn keeps one row for two classes
            coef, bias = np.concatenate([-coef, coef]) / 2, np.concatenate([-bias, bias]) / 2
        weight = coef.T / std[:, None]
        return Head(*(a.astype(np.float32) for a in (weight, (bias - mean @ weight)[None], mean, std)))
    with ThreadPoolExecutor(min(threads, 4)) as pool:  # each thread holds a copy of its rows
        return dict(zip(folds, runtime.progress(pool.map(fit, folds), "teacher's heads", len(folds), "fold")))


def teacher_predictions(features, heads, parts):
    """Out-of-fold probabilities of the teacher: float [N, C], row i from the head that never saw picture i.

    features: plain views, [N, D]; heads: {k: Head}. Rows of parts without a head stay 0.
    """
    out = np.zeros((len(parts), next(iter(heads.values())).bias.shape[1]))
    for k, head in heads.items():
        out[parts == k] = softmax(features[parts == k] @ head.weight + head.bias, axis=1)
    return out


def check_teacher(teacher, pictures, parts, trained, settings):
    """Print the teacher's accuracy on each fold's validation part; raise InputError if it knows nothing, and
    students are to learn from it."""
    rows = np.isin(parts, trained)
    right = teacher.argmax(1) == pictures.labels
    accuracy = [right[parts == k].mean() for k in trained]
    print("teacher's validation accuracy: " + ", ".join(f"fold {k} {a:.3f}" for k, a in zip(trained, accuracy))
          + f"; all {right[rows].mean():.4f}")
    chance = 1 / len(pictures.categories)
    balanced = balanced_accuracy_score(pictures.labels[rows], teacher[rows].argmax(1))
    if balanced < chance + 0.1 * (1 - chance):
        problem = (f"the teacher knows nothing of these categories: balanced accuracy {balanced:.3f}, guessing gives "
                   f"{chance:.3f}")
        if settings.has_teacher:
            raise InputError(f"{problem}; look whether pictures lie in the right folders, and whether --teacher_weights are "
                             "ImageNet weights, or train without a teacher: --alpha 1 --feature_weight 0")
        print(f"note: {problem}; no student listens to it")
