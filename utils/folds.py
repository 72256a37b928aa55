"""Stratified folds in which images of one group stay together.

    fold_of = assign_folds(images.labels, num_folds=5, seed=42)  # student k never trains on fold k
"""
import numpy as np
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import csr_array, eye, hstack, kron
from sklearn.model_selection import StratifiedKFold

from utils.errors import InputError
from utils.files import quoted

FEW_GROUPS = 4  # per fold: of a category with more, every fold gets some nearly always
EXACT_HINT = "if different images are treated as duplicates, use --duplicates exact"


def assign_folds(labels, num_folds, seed, categories=None, groups=None):
    """Stratified folds: the fold of each image, int64 [N].

    labels: int [N]; images with the same number in `groups`, int [N], stay in one fold. Raises
    InputError if a category has fewer groups (without groups: images) than there are folds, or if
    every split leaves a fold without a category, because groups are too large.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    grouped = len(np.unique(groups)) < len(groups)
    names = categories or [str(c) for c in range(labels.max() + 1)]
    counts = [len(np.unique(groups[labels == c])) for c in range(len(names))]
    small = {name: n for name, n in zip(names, counts) if n < num_folds}
    if small:
        what = "images, duplicates and groups counted once," if grouped else "images"
        found = ", ".join(f"{name} ({n})" for name, n in small.items())
        excluded = " ".join(map(quoted, small))
        raise InputError(f"too few {what} for {num_folds} folds in {found}: every category needs "
                         "one per fold; add images, or lower --num_folds"
                         + (f", or leave out what is too small: --exclude {excluded}"
                            if len(counts) - len(small) > 1 else "")
                         + (f"; {EXACT_HINT}" if grouped else ""))
    if grouped:
        fold_of = split_groups(labels, num_folds, seed, groups)
        if fold_of is None:
            raise InputError(
                f"groups too large for {num_folds} folds: a fold would have no image of some "
                f"category (fewest groups: {names[np.argmin(counts)]}, {min(counts)}); add images, "
                f"lower --num_folds, or split the groups of --groups; {EXACT_HINT}")
        return fold_of
    fold_of = np.empty(len(labels), np.int64)
    splits = StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(labels, labels)
    for k, (_, validation) in enumerate(splits):
        fold_of[validation] = k
    return fold_of


def split_groups(labels, num_folds, seed, groups):
    """Balanced folds, int64 [N], that have every category, or None if none were found.

    scikit-learn's StratifiedGroupKFold misses splits that exist, and some versions of it balance
    badly. Here the groups are placed one by one, the largest first, each where it increases the sum
    of squares of the folds' shares least; then each is moved if that decreases it. If a fold lacks
    a category after that, all is done again, but first an integer program places the groups of the
    categories that have few; if that is not enough, it places all groups.
    """
    _, group_of = np.unique(groups, return_inverse=True)
    contents = np.zeros((group_of.max() + 1, labels.max() + 1), int)  # images by group, category
    np.add.at(contents, (group_of, labels), 1)
    weights = contents / contents.sum(0)**2
    for limit in (0, FEW_GROUPS * num_folds, np.inf):
        rng, counts = np.random.default_rng(seed), np.zeros((num_folds, contents.shape[1]))
        few = np.count_nonzero(contents, 0) < limit
        fixed, fold_of_group = contents[:, few].any(1), np.full(len(contents), -1)
        if fixed.any():
            found = split_exactly(contents[fixed], few, num_folds, rng)
            if found is None:
                continue
            fold_of_group[fixed] = found
            np.add.at(counts, found, contents[fixed])
        rest = rng.permutation(np.flatnonzero(~fixed))
        rest = rest[np.argsort(-contents[rest].sum(1), kind="stable")]
        for g in np.tile(rest, 3):
            if fold_of_group[g] >= 0:
                counts[fold_of_group[g]] -= contents[g]
            fold_of_group[g] = np.argmin(counts @ weights[g])
            counts[fold_of_group[g]] += contents[g]
        if (counts > 0).all():
            return rng.permutation(num_folds)[fold_of_group][group_of]
    return None


def split_exactly(contents, needed, num_folds, rng):
    """The fold of each group, int [G], with the categories in `needed`, bool [C], in all folds.

    contents: int [G, C], images by group and category. An integer program: how many of the groups
    with the same contents go to each fold, so that the fewest images are in a fold more or less
    than their category's share. None if there is no such split, or none was found.
    """
    kinds, kind_of, sizes = np.unique(contents, axis=0, return_inverse=True, return_counts=True)
    in_fold = kron(kinds.T, eye(num_folds))  # [categories * folds, kinds * folds]
    surplus = eye(in_fold.shape[0])
    totals = contents.sum(0)
    share = np.repeat(totals / num_folds, num_folds)
    constraints = [
        LinearConstraint(hstack([kron(eye(len(kinds)), np.ones(num_folds)),
                                 csr_array((len(kinds), len(share)))]), sizes, sizes),
        LinearConstraint(hstack([in_fold, 0 * surplus]), np.repeat(needed, num_folds), np.inf),
        LinearConstraint(hstack([in_fold, surplus]), share, np.inf),
        LinearConstraint(hstack([in_fold, -surplus]), -np.inf, share)]
    cost = np.r_[np.zeros(in_fold.shape[1]), np.repeat(1 / np.maximum(totals, 1), num_folds)]
    found = milp(cost, constraints=constraints, integrality=cost == 0,
                 options=dict(node_limit=1000, time_limit=30, mip_rel_gap=0.05)).x
    if found is None:
        return None
    fold_of_group = np.empty(len(contents), int)
    for kind, numbers in enumerate(np.round(found[:in_fold.shape[1]]).astype(int)
                                   .reshape(-1, num_folds)):
        same = rng.permutation(np.flatnonzero(kind_of.ravel() == kind))
        fold_of_group[same] = np.arange(num_folds).repeat(numbers)
    return fold_of_group
