"""Train one student per fold from a frozen teacher; report how good they are on unseen images.

    python main.py --sample                           # a small drawn data set: no download, minutes
    python main.py                                    # data/data101031/<category>/*.jpg
    python main.py --data_dir DIR --categories a b    # any folder with one sub-folder per category
    python main.py --resume                           # continue after Ctrl-C, a crash, a power cut

The method, in the order of this file. The images are split into K folds; duplicates stay in one.
A frozen ImageNet ResNet50 is the teacher; each fold has a linear head on its features, fitted on
the other folds. K MobileNetV2 students train side by side on the same stream of batches, student k
on everything but fold k. What the frozen networks make of eight augmentations of each image is
computed once and kept on disk (--stored_augmentations). The students learn from the true labels and
from two signals of the teacher: its soft labels, how probable it finds each category (--alpha,
--temperature), and its features, the 2,048 numbers from which it tells them apart
(--feature_weight). In the report each image is scored once, by the student that did not train on
it. One more student, the final model, learns beside them from all images: it is the one to use.
notebooks/method.ipynb shows the same step by step.
"""
from utils.command import run_command
from utils.settings import parse

if __name__ == "__main__":
    # before Paddle loads, which takes seconds: --help and mistyped options answer at once
    run_command(lambda: parse(None, __doc__))

from models.teacher_model import predict_out_of_fold
from utils.data_utils import epoch_order, needed_folds, train_batches
from utils.distributed import world
from utils.folds import assign_folds
from utils.images.dataset import load_images
from utils.images.duplicates import find_groups
from utils.run.log import print_images
from utils.run.run import Run
from utils.store import open_store
from utils.teacher import check_augmented, check_teacher, extract_features, fit_heads, load_teacher
from utils.train_utils import (
    build_student,
    evaluate,
    finish_epoch,
    frozen_stem,
    still_training,
    student_threads,
    train_step,
)


def main(argv=None):
    with Run(*parse(argv, __doc__)) as run:  # keeps the folder, the log and the checkpoints
        settings, threads = run.settings, run.threads

        images = load_images(settings, threads)
        print_images(images)
        groups = find_groups(images, settings, threads)  # duplicates, and --groups
        fold_of = assign_folds(images.labels, settings.num_folds, settings.seed, images.categories,
                               groups)
        run.begin(images, fold_of, groups)

        teacher = load_teacher(run.teacher_weights, settings, threads)
        # what both frozen networks compute of augmented images; None: new ones in every epoch
        store = open_store(teacher, images, run, optional=run.is_default("stored_augmentations"))
        if run.resuming:
            heads, teacher_probs = run.saved_heads
        else:
            features = extract_features(teacher, images, settings, threads, store)
            heads = fit_heads(features, images.labels, fold_of, settings, threads)
            teacher_probs = predict_out_of_fold(features[0], heads, fold_of)
            run.notes += check_augmented(teacher, features, heads, images, fold_of, settings)
            run.save_heads(heads, teacher_probs)
            del features
        check_teacher(teacher_probs, images, fold_of, settings)
        if store:
            store.fill()  # only now: check_teacher has stopped a run whose teacher is useless

        def build(k, s, name=None):  # s: the run's settings, or the control's
            return build_student(k, images.labels, fold_of, heads[k], s, run.student_weights, name)
        students = [build(k, settings) for k in settings.held_out]  # and the final model, if any
        if settings.control:  # the same students without the teacher
            students += [build(k, settings.without_teacher(), f"control{k}")
                         for k in settings.trained_folds]
        stem = frozen_stem(students, settings, threads)

        run.start(students)  # or continue from a checkpoint
        train(students, images, fold_of, teacher, stem, run, store)
        run.finish(students, teacher_probs)


def train(students, images, fold_of, teacher, stem, run, store=None):
    """Train side by side until all but the final model have stopped; `run` logs and saves.

    fold_of: int64 [N]; teacher: x -> features [B, 2048]; stem: x -> maps [B, C, H, W]; run: a Run,
    or anything with its settings, threads, epoch, step, after_step and after_epoch; store: outputs
    of both frozen networks that are on the disk (utils/store.py), or None. The loss is student_loss
    in utils/loss.py.
    """
    settings, threads = run.settings, run.threads
    pool = student_threads(threads)
    for epoch in range(run.epoch, settings.num_epochs):
        active = still_training(students)
        if not active:
            break
        own = [s for s in active if s.rank == world.rank]  # all, if this is the only process
        uses_teacher = any(s.settings.has_teacher for s in active)
        order = epoch_order(fold_of, needed_folds(active, settings.num_folds), settings, epoch)
        first_step = run.step if epoch == run.epoch else 0  # of a resumed run

        for batch in train_batches(images, fold_of, order, settings, epoch, first_step,
                                   threads, store):
            # What the frozen networks make of the images, mixed, once for all students
            features = batch.outputs("features", teacher) if uses_teacher else None
            maps = batch.outputs("maps", stem)
            list(pool.map(lambda s: train_step(s, batch, features, maps), own))
            run.after_step(epoch, batch.step + 1)

        probabilities = evaluate(own, stem, images, settings, threads, store)
        finish_epoch(students, probabilities, images, fold_of, order, epoch)
        run.after_epoch(epoch, active)


if __name__ == "__main__":
    run_command(main)
