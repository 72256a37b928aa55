"""Train one student per fold from a frozen teacher, and report how good they are on pictures they never saw.

    python main.py --sample                                  # a drawn sample set: no download, a few minutes on 2 cores
    python main.py                                           # data/data101031/<category>/*.jpg
    python main.py --data_dir DIR --categories cans glass    # any folder with one sub-folder per category
    python main.py --resume                                  # go on after Ctrl-C, a crash or a power cut

The method, in the order of this file: pictures are cut into K parts, copies of one picture never apart; a frozen
ResNet50 gets one linear head per fold, fitted outside that fold's part; K MobileNetV2 students learn side by side from
the same stream of views, student k from all parts but part k; the report judges every picture once, by the student that
never saw it. A student learns from the true labels, and by default guesses the teacher's features too (--feature_weight);
the teacher's heads say how good it is, and with --alpha below 1 their soft labels teach as well.
"""
import os
import sys
import time

from utils import runtime  # first: it sets what paddle and cv2 read when they load
import numpy as np
import paddle

from data.make_sample import make_sample
from models.teacher_model import Trunk, check_teacher, extract_features, fit_heads, load_trunk, teacher_predictions
from utils.checkpoint import (describe, imagenet_weights, new_folder, save_weights, set_aside, update_about,
                              weights_path)
from utils.copies import copy_rows, group_pictures, known_copies, read_groups, too_large
from utils.cost import cost
from utils.data_utils import find_categories, load_pictures, stratified_parts
from utils.page import write_page
from utils.parallel import team
from utils.process import Stopped, lock, quoted, stops, writable
from utils.report import all_answers, build_report, write_report
from utils.run_log import RunLog, print_copies, print_epoch, print_pictures, record_places, record_run
from utils.settings import BLOCKS, RANDOM, InputError, parse
from utils.state import (Checkpointer, checksums, end, ended, hand_out, help_save, keep_start, names_digest, read_start,
                         same_share)
from utils.train_utils import build_fold, control_settings, pictures_per_part, train


def main(argv=None):
    runtime.keep_memory()
    team.join()  # a run has one process, unless paddle.distributed.launch starts several
    if team.rank:
        return follow()
    settings, sample, resumed = parse(argv, __doc__)
    if resumed and ended(resumed):
        end(resumed)
        team.broadcast()  # nothing to do for the others either
        return print(f"{resumed} is finished; its report: {os.path.join(resumed, 'report.txt')}")
    device = runtime.choose_device(settings.device)
    threads, all_threads = settings.threads or team.cores(), settings.threads or runtime.CORES
    print(f"device {device}, {threads} threads; " + ", ".join(f"{k} {v}" for k, v in runtime.versions().items())
          + (f"; {team.size} processes" if team.size > 1 else "")
          + f"\nto watch: visualdl --logdir {quoted(settings.log_dir)} --port 8040 --language en")
    if sample and make_sample(settings.data_dir):
        print(f"drew the sample set {settings.data_dir}")
    settings.categories = tuple(find_categories(settings.data_dir, settings.categories))  # so a resumed run has the same
    teacher_weights = imagenet_weights("teacher_weights", settings.teacher_weights)
    student_weights = imagenet_weights("student_weights", settings.student_weights)
    for option in ("log_dir", "save_dir"):
        writable(option, getattr(settings, option))
    held = [lock(resumed, "that run has not stopped")] if resumed else []  # for as long as this function runs
    held.append(lock(settings.save_dir, "wait for it, or choose another folder with --save_dir"))

    # Pictures, and the parts that they are cut into
    # (all threads: the other processes, if there are any, wait)
    pictures = load_pictures(settings.data_dir, settings.image_size, settings.categories, settings.cache_dir,
                             settings.cache_gb, all_threads)
    print_pictures(pictures)
    if not len(pictures):
        raise InputError(f"no usable picture in {settings.data_dir}: see what was left out, and why")
    given = read_groups(settings.groups, pictures)
    found = known_copies(pictures, all_threads, settings.copies == "near")
    groups = group_pictures(len(pictures), np.concatenate([found, given]))
    copies = copy_rows(pictures, groups)
    large = too_large(group_pictures(len(pictures), found), pictures.labels, settings.num_folds)
    print_copies(copies, given, large, settings)
    parts = stratified_parts(pictures.labels, settings.num_folds, settings.seed, pictures.categories, groups)
    trained = sorted(settings.folds) or list(range(settings.num_folds))
    for k in trained:
        print(f"fold {k}: {(parts != k).sum()} pictures to train on, {(parts == k).sum()} to validate on")
    b = pictures_per_part(settings)
    print(f"a step takes {b} pictures from each part, a student sees {b * (settings.num_folds - 1)} of them"
          + ("; mixup needs two of a part and stays off: raise --batch_size" if b == 1 and settings.mixup_alpha else ""))

    # Where this run writes
    sums = checksums(pictures, all_threads)
    if resumed:
        folder, (heads, teacher) = resumed, read_start(resumed, pictures, sums, parts, teacher_weights, threads)
        record_places(folder, settings)
    else:
        folder = new_folder(settings.log_dir, time.strftime("%Y%m%d-%H%M%S"))
        held.append(lock(folder))
        record_run(folder, settings, pictures, parts, groups, copies)
    run = os.path.basename(os.path.abspath(folder))
    log = RunLog(folder)
    print(f"run {run}, written to {folder}")
    log.first_pictures(pictures, parts, trained, settings)
    log.graph(len(pictures.categories), settings)

    # The teacher: one frozen trunk for all folds. Head k is fitted on all parts but part k, and judged there before any
    # student trains
    print(f"teacher: ResNet50, {teacher_weights[0]}\nstudents: {len(trained)} x MobileNetV2, {student_weights[0]}, "
          f"{settings.freeze_depth} of {BLOCKS} blocks frozen")
    if RANDOM in (settings.teacher_weights, settings.student_weights):
        print("note: networks from random initialisation, good for trying the program, not for good figures")

    team.broadcast((settings, resumed, teacher_weights, student_weights, parts, trained, names_digest(pictures), sums))
    check_alike(settings, True)
    trunk = load_trunk(*teacher_weights, settings, threads)
    if not resumed:
        features = extract_features(trunk, pictures, settings, threads)
        heads = fit_heads(features, pictures.labels, parts, trained, settings, all_threads)
        teacher = teacher_predictions(features[0], heads, parts)
        del features
    check_teacher(teacher, pictures, parts, trained, settings)

    # The students learn side by side, all from the same start, and with them, if asked for, their twins without a teacher
    team.broadcast(heads)
    folds, controls = build_students(heads, pictures, parts, student_weights, settings)
    checkpointer = Checkpointer(folder, folds + controls, settings.save_minutes)
    start = checkpointer.restore() if resumed else (0, 0)
    moved = set_aside(settings.save_dir, but=run)
    if moved:
        print(f"weights of an earlier run moved to {moved}")

    def save_best(f):
        save_weights(weights_path(settings, f), f.best_weights, describe(f, run, settings, pictures))
    if resumed:
        hand_out(folds + controls)
        log.repeat(folds + controls)
        for f in folds:
            if f.best_epoch:
                save_best(f)
        print(f"goes on in epoch {start[0] + 1}, after {start[1]} steps of it")
    else:
        keep_start(folder, pictures, sums, parts, heads, teacher, teacher_weights, threads)
        checkpointer.save(*start)

    def on_epoch(epoch, active, seconds):
        for f in active:
            if f.failed:  # it has no scores of this epoch
                continue
            log.scores(f.name, f.history[-1])
            if f.best_epoch == epoch and f in folds:
                save_best(f)
        print_epoch(epoch, folds, active, seconds, settings)
        if controls:
            print_epoch(epoch, controls, active, seconds, settings)
        checkpointer.after_epoch(epoch)
    print("each epoch: loss and accuracy in training | in validation; * a new peak, its weights are saved")
    team.broadcast(start)
    with checkpointer:
        train(folds + controls, pictures, parts, trunk, settings, threads, on_epoch, checkpointer.after_step, start)
    team.leave()  # the others are done
    failed = [f"{f.name} stopped at {f.failed}" for f in folds + controls if f.failed]
    folds = [f for f in folds if f.history]
    if not folds:
        stops.advice = ""
        raise InputError("; ".join(failed))
    controls = [f for f in controls if f.history and f.index in [g.index for g in folds]]
    if controls and (len(controls) < len(folds) or any(f.failed for f in folds + controls)):
        controls = []  # a network that ended early loses against any twin: that would say nothing of the teacher
        failed.append("students and controls are not compared, since one of them ended early")

    # The report: every picture once, by the student that never saw it
    whole_teacher = paddle.nn.Sequential(Trunk(), paddle.nn.Linear(*heads[trained[0]].weight.shape))
    networks = {name: cost(layer, [3, settings.image_size, settings.image_size], threads)
                for name, layer in (("student", folds[0].student), ("teacher", whole_teacher))}
    answers = all_answers(folds, controls, teacher, pictures.labels)
    report = build_report(folds, answers, pictures, parts, groups, networks)
    report.update(run=run, failed=failed, versions=runtime.versions())
    text = write_report(folder, report, folds, answers, pictures, groups)
    write_page(folder, text, report, folds, answers, pictures)
    for f, figures in zip(folds, report["folds"]):
        update_about(weights_path(settings, f), temperature=figures["temperature"])
    print("\n" + text)
    log.results(report, answers, pictures.labels[np.concatenate([f.pictures for f in folds])])
    log.close()
    end(folder)
    stops.advice = ""
    print(f"report.html, plots, scalars and out_of_fold.csv: {folder}\nweights, one file per fold: {settings.save_dir}\n"
          f"to use them: python inference.py --model_path {quoted(weights_path(settings, folds[0]))} --image_path PICTURE")
    if failed:
        raise InputError("; ".join(failed))


def build_students(heads, pictures, parts, weights, settings):
    """One student per head, and if asked for its twin without a teacher."""
    team.folds = list(heads)  # which the processes share out

    def build(settings, name):
        return [build_fold(k, pictures.labels, parts, heads[k], settings, weights, name) for k in heads]
    return build(settings, "fold"), build(control_settings(settings), "control") if settings.control else []


def follow():
    """What the other processes of a team do: the same computations on their share; see utils/parallel.py."""
    told = team.broadcast()
    if not told:
        return
    settings, resumed, teacher_weights, student_weights, parts, trained, names, sums = told
    runtime.choose_device(settings.device)
    threads = settings.threads or team.cores()
    pictures = load_pictures(settings.data_dir, settings.image_size, settings.categories,
                             settings.cache_dir, settings.cache_gb, threads)
    check_alike(settings, names_digest(pictures) == names and same_share(pictures, sums, threads))
    trunk = load_trunk(*teacher_weights, settings, threads)
    if not resumed:
        extract_features(trunk, pictures, settings, threads)
    folds = sum(build_students(team.broadcast(), pictures, parts, student_weights, settings), [])
    if resumed:
        hand_out(folds)
    else:
        help_save(folds)

    def after_step(*_):
        if team.any(False):
            help_save(folds)

    def after_epoch(*_):
        team.barrier()
        after_step()
    train(folds, pictures, parts, trunk, settings, threads, after_epoch, after_step, team.broadcast())
    team.leave()


def check_alike(settings, alike):
    """Raise InputError in all processes if one of them finds other pictures than the first does."""
    team.barrier()  # until the last of them has decoded and compared its own
    if team.any(not alike):
        raise InputError(f"the processes do not all find the same pictures in {settings.data_dir}: its copies on the "
                         "machines differ, or one of them changed just now")


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        # file names that the terminal cannot show; lines at once, also into a file
        stream.reconfigure(errors="backslashreplace", line_buffering=True)
    if "PADDLE_TRAINERS_NUM" not in os.environ:  # the launcher of several processes ends them in its own way
        stops.listen()
    try:
        main()
    except (InputError, OSError, MemoryError) as error:
        if isinstance(error, MemoryError):
            error = "out of memory; lower --batch_size or --image_size in a new run, or close other programs"
        team.end(error)
        sys.exit(f"error: {error}" + (f"; {stops.advice}" if stops.advice else ""))
    except Stopped as stopped:
        print(f"stopped; {stops.advice or 'nothing new is saved'}", file=sys.stderr)
        sys.exit(128 + stopped.args[0])
    except (Exception, SystemExit) as error:  # a mistake of ours, or in the options
        team.end(f"{type(error).__name__}: {error}")
        if stops.advice:
            print(stops.advice, file=sys.stderr)
        raise
