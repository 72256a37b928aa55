"""The report's arithmetic against independent computations."""
import itertools
import math

import numpy as np
import pytest
from scipy.special import softmax

from utils.report import statistics
from utils.report.statistics import (
    best_epoch,
    by_epoch,
    calibration_error,
    compare,
    cross_fitted_epochs,
    near_chance,
    scaled,
    wilson,
)


def honest(n, classes=4, seed=0):
    """Probabilities, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    p = softmax(2 * rng.normal(size=(n, classes)), axis=1)
    return p, (rng.random(n)[:, None] > p.cumsum(1)).sum(1)


def test_calibration_error_by_hand():
    # two bins: confidence 0.65 and right half of the time, confidence 0.95 and always right
    p = np.array([[0.65, 0.35], [0.65, 0.35], [0.05, 0.95], [0.05, 0.95]])
    error = calibration_error(p, np.array([0, 1, 1, 1]))
    np.testing.assert_allclose(error, 0.5 * 0.15 + 0.5 * 0.05)


def test_calibration_error_against_a_loop():
    p, labels = honest(500)
    p = scaled(p, 0.5)
    total = 0
    for b in range(15):
        inside = [i for i in range(500)
                  if b / 15 <= max(p[i]) < (b + 1) / 15 or b == 14 and max(p[i]) == 1]
        if inside:
            accuracy = np.mean([p[i].argmax() == labels[i] for i in inside])
            confidence = np.mean([max(p[i]) for i in inside])
            total += len(inside) / 500 * abs(accuracy - confidence)
    np.testing.assert_allclose(calibration_error(p, labels), total)
    assert total > 0.05 and calibration_error(*honest(50_000)) < 0.01


@pytest.mark.parametrize("temperature", [0.4, 1, 2.5])
def test_the_temperature_is_found_again(temperature):
    p, labels = honest(50_000)
    distorted = scaled(p, 1 / temperature)  # logits times the temperature
    found = statistics.fit_temperature(distorted.astype(np.float32), labels)
    np.testing.assert_allclose(found, temperature, rtol=0.03)
    np.testing.assert_allclose(scaled(distorted, temperature), p, atol=1e-9)


def test_a_fold_is_calibrated_by_the_others():
    p, labels = zip(*(honest(3000, seed=s) for s in range(3)))
    temperatures, calibrated = statistics.calibrate([scaled(q, 0.5) for q in p], labels)
    np.testing.assert_allclose(temperatures, 2, rtol=0.1)
    np.testing.assert_allclose(np.concatenate(calibrated), np.concatenate(p), atol=0.05)
    again, _ = statistics.calibrate([scaled(q, 0.5) for q in p], [labels[0][::-1], *labels[1:]])
    assert again[0] == temperatures[0] and again[1] != temperatures[1]
    assert statistics.calibrate([p[0]], [labels[0]]) == ([1.0], [p[0]])
    assert statistics.fit_temperature(p[0], p[0].argmax(1)) == 1  # all correct: nothing to fit


def test_cross_fitted_epochs_by_hand():
    def chosen(*scores):
        return cross_fitted_epochs(scores, [[0.5] * len(s) for s in scores])
    # means of the others: fold 0 [.65 .5 .85], 1 [.55 .7 .75], 2 [.6 .6 .9]; the first of equals
    assert chosen([0.5, 0.6, 0.9], [0.7, 0.6, 0.9], [0.6, 0.8, 0.6]) == [3, 3, 3]
    assert chosen([0.6, 0.7, 0.7], [0.7, 0.6, 0.7]) == [1, 2]
    # of equal means the lowest loss: fold 0 has the other's, in epoch 2
    assert cross_fitted_epochs([[0.5, 0.5, 0.4], [0.7, 0.7, 0.7]],
                               [[0.3, 0.4, 0.1], [0.9, 0.5, 0.6]]) == [2, 1]
    # fold 1 stopped after two epochs: it counts, and is scored, with the second in the third
    assert chosen([0.1, 0.2, 0.3], [0.8, 0.9], [0.1, 0.3, 0.2]) == [2, 2, 3]
    np.testing.assert_array_equal(by_epoch([[1, 2, 3], [4, 5]]), [[1, 2, 3], [4, 5, 5]])


def test_a_folds_own_scores_do_not_choose_its_epoch():
    rng = np.random.default_rng(0)
    scores, losses = ([list(rng.integers(0, 4, n) / 4) for n in (20, 17, 20, 12)] for _ in range(2))
    chosen = cross_fitted_epochs(scores, losses)
    for k in range(4):
        scrambled = [[list(rng.permutation(s)) if j == k else s for j, s in enumerate(values)]
                     for values in (scores, losses)]
        assert cross_fitted_epochs(*scrambled)[k] == chosen[k]


def test_wilson_interval_against_its_formula():
    for x, n in ((0, 7), (3, 7), (90, 100), (2247, 2527)):
        z, p = 1.959963984540054, x / n
        center, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        correct = np.arange(n) < x
        np.testing.assert_allclose(
            wilson(correct), [(center - half) / (1 + z * z / n), (center + half) / (1 + z * z / n)],
            atol=1e-12)
        np.testing.assert_allclose(wilson(correct, np.arange(n)), wilson(correct))
    assert wilson(np.zeros(0, bool)) == [0, 1]


def test_a_group_of_equal_predictions_counts_as_one_of_them():
    rng = np.random.default_rng(5)
    labels, ours, theirs = rng.integers(0, 2, (3, 150))
    once, groups = compare(labels, ours, theirs), np.repeat(np.arange(150), 7)
    again = compare(*(np.repeat(v, 7) for v in (labels, ours, theirs)), groups)
    for key in ("mcnemar_p", "difference", "errors_removed"):
        np.testing.assert_allclose(again[key], once[key])
    for key in ("difference_interval", "errors_removed_interval"):
        np.testing.assert_allclose(again[key], once[key], atol=0.02)  # other draws
    for correct in (ours == labels, np.ones(150, bool)):
        np.testing.assert_allclose(wilson(np.repeat(correct, 7), groups), wilson(correct))


@pytest.mark.parametrize("count, size, accuracy", [(80, 5, 0.8), (8, 10, 0.8), (50, 10, 0.98)])
def test_intervals_cover_where_groups_are_correlated(count, size, accuracy):
    rng, covered, groups = np.random.default_rng(6), np.zeros(2), np.repeat(np.arange(count), size)
    for _ in range(400):
        chances = rng.beta(accuracy, 1 - accuracy, count)  # correlation 0.5 within a group
        correct = rng.random(count * size) < np.repeat(chances, size)
        covered += [low <= accuracy <= high
                    for low, high in (wilson(correct, groups), wilson(correct))]
    assert 0.91 < covered[0] / 400 and covered[1] / 400 < 0.85


def test_one_more_mistake_does_not_raise_an_interval():
    correct, groups = np.ones(1000, bool), np.repeat(np.arange(100), 10)
    before = wilson(correct, groups)
    for i in np.random.default_rng(7).permutation(1000):
        correct[i] = False
        now = wilson(correct, groups)
        assert now[0] <= before[0] and now[1] <= before[1]
        before = now


@pytest.mark.parametrize("gained, lost", [(0, 0), (1, 0), (9, 3), (40, 61)])
def test_mcnemar_against_a_sum_of_binomials(gained, lost):
    labels = np.zeros(200, int)
    ours, theirs = labels.copy(), labels.copy()
    theirs[:gained] = 1
    ours[gained:gained + lost] = 1
    ours[150:] = theirs[150:] = 1
    c = compare(labels, ours, theirs)
    n, few = gained + lost, min(gained, lost)
    expected = min(1, 2 * sum(math.comb(n, i) for i in range(few + 1)) / 2 ** n)
    np.testing.assert_allclose(c["mcnemar_p"], expected)
    assert (c["gained"], c["lost"]) == (gained, lost)
    assert (c["errors"], c["other_errors"]) == (lost + 50, gained + 50)
    np.testing.assert_allclose(c["errors_removed"], (gained - lost) / (gained + 50))
    low, high = c["difference_interval"]
    assert low <= c["difference"] == (gained - lost) / 200 <= high


@pytest.mark.parametrize("neither", [0, 20])
def test_with_few_differences_the_intervals_agree_with_mcnemar(neither):
    for lost, gained in itertools.product(range(4), range(12)):
        labels = np.zeros(500, int)
        ours, theirs = labels.copy(), labels.copy()
        theirs[:gained] = 1
        ours[gained:gained + lost] = 1
        ours[400:400 + neither] = theirs[400:400 + neither] = 1
        c = compare(labels, ours, theirs)
        for low, _ in (c["difference_interval"], c["errors_removed_interval"] or (0, 0)):
            assert low <= 0 or c["mcnemar_p"] < 0.06, (gained, lost, low)
        assert c["difference_interval"][1] > c["difference_interval"][0]


def test_nothing_to_remove_from_a_perfect_control():
    c = compare(np.zeros(9, int), np.array([0] * 8 + [1]), np.zeros(9, int))
    assert c["errors_removed"] is c["errors_removed_interval"] is None and c["difference"] == -1 / 9


def test_bootstrap_intervals_cover():
    rng = np.random.default_rng(1)
    # gained, lost, both wrong, both correct
    chances, n, covered = [0.1, 0.05, 0.1, 0.75], 300, np.zeros(2)
    for _ in range(300):
        outcome = rng.choice(4, n, p=chances)
        c = compare(np.zeros(n, int), np.isin(outcome, (1, 2)) * 1, np.isin(outcome, (0, 2)) * 1,
                    resamples=1000)
        for i, (key, truth) in enumerate((("difference_interval", 0.05),
                                          ("errors_removed_interval", 0.05 / 0.2))):
            covered[i] += c[key][0] <= truth <= c[key][1]
    assert (covered / 300 > 0.91).all() and (covered / 300 < 0.985).all()


def test_how_many_score_at_least():
    rng = np.random.default_rng(0)
    scores, positive = np.round(rng.random(300), 3), rng.random(300) < 0.4
    n, found = statistics.at_least(scores, positive)
    assert n.tolist() == [(scores >= t).sum() for t in statistics.THRESHOLDS]
    assert found.tolist() == [(positive & (scores >= t)).sum() for t in statistics.THRESHOLDS]


def test_coverage_falls_as_the_threshold_rises():
    p, labels = honest(5000)
    points = statistics.coverage(p, labels)
    levels, answered = ([q[key] for q in points] for key in ("min_confidence", "answered"))
    assert levels == sorted(levels)
    assert answered == sorted(answered, reverse=True) and answered[0] == 1
    assert len(points) == 20 and abs(answered[10] - 0.5) < 0.02
    for q in points:
        sure = p.max(1) >= q["min_confidence"]
        np.testing.assert_allclose([q["answered"], q["accuracy"]],
                                   [sure.mean(), (p.argmax(1) == labels)[sure].mean()])


def test_the_needed_confidence():
    p, labels = honest(5000)
    correct, confidence = p.argmax(1) == labels, p.max(1)
    for target in (0.8, 0.9, 0.95):
        level = statistics.needed_confidence(p, labels, target)
        assert level["accuracy"] >= target
        assert level["images"] == (confidence >= level["min_confidence"]).sum()
        below = confidence >= level["min_confidence"] - 0.001
        assert correct[below].mean() < target  # the lowest: one step lower it no longer holds
        for t in np.arange(level["min_confidence"], 1, 0.001):
            answered = confidence >= t
            assert (answered.sum() < 1 / (1 - target)
                    or correct[answered].mean() >= target - 1e-9)
    # The most confident prediction is wrong, 39 correct ones follow: one error in 40 is 97.5 %
    sure = np.linspace(0.99, 0.6, 40)
    p, labels = np.c_[sure, 1 - sure], np.r_[1, np.zeros(39, int)]
    assert statistics.needed_confidence(p, labels, 0.95)["answered"] == 1
    assert statistics.needed_confidence(p, labels, 0.98) is None
    assert statistics.needed_confidence(p[1:20], labels[1:20], 0.95) is None


def test_the_best_epoch_has_the_highest_score_then_the_lowest_loss_then_comes_first():
    assert best_epoch([0.5, 0.6, 0.4], [1.0, 9.0, 0.1]) == 2
    assert best_epoch([0.5, 0.6, 0.6, 0.6], [0.1, 0.9, 0.7, 0.7]) == 3
    assert best_epoch([0.3, 0.1 + 0.2], [0.9, 0.8]) == best_epoch([0.1 + 0.2, 0.3], [0.9, 0.8]) == 2


def test_near_chance():
    labels = np.repeat([0, 1], [200, 6])
    assert near_chance(labels, np.zeros_like(labels)) and near_chance(labels, 1 - labels)
    assert not near_chance(labels, np.r_[np.zeros(204, int), 1, 1])  # a third of the rare ones
    rng = np.random.default_rng(0)
    assert near_chance(np.repeat([0, 1, 2], 300), rng.integers(0, 3, 900))
