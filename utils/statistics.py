"""The numbers of the report: arrays in, numbers out, nothing of files, pictures or networks.

    calibration_error(probabilities, labels)            # does a confidence of 0.8 mean right in 80 %?
    compare(labels, answers, other_answers)             # is one network better than another on the same pictures?
    cross_fitted_epochs([[0.6, 0.7], [0.7, 0.6]])       # [1, 2]: the epochs that the other folds would have kept

Everywhere: probabilities float [N, C], labels and answers int [N], intervals [low, high] at 95 %; groups int [N]: pictures
that belong together, such as copies or one object photographed often, prove less than as many others (None: each alone).
"""
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest, norm
from sklearn.metrics import f1_score

THRESHOLDS = np.arange(1001) / 1000  # of confidence, as one would type them


def cross_fitted_epochs(accuracy_per_fold):
    """For each fold the epoch, from 1, at which the mean accuracy of the *other* folds was highest (the first such).

    A fold scored there was not chosen on the pictures that score it, so the figure has no bonus for the best of many
    epochs. A fold that stopped early counts, and is scored, with its last epoch from then on; that it stopped is
    all that its own pictures decide. accuracy_per_fold: one list per fold, one number per epoch; at least two folds.
    """
    longest = max(map(len, accuracy_per_fold))
    table = np.array([[*a, *[a[-1]] * (longest - len(a))] for a in accuracy_per_fold])
    chosen = []
    for k, own in enumerate(accuracy_per_fold):
        others = np.delete(table, k, 0).mean(0).round(12)  # equal means, summed up in another order, stay equal
        chosen.append(min(len(own), int(others.argmax()) + 1))
    return chosen


def wilson(right, groups=None):
    """95 % interval of the share of right answers, bool [N], good for few too (Wilson 1927).

    With groups, as if there were only so many pictures as vary that much when each is alone (design effect, Kish 1965). It
    is estimated with one group more that is all right and one that is all wrong: few groups, or few mistakes, do not show
    by themselves how much of a group goes together.
    """
    n, p, z = len(right), np.mean(right) if len(right) else 0, norm.ppf(0.975)
    if n == 0:
        return [0.0, 1.0]
    if groups is not None:
        group = np.unique(groups, return_inverse=True)[1]
        size, good = np.bincount(group), np.bincount(group, right)
        size, good = np.r_[size, size.mean(), size.mean()], np.r_[good, size.mean(), 0]
        share = good.sum() / size.sum()
        n = n / max(1, ((good - share * size)**2).sum() / (size.sum() * share * (1 - share)))
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return [float(max(0, (middle - half) / (1 + z**2 / n))), float(min(1, (middle + half) / (1 + z**2 / n)))]


def reliability(probabilities, labels, bins=15):
    """The answers in equal-width bins of confidence: (pictures, right ones, sum of confidence), each [bins]."""
    confidence = probabilities.max(1)
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    return [np.bincount(bin_of, weights, bins) for weights in (None, probabilities.argmax(1) == labels, confidence)]


def calibration_error(probabilities, labels, bins=15):
    """Expected calibration error (Guo et al. 2017): mean gap between confidence and accuracy over equal-width bins of
    confidence, weighted by their pictures. 0 is perfect, 1 the worst."""
    _, right, confidence = reliability(probabilities, labels, bins)
    return float(np.abs(right - confidence).sum() / len(labels))


def scaled(probabilities, temperature):
    """softmax(logits / temperature), from the probabilities softmax(logits)."""
    return softmax(np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)) / temperature, axis=1)


def fit_temperature(probabilities, labels):
    """The temperature, 0.1 to 10, by which logits are divided for the likeliest labels (Guo et al. 2017).

    1.0 where every answer is right: then nothing says how sure is too sure.
    """
    if (probabilities.argmax(1) == labels).all():
        return 1.0
    logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny, dtype=np.float64))

    def loss(log_temperature):
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(len(labels)), labels].mean()
    return float(np.exp(minimize_scalar(loss, bounds=np.log([0.1, 10]), method="bounded", options={"xatol": 1e-6}).x))


def calibrate(probabilities, labels):
    """One temperature per fold, each fitted on the *other* folds' pictures: (temperatures, calibrated probabilities).

    probabilities, labels: lists, one array per fold. A single fold has no others: 1.0, nothing changes.
    """
    folds = range(len(labels))
    if len(labels) == 1:
        return [1.0], probabilities
    temperatures = [fit_temperature(*(np.concatenate([a[j] for j in folds if j != k]) for a in (probabilities, labels)))
                    for k in folds]
    return temperatures, [scaled(p, t) for p, t in zip(probabilities, temperatures)]


def score(probabilities, labels, raw=None, groups=None):
    """The same figures for student, teacher and control; raw: the probabilities before calibration, if it was done."""
    guess = probabilities.argmax(1)
    figures = {"pictures": len(labels), "accuracy": float((guess == labels).mean()),
               "accuracy_interval": wilson(guess == labels, groups),
               "macro_f1": float(f1_score(labels, guess, labels=np.arange(probabilities.shape[1]), average="macro",
                                          zero_division=0)),
               "calibration_error": calibration_error(probabilities, labels)}
    if raw is not None:
        figures["calibration_error_raw"] = calibration_error(raw, labels)
    return figures


def compare(labels, answers, other_answers, groups=None, resamples=10_000, seed=0):
    """Two networks on the same pictures: what the first gains over the other, and whether that could be chance.

    mcnemar_p: exact and two-sided (McNemar 1947), over the pictures that one of them alone got right; a group counts
    once, for the network that got more of it right (`better`, `worse`). Intervals: percentile bootstrap over groups, and two
    more, of which one is gained and one is lost: few differences do not show by themselves how much chance is in them.
    `errors_removed` is a share of the other's errors; None if it made none. All of it takes the trained weights as given:
    another seed would move both networks.
    """
    right, other = answers == labels, other_answers == labels
    outcomes = np.stack([right & ~other, ~right & other, ~right & ~other, np.ones(len(labels), bool)], 1).astype(int)
    n, (gained, lost, neither, _) = len(labels), map(int, outcomes.sum(0))
    group = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    of_group = np.stack([np.bincount(group, o) for o in outcomes.T], 1)
    better, worse = (int((np.sign(of_group[:, 0] - of_group[:, 1]) == s).sum()) for s in (1, -1))
    # To draw groups again is to draw how many of them there are of each kind.
    size = n / len(of_group)
    kinds, counts = np.unique(np.r_[of_group, [[size, 0, 0, size], [0, size, 0, size]]], axis=0, return_counts=True)
    g, x, z, drawn = (np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), resamples) @ kinds).T

    def interval(values):
        return [float(v) for v in np.nanquantile(values, [0.025, 0.975])]
    errors = gained + neither  # of the other
    with np.errstate(invalid="ignore", divide="ignore"):
        removed = np.where(g + z > 0, (g - x) / (g + z), np.nan)
    return {"pictures": n, "accuracy": float(right.mean()), "other_accuracy": float(other.mean()),
            "errors": lost + neither, "other_errors": errors, "gained": gained, "lost": lost,
            "better": better, "worse": worse,
            "mcnemar_p": float(binomtest(better, better + worse).pvalue) if better + worse else 1.0,
            "difference": (gained - lost) / n, "difference_interval": interval((g - x) / drawn),
            "errors_removed": (gained - lost) / errors if errors else None,
            "errors_removed_interval": interval(removed) if errors else None}


def at_least(scores, positive):
    """For each of THRESHOLDS: how many pictures score at least that, and how many of these are positive; int [1001]."""
    order = np.argsort(-scores, kind="stable")
    n = np.searchsorted(-scores[order], -THRESHOLDS, "right")
    return n, np.r_[0, np.cumsum(positive[order])][n]


def _answered(confidence, right, groups, level):
    """What is answered, and how well, if so much confidence is asked for."""
    answered = confidence >= level
    return {"min_confidence": float(level), "answered": float(answered.mean()), "pictures": int(answered.sum()),
            "accuracy": float(right[answered].mean()),
            "accuracy_interval": wilson(right[answered], None if groups is None else groups[answered])}


def coverage(probabilities, labels, groups=None, points=20):
    """Accuracy against the share of pictures that are answered, at about `points` levels of confidence, rising."""
    confidence, right = probabilities.max(1).astype(float), probabilities.argmax(1) == labels
    levels = np.unique(np.searchsorted(THRESHOLDS, np.quantile(confidence, np.arange(points) / points), "right") - 1)
    return [_answered(confidence, right, groups, level) for level in THRESHOLDS[levels]]


def needed_confidence(probabilities, labels, target, groups=None):
    """The lowest confidence to ask for, so that answers from there on are right in a share `target` of the cases.

    None if there is none. At the top few pictures are left, where one mistake or none proves little: only levels
    count that answer enough pictures for `target` to allow one mistake (20 for 0.95).
    """
    confidence, correct = probabilities.max(1).astype(float), probabilities.argmax(1) == labels
    n, right = at_least(confidence, correct)
    enough = n >= 1 / (1 - target) - 1e-6
    short = np.flatnonzero(enough & (right < target * n - 1e-6))
    first = short[-1] + 1 if len(short) else 0
    return _answered(confidence, correct, groups, THRESHOLDS[first]) if first < len(n) and enough[first] else None
