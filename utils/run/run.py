"""Run: everything about keeping a run, so that main.py can be about the method.

Its folder, its log, checkpoints and resume, locks, signals, and what it leaves behind. Of several
processes the first does this; the others write only checkpoints and weights of their students.
"""
import os
import sys
import time

import numpy as np
import paddle

from data.make_sample import make_sample
from utils import engine
from utils.data_utils import images_per_fold
from utils.distributed import print0, world
from utils.errors import InputError
from utils.files import check_writable, here, new_folder, quoted
from utils.images.dataset import find_categories
from utils.images.duplicates import duplicate_rows, oversized_group
from utils.report.build import make_report, write_results
from utils.report.cost import costs
from utils.report.text import report_text, summary
from utils.run import resume
from utils.run.checkpoint import check_space, load_checkpoint, save_checkpoint
from utils.run.log import Log, NoLog, print_duplicates, print_epoch, print_plan
from utils.run.process import Signals, Stopped, lock
from utils.settings import FINAL_MODEL, new_settings
from utils.weights import (
    check_room,
    describe,
    digest,
    imagenet_weights,
    move_earlier_weights,
    save_weights,
    update_about,
    weights_path,
)

MIN_SECONDS = 60  # between checkpoints at ends of epochs: short epochs would only write
SIGNAL_STEPS = 4  # after which processes compare signals; Paddle's launcher kills after 4 s


class Run:
    """A run from its command line, in a `with` statement.

    Has .settings, .threads, .teacher_weights and .student_weights (of imagenet_weights), .notes for
    the report, .resuming, and where training starts: .epoch and .step, both from 0. A resumed run
    also has .saved_heads: the heads and the teacher's probabilities.
    """
    resuming, epoch, step, folder = False, 0, 0, None
    hint = ""  # how to continue, once there is a checkpoint

    def __init__(self, given, sample=False, resume=None):
        self.command_line = given, sample, resume
        self.signals, self.locks, self.log = Signals(), [], NoLog()
        self.notes = []  # for the report
        self.opened = time.monotonic()

    def __enter__(self):
        try:
            self._open(*self.command_line)
        except BaseException as e:
            self.__exit__(type(e), e, None)
            raise
        return self

    def _open(self, given, sample, resume_option):
        """Settings, device, weights, and locks on the folders that this run writes to."""
        engine.keep_memory()
        world.join(given.get("device", "auto"))
        self.signals.listen()
        chosen = None
        if world.rank == 0:  # for all: which run, with which settings
            folder = resume.find_run(resume_option, given) if resume_option else None
            if folder:
                settings = resume.resumed_settings(folder, given)
                self.locks.append(lock(folder, "that run has not stopped"))
            else:
                settings = new_settings(given, sample)
            chosen = folder, settings, bool(folder) and resume.is_finished(folder)
        self.folder, self.settings, finished = world.broadcast(chosen)
        self.resuming, settings = self.folder is not None, self.settings
        if finished:
            report = os.path.join(self.folder, "report.txt")
            print0(f"{self.folder} is finished; its report: {report}")
            raise SystemExit(0)
        # of several processes each already has the device that the launcher gave it
        device = engine.choose_device(settings.device) if world.size == 1 else paddle.get_device()
        self.threads = settings.threads or world.cores()
        print0(f"device {device}, {self.threads} threads; "
               + ", ".join(f"{key} {value}" for key, value in engine.versions().items())
               + (f"; {world.size} processes" if world.size > 1 else "")
               + f"\nto watch: visualdl --logdir {quoted(settings.log_dir)} --port 8040 "
               "--language en")
        if sample and not self.resuming and world.rank == 0 and make_sample(settings.data_dir):
            print(f"drew the sample set {settings.data_dir}")
        world.barrier()
        # kept, so that a resumed run has the same
        settings.categories = tuple(find_categories(settings.data_dir, settings.categories,
                                                    settings.exclude))
        if settings.exclude:
            print0(f"note: categories left out by --exclude: {' '.join(settings.exclude)}")
        self.teacher_weights = imagenet_weights("teacher_weights", settings.teacher_weights)
        self.student_weights = imagenet_weights("student_weights", settings.student_weights)
        for option in ("log_dir", "save_dir"):
            check_writable(option, getattr(settings, option))
        if world.rank == 0:
            self.locks.append(lock(settings.save_dir, "wait for it, or choose another folder with "
                                   "--save_dir"))

    def begin(self, images, fold_of, groups):
        """Record what the run is made of, or check that a resumed one finds it unchanged."""
        self.images, self.groups, self.fold_of, settings = images, groups, fold_of, self.settings
        found = (images.digest(), fold_of.tolist(), digest(self.teacher_weights[1]),
                 digest(self.student_weights[1])) if world.size > 1 else ()
        if world.any(world.broadcast(found) != found):
            raise InputError("the processes do not find the same images and weights: the copies of "
                             f"{settings.data_dir} or of the weights files on the machines differ, "
                             "or a file has just changed")
        check_room(settings, len(images.categories), self.resuming)
        if not self.resuming:
            folder = None
            if world.rank == 0:
                folder = new_folder(settings.log_dir, time.strftime("%Y%m%d-%H%M%S"))
                self.locks.append(lock(folder))
                resume.record_run(folder, settings, images, fold_of, groups)
            self.folder = world.broadcast(folder)
        if world.any(not os.path.exists(os.path.join(self.folder, "settings.json"))):
            raise InputError(f"--log_dir {settings.log_dir}: all processes need the same folder; "
                             "on several machines, name a shared one (and for --save_dir)")
        if self.resuming:
            *self.saved_heads, self.notes = resume.load_start(
                self.folder, images, fold_of, (self.teacher_weights, self.student_weights),
                self.threads)
        smallest = int(np.bincount(fold_of).min())  # no image twice in a step
        if images_per_fold(settings) > smallest:
            lowered = smallest * (settings.num_folds - 1)
            note = (f"--batch_size {settings.batch_size} is lowered to {lowered}, since the "
                    f"smallest fold has {smallest} images")
            print0(f"note: {note}")
            self.notes = self.notes or [note]  # a resumed run has it
            settings.batch_size = lowered
        self.name = os.path.basename(os.path.abspath(self.folder))
        if world.rank == 0:
            if self.resuming:
                resume.update(self.folder, settings, resume.PLACES)
            self.log = Log(self.folder)
            oversized = oversized_group(groups, images.labels, settings.num_folds)
            print_duplicates(duplicate_rows(images, groups), oversized, settings)
            print_plan(fold_of, settings)
            print(f"teacher: ResNet50, {self.teacher_weights[0]}\nstudents: MobileNetV2, "
                  f"{self.student_weights[0]}\nrun {self.name}, written to {self.folder}")
            self.log.first_images(images, fold_of, settings)
            if not self.resuming:
                self.log.graph(len(images.categories), settings)

    def is_default(self, name):
        """Whether a setting of a new run was not given; a resumed one keeps what it has."""
        return not self.resuming and name not in self.command_line[0]

    def save_heads(self, heads, teacher_probs):
        """Keep what a resumed run need not compute again."""
        if world.rank == 0:
            resume.save_start(self.folder, self.images, self.fold_of, heads, teacher_probs,
                              self.notes, (self.teacher_weights, self.student_weights),
                              self.threads)
            # without room on the disk it has become 0
            resume.update(self.folder, self.settings, ["stored_augmentations"])

    def start(self, students):
        """Load the newest checkpoint of a resumed run into the students, or save a first one."""
        self.students = students
        check_space(self.folder, students)
        if world.rank == 0:
            moved = move_earlier_weights(self.settings.save_dir, but=self.name)
            if moved:
                print(f"weights of an earlier run moved to {moved}")
        world.barrier()
        if self.resuming:
            self.checkpoint, self.epoch, self.step = load_checkpoint(self.folder, students)
            self.log.repeat(students)
            for student in students:
                if student.best_epoch:
                    self._save_weights(student)
            print0(f"continues in epoch {self.epoch + 1}, after {self.step} steps of it")
        else:
            self.checkpoint = None
            self._save(0, 0)
        self.hint = f"to continue: python {here('main.py')} --resume {quoted(self.folder)}"
        print0("each epoch: loss and accuracy in training | in validation; * a new best epoch, "
               "whose weights are saved")
        self.signals.deferred = True
        self.saved = self.began = time.monotonic()
        self.log.time(self.epoch, self.began - self.opened)

    def after_step(self, epoch, step):
        """`step` steps of `epoch` (from 0) are done: save and stop if it is time."""
        if world.size > 1 and step % SIGNAL_STEPS:
            return
        self._save_if_due(epoch, step, 60 * self.settings.save_minutes)

    def after_epoch(self, epoch, active):
        """`epoch` (from 0) is done and scored: log it, keep best weights, save if it is time."""
        seconds, self.began = time.monotonic() - self.began, time.monotonic()
        self.log.time(epoch + 1, seconds)
        for student in active:
            if student.failed:
                continue
            self.log.scores(student.name, student.history[-1])
            if student.best_epoch == epoch + 1:
                self._save_weights(student)
        if world.rank == 0:
            for controls in (False, True):
                students = [s for s in self.students if s.is_control == controls]
                print_epoch(epoch + 1, students, active, seconds, self.settings.num_epochs)
        self._save_if_due(epoch + 1, 0, min(MIN_SECONDS, 60 * self.settings.save_minutes))

    def _save_if_due(self, epoch, step, seconds):
        """Save if the last checkpoint is so old; after a signal to any process save and stop."""
        due = time.monotonic() - self.saved >= seconds
        due, signal = world.max([int(due), self.signals.received or 0])
        if signal or due:
            self._save(epoch, step)
        if signal:
            raise Stopped(signal)

    def _save(self, epoch, step):
        self.checkpoint = save_checkpoint(self.folder, self.students, epoch, step, self.checkpoint)
        self.saved = time.monotonic()

    def _save_weights(self, student):
        """Write a student's best weights; controls have no file."""
        if student.rank == world.rank and not student.is_control:
            save_weights(weights_path(self.settings, student.fold), student.best_weights,
                         describe(student, self.name, self.settings, self.images.categories))

    def finish(self, students, teacher_probs):
        """Write the report, and say where everything is. Raises InputError if a student failed."""
        self.signals.deferred = False
        if self.signals.received:
            raise Stopped(self.signals.received)
        world.barrier()
        world.leave()
        if world.rank:
            return
        settings = self.settings
        if not any(s.history for s in students if s.is_fold):
            self.hint = ""  # all have failed: resumed, they would again
        networks = costs(students[0].network, len(self.images.categories), settings.image_size,
                         self.threads)
        write_results(self.folder, students, teacher_probs, self.images, self.groups, networks,
                      self.notes)
        report = make_report(self.folder)
        for fold in report["folds"]:
            update_about(weights_path(settings, fold["fold"]), temperature=fold["temperature"])
        final = report.get("final_model")
        use = weights_path(settings, report["folds"][0]["fold"])
        if final:
            use = weights_path(settings, settings.num_folds)
            update_about(use, **{key: final[key] for key in (
                "temperature", "expected_accuracy", "expected_interval")})
        print("\n" + report_text(report))
        self.log.results(report)
        resume.finish(self.folder)
        self.hint = ""
        model = "" if use == FINAL_MODEL else f" --model_path {quoted(use)}"
        print(f"report.html, plots, scalars and out_of_fold.csv: {self.folder}\nweights, one file "
              f"per fold{' and the final model' * bool(final)}: {settings.save_dir}\nto use "
              f"{'it' if final else 'them'}: python {here('inference.py')}{model} --image_path "
              "IMAGE", *summary(report), sep="\n")
        if report["failed"]:
            raise InputError("; ".join(report["failed"]))

    def __exit__(self, kind, error, traceback):
        """Close everything. Errors that the user can fix become one line, with how to continue."""
        self.signals.forget()
        self.log.close()
        for held in self.locks:
            held.release()
        if error is None or isinstance(error, SystemExit):
            return world.leave()
        if isinstance(error, Stopped):
            hint = self.hint or "training had not begun; the same command uses what is cached"
            print(f"stopped; {hint}", file=sys.stderr)
            world.end("it was told to stop")
            raise SystemExit(128 + error.args[0]) from None
        world.end(error)
        ours = not isinstance(error, (InputError, OSError, MemoryError))  # with its traceback
        if ours or isinstance(error, BrokenPipeError):  # the latter of the standard output
            if self.hint:
                print(self.hint, file=sys.stderr)
            return
        # a full disk does not name itself
        if isinstance(error, OSError) and error.errno and self.folder and not error.filename:
            error.filename = self.folder
        if isinstance(error, MemoryError):
            error = ("out of memory; lower --batch_size or --image_size in a new run, or close "
                     "other programs")
        raise InputError(f"{error}" + (f"; {self.hint}" if self.hint else "")) from None
