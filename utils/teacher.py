"""The teacher's features of all images, its heads, and a check that they beat chance."""
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
from sklearn.metrics import balanced_accuracy_score

from models.teacher_model import MAX_FITTED, Backbone, fit_head
from utils.data_utils import HEAD, augmented, plain
from utils.distributed import print0, world
from utils.engine import BFLOAT16, compiled
from utils.errors import InputError
from utils.threads import prefetch, progress
from utils.weights import load_into


def load_teacher(weights, settings, threads):
    """The compiled backbone: x -> features [B, 2048], in this process.

    weights: of utils.weights.imagenet_weights; without arrays, random from the seed. In bfloat16 if
    every process can: features only have to be the same for the heads and for the students.
    """
    source, arrays = weights
    paddle.seed(settings.seed)
    backbone = Backbone()
    if arrays:
        load_into(backbone.resnet, arrays, source)
    half = not world.any(not BFLOAT16)
    return compiled(backbone, [3, settings.image_size, settings.image_size], threads, half)


def extract_features(teacher, images, settings, threads):
    """The teacher's features of every image, float32 [V, N, D].

    The first of V is the plain image, the others are augmented; of many images fewer augmentations
    are taken, MAX_FITTED in all. Raises InputError if a feature is not finite.
    """
    augmentations = min(settings.head_views, MAX_FITTED // len(images))
    if augmentations < settings.head_views:
        print0(f"note: --head_views {settings.head_views} is lowered to {augmentations}: so many "
               "images need fewer")
    size = 16 * world.size
    jobs = [(v, np.arange(i, min(i + size, len(images))))
            for v in range(augmentations + 1) for i in range(0, len(images), size)]

    def make(job):
        v, rows = job
        rows = rows[world.share(len(rows))]
        if v == 0:
            return plain(images, rows, settings)
        # epochs counted down from the last 32-bit number: training never draws the same
        return augmented(images, rows, settings, 2**32 - v)
    features = None
    world.barrier()
    batches = progress(prefetch(make, jobs, threads), "teacher's features", len(jobs))
    for (v, rows), x in zip(jobs, batches):
        batch = world.all_gather(teacher(x), len(rows)).numpy()
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

    features: float32 [V, N, D]; labels, fold_of: int [N]. Processes share out the folds.
    """
    folds = settings.trained_folds
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
    chance = 1 / len(images.categories)
    balanced = balanced_accuracy_score(images.labels[rows], probs[rows].argmax(1))
    if balanced < chance + 0.1 * (1 - chance):
        problem = (f"the teacher is close to chance on these categories: balanced accuracy "
                   f"{balanced:.3f}, chance is {chance:.3f}")
        if settings.has_teacher:
            raise InputError(f"{problem}; check that the images are in the right folders and that "
                             "--teacher_weights are ImageNet weights, or train without a teacher: "
                             "--alpha 1 --feature_weight 0")
        print0(f"note: {problem}; no student learns from it")
