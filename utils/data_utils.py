"""From images and folds to batches.

    order = epoch_order(fold_of, range(5), settings, epoch=0)    # the images of every step
    for batch in train_batches(images, fold_of, order, settings, epoch=0): ...

An augmentation depends on (seed, epoch, image), an order on (seed, epoch, fold), a mix on (seed,
epoch, step): never on threads, processes or what else is trained.
"""
from dataclasses import dataclass, field

import numpy as np

from utils.distributed import world
from utils.engine import on_gpu, to_device
from utils.threads import prefetch, progress
from utils.transforms import augment, center_crop, normalize

# Streams of random numbers: default_rng([seed, stream, ...]) of two streams never share draws
ORDER, AUGMENT, MIXUP, DROPOUT, HEAD, STORED = range(6)
MAX_READERS = 8  # threads for 16,000 images of 224 pixels a second; each holds a batch


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


def augmented_square(images, i, settings, epoch):
    """Image i as an epoch sees it: uint8 RGB [S, S, 3]. epoch: from 0, or of stored_epoch."""
    rng = np.random.default_rng([settings.seed, AUGMENT, epoch, i])
    return augment(images.square(i), settings, rng)


def augmented(images, rows, settings, epoch):
    """Augmented images of an epoch, normalized: float32 [len(rows), 3, S, S]."""
    return normalize([augmented_square(images, i, settings, epoch) for i in rows])


def stored_epoch(version):
    """What stands for the epoch in the seed of a stored version, from 1: no epoch of training."""
    return 2**32 - version


def stored_version(images, rows, settings, versions):
    """What --stored_augmentations and the teacher's heads see, float32 [len(rows), 3, S, S].

    versions: of each image, int [len(rows)]; 0 is the plain image, all others are augmented.
    """
    return normalize([augmented_square(images, i, settings, stored_epoch(v)) if v else
                      center_crop(images.square(i), settings.image_size)
                      for i, v in zip(rows, versions)])


def plain(images, rows, settings):
    """Images as validation and inference see them: float32 [len(rows), 3, S, S]."""
    return normalize([center_crop(images.square(i), settings.image_size) for i in rows])
