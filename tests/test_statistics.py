"""The report's arithmetic against independent computations."""
import itertools
import math

import numpy as np
import pytest
from scipy.special import softmax

from utils.statistics import (THRESHOLDS, at_least, calibrate, calibration_error, compare, coverage,
                              cross_fitted_epochs, fit_temperature, needed_confidence, scaled, wilson)


def honest(n, classes=4, seed=0):
    """Probabilities, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    p = softmax(2 * rng.normal(size=(n, classes)), axis=1)
    return p, (rng.random(n)[:, None] > p.cumsum(1)).sum(1)


def test_calibration_error_by_hand():
    # two bins: confidence 0.65 and right half of the time, confidence 0.95 and always right
    p = np.array([[0.65, 0.35], [0.65, 0.35], [0.05, 0.95], [0.05, 0.95]])
    np.testing.assert_allclose(calibration_error(p, np.array([0, 1, 1, 1])), 0.5 * 0.15 + 0.5 * 0.05)


def test_calibration_error_against_a_loop():
    p, labels = honest(500)
    p = scaled(p, 0.5)
    total = 0
    for b in range(15):
        inside = [i for i in range(500) if b / 15 <= max(p[i]) < (b + 1) / 15 or b == 14 and max(p[i]) == 1]
        if inside:
            gap = np.mean([p[i].argmax() == labels[i] for i in inside]) - np.mean([max(p[i]) for i in inside])
            total += len(inside) / 500 * abs(gap)
    np.testing.assert_allclose(calibration_error(p, labels), total)
    assert total > 0.05 and calibration_error(*honest(50_000)) < 0.01


@pytest.mark.parametrize("temperature", [0.4, 1, 2.5])
def test_the_temperature_is_found_again(temperature):
    p, labels = honest(50_000)
    too_sure = scaled(p, 1 / temperature)  # logits times the temperature
    np.testing.assert_allclose(fit_temperature(too_sure.astype(np.float32), labels), temperature, rtol=0.03)
    np.testing.assert_allclose(scaled(too_sure, temperature), p, atol=1e-9)


def test_a_fold_is_calibrated_by_the_others():
    p, labels = zip(*(honest(3000, seed=s) for s in range(3)))
    temperatures, calibrated = calibrate([scaled(q, 0.5) for q in p], labels)
    np.testing.assert_allclose(temperatures, 2, rtol=0.1)
    np.testing.assert_allclose(np.concatenate(calibrated), np.concatenate(p), atol=0.05)
    again, _ = calibrate([scaled(q, 0.5) for q in p], [labels[0][::-1], *labels[1:]])
    assert again[0] == temperatures[0] and again[1] != temperatures[1]
    assert calibrate([p[0]], [labels[0]]) == ([1.0], [p[0]])
    assert fit_temperature(p[0], p[0].argmax(1)) == 1  # all right: nothing to learn from


def test_cross_fitted_epochs_by_hand():
    # the others' means: fold 0 [.65 .5 .85], fold 1 [.55 .7 .75], fold 2 [.6 .6 .9]; first of equals
    assert cross_fitted_epochs([[0.5, 0.6, 0.9], [0.7, 0.6, 0.9], [0.6, 0.8, 0.6]]) == [3, 3, 3]
    assert cross_fitted_epochs([[0.6, 0.7, 0.7], [0.7, 0.6, 0.7]]) == [1, 2]
    # fold 1 stopped after two epochs: it counts with 0.9 in the third, and is scored at its last epoch
    assert cross_fitted_epochs([[0.1, 0.2, 0.3], [0.8, 0.9], [0.1, 0.3, 0.2]]) == [2, 2, 3]


def test_a_folds_own_scores_do_not_choose_its_epoch():
    rng = np.random.default_rng(0)
    scores = [list(rng.random(n)) for n in (20, 17, 20, 12)]
    chosen = cross_fitted_epochs(scores)
    for k in range(4):
        scrambled = [list(rng.permutation(s)) if j == k else s for j, s in enumerate(scores)]
        assert cross_fitted_epochs(scrambled)[k] == chosen[k]


def test_wilson_interval_against_its_formula():
    for x, n in ((0, 7), (3, 7), (90, 100), (2247, 2527)):
        z, p = 1.959963984540054, x / n
        centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        right = np.arange(n) < x
        np.testing.assert_allclose(wilson(right), [(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)],
                                   atol=1e-12)
        np.testing.assert_allclose(wilson(right, np.arange(n)), wilson(right))
    assert wilson(np.zeros(0, bool)) == [0, 1]


def test_a_group_of_equal_answers_proves_what_one_of_them_does():
    rng = np.random.default_rng(5)
    labels, ours, theirs = rng.integers(0, 2, (3, 150))
    once, groups = compare(labels, ours, theirs), np.repeat(np.arange(150), 7)
    again = compare(*(np.repeat(v, 7) for v in (labels, ours, theirs)), groups)
    for key in ("mcnemar_p", "difference", "errors_removed"):
        np.testing.assert_allclose(again[key], once[key])
    for key in ("difference_interval", "errors_removed_interval"):
        np.testing.assert_allclose(again[key], once[key], atol=0.02)  # other draws
    for right in (ours == labels, np.ones(150, bool)):
        np.testing.assert_allclose(wilson(np.repeat(right, 7), groups), wilson(right))


@pytest.mark.parametrize("count, size, accuracy", [(80, 5, 0.8), (8, 10, 0.8), (50, 10, 0.98)])
def test_intervals_cover_where_groups_go_together_in_part(count, size, accuracy):
    rng, covered, groups = np.random.default_rng(6), np.zeros(2), np.repeat(np.arange(count), size)
    for _ in range(400):
        right = rng.random(count * size) < np.repeat(rng.beta(accuracy, 1 - accuracy, count), size)  # correlation 0.5
        covered += [low <= accuracy <= high for low, high in (wilson(right, groups), wilson(right))]
    assert 0.91 < covered[0] / 400 and covered[1] / 400 < 0.85


def test_one_more_mistake_does_not_raise_an_interval():
    right, groups = np.ones(1000, bool), np.repeat(np.arange(100), 10)
    before = wilson(right, groups)
    for i in np.random.default_rng(7).permutation(1000):
        right[i] = False
        now = wilson(right, groups)
        assert now[0] <= before[0] + 0.002 and now[1] <= before[1] + 0.002  # how groups go together is estimated, too
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
    assert (c["gained"], c["lost"], c["errors"], c["other_errors"]) == (gained, lost, lost + 50, gained + 50)
    np.testing.assert_allclose(c["errors_removed"], (gained - lost) / (gained + 50))
    assert c["difference_interval"][0] <= c["difference"] == (gained - lost) / 200 <= c["difference_interval"][1]


@pytest.mark.parametrize("neither", [0, 20])
def test_few_differences_prove_as_little_to_the_intervals_as_to_mcnemar(neither):
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
    chances, n, covered = [0.1, 0.05, 0.1, 0.75], 300, np.zeros(2)  # gained, lost, both wrong, both right
    for _ in range(300):
        outcome = rng.choice(4, n, p=chances)
        c = compare(np.zeros(n, int), np.isin(outcome, (1, 2)) * 1, np.isin(outcome, (0, 2)) * 1, resamples=1000)
        for i, (key, truth) in enumerate((("difference_interval", 0.05), ("errors_removed_interval", 0.05 / 0.2))):
            covered[i] += c[key][0] <= truth <= c[key][1]
    assert (covered / 300 > 0.91).all() and (covered / 300 < 0.985).all()


def test_how_many_score_at_least():
    rng = np.random.default_rng(0)
    scores, positive = np.round(rng.random(300), 3), rng.random(300) < 0.4
    n, found = at_least(scores, positive)
    assert n.tolist() == [(scores >= t).sum() for t in THRESHOLDS]
    assert found.tolist() == [(positive & (scores >= t)).sum() for t in THRESHOLDS]


def test_coverage_falls_as_the_threshold_rises():
    p, labels = honest(5000)
    points = coverage(p, labels)
    levels, answered = ([q[key] for q in points] for key in ("min_confidence", "answered"))
    assert levels == sorted(levels) and answered == sorted(answered, reverse=True) and answered[0] == 1
    assert len(points) == 20 and abs(answered[10] - 0.5) < 0.02
    for q in points:
        sure = p.max(1) >= q["min_confidence"]
        np.testing.assert_allclose([q["answered"], q["accuracy"]],
                                   [sure.mean(), (p.argmax(1) == labels)[sure].mean()])


def test_the_confidence_to_ask_for():
    p, labels = honest(5000)
    right, confidence = p.argmax(1) == labels, p.max(1)
    for target in (0.8, 0.9, 0.95):
        level = needed_confidence(p, labels, target)
        assert level["accuracy"] >= target and level["pictures"] == (confidence >= level["min_confidence"]).sum()
        below = confidence >= level["min_confidence"] - 0.001
        assert right[below].mean() < target  # the lowest: one step lower it no longer holds
        for t in np.arange(level["min_confidence"], 1, 0.001):
            assert (confidence >= t).sum() < 1 / (1 - target) or right[confidence >= t].mean() >= target - 1e-9
    # The surest picture is wrong, 39 follow that are right: one mistake in 40 is 97.5 %
    sure = np.linspace(0.99, 0.6, 40)
    p, labels = np.c_[sure, 1 - sure], np.r_[1, np.zeros(39, int)]
    assert needed_confidence(p, labels, 0.95)["answered"] == 1
    assert needed_confidence(p, labels, 0.98) is None and needed_confidence(p[1:20], labels[1:20], 0.95) is None
