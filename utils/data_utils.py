"""From images to folds and batches.

    fold_of = assign_folds(images.labels, num_folds=5, seed=42)  # student k never trains on fold k
    order = epoch_order(fold_of, range(5), settings, epoch=0)    # the images of every step
    for batch in train_batches(images, fold_of, order, settings, epoch=0): ...

An augmentation depends on (seed, epoch, image), an order on (seed, epoch, fold), a mix on (seed,
epoch, step): never on threads, processes or what else is trained.
"""
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from utils.distributed import world
from utils.errors import InputError
from utils.threads import prefetch, progress
from utils.transforms import augment, center_crop, normalize

# Streams of random numbers: default_rng([seed, stream, ...]) of two streams never share draws
ORDER, AUGMENT, MIXUP, DROPOUT, HEAD = range(5)
MAX_READERS = 8  # threads for 16,000 images of 224 pixels a second; each holds a batch
EXACT_HINT = "if different images are treated as duplicates, use --duplicates exact"


@dataclass
class Batch:
    """The images of a step, as every network sees them.

    `x` holds this process's share of them; everything else describes all B. Image i of the batch is
    lam * a + (1 - lam) * b, where a is images[i] and b is its partner from the same fold.
    """
    x: np.ndarray         # float32 [share, 3, S, S]
    fold_of: np.ndarray   # int64 [B]
    labels: np.ndarray    # int64 [B], of a
    labels_b: np.ndarray  # int64 [B], of b
    lam: float
    epoch: int            # from 0
    step: int             # from 0
    steps: int            # in an epoch

    def __len__(self):
        return len(self.labels)


def assign_folds(labels, num_folds, seed, categories=None, groups=None):
    """Stratified folds: the fold of each image, int64 [N].

    labels: int [N]; images with the same number in `groups`, int [N], stay in one fold. Raises
    InputError if a category has fewer groups (without groups: images) than there are folds, or is
    missing from a fold because its groups are too large.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    grouped = len(np.unique(groups)) < len(groups)
    names = categories or range(labels.max() + 1)
    counts = [len(np.unique(groups[labels == c])) for c in range(len(names))]
    too_small = [f"{name} ({n})" for name, n in zip(names, counts) if n < num_folds]
    if too_small:
        what = "images, duplicates and groups counted once," if grouped else "images"
        raise InputError(f"too few {what} for {num_folds} folds in {', '.join(too_small)}: every "
                         "category needs one per fold; add images, lower --num_folds, or name the "
                         "other categories with --categories"
                         + (f"; {EXACT_HINT}" if grouped else ""))
    fold_of = np.empty(len(labels), np.int64)
    splitter = StratifiedGroupKFold if grouped else StratifiedKFold
    splits = splitter(num_folds, shuffle=True, random_state=seed).split(
        labels, labels, groups if grouped else None)
    for k, (_, validation) in enumerate(splits):
        fold_of[validation] = k
    missing = [f"{name} (fold {k})" for c, name in enumerate(names) for k in range(num_folds)
               if not (labels[fold_of == k] == c).any()]
    if missing:
        raise InputError(f"groups too large for {num_folds} folds: a fold would have no "
                         f"{', '.join(missing)}; add images, lower --num_folds, or split the "
                         f"groups of --groups; {EXACT_HINT}")
    return fold_of


def images_per_fold(settings):
    """b: a step takes b images from each of K folds; a student trains on (K - 1) * b of them."""
    return max(1, round(settings.batch_size / (settings.num_folds - 1)))


def epoch_order(fold_of, needed, settings, epoch):
    """The images of every step of an epoch: int64 [steps, len(needed) * b], columns by fold.

    A step takes b images from each fold in `needed`. A fold that runs out before the largest one
    starts again, so that all batches have the same size (BatchNorm).
    """
    b = images_per_fold(settings)
    steps = -(-int(np.bincount(fold_of).max()) // b)
    columns = []
    for k in needed:
        rng = np.random.default_rng([settings.seed, ORDER, epoch, k])
        shuffled = rng.permutation(np.flatnonzero(fold_of == k))
        columns.append(np.resize(shuffled, (steps, b)))
    return np.concatenate(columns, 1)


def needed_folds(active, num_folds):
    """The folds that at least one of these students trains on."""
    return [k for k in range(num_folds) if any(student.fold != k for student in active)]


def mixup(needed, b, num_folds, alpha, rng):
    """Draw partners and weight of mixup (Zhang et al. 2018) for a batch with b images per fold.

    Returns (partner, lam): image i becomes lam * x[i] + (1 - lam) * x[partner[i]], partner int64
    [len(needed) * b]. Partners come from the same fold, so that no student sees a pixel of its own
    fold, and are drawn for all folds, so that they do not depend on which ones are needed.
    """
    lam = float(rng.beta(alpha, alpha))
    partner = rng.permuted(np.tile(np.arange(b), (num_folds, 1)), axis=1)[needed]
    return (partner + b * np.arange(len(needed))[:, None]).ravel(), lam


def mixed(x, rows, partners, lam):
    """lam * x[rows] + (1 - lam) * x[partners], float32 [len(rows), 3, S, S]."""
    own = x[rows]
    if lam == 1:
        return own
    other = x[partners]  # in place from here, which takes half the time
    other -= own
    other *= 1 - lam
    other += own
    return other


def train_batches(images, fold_of, order, settings, epoch, first_step=0, threads=1):
    """Yield the Batch of each step of an epoch, made in threads ahead of time.

    order: of epoch_order.
    """
    b, steps = images_per_fold(settings), len(order)
    needed = fold_of[order[0, ::b]]
    mixing = settings.mixup_alpha and epoch >= settings.warmup_epochs

    def make(step):
        rows = order[step]
        partner, lam = np.arange(len(rows)), 1.0
        if mixing:
            rng = np.random.default_rng([settings.seed, MIXUP, epoch, step])
            partner, lam = mixup(needed, b, settings.num_folds, settings.mixup_alpha, rng)
        share = world.share(len(rows))
        drawn, place = np.unique(np.concatenate([share, partner[share]]), return_inverse=True)
        x = augmented(images, rows[drawn], settings, epoch)
        x = mixed(x, place[:len(share)], place[len(share):], lam)
        return Batch(x, fold_of[rows], images.labels[rows], images.labels[rows[partner]], lam,
                     epoch, step, steps)
    with progress(None, f"epoch {epoch + 1}/{settings.num_epochs}", order.size, "image") as bar:
        bar.update(first_step * order.shape[1])
        for batch in prefetch(make, range(first_step, steps), min(threads, MAX_READERS)):
            yield batch
            bar.update(len(batch))


def augmented(images, rows, settings, epoch):
    """Augmented images of an epoch, normalized: float32 [len(rows), 3, S, S]."""
    return normalize([augment(images.square(i), settings,
                              np.random.default_rng([settings.seed, AUGMENT, epoch, i]))
                      for i in rows])


def plain(images, rows, settings):
    """Images as validation and inference see them: float32 [len(rows), 3, S, S]."""
    return normalize([center_crop(images.square(i), settings.image_size) for i in rows])
