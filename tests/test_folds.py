"""Folds: stratified, no group in two of them, and found wherever they exist."""
import itertools

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from utils.errors import InputError
from utils.folds import assign_folds, split_groups


def test_folds_cover_everything_once_and_are_stratified():
    labels = np.repeat([0, 1, 2], [50, 23, 7])
    fold_of = assign_folds(labels, 5, seed=1)
    for c in range(3):
        counts = np.bincount(fold_of[labels == c], minlength=5)
        assert counts.sum() == (labels == c).sum() and np.ptp(counts) <= 1
    np.testing.assert_array_equal(fold_of, assign_folds(labels, 5, seed=1))
    assert (fold_of != assign_folds(labels, 5, seed=2)).any()
    with pytest.raises(InputError, match=r"c \(7\)"):
        assign_folds(labels, 8, 1, ["a", "b", "c"])


def test_folds_with_groups_are_balanced_and_split_no_group():
    labels = np.repeat([0, 1, 2], [200, 90, 31])
    groups = np.arange(len(labels))
    for start in range(0, 60, 6):
        groups[start:start + 6] = start  # ten sixes in a category
    groups[200:230] = np.repeat(np.arange(200, 230, 2), 2)
    groups[[230, 300]] = 230  # two labels
    for seed in range(5):
        fold_of = assign_folds(labels, 5, seed, groups=groups)
        assert all(len(set(fold_of[groups == g])) == 1 for g in set(groups))
        for c in range(3):
            counts = np.bincount(fold_of[labels == c], minlength=5)
            assert counts.min() > 0 and np.ptp(counts) <= 2, counts
        assert np.ptp(np.bincount(fold_of)) <= 3
    np.testing.assert_array_equal(fold_of, assign_folds(labels, 5, seed, groups=groups))
    np.testing.assert_array_equal(assign_folds(labels, 5, 1),
                                  assign_folds(labels, 5, 1, groups=np.arange(321)))


def test_too_few_groups_and_folds_without_a_category_are_refused():
    labels = np.repeat([0, 1], [40, 12])
    groups = np.r_[np.arange(40), np.repeat([100, 101, 102, 103], 3)]
    with pytest.raises(InputError, match=r"groups counted once, for 5 folds in glass \(4\)"):
        assign_folds(labels, 5, 0, ["cans", "glass"], groups)
    labels, groups = np.repeat([0, 1], [6, 40]), np.arange(46)
    groups[:2], groups[10:45] = 0, 0  # two of the six cans belong to the 35 glasses
    for seed in range(5):
        fold_of = assign_folds(labels, 5, seed, ["cans", "glass"], groups)
        assert all(len(set(labels[fold_of == k])) == 2 for k in range(5))


def splits(labels, groups, num_folds):
    """Whether folds with all categories exist: all ways to place the groups are tried."""
    has = [set(labels[groups == g]) for g in np.unique(groups)]
    return any(all(set().union(*(h for h, f in zip(has, folds) if f == k)) == set(labels)
                   for k in range(num_folds))
               for folds in itertools.product(range(num_folds), repeat=len(has)))


def test_a_split_that_exists_is_found_and_no_other_is_refused():
    labels, groups = np.array([0, 1, 0, 1, 2, 2]), np.array([0, 0, 1, 1, 2, 3])
    for seed in range(20):  # scikit-learn fails in nine
        fold_of = assign_folds(labels, 2, seed, groups=groups)
        assert all(set(labels[fold_of == k]) == {0, 1, 2} for k in range(2))
    found = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        num_folds, count = rng.integers(2, 4), rng.integers(5, 8)
        labels = np.r_[0, 1, 2, rng.integers(0, 3, 9)]
        groups = rng.integers(0, count, 12)
        try:
            fold_of = assign_folds(labels, num_folds, seed, ["a", "b", "c"], groups)
        except InputError as e:
            assert "too few images" in str(e) or "a fold would have no" in str(e)
            assert not splits(labels, groups, num_folds)
            found.add(str(e)[:11])
        else:
            assert all(set(labels[fold_of == k]) == {0, 1, 2} for k in range(num_folds))
            assert all(len(set(fold_of[groups == g])) == 1 for g in groups)
            np.testing.assert_array_equal(
                fold_of, assign_folds(labels, num_folds, seed, ["a", "b", "c"], groups))
            found.add("found")
    assert found == {"found", "too few ima"}
    labels, groups = np.array([0, 1, 0, 1, 2, 2]), np.array([0, 0, 1, 2, 1, 2])
    assert not splits(labels, groups, 2)
    with pytest.raises(InputError, match="groups too large for 2 folds: a fold would have no "):
        assign_folds(labels, 2, 0, ["a", "b", "c"], groups)  # three groups, two of each category


def test_a_giant_group_of_one_category_does_not_cost_its_fold_the_other():
    labels = np.r_[np.ones(60, int), np.tile([0, 1, 1], 20)]
    groups = np.r_[np.zeros(60, int), 1 + np.arange(60) // 3]
    for seed in range(3):
        fold_of = assign_folds(labels, 5, seed, groups=groups)
        assert (np.bincount(fold_of[labels == 0]) == 4).all()


@pytest.mark.parametrize("groups", [5000, 40_000])
def test_the_search_for_folds_ends_with_many_groups(groups):
    rng = np.random.default_rng(0)  # beside them ten groups of which each needs its place
    labels = np.r_[rng.integers(0, 10, 40_000), np.repeat([10, 11] * 5, 4)]
    groups = np.r_[np.arange(40_000) % groups, 50_000 + np.arange(40) // 8]
    fold_of = split_groups(labels, 5, 0, groups)
    assert all(len(set(fold_of[groups == g])) == 1 for g in np.unique(groups)[-50:])
    assert all(np.ptp(np.bincount(fold_of[labels == c])) <= 20 for c in range(10))
    assert all(np.ptp(np.bincount(fold_of[labels == c])) == 0 for c in (10, 11))


def test_of_several_splits_the_most_balanced_is_taken_and_the_seed_chooses_among_equals():
    labels = np.r_[np.repeat([0, 1, 0, 1], [10, 10, 20, 20]), 0, 1, 0, 1]
    groups = np.r_[np.repeat([0, 1, 2, 3], [10, 10, 20, 20]), 4, 4, 5, 5]
    for seed in range(3):
        fold_of = split_groups(labels, 2, seed, groups)
        assert [np.ptp(np.bincount(fold_of[labels == c])) for c in (0, 1)] == [8, 8]
    order = [split_groups(labels, 2, seed, groups).tolist() for seed in range(9)]
    assert order[0] == split_groups(labels, 2, 0, groups).tolist() and len(set(map(str, order))) > 1


def imbalance(fold_of, labels):
    """Sum of squares of what each fold has of each category beyond its share."""
    counts = np.stack([np.bincount(labels[fold_of == k], minlength=labels.max() + 1)
                       for k in range(fold_of.max() + 1)])
    return ((counts / counts.sum(0) - 1 / len(counts))**2).sum()


@pytest.mark.parametrize("kind", ["people", "objects", "duplicates"])
def test_folds_are_at_least_as_balanced_as_those_of_scikit_learn(kind):
    ours, theirs = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        if kind == "people":  # each with images of all categories
            labels, groups = rng.integers(0, 4, 600), rng.integers(0, 40, 600)
        elif kind == "objects":  # five images of each
            labels, groups = rng.integers(0, 4, 80).repeat(5), np.arange(80).repeat(5)
        else:  # a few pairs
            labels = np.arange(4).repeat([300, 200, 80, 30])
            groups = np.where(rng.random(610) < 0.1, np.arange(610) - 1, np.arange(610))
        fold_of = assign_folds(labels, 5, seed, groups=groups)
        ours.append(imbalance(fold_of, labels))
        splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        for k, (_, validation) in enumerate(splitter.split(labels, labels, groups)):
            fold_of[validation] = k
        theirs.append(imbalance(fold_of, labels))
    assert np.mean(ours) <= np.mean(theirs) * 1.01
