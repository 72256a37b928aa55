"""Every setting of a run: its name, default, unit, allowed range and help, in one dataclass.

The command line, `--help`, the table in the README and the JSON beside each weights file are made
from it.

    python -m utils.settings        # prints the README's table of settings
"""
import argparse
import dataclasses
import glob
import json
import math
import os
import unicodedata
from dataclasses import dataclass, field

BLOCKS = 19  # of MobileNetV2 (Sandler et al. 2018): the first convolution, 17 inverted residuals, the last convolution
DOWNLOAD, RANDOM = "paddle", "random"
NEWEST = "the newest"  # of --resume without a folder


class InputError(Exception):
    """Something the user gave cannot be used. `main` prints it as one line, without a traceback."""


def setting(default, help, low=-math.inf, high=math.inf, choices=None, free=False):
    """free: a resumed run may change it, since the result stays the same."""
    return field(default=default, metadata=dict(help=help, low=low, high=high, choices=choices, free=free))


@dataclass
class Settings:
    # pictures
    data_dir: str = setting("data/data101031", "folder with one sub-folder of pictures per category", free=True)
    categories: tuple[str, ...] = setting((), "use these sub-folders, in this order (default: all, by name)")
    image_size: int = setting(224, "side of the picture that the networks see, pixels", 32, 1024)
    cache_dir: str = setting("data/cache", "where decoded pictures are kept for later runs", free=True)
    cache_gb: float = setting(16.0, "largest size of cache_dir, all data sets together, GB; the oldest make "
                              "room, and pictures beyond it are decoded again in each epoch", 0, 1e6, free=True)
    # folds
    num_folds: int = setting(5, "number of parts that the pictures are cut into", 2, 100)
    folds: tuple[int, ...] = setting((), "train these folds only, such as 0 2 (default: all)", 0)
    groups: str = setting("", "CSV file with columns path,group: pictures of one group, such as one object "
                          "photographed often, stay in one part", free=True)
    copies: str = setting("near", "'near': pictures of which one is the other re-encoded, resized, turned or cropped a "
                          "little stay in one part; 'exact': only identical ones do, for pictures that all look alike, "
                          "such as those of one fixed camera", choices=("near", "exact"))
    seed: int = setting(42, "decides parts, order, views, mixup, dropout and initial weights", 0, 2**31 - 1)
    # networks
    teacher_weights: str = setting(DOWNLOAD, "ResNet50 .pdparams file; 'paddle' downloads ImageNet weights, "
                                   "'random': an untrained network, no download (for trying out)", free=True)
    student_weights: str = setting(DOWNLOAD, "MobileNetV2 .pdparams file, 'paddle' or 'random', likewise", free=True)
    freeze_depth: int = setting(14, "frozen blocks of the student, of 19; 0 trains all of it, 19 only the head, which "
                                "features cannot teach", 0, BLOCKS)
    dropout: float = setting(0.5, "share of the student's hidden units dropped in training", 0, 0.95)
    head_views: int = setting(2, "augmented views per picture, beside the plain one, that the teacher's "
                              "heads are fitted on; at most 20,000 / number of pictures", 0, 20)
    head_c: float = setting(0.01, "inverse regularisation of the teacher's heads (scikit-learn's C)", 1e-8)
    # method
    temperature: float = setting(4.0, "softens the soft labels, which --alpha below 1 brings in", 0.01, 1000)
    alpha: float = setting(1.0, "weight of the true labels; 1 - alpha is that of the teacher's soft labels", 0, 1)
    feature_weight: float = setting(8.0, "weight of guessing the teacher's features from the student's, one linear "
                                    "layer; 0 leaves it out", 0, 1000)
    control: bool = setting(False, "train beside every student its twin without a teacher, and compare")
    class_weights: str = setting("balanced", "'balanced' gives every category the same weight in the loss, 'none' every "
                                 "picture", choices=("balanced", "none"))
    mixup_alpha: float = setting(0.2, "parameter of mixup's Beta distribution; 0 switches mixup off", 0, 100)
    batch_size: int = setting(16, "pictures per step and student; rounded so that every part gives the "
                              "same number", 2, 65536)
    num_epochs: int = setting(50, "longest training, epochs", 1, 100000)
    warmup_epochs: int = setting(5, "linear rise of the learning rate, epochs; mixup starts after it", 0)
    patience: int = setting(20, "a fold stops after this many epochs without a better validation accuracy", 1)
    base_lr: float = setting(1e-3, "highest learning rate of Adam", 1e-9, 10)
    weight_decay: float = setting(1e-4, "L2 penalty", 0, 10)
    # views of a picture in training
    flip_horizontal: float = setting(0.5, "probability of a mirrored view", 0, 1)
    flip_vertical: float = setting(0.3, "probability of a view upside down", 0, 1)
    rotation: float = setting(30.0, "largest rotation, degrees", 0, 180)
    crop_pad: int = setting(8, "largest shift of the crop, pixels", 0, 512)
    brightness: float = setting(0.3, "colour jitter: factor within 1 +- this", 0, 1)
    contrast: float = setting(0.3, "colour jitter: factor within 1 +- this", 0, 1)
    saturation: float = setting(0.3, "colour jitter: factor within 1 +- this", 0, 1)
    hue: float = setting(0.1, "colour jitter: turn of the colour circle within +- this", 0, 0.5)
    erasing: float = setting(0.2, "probability that a random rectangle is blanked", 0, 1)
    # machine and places
    device: str = setting("auto", "where the networks run; 'auto' takes a GPU if there is one",
                          choices=("auto", "cpu", "gpu"))
    threads: int = setting(0, "processor cores to use; 0 uses all", 0, 4096, free=True)
    log_dir: str = setting("logs", "one sub-folder per run: report, plots, scalars, VisualDL")
    save_dir: str = setting("models_saved", "best weights of each fold", free=True)
    save_minutes: float = setting(10.0, "longest time between two saves of what --resume needs, minutes; an epoch that "
                                  "ends is saved too, at most once a minute", 0, free=True)
    show: bool = setting(False, "open windows for pictures (they are saved as files in any case)", free=True)

    def check(self):
        """Raise InputError, naming the setting, for a value out of range."""
        for f in dataclasses.fields(self):
            value, m = getattr(self, f.name), f.metadata
            for v in value if isinstance(value, tuple) else (value,):
                if m["choices"] and v not in m["choices"]:
                    raise InputError(f"--{f.name} {v}: must be one of {', '.join(m['choices'])}")
                if isinstance(v, (int, float)) and not (m["low"] <= v <= m["high"] and math.isfinite(v)):
                    limits = "" if math.isfinite(v) else "finite, "
                    limits += f"at least {m['low']}" + (f" and at most {m['high']}" if m["high"] < math.inf else "")
                    raise InputError(f"--{f.name} {v}: must be {limits}")
        for name in ("folds", "categories"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise InputError(f"--{name} {' '.join(map(str, getattr(self, name)))}: one is named twice")
        if self.folds and max(self.folds) >= self.num_folds:
            raise InputError(f"--folds {max(self.folds)}: with --num_folds {self.num_folds} the folds are "
                             f"0 to {self.num_folds - 1}")
        if self.num_epochs <= self.warmup_epochs:
            raise InputError(f"--num_epochs {self.num_epochs}: must be more than --warmup_epochs "
                             f"{self.warmup_epochs}, or the learning rate never reaches --base_lr")
        for name in () if self.categories else ("log_dir", "save_dir", "cache_dir"):  # categories of the next run?
            place, data = (os.path.join(os.path.realpath(p), "") for p in (getattr(self, name), self.data_dir))
            if place.startswith(data) and not place.removeprefix(data).startswith("."):
                raise InputError(f"--{name} {getattr(self, name)}: is or lies in --data_dir {self.data_dir}, where every "
                                 "sub-folder is a category; choose another place, or name the categories with --categories")
        if self.control and not self.has_teacher:
            raise InputError("--control: with --alpha 1 and --feature_weight 0 (or --freeze_depth 19, where features teach "
                             "nothing) the student has no teacher either, and its twin would be the same; leave --control out")
        return self

    @property
    def has_teacher(self):
        """Whether the student hears the teacher at all."""
        return self.alpha < 1 or self.learns_features

    @property
    def learns_features(self):
        """Whether it learns by guessing the teacher's features: where all of its blocks are frozen, its own never change."""
        return self.feature_weight > 0 and self.freeze_depth < BLOCKS


# What `--sample` changes: pictures drawn by data/make_sample.py, networks that need no download.
SAMPLE = dict(data_dir="data/sample", image_size=48, teacher_weights=RANDOM, student_weights=RANDOM, freeze_depth=7,
              dropout=0.2, num_epochs=24, warmup_epochs=2, crop_pad=3)

# Of --help: the first setting below each heading.
HEADINGS = {"data_dir": "pictures", "num_folds": "folds", "teacher_weights": "networks", "temperature": "method",
            "flip_horizontal": "views of a picture in training", "device": "machine and places"}


def element_type(f):
    """The type of one value of a field: `tuple[int, ...]` -> int."""
    return f.type.__args__[0] if isinstance(f.default, tuple) else f.type


def parse(argv=None, description=None):
    """Settings from a command line (default: the program's own); unknown options are refused.

    Returns (settings, whether it is the sample set, None or the value of --resume).
    """
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False, usage="%(prog)s [--resume] [options]",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", action="store_true",
                        help="draw a small set of pictures and train on it: no download, minutes on a laptop; sets some "
                             "other defaults (README)")
    parser.add_argument("--resume", nargs="?", const=NEWEST, metavar="FOLDER",
                        help="go on with a run that was stopped, such as logs/20260101-120000 (default: the newest), "
                             "with its own settings")
    for f in dataclasses.fields(Settings):
        if f.name in HEADINGS:
            group = parser.add_argument_group(HEADINGS[f.name])
        options = dict(default=None, help=f.metadata["help"])
        if f.type is bool:
            options.update(action="store_true")
        else:
            options.update(type=element_type(f), choices=f.metadata["choices"],
                           metavar=None if f.metadata["choices"] else {int: "N", float: "X", str: "PATH"}[element_type(f)])
            if isinstance(f.default, tuple):
                options.update(nargs="+", metavar="N" if element_type(f) is int else "NAME")
            elif f.default != "":
                limits = "{low} to {high}, ".format(**f.metadata) if f.metadata["high"] < math.inf else ""
                options["help"] += f" ({limits}default: {f.default})"
        group.add_argument(f"--{f.name}", **options)
    given = {k: tuple(v) if isinstance(v, list) else v
             for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    sample, folder = given.pop("sample"), given.pop("resume", None)
    if sample and not folder:
        given = {**SAMPLE, **given}
    if folder == "":
        raise InputError("--resume '': the name of the folder is empty; leave it out for the newest run")
    if folder == NEWEST:
        folder = newest_run(given.get("log_dir", Settings.log_dir))
    if folder:
        if os.path.basename(os.path.normpath(folder)) in (os.curdir, os.pardir):
            folder = os.path.abspath(folder)  # else the run would seem to lie in itself
        log_dir = os.path.dirname(os.path.normpath(folder)) or "."
        if os.path.realpath(given.get("log_dir", log_dir)) != os.path.realpath(log_dir):
            raise InputError(f"--log_dir {given['log_dir']}: the run {folder} goes on where it is; leave the option out")
        given = {**recorded(folder, given), "log_dir": log_dir}
    return Settings(**given).check(), sample and not folder, folder


def newest_run(log_dir):
    """The newest run in log_dir that can go on, else the newest that has ended. Raises InputError if there is none."""
    def newest(mark, run="*"):
        return max(glob.glob(os.path.join(glob.escape(log_dir), run, mark)), key=os.path.getmtime, default=None)
    found = newest("state-*.npz") or newest("report.json")
    if found:
        begun = os.path.dirname(newest("settings.json") or found)
        run = glob.escape(os.path.basename(begun))
        if not newest("state-*.npz", run) and not newest("report.json", run):
            print(f"note: {begun} has saved nothing to go on with")
        return os.path.dirname(found)
    raise InputError(f"nothing to resume in {log_dir}: no run there has saved its state; name another folder with "
                     "--log_dir, or start a run without --resume")


def recorded(folder, given):
    """The settings of the run in `folder`, with those `given` now that do not change its result.

    Raises InputError for one that would, and where there is no such run.
    """
    path = os.path.join(folder, "settings.json")
    try:
        with open(path, encoding="utf-8") as f:
            known = json.load(f)
        fields = {f.name: f for f in dataclasses.fields(Settings)}
        before = {name: tuple(known[name]) if isinstance(f.default, tuple) else known[name]
                  for name, f in fields.items()}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"--resume {folder}: not a run of this program, {path} says nothing ({e})") from e
    for name, value in given.items():
        if not fields[name].metadata["free"] and name != "log_dir" and composed(value) != composed(before[name]):
            raise InputError(f"--{name} {_shown(value)}: the run {folder} began with {_shown(before[name])}, and another "
                             "value would change its result; leave the option out, or start a new run")
    return {**before, **{name: value for name, value in given.items() if fields[name].metadata["free"]}}


def composed(value):
    """A name, or each of a tuple, with accents as part of their letters: a Mac may store them apart."""
    if isinstance(value, tuple):
        return tuple(map(composed, value))
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


def _shown(value):
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple) else value


def table():
    """The README's Markdown table of all settings."""
    rows = ["| option | default | meaning |", "| --- | --- | --- |"]
    for f in dataclasses.fields(Settings):
        default = json.dumps(f.default) if not isinstance(f.default, (str, tuple)) else \
            f.default or ("none" if f.type is str else "all")
        rows.append(f"| `--{f.name}` | {default} | {f.metadata['help']} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
