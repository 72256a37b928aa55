"""One student in training: how it is built, its step, its validation, its scores.

main.py has the loop. The frozen networks see each image once for all students; each student then
takes a step of its own, side by side in threads.
"""
import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import paddle
from paddle.nn import functional as F
from sklearn.metrics import balanced_accuracy_score
from sklearn.utils.class_weight import compute_class_weight

from models.student_model import Student, dropout_mask, same_stem
from models.teacher_model import Head
from utils.data_utils import DROPOUT, MAX_READERS, plain
from utils.distributed import world
from utils.engine import compiled, on_gpu, to_device, when_used
from utils.loss import student_loss
from utils.report.statistics import best_epoch
from utils.settings import Settings
from utils.tables import printable
from utils.threads import prefetch
from utils.weights import arrays_of, new_student

EVAL_BATCH = 16  # images of a fold at a time


@dataclass(eq=False)
class TrainState:
    """A student in training and everything that belongs to it alone."""
    fold: int                     # it trains on all images but this fold's, which validate it
    name: str                     # fold0, control0 or final
    settings: Settings            # a control's differ in the weights of the losses only
    network: Student
    regressor: paddle.nn.Linear   # pooled features -> the teacher's; None without feature loss
    head: Head                    # of the teacher, as Tensors
    optimizer: paddle.optimizer.Optimizer
    class_weights: paddle.Tensor  # [C]
    images: np.ndarray            # of its fold, int64 [n]
    rank: int                     # the process that trains it
    history: list = field(default_factory=list)        # a dict of scores per epoch
    probabilities: list = field(default_factory=list)  # of its images, per epoch: float32 [n, C]
    best_epoch: int = 0                                # from 1
    best_weights: dict = field(default_factory=dict)   # {name: array}, in its own process
    # sums over the epoch, on the device: loss, correct, images, steps with a finite loss
    running: paddle.Tensor = field(default_factory=lambda: paddle.zeros([4]))
    failed: str = ""               # why it cannot go on

    @property
    def layers(self):
        """{name: layer}: everything that training changes, for checkpoints."""
        return {"student": self.network} | ({"regressor": self.regressor} if self.regressor else {})

    @property
    def selected_by(self):
        """The score that chooses the best epoch; it weighs categories as the loss does."""
        balanced = self.settings.class_weights == "balanced"
        return "val_balanced_accuracy" if balanced else "val_accuracy"

    @property
    def curves(self):
        """(scores, validation losses) per epoch, by which the best epoch is chosen."""
        return [[h[key] for h in self.history] for key in (self.selected_by, "val_loss")]

    @property
    def is_control(self):
        return self.name.startswith("control")

    @property
    def is_final(self):
        """Whether it is the final model, which trains on all images; the folds validate it."""
        return self.fold == self.settings.num_folds

    @property
    def is_fold(self):
        """Whether it is a fold's student: these are what the report scores."""
        return not (self.is_control or self.is_final)

    @property
    def stopped(self):
        """Whether it failed, or has stopped early; the final model does not by itself."""
        late = len(self.history) - self.best_epoch >= self.settings.patience
        return bool(self.failed) or late and not self.is_final


def still_training(students):
    """Those that have not stopped; the final model as long as a fold trains, which validates it."""
    going = [s for s in students if not s.stopped]
    return [s for s in going if not s.is_final or any(other.is_fold for other in going)]


def build_student(k, labels, fold_of, head, settings, weights=("random weights", None),
                  name=None):
    """A new student of fold k (num_folds: the final model); all start from the same weights.

    labels, fold_of: int [N]; head: the teacher's, of this fold; weights: MobileNetV2's, from
    utils.weights.imagenet_weights; name: fold<k> or final if none is given.
    """
    num_classes = head.bias.shape[1]
    with paddle.utils.unique_name.guard():  # Adam's state is keyed by names
        network, regressor = new_student(num_classes, settings, weights), None
        trainable = [p for p in network.parameters() if not p.stop_gradient]
        if settings.has_feature_loss:  # drawn last, so that a control starts from the same weights
            regressor = paddle.nn.Linear(network.hidden.weight.shape[0], len(head.mean))
            trainable += regressor.parameters()
        # use_multi_tensor: 10 instead of 15 ms a step
        optimizer = paddle.optimizer.Adam(settings.base_lr, weight_decay=settings.weight_decay,
                                          parameters=trainable, use_multi_tensor=True)
    class_weights = np.ones(num_classes)
    if settings.class_weights == "balanced":
        class_weights = compute_class_weight("balanced", classes=np.arange(num_classes),
                                             y=labels[fold_of != k])
    name = name or ("final" if k == settings.num_folds else f"fold{k}")
    return TrainState(k, name, settings, network, regressor,
                      Head(*map(paddle.to_tensor, head)), optimizer,
                      paddle.to_tensor(class_weights.astype("float32")),
                      np.flatnonzero(fold_of == k),
                      settings.held_out.index(k) % world.size)


def frozen_stem(students, settings, threads):
    """The compiled frozen blocks, x -> maps, of students that share them and every batch.

    Raises ValueError if they cannot: other frozen blocks, or another setting that is not
    per_student (utils/settings.py).
    """
    for student in students:
        other = [f.name for f in dataclasses.fields(settings) if not f.metadata["per_student"]
                 and getattr(student.settings, f.name) != getattr(settings, f.name)]
        if other:
            raise ValueError(f"{student.name} needs batches of its own: it differs in {other}")
    if not same_stem([s.network for s in students]):
        raise ValueError("students with different frozen blocks cannot train side by side")
    depth = students[0].network.freeze_depth
    if depth == 0:
        return to_device
    side = settings.image_size

    def load():
        return compiled(students[0].network.features[:depth], [3, side, side], threads)
    return when_used(load) if settings.stored_augmentations else load()  # as load_teacher


@functools.cache  # for good: a thread that ends leaves MKL's buffers behind, up to 20 MB
def student_threads(threads):
    """The pool in which students train side by side; a GPU queues the work by itself."""
    return ThreadPoolExecutor(1 if on_gpu() else threads)


def learning_rate(step, total_steps, warmup_steps, base_lr):
    """Linear warm-up to base_lr, then cosine to 0 (Loshchilov and Hutter 2017); step from 0."""
    if step < warmup_steps:
        return base_lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return base_lr * 0.5 * (1 + np.cos(np.pi * progress))


def rate_at(settings, epoch, step, steps):
    """The learning rate of a step of an epoch, both from 0."""
    return learning_rate(epoch * steps + step, settings.num_epochs * steps,
                         settings.warmup_epochs * steps, settings.base_lr)


def train_step(student, batch, features, maps):
    """One update of one student, on the images of the batch that are not of its own fold.

    features: the teacher's, [B, D], or None; maps: the stem's, [B, C, H, W]. Nothing here waits for
    a GPU.
    """
    settings, network = student.settings, student.network
    rows = np.flatnonzero(batch.fold_of != student.fold)  # without the images of its own fold
    rng = np.random.default_rng([settings.seed, DROPOUT, student.fold, batch.epoch, batch.step])
    hidden = network.hidden.weight.shape[1]
    mask = to_device(dropout_mask([len(rows), hidden], settings.dropout, rng))
    rows, labels, labels_b = to_device(np.stack([rows, batch.labels[rows], batch.labels_b[rows]]))
    maps = maps.index_select(rows)
    features = features.index_select(rows) if settings.has_teacher else None

    pooled = network.pool(maps)
    logits = network.head(pooled, mask)
    loss = student_loss(student, pooled, logits, labels, labels_b, batch.lam, features)
    loss.backward()
    student.optimizer.set_lr(rate_at(settings, batch.epoch, batch.step, batch.steps))
    student.optimizer.step()
    student.optimizer.clear_grad(set_to_zero=False)

    with paddle.no_grad():
        predicted = logits.argmax(1)
        correct = (batch.lam * (predicted == labels).sum()
                   + (1 - batch.lam) * (predicted == labels_b).sum())
        # counts the steps before the first loss that is not finite
        finite = paddle.isfinite(loss) & (student.running[3] == batch.step)
        student.running += paddle.stack([
            loss * len(rows), correct.astype("float32"), paddle.full([], len(rows), "float32"),
            finite.astype("float32")])


def evaluate(students, stem, images, settings, threads, store=None):
    """Class probabilities of each student on its own fold: {name: float32 [n, C]}, as its .images.

    In batches of one fold, so that they do not depend on what else is evaluated. Maps are read from
    the `store` if it has them. Leaves the networks in training mode.
    """
    students = [s for s in students if not s.is_final]  # which has no images to validate on
    rows_of = {s.fold: s.images for s in students}  # a control has the images of its student
    longest = max(map(len, rows_of.values()), default=0)
    jobs = [{k: rows[i:i + EVAL_BATCH] for k, rows in rows_of.items() if i < len(rows)}
            for i in range(0, longest, EVAL_BATCH)]
    stored = store and "maps" in store.names

    def read(rows):
        if stored:
            return store.read("maps", rows, np.zeros(len(rows), int))
        return plain(images, rows, settings)
    batches = prefetch(lambda job: {k: read(rows) for k, rows in job.items()},
                       jobs, min(threads, MAX_READERS))

    def predict(student, maps):
        with paddle.no_grad():
            return F.softmax(student.network.tail(maps))
    for student in students:
        student.network.eval()
    outputs = {s.name: [] for s in students}
    for batch in batches:
        maps = {k: to_device(x) if stored else stem(x) for k, x in batch.items()}
        present = [s for s in students if s.fold in maps]
        predicted = student_threads(threads).map(lambda s: predict(s, maps[s.fold]), present)
        for student, probs in zip(present, predicted):
            outputs[student.name].append(probs)
    for student in students:
        student.network.train()
    return {name: paddle.concat(probs).numpy() for name, probs in outputs.items()}


def finish_epoch(students, probabilities, images, fold_of, order, epoch):
    """Score the epoch of each student that has not stopped, in all processes alike.

    students: all; probabilities: {name: float32 [n, C]} of those of this process; order: of the
    epoch. A better epoch keeps the weights. A loss or an output that is not finite ends the student
    here: `failed` says why, and it has no scores of this epoch. The final model's scores are the
    means of the folds' latest.
    """
    active = still_training(students)
    results = world.gather({
        s.name: score_epoch(s, probabilities.get(s.name), images, fold_of, order, epoch)
        for s in active if s.rank == world.rank})
    for student in sorted(active, key=lambda s: s.is_final):  # last
        student.failed, scores, probs = results[student.name]
        student.running = paddle.zeros([4])
        if student.is_final and not student.failed:
            latest = [s.history[-1] for s in students if s.is_fold and s.history]
            if latest:
                scores |= {key: np.mean([h[key] for h in latest]).item()
                           for key in latest[0] if key not in scores}
            else:
                student.failed = f"epoch {epoch + 1}: no fold has a score"
        if student.failed:
            continue
        student.history.append(scores)
        if not student.is_final:
            student.probabilities.append(probs)
        student.best_epoch = best_epoch(*student.curves)
        if student.best_epoch == len(student.history) and student.rank == world.rank:
            student.best_weights = arrays_of(student.network)


def score_epoch(student, probs, images, fold_of, order, epoch):
    """(why it failed or "", scores of the epoch or None, its probabilities).

    Without `probs`, of the final model, the scores are those of training only.
    """
    loss, correct, seen, finite = student.running.numpy().astype("float64")
    steps = len(order)
    values = [probs] if probs is not None else arrays_of(student.network).values()
    if finite < steps or not all(np.isfinite(v).all() for v in values):
        step = int(min(finite, steps - 1))
        rows = order[step][fold_of[order[step]] != student.fold]
        names = [printable(images.paths[i]) for i in rows[:5]] + ["..."] * (len(rows) > 5)
        rate = rate_at(student.settings, epoch, step, steps)
        return (f"epoch {epoch + 1}, step {step + 1} of {steps}: the loss or a weight is no longer "
                f"a finite number (learning rate {rate:.3g}; images {', '.join(names)}); lower "
                "--base_lr"), None, None
    scores = dict(epoch=epoch + 1, train_loss=loss / seen, train_accuracy=correct / seen,
                  learning_rate=rate_at(student.settings, epoch, steps - 1, steps))
    if probs is not None:
        labels = images.labels[student.images]
        likelihood, predicted = probs[np.arange(len(probs)), labels], probs.argmax(1)
        scores |= dict(val_loss=float(-np.log(likelihood + 1e-12).mean()),
                       val_accuracy=float((predicted == labels).mean()),
                       val_balanced_accuracy=float(balanced_accuracy_score(labels, predicted)))
    return "", scores, probs
