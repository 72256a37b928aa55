"""Training K students side by side: mixup, learning rate, evaluation, early stopping, and the loop.

The frozen networks see every picture once for all folds; each fold then takes a step of its own.
"""
import dataclasses
import functools
import itertools
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import paddle
from sklearn.utils.class_weight import compute_class_weight

from models.student_model import Student, dropout_mask
from models.teacher_model import Head
from utils import runtime
from utils.checkpoint import arrays_of, load_into
from utils.data_utils import DROPOUT, MIXUP, VIEW, epoch_order, prefetch
from utils.loss import distillation_loss, feature_loss
from utils.parallel import team
from utils.settings import Settings
from utils.tables import printable
from utils.transforms import eval_view, normalise, train_view


VIEWERS = 8  # threads that make views: enough for 16,000 of 224 pixels a second, and each of them holds a batch


@dataclass(eq=False)  # a fold is itself: comparing arrays and Tensors would make no sense
class Fold:
    """One student and all that belongs to it alone."""
    index: int
    name: str                     # fold0, or control0: its twin without a teacher
    settings: Settings            # its own: a control differs from its twin in nothing else
    student: Student
    regressor: paddle.nn.Linear   # student's pooled features -> teacher's; None without that loss, dropped after training
    head: Head                    # the teacher's, as Tensors
    optimizer: paddle.optimizer.Optimizer
    class_weights: paddle.Tensor  # [C]
    pictures: np.ndarray          # part `index`, on which the student is validated
    best_accuracy: float = -1.0
    best_epoch: int = 0
    best_weights: dict = field(default_factory=dict)   # {name: array} of the student at its best epoch
    probabilities: list = field(default_factory=list)  # per epoch: validation, float32 [len(pictures), C]
    history: list = field(default_factory=list)  # one dict of scores per epoch
    sums: paddle.Tensor = None    # running in this epoch: loss, right answers, pictures, steps before a loss not finite
    failed: str = ""              # why it cannot go on

    def stopped(self):
        return bool(self.failed) or len(self.history) - self.best_epoch >= self.settings.patience


def pictures_per_part(settings):
    """b: a step takes b pictures from each of K parts, of which a student sees (K - 1) * b, about --batch_size."""
    return max(1, round(settings.batch_size / (settings.num_folds - 1)))


def build_fold(index, labels, parts, head, settings, weights=("random weights", None), name="fold"):
    """A student as every fold starts: from the same seed, with weights from checkpoint.imagenet_weights.

    head: the teacher's, of this fold. The regressor is drawn last, so that a control starts from the same weights.
    """
    num_classes = head.bias.shape[1]
    paddle.seed(settings.seed)
    with paddle.utils.unique_name.guard():
        student, regressor = Student(num_classes, settings.freeze_depth), None
        source, arrays = weights
        if arrays:
            load_into(student.features, arrays, source, "features.")
        learning = [p for p in student.parameters() if not p.stop_gradient]
        if settings.learns_features:
            regressor = paddle.nn.Linear(student.hidden.weight.shape[0], len(head.mean))
            learning += regressor.parameters()
        optimizer = paddle.optimizer.Adam(settings.base_lr, weight_decay=settings.weight_decay, parameters=learning,
                                          use_multi_tensor=True)  # 10 ms a step where it takes 15 (AMD EPYC, Zen 5, one thread)
    balance = np.ones(num_classes)
    if settings.class_weights == "balanced":
        balance = compute_class_weight("balanced", classes=np.arange(num_classes), y=labels[parts != index])
    return Fold(index, f"{name}{index}", settings, student, regressor, Head(*map(paddle.to_tensor, head)), optimizer,
                paddle.to_tensor(balance.astype("float32")), np.flatnonzero(parts == index))


def control_settings(settings):
    """Settings of the control: the same student without a teacher, cross-entropy alone."""
    return dataclasses.replace(settings, alpha=1.0, feature_weight=0.0)


def learning_rate(step, total_steps, warmup_steps, base_lr):
    """Linear from base_lr / warmup_steps to base_lr, then cosine to 0 (Loshchilov and Hutter 2017); per step."""
    if step < warmup_steps:
        return base_lr * (step + 1) / warmup_steps
    done = (step - warmup_steps) / (total_steps - warmup_steps)
    return base_lr * 0.5 * (1 + np.cos(np.pi * done))


def mixup(needed, b, num_parts, alpha, rng):
    """Draw what to mix every picture with: a partner from the same part (Zhang et al. 2018).

    A batch has b pictures of each needed part side by side. Returns (partner int64 [len(needed) * b], lam): picture i
    becomes lam * x[i] + (1 - lam) * x[partner[i]]. Partners stay inside the part, so that no student sees a pixel of its
    own validation pictures, and are drawn for all parts, so that those of one part do not depend on which others are
    needed.
    """
    lam = float(rng.beta(alpha, alpha))
    partner = rng.permuted(np.tile(np.arange(b), (num_parts, 1)), axis=1)[needed]
    return (partner + b * np.arange(len(needed))[:, None]).ravel(), lam


def mixed(x, rows, partners, lam):
    """lam * x[rows] + (1 - lam) * x[partners], float32 [len(rows), 3, S, S]; in place, which takes half the time."""
    mine = x[rows]
    if lam == 1:
        return mine
    other = x[partners]
    other -= mine
    other *= 1 - lam
    other += mine
    return other


def fold_pool(threads):
    """Threads in which folds compute side by side; one is enough for a GPU, which queues the work by itself."""
    return ThreadPoolExecutor(threads if paddle.get_device() == "cpu" else 1)


def steps_together(threads, folds):
    """Steps whose tails are computed in one go, so that no thread idles at the end of each: five folds in two threads take
    five rounds for two steps, and three for one."""
    threads = min(threads, folds)
    return threads // math.gcd(threads, folds) if team.size == 1 and paddle.get_device() == "cpu" else 1


def evaluate(folds, prefix, pictures, settings, threads, on_batch=None):
    """Class probabilities of every fold's student on its own part: list of float32 [N_k, C], rows as fold.pictures.

    After each batch on_batch() is called.
    """
    validation = {f.index: f.pictures for f in folds}  # a control is judged on the same pictures as its twin
    size = max(1, 64 // len(validation))
    jobs = [{k: rows[i:i + size] for k, rows in validation.items() if i < len(rows)}
            for i in range(0, max(map(len, validation.values())), size)]

    def make(job):
        return normalise([eval_view(pictures.square(i), settings.image_size) for i in np.concatenate([*job.values()])])

    def predict(fold, x):
        with paddle.no_grad():
            return paddle.nn.functional.softmax(fold.student.tail(x)).numpy()
    for f in folds:
        f.student.eval()
    outputs = [[] for _ in folds]
    with fold_pool(threads) as pool:
        for job, x in zip(jobs, prefetch(make, jobs, min(threads, VIEWERS))):
            maps = dict(zip(job, paddle.split(prefix(x), [len(rows) for rows in job.values()])))
            judged = [i for i, f in enumerate(folds) if f.index in maps]
            for i, p in zip(judged, pool.map(lambda i: predict(folds[i], maps[folds[i].index]), judged)):
                outputs[i].append(p)
            if on_batch:
                on_batch()
    return [np.concatenate(o) for o in outputs]


def silent(x):
    """A teacher to whom nobody listens need not look at the pictures."""
    return paddle.zeros([len(x), 1])


def learn(fold, maps, features, labels_a, labels_b, lam, mask, rate, step):
    """One step of one student on pictures that are lam * a + (1 - lam) * b, and its running sums.

    maps: what the prefix gave, [B, C, H, W]; features: the teacher's, [B, D]; labels: int64 [B]; mask: of dropout_mask;
    rate: of Adam; step: number in the epoch.
    """
    s = fold.settings
    pooled = fold.student.pool(maps)
    logits = fold.student.head(pooled, mask)
    teacher_logits = features @ fold.head.weight + fold.head.bias if s.alpha < 1 else None
    loss = distillation_loss(logits, teacher_logits, labels_a, labels_b, lam, fold.class_weights, s.temperature, s.alpha)
    if fold.regressor:
        loss = loss + s.feature_weight * feature_loss(fold.regressor(pooled), features, fold.head.mean, fold.head.std)
    loss.backward()
    fold.optimizer.set_lr(rate)
    fold.optimizer.step()
    fold.optimizer.clear_grad()
    with paddle.no_grad():
        guess = logits.argmax(1)
        right = lam * (guess == labels_a).sum() + (1 - lam) * (guess == labels_b).sum()
        healthy = paddle.isfinite(loss) & (fold.sums[3] == step)
        fold.sums += paddle.stack([loss * len(guess), right.astype("float32"),
                                   paddle.full([], len(guess), "float32"), healthy.astype("float32")])


def train(folds, pictures, parts, trunk, settings, threads, on_epoch=None, on_step=None, start=(0, 0)):
    """Train all folds side by side until each has stopped or `num_epochs` are over.

    folds: students of any folds, and their controls, all on the same pictures; trunk: compiled teacher trunk, x ->
    features [B, D]. `settings` decide the stream of pictures, fold.settings what the fold makes of it. After each
    epoch, on_epoch(epoch, active, seconds) is called with the folds that trained; those whose `best_epoch` is this
    epoch have reached a new peak. on_step(epoch, step) is called when `step` steps of an epoch (from 0) are done, every few
    steps, and may raise to end the training there; start: the (epoch, step) that the folds have reached.
    """
    s, labels = settings, pictures.labels
    num_parts, per_part = s.num_folds, pictures_per_part(s)
    prefix = (runtime.compiled(folds[0].student.features[:s.freeze_depth], [3, s.image_size, s.image_size], threads)
              if s.freeze_depth else paddle.to_tensor)
    if not any(f.settings.has_teacher for f in folds):
        trunk = silent
    pool = fold_pool(threads)

    for epoch in range(start[0], s.num_epochs):
        done = start[1] if epoch == start[0] else 0
        active = [f for f in folds if not f.stopped()]
        if not active:
            break
        began = time.time()
        # A part that only its own student would leave out is needed by nobody once that student is alone.
        needed = [p for p in range(num_parts) if any(f.index != p for f in active)]
        order = epoch_order(parts, needed, per_part, s.seed, epoch)
        steps = len(order)
        part_of = np.repeat(needed, per_part)
        seen_by = {f: np.flatnonzero(part_of != f.index) for f in active}  # of a batch: all but the pictures of its own part
        on_device = {f: paddle.to_tensor(rows) for f, rows in seen_by.items()}
        for f in active:
            f.student.train()
            if not done:
                f.sums = paddle.zeros([4])  # on the device: no waiting inside the epoch

        def make(step):
            """This process's share of a batch as every network will see it, [R, 3, S, S]; partner of each of all, lam."""
            partner, lam = np.arange(len(part_of)), 1.0
            if s.mixup_alpha and epoch >= s.warmup_epochs:
                partner, lam = mixup(needed, per_part, num_parts, s.mixup_alpha,
                                     np.random.default_rng([s.seed, MIXUP, epoch, step]))
            rows = team.rows(len(part_of))
            drawn, place = np.unique(np.concatenate([rows, partner[rows]]), return_inverse=True)
            x = normalise([train_view(pictures.square(i), s, np.random.default_rng([s.seed, VIEW, epoch, i]))
                           for i in order[step][drawn]])
            return mixed(x, place[:len(rows)], place[len(rows):], lam), partner, lam

        def rate_at(f, step):
            return learning_rate(epoch * steps + step, s.num_epochs * steps, s.warmup_epochs * steps, f.settings.base_lr)

        def step_of(f, before, step, features, maps, partner, lam):
            """One step of one student, after the one before."""
            if before:
                before.result()
            rows = seen_by[f]
            mask = dropout_mask([len(rows), f.student.hidden.weight.shape[1]], s.dropout,
                                np.random.default_rng([s.seed, DROPOUT, f.index, epoch, step]))
            batch, partners = order[step][rows], order[step][partner[rows]]
            a, b, mask = map(paddle.to_tensor, (labels[batch], labels[partners], mask))
            learn(f, maps.index_select(on_device[f]), features.index_select(on_device[f]), a, b, lam, mask,
                  rate_at(f, step), step)

        def judge(f, p):
            """From its answers p on its own part: (why it failed or "", p, scores of the epoch, weights if it is a new peak)."""
            loss, right, seen, healthy = f.sums.numpy().astype("float64")
            if healthy < steps or not np.isfinite(p).all():
                step = int(min(healthy, steps - 1))
                batch = order[step][seen_by[f]]
                some = [printable(pictures.paths[i]) for i in batch[:5]] + ["..."] * (len(batch) > 5)
                failed = (f"epoch {epoch + 1}, step {step + 1} of {steps}: the loss or a weight is no longer a finite number "
                          f"(learning rate {rate_at(f, step):.3g}; pictures {', '.join(some)}); lower --base_lr")
                return failed, p, None, None
            of_truth = p[np.arange(len(p)), labels[f.pictures]]
            scores = dict(epoch=epoch + 1, learning_rate=rate_at(f, steps - 1), train_loss=loss / seen,
                          train_accuracy=right / seen, val_loss=float(-np.log(of_truth + 1e-12).mean()),
                          val_accuracy=float((p.argmax(1) == labels[f.pictures]).mean()))
            return "", p, scores, arrays_of(f.student) if scores["val_accuracy"] > f.best_accuracy else None

        mine = [f for f in active if team.owns(f)]
        together = steps_together(threads, len(mine))
        with runtime.progress(None, f"epoch {epoch + 1}/{s.num_epochs}", steps * len(part_of), "picture") as bar:
            bar.update(done * len(part_of))
            batches = enumerate(prefetch(make, range(done, steps), min(threads, VIEWERS)), done)
            while few := list(itertools.islice(batches, together)):
                # the frozen networks, once for all folds, on the very same pictures
                few = [(step, *(team.all_gather(network(x), len(part_of)) for network in (trunk, prefix)), partner, lam)
                       for step, (x, partner, lam) in few]
                tasks = dict.fromkeys(mine)  # the newest of each fold: it waits for the one before
                for step, *inputs in few:  # features, maps, partner, lam
                    for f in mine:
                        tasks[f] = pool.submit(step_of, f, tasks[f], step, *inputs)
                for task in tasks.values():
                    task.result()
                bar.update(len(few) * len(part_of))
                if on_step:
                    on_step(epoch, step + 1)

        on_batch = functools.partial(on_step, epoch, steps) if on_step and team.size == 1 else None
        answers = dict(zip(mine, evaluate(mine, prefix, pictures, s, threads, on_batch) if mine else ()))
        for f in active:
            f.failed, p, scores, best = team.broadcast(judge(f, answers[f]) if team.owns(f) else None, team.owner(f))
            if f.failed:
                continue
            f.history.append(scores)
            f.probabilities.append(p)
            if best:
                f.best_accuracy, f.best_epoch, f.best_weights = scores["val_accuracy"], epoch + 1, best
        if on_epoch:
            on_epoch(epoch + 1, active, time.time() - began)
    pool.shutdown()
