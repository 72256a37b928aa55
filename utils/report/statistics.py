"""The report's arithmetic: no files, no networks.

    calibration_error(probabilities, labels)       # are 80 % correct at a confidence of 0.8?
    compare(labels, predicted, other_predicted)    # is one network better than the other?
    best_epoch([0.6, 0.7, 0.7], [0.9, 0.8, 0.5])   # 3: of equal scores the lower loss
    cross_fitted_epochs(scores, losses)            # the epochs that the other folds chose

Throughout: probabilities float [N, C]; labels and predicted int [N]; intervals [low, high] at 95 %;
groups int [N]: images that belong together, such as duplicates or photos of one object, and are
therefore no independent evidence (None: every image on its own).
"""
import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, f1_score

THRESHOLDS = np.arange(1001) / 1000  # of confidence
TINY = np.finfo(np.float32).tiny
BINS = 15  # of confidence, of equal width


def best_epoch(scores, losses):
    """The epoch, from 1, with the highest score; of equal ones the lowest loss, then the first.

    The rule for weights files, early stopping and cross-fitting alike. scores, losses: one number
    per epoch. Rounded, so that equal means stay equal whatever the order of summation.
    """
    return int(np.lexsort((np.round(losses, 12), -np.round(scores, 12)))[0]) + 1


def by_epoch(values_per_fold):
    """[folds, epochs]: a fold that stopped early counts with its last epoch from then on."""
    longest = max(map(len, values_per_fold))
    return np.array([[*v, *[v[-1]] * (longest - len(v))] for v in values_per_fold])


def cross_fitted_epochs(score_per_fold, loss_per_fold):
    """For each fold the epoch, from 1, that is best by the means of the *other* folds.

    A score at this epoch is not biased by having chosen the best of many epochs on the same images.
    score_per_fold, loss_per_fold: for each of at least two folds, one number per epoch.
    """
    scores, losses = by_epoch(score_per_fold), by_epoch(loss_per_fold)
    return [min(len(own), best_epoch(np.delete(scores, k, 0).mean(0),
                                     np.delete(losses, k, 0).mean(0)))
            for k, own in enumerate(score_per_fold)]


def near_chance(labels, predicted):
    """Whether the balanced accuracy is hardly better than guessing: 0.1 of the way to 1."""
    return balanced_accuracy_score(labels, predicted, adjusted=True) < 0.1


def wilson(correct, groups=None):
    """95 % Wilson interval of the share of correct predictions, bool [N] (Wilson 1927).

    With groups, N becomes Kish's effective number (sum m)^2 / sum m^2 of groups of m images, as if
    all images of a group were correct or wrong together: never too narrow, but too wide if they
    differ. (A bootstrap of groups covers only 74 to 87 % with few groups or few errors.)
    """
    total, n = len(correct), len(correct)
    if not total:
        return [0.0, 1.0]
    if groups is not None:
        sizes = np.unique(groups, return_counts=True)[1]
        n = total**2 // int((sizes**2).sum())
    successes = int(np.sum(correct)) * n / total  # whole, or rounded outwards

    def interval(successes):
        return binomtest(successes, n).proportion_ci(method="wilson")
    return [float(interval(math.floor(successes)).low), float(interval(math.ceil(successes)).high)]


def reliability(probabilities, labels):
    """In equal-width bins of confidence: (images, correct ones, sum of confidence), each [BINS]."""
    confidence = probabilities.max(1)
    bin_of = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [np.bincount(bin_of, weights, BINS)
            for weights in (None, probabilities.argmax(1) == labels, confidence)]


def calibration_error(probabilities, labels):
    """Expected calibration error (Guo et al. 2017), 0 (perfect) to 1: the gap between confidence
    and accuracy, averaged over equal-width bins of confidence weighted by their images."""
    _, correct, confidence = reliability(probabilities, labels)
    return float(np.abs(correct - confidence).sum() / len(labels))


def scaled(probabilities, temperature):
    """softmax(logits / temperature), computed from the probabilities softmax(logits)."""
    return softmax(np.log(np.maximum(probabilities, TINY)) / temperature, axis=1)


def fit_temperature(probabilities, labels):
    """The temperature, 0.1 to 10, that makes softmax(logits / temperature) fit the labels best.

    By likelihood (Guo et al. 2017); 1.0 if all predictions are correct, where it has no optimum.
    """
    if (probabilities.argmax(1) == labels).all():
        return 1.0
    logits = np.log(np.maximum(probabilities, TINY, dtype=np.float64))
    rows = np.arange(len(labels))

    def loss(log_temperature):
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean()
    best = minimize_scalar(loss, bounds=np.log([0.1, 10]), method="bounded",
                           options={"xatol": 1e-6})
    return float(np.exp(best.x))


def calibrate(probabilities, labels):
    """Scale each fold by a temperature fitted on the *other* folds; returns (temperatures, scaled).

    probabilities, labels: lists, one array per fold. A single fold stays as it is, temperature 1.
    """
    if len(labels) == 1:
        return [1.0], probabilities

    def without(arrays, k):
        return np.concatenate([a for j, a in enumerate(arrays) if j != k])
    temperatures = [fit_temperature(without(probabilities, k), without(labels, k))
                    for k in range(len(labels))]
    return temperatures, [scaled(p, t) for p, t in zip(probabilities, temperatures)]


def score(probabilities, labels, uncalibrated=None, groups=None):
    """Accuracies, macro F1 and calibration error as a dict; `uncalibrated`: the probabilities
    before calibration, whose calibration error becomes "calibration_error_raw"."""
    predicted, classes = probabilities.argmax(1), np.arange(probabilities.shape[1])
    figures = {"images": len(labels), "accuracy": float((predicted == labels).mean()),
               "accuracy_interval": wilson(predicted == labels, groups),
               "balanced_accuracy": float(balanced_accuracy_score(labels, predicted)),
               "macro_f1": float(f1_score(labels, predicted, labels=classes, average="macro",
                                          zero_division=0)),
               "calibration_error": calibration_error(probabilities, labels)}
    if uncalibrated is not None:
        figures["calibration_error_raw"] = calibration_error(uncalibrated, labels)
    return figures


def compare(labels, predicted, other_predicted, groups=None, resamples=10_000):
    """What a network gains over another on the same images, and whether that could be chance.

    mcnemar_p: exact and two-sided (McNemar 1947), over the images that only one of the two predicts
    correctly; a group counts once, for the network that is correct on more of it (`better`,
    `worse`). Intervals: percentile bootstrap over groups, with two pseudo-groups, one gained and
    one lost, without which few differences look certain (compare Agresti and Min 2005).
    `errors_removed` is a share of the other's errors, None if it made none. The trained weights are
    taken as given: the variation between seeds is not included.
    """
    correct, other = predicted == labels, other_predicted == labels
    # [N, 4]: gained, lost, both wrong, any
    outcomes = np.stack([correct & ~other, ~correct & other, ~correct & ~other,
                         np.ones(len(labels), bool)], 1).astype(int)
    n, (gained, lost, both_wrong, _) = len(labels), map(int, outcomes.sum(0))
    group = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    per_group = np.stack([np.bincount(group, o) for o in outcomes.T], 1)
    better, worse = (int((np.sign(per_group[:, 0] - per_group[:, 1]) == s).sum()) for s in (1, -1))

    # To draw groups with replacement is to draw how many there are of each distinct row
    size = n / len(per_group)
    pseudo_groups = [[size, 0, 0, size], [0, size, 0, size]]
    kinds, counts = np.unique(np.r_[per_group, pseudo_groups], axis=0, return_counts=True)
    draws = np.random.default_rng(0).multinomial(counts.sum(), counts / counts.sum(), resamples)
    g, x, z, drawn = (draws @ kinds).T

    def interval(values):
        return [float(v) for v in np.nanquantile(values, [0.025, 0.975])]
    other_errors = gained + both_wrong
    with np.errstate(invalid="ignore", divide="ignore"):
        removed = np.where(g + z > 0, (g - x) / (g + z), np.nan)
    return {"images": n, "accuracy": float(correct.mean()), "other_accuracy": float(other.mean()),
            "errors": lost + both_wrong, "other_errors": other_errors,
            "gained": gained, "lost": lost, "better": better, "worse": worse,
            "mcnemar_p": float(binomtest(better, better + worse).pvalue) if better + worse else 1.0,
            "difference": (gained - lost) / n, "difference_interval": interval((g - x) / drawn),
            "errors_removed": (gained - lost) / other_errors if other_errors else None,
            "errors_removed_interval": interval(removed) if other_errors else None}


def at_least(scores, positive):
    """For each of THRESHOLDS: how many scores, float [N], reach it, and how many of these are
    positive, bool [N]; both int [1001]."""
    order = np.argsort(-scores, kind="stable")
    n = np.searchsorted(-scores[order], -THRESHOLDS, "right")
    return n, np.r_[0, np.cumsum(positive[order])][n]


def _answered(confidence, correct, groups, threshold):
    """What is answered, and how well, if only predictions of at least this confidence are."""
    answered = confidence >= threshold
    return {"min_confidence": float(threshold), "answered": float(answered.mean()),
            "images": int(answered.sum()), "accuracy": float(correct[answered].mean()),
            "accuracy_interval": wilson(correct[answered],
                                        None if groups is None else groups[answered])}


def coverage(probabilities, labels, groups=None):
    """Accuracy and share of answered images at about 20 rising thresholds of confidence."""
    confidence, correct = probabilities.max(1).astype(float), probabilities.argmax(1) == labels
    quantiles = np.quantile(confidence, np.arange(20) / 20)
    chosen = np.unique(np.searchsorted(THRESHOLDS, quantiles, "right") - 1)
    return [_answered(confidence, correct, groups, t) for t in THRESHOLDS[chosen]]


def needed_confidence(probabilities, labels, target, groups=None):
    """The lowest threshold from which on, up to the highest, the accuracy is at least `target`.

    None if there is none. Only thresholds count at which `target` allows at least one error among
    the answered images (20 images for 0.95): a perfect score on fewer proves little.
    """
    confidence, correct = probabilities.max(1).astype(float), probabilities.argmax(1) == labels
    answered, right = at_least(confidence, correct)
    enough = answered >= 1 / (1 - target) - 1e-6
    below = np.flatnonzero(enough & (right < target * answered - 1e-6))
    first = below[-1] + 1 if len(below) else 0
    if first == len(THRESHOLDS) or not enough[first]:
        return None
    return _answered(confidence, correct, groups, THRESHOLDS[first])
