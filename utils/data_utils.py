"""From images to folds and batches.

    fold_of = assign_folds(images.labels, num_folds=5, seed=42)  # student k never trains on fold k
    order = epoch_order(fold_of, range(5), settings, epoch=0)    # the images of every step
    for batch in train_batches(images, fold_of, order, settings, epoch=0): ...

An augmentation depends on (seed, epoch, image), an order on (seed, epoch, fold), a mix on (seed,
epoch, step): never on threads, processes or what else is trained.
"""
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import csr_array, eye, hstack, kron
from sklearn.model_selection import StratifiedKFold

from utils.distributed import world
from utils.engine import on_gpu, to_device
from utils.errors import InputError
from utils.files import quoted
from utils.threads import prefetch, progress
from utils.transforms import augment, center_crop, normalize

# Streams of random numbers: default_rng([seed, stream, ...]) of two streams never share draws
ORDER, AUGMENT, MIXUP, DROPOUT, HEAD, VERSION = range(6)
MAX_READERS = 8  # threads for 16,000 images of 224 pixels a second; each holds a batch
FEW_GROUPS = 4  # per fold: of a category with more, every fold gets some nearly always
EXACT_HINT = "if different images are treated as duplicates, use --duplicates exact"


@dataclass
class Batch:
    """The images of a step, as every network sees them.

    `x` holds this process's share of them; everything else describes all B. Image i of the batch is
    lam * a + (1 - lam) * b, where a is images[i] and b is its partner from the same fold.
    """
    x: np.ndarray         # float32 [share, 3, S, S]; on a GPU a Tensor; None if maps are stored
    fold_of: np.ndarray   # int64 [B]
    labels: np.ndarray    # int64 [B], of a
    labels_b: np.ndarray  # int64 [B], of b
    lam: float
    epoch: int            # from 0
    step: int             # from 0
    steps: int            # in an epoch
    stored: dict = field(default_factory=dict)  # {"features", "maps": float32 [B, ...]}, if stored

    def __len__(self):
        return len(self.labels)

    def outputs(self, name, network):
        """Features or maps, float32 [B, ...]: stored ones, or what the network computes of x."""
        if name in self.stored:
            return to_device(self.stored[name])
        return world.all_gather(network(self.x), len(self))


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
        raise InputError(f"too few {what} for {num_folds} folds in {found}: every category needs "
                         "one per fold; add images, lower --num_folds, or leave out what is too "
                         f"small: --exclude {' '.join(map(quoted, small))}"
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
            return rng.permutation(num_folds)[fold_of_group][group_of.ravel()]
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
    """lam * x[rows] + (1 - lam) * x[partners], float32 [len(rows), ...]."""
    own = x[rows]
    if lam == 1:
        return own
    other = x[partners]  # in place from here, which takes half the time
    other -= own
    other *= 1 - lam
    other += own
    return other


def train_batches(images, fold_of, order, settings, epoch, first_step=0, threads=1, store=None):
    """Yield the Batch of each step of an epoch, made in threads ahead of time.

    order: of epoch_order; store: of utils.store.open_store.
    """
    b, steps = images_per_fold(settings), len(order)
    needed = fold_of[order[0, ::b]]
    mixing = settings.mixup_alpha and epoch >= settings.warmup_epochs
    versions = store.versions(epoch) if store else None

    def pixels(drawn):
        if store:
            return stored_version(images, drawn, settings, versions[drawn])
        return augmented(images, drawn, settings, epoch)

    def make(step):
        rows = order[step]
        partner, lam = np.arange(len(rows)), 1.0
        if mixing:
            rng = np.random.default_rng([settings.seed, MIXUP, epoch, step])
            partner, lam = mixup(needed, b, settings.num_folds, settings.mixup_alpha, rng)

        def mix(read, places):
            """read(images) at these places of the batch, mixed with their partners'."""
            both = np.concatenate([places, partner[places]])
            drawn, place = np.unique(both, return_inverse=True)
            x = read(rows[drawn])
            return mixed(x, place[:len(places)], place[len(places):], lam)
        # every process reads all that is stored: cheaper than to send it
        stored = {name: mix(lambda drawn: store.read(name, drawn, versions[drawn]),
                            np.arange(len(rows))) for name in (store.names if store else ())}
        x = None if "maps" in stored else mix(pixels, world.share(len(rows)))
        return Batch(x, fold_of[rows], images.labels[rows], images.labels[rows[partner]], lam,
                     epoch, step, steps, stored)
    with progress(None, f"epoch {epoch + 1}/{settings.num_epochs}", order.size, "image") as bar:
        bar.update(first_step * order.shape[1])
        for batch in prefetch(make, range(first_step, steps), min(threads, MAX_READERS)):
            if on_gpu() and batch.x is not None:
                batch.x = to_device(batch.x)  # once, for teacher and stem
            yield batch
            bar.update(len(batch))


def augmented(images, rows, settings, epoch):
    """Augmented images of an epoch, normalized: float32 [len(rows), 3, S, S]."""
    return normalize([augment(images.square(i), settings,
                              np.random.default_rng([settings.seed, AUGMENT, epoch, i]))
                      for i in rows])


def stored_epoch(version):
    """What stands for the epoch in the seed of a stored version, from 1: no epoch of training."""
    return 2**32 - version


def stored_version(images, rows, settings, versions):
    """What --stored_augmentations and the teacher's heads see, float32 [len(rows), 3, S, S].

    versions: of each image, int [len(rows)]; 0 is the plain image, all others are augmented.
    """
    def crop(i, version):
        if version == 0:
            return center_crop(images.square(i), settings.image_size)
        rng = np.random.default_rng([settings.seed, AUGMENT, stored_epoch(version), i])
        return augment(images.square(i), settings, rng)
    return normalize([crop(i, version) for i, version in zip(rows, versions)])


def plain(images, rows, settings):
    """Images as validation and inference see them: float32 [len(rows), 3, S, S]."""
    return normalize([center_crop(images.square(i), settings.image_size) for i in rows])
