"""Notes for the report: students near guessing, far below the teacher or blown up, and a teacher
that may hold them back."""
import math

import numpy as np
from sklearn.metrics import balanced_accuracy_score

from utils.report.statistics import compare, near_chance
from utils.settings import RANDOM

FAR_BELOW = 0.1  # in balanced accuracy
BLOWN_UP = 3     # times the loss of a student that has learned nothing
AUGMENTED = "in augmented_images.png that the augmentations keep the category"


def student_notes(predictions, headline, settings, history):
    """A line for each fault, with what to do about it.

    predictions: build.Predictions; headline: the name of the students' honest predictions; history:
    {name: list of dicts}.
    """
    p, folds = predictions, np.unique(predictions.folds)

    def students_with(fault):
        """All, if their predictions together have the fault, else those of single folds."""
        if fault(headline, np.ones(len(p.labels), bool)):
            return named(folds, folds)
        return named([k for k in folds if fault("student", p.folds == k)], folds)

    def guesses(name, rows):
        return near_chance(p.labels[rows], p.probabilities[name][rows].argmax(1))

    def is_far_below(name, rows):
        labels = p.labels[rows]
        student, teacher = (p.probabilities[who][rows].argmax(1) for who in (name, "teacher"))
        gap = balanced_accuracy_score(labels, teacher) - balanced_accuracy_score(labels, student)
        return gap > FAR_BELOW and compare(labels, student, teacher,
                                           p.groups[rows])["mcnemar_p"] < 0.05

    notes, limit = [], BLOWN_UP * untrained_loss(settings)
    blown = named([k for k in folds if max(h["train_loss"] for h in history[f"fold{k}"]) > limit],
                  folds)
    if blown:
        notes.append(f"the loss of the {blown} has blown up: lower --base_lr "
                     f"({settings.base_lr:g})")
    guessing = students_with(guesses)
    if guessing:
        notes.append(f"the {guessing}: hardly better than guessing; check that the images are in "
                     f"the right folders, and {AUGMENTED}; train longer (--num_epochs), with more "
                     "images or another --base_lr")
    below = "" if guessing else students_with(is_far_below)
    if below:
        notes.append(f"the {below}: balanced accuracy far below the teacher's; train longer "
                     "(--num_epochs) or more blocks (a lower --freeze_depth), and check "
                     f"{AUGMENTED}")
    return notes


def teacher_notes(report, settings):
    """A line if the students are better than their teacher, and no control is worse than they are.

    report: of build_report.
    """
    oof = report["out_of_fold"]
    best, teacher = (oof[name]["accuracy"] for name in (report["headline"], "teacher"))
    control = oof.get(report["headline"].replace("student", "control"))
    remedies = ["--alpha 1"] * (settings.alpha < 1)
    remedies += ["a smaller --feature_weight"] * settings.has_feature_loss
    if (teacher >= best or settings.teacher_weights == RANDOM or not remedies
            or control and control["accuracy"] < best):
        return []
    return [f"the teacher ({teacher:.4f}) is weaker than its students ({best:.4f}) and may hold "
            "them back: use better --teacher_weights or more images, or give it less weight "
            f"({', '.join(remedies)})" + ("" if control else "; --control shows whether it helps")]


def named(some, folds):
    """ "students of folds 0, 2", "students" if they are all, "" if there are none."""
    if not len(some):
        return ""
    several = "s" * (len(some) > 1)
    which = f" of fold{several} {', '.join(map(str, some))}" * (len(some) < len(folds))
    return f"student{several}{which}"


def untrained_loss(settings):
    """The training loss of a student that knows nothing: log C by labels and soft labels, 1 by
    features."""
    s, uniform = settings, math.log(len(settings.categories))
    return (s.alpha * uniform + (1 - s.alpha) * s.temperature**2 * uniform
            + s.feature_weight * s.has_feature_loss)
