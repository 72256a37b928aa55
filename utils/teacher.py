"""The teacher's features of all images, its heads, and what they tell before training begins:
whether they beat chance, and whether an augmentation destroys the label."""
import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score

from models.teacher_model import MAX_FITTED, Backbone, fit_head, predict_out_of_fold
from utils.data_utils import HEAD, augmented, stored_epoch, stored_version
from utils.distributed import print0, world
from utils.engine import compiled, has_half, when_used
from utils.errors import InputError
from utils.report.statistics import near_chance
from utils.tables import listed
from utils.threads import prefetch, progress
from utils.weights import load_into

# Tried alone by check_augmented
AUGMENTATIONS = (("flip_horizontal",), ("flip_vertical",), ("rotation",),
                 ("brightness", "contrast", "saturation", "hue"))
MAX_CHECKED = 256  # images, for each augmentation


def load_teacher(weights, settings, threads):
    """The compiled backbone: x -> features [B, 2048], in this process.

    weights: of utils.weights.imagenet_weights; without arrays, random from the seed. In half
    precision if every process can, unless --no_half: features only have to be the same for the
    heads and for the students.
    """
    source, arrays = weights
    half = half_precision(settings)  # asks all processes

    def load():
        paddle.seed(settings.seed)
        backbone = Backbone()
        if arrays:
            load_into(backbone.resnet, arrays, source)
        return compiled(backbone, [3, settings.image_size, settings.image_size], threads, half)
    # A full store may need no network; else now, so that Ctrl-C need not wait for it in a step
    return when_used(load) if settings.stored_augmentations else load()


def half_precision(settings):
    """Whether the teacher computes in half precision, in all processes alike."""
    return not settings.no_half and not world.any(not has_half())


def fitted_augmentations(settings, num_images):
    """How many augmentations of each image the heads are fitted on."""
    return min(settings.head_views, MAX_FITTED // num_images)


def extract_features(teacher, images, settings, threads, store=None):
    """The teacher's features of every image, float32 [V, N, D].

    The first of V is the plain image, the others are augmented; of many images fewer augmentations
    are taken, MAX_FITTED in all. What is in the `store` is not computed again. Raises InputError if
    a feature is not finite.
    """
    augmentations = fitted_augmentations(settings, len(images))
    if augmentations < settings.head_views:
        print0(f"note: --head_views {settings.head_views} is lowered to {augmentations}: with "
               "so many images fewer are enough")
    has_features = store and "features" in store.names
    stored = settings.stored_augmentations + 1 if has_features else 0  # versions
    size = 16 * world.size
    jobs = [(v, np.arange(i, min(i + size, len(images))))
            for v in range(augmentations + 1) for i in range(0, len(images), size)]

    def make(job):
        v, rows = job
        if v < stored:
            return store.read("features", rows, np.full(len(rows), v))
        rows = rows[world.share(len(rows))]
        return stored_version(images, rows, settings, [v] * len(rows))
    features = None
    world.barrier()
    batches = progress(prefetch(make, jobs, threads), "teacher's features", len(jobs))
    for (v, rows), x in zip(jobs, batches):
        batch = x if v < stored else world.all_gather(teacher(x), len(rows)).numpy()
        if features is None:
            shape = augmentations + 1, len(images), batch.shape[1]
            features = np.empty(shape, np.float32)
        features[v, rows] = batch
        if not np.isfinite(batch).all():
            raise InputError("the teacher's features are not finite numbers; are --teacher_weights "
                             "those of a ResNet50?")
    return features


def fit_heads(features, labels, fold_of, settings, threads=1):
    """Fit head k on every augmentation of every image outside fold k: {k: Head}.

    Head num_folds, of the final model, is fitted on all. features: float32 [V, N, D]; labels,
    fold_of: int [N]. Processes share out the heads.
    """
    folds = settings.held_out
    own = folds[world.rank::world.size]

    def fit(k):
        rng = np.random.default_rng([settings.seed, HEAD, k])
        return fit_head(features, labels, np.flatnonzero(fold_of != k), settings.head_c,
                        settings.class_weights == "balanced", rng)
    with ThreadPoolExecutor(min(threads, 4)) as pool:  # each thread copies its features
        heads = progress(pool.map(fit, own), "teacher's heads", len(own), "fold")
        heads = world.gather(dict(zip(own, heads)))
    return {k: heads[k] for k in folds}


def check_teacher(probs, images, fold_of, settings):
    """Print the teacher's accuracy in each fold, out of fold.

    probs: float [N, C], of predict_out_of_fold. Raises InputError if the teacher is hardly better
    than chance and students are to learn from it.
    """
    folds = settings.trained_folds
    rows = np.isin(fold_of, folds)
    correct = probs.argmax(1) == images.labels
    print0("teacher's validation accuracy: "
           + ", ".join(f"fold {k} {correct[fold_of == k].mean():.3f}" for k in folds)
           + f"; all {correct[rows].mean():.4f}")
    labels, predicted = images.labels[rows], probs[rows].argmax(1)
    if near_chance(labels, predicted):
        problem = ("the teacher is close to chance on these categories: balanced accuracy "
                   f"{balanced_accuracy_score(labels, predicted):.3f}, chance is "
                   f"{1 / len(images.categories):.3f}")
        if settings.has_teacher:
            raise InputError(f"{problem}; check that the images are in the right folders, that the "
                             "augmentations (flips, rotation, color) keep the label, and that "
                             "--teacher_weights are ImageNet weights, or train without a teacher: "
                             "--alpha 1 --feature_weight 0")
        print0(f"note: {problem}; no student learns from it")


def check_augmented(teacher, features, heads, images, fold_of, settings):
    """Notes, printed and returned, on augmentations that may destroy the label of a category.

    If the heads predict augmented images that they were not fitted on worse than plain ones (from
    `features` of extract_features, which costs nothing), each augmentation alone is applied to a
    few images, a flip to all of them; so it is with --head_views 0, which predicts none. It is
    noted if a category clearly loses more than a third.
    """
    if world.rank:
        return []
    correct = [predict_out_of_fold(f, heads, fold_of).argmax(1) == images.labels for f in features]
    rows, names, notes = np.isin(fold_of, settings.trained_folds), images.categories, []
    known = rows & correct[0]
    if len(features) > 1 and known.sum() < 1.1 * np.mean([c[rows].sum() for c in correct[1:]]):
        return []
    each = max(1, MAX_CHECKED // len(names))
    known = np.concatenate([np.flatnonzero(known & (images.labels == c))[:each]
                            for c in range(len(names))])
    if not len(known):
        return []
    labels = images.labels[known]
    off = dict.fromkeys(settings.augmentation, 0)
    for options in AUGMENTATIONS:
        alone = {o: 1.0 if o.startswith("flip") else getattr(settings, o) for o in options
                 if getattr(settings, o)}
        if not alone:
            continue
        only = dataclasses.replace(settings, **{**off, **alone})
        changed = np.concatenate([teacher(augmented(images, batch, only, stored_epoch(1))).numpy()
                                  for batch in np.split(known, range(16, len(known), 16))])
        lost = predict_out_of_fold(changed, heads, fold_of[known]).argmax(1) != labels
        found = [c for c in np.unique(labels) if binomtest(
            int(lost[labels == c].sum()), int((labels == c).sum()), 1 / 3, "greater").pvalue
            < 0.01 / len(names)]
        if found:
            share = lost[np.isin(labels, found)].mean()
            notes.append(f"{', '.join(alone)} may destroy the label of "
                         f"{listed([names[c] for c in found], 5)}: with it the teacher no longer "
                         f"recognizes {share:.0%} of their images that it recognizes plain; "
                         "if it changes what they show, train with "
                         + " ".join(f"--{o} 0" for o in alone))
            print(f"note: {notes[-1]}")
    return notes
