"""Every setting of a run: name, default, unit, allowed range and help, in one dataclass.

The command line, --help, the table of docs/settings.md and the JSON beside each weights file are
made from it.

    python -m utils.settings        # prints that table
"""
import dataclasses
import json
import math
import os
from dataclasses import dataclass, field
from os.path import expanduser

from utils.command import Parser
from utils.errors import InputError

FINAL = "final_model.pdparams"  # in save_dir: the student that learned from all images
DOWNLOAD, RANDOM = "paddle", "random"
NEWEST = "the newest"  # --resume without a folder


def setting(default, help, low=-math.inf, high=math.inf, choices=None, free=False,
            per_student=False, off=None):
    """free: --resume may change it, since the result stays the same. per_student: students on the
    same batches may differ in it. off: its value in a control, which learns without the teacher.
    """
    return field(default=default, metadata=dict(help=help, low=low, high=high, choices=choices,
                                                free=free, per_student=per_student, off=off))


@dataclass
class Settings:
    """All settings of a run, with their defaults; `python main.py --help` explains them."""
    # images
    data_dir: str = setting("data/data101031", "folder with one sub-folder of images per category",
                            free=True)
    categories: tuple[str, ...] = setting((), "use these sub-folders, in this order (default: all, "
                                          "sorted by name)")
    exclude: tuple[str, ...] = setting((), "leave out these sub-folders (default: none)")
    image_size: int = setting(224, "side of the square that the networks see, pixels", 32, 1024)
    cache_dir: str = setting("data/cache", "where decoded images and stored augmentations are kept "
                             "for later runs",
                             free=True)
    cache_gb: float = setting(16.0, "size limit of decoded images in cache_dir, GB; the oldest are "
                              "deleted first, and images that do not fit are decoded again in "
                              "every epoch", 0, 1e6, free=True)
    store_gb: float = setting(32.0, "size limit of what --stored_augmentations keeps in cache_dir, "
                              "GB; the oldest is deleted first", 0, 1e6, free=True)
    # folds
    num_folds: int = setting(5, "number of folds", 2, 100)
    folds: tuple[int, ...] = setting((), "train only these folds, such as 0 2 (default: all)", 0)
    groups: str = setting("", "CSV file with the columns path,group: images of one group, such as "
                          "photos of one object, stay in one fold", free=True)
    duplicates: str = setting("near", "images that stay in one fold: 'near' also finds copies that "
                              "were re-encoded, resized, rotated, mirrored or slightly cropped; "
                              "'exact' only identical images, for data that all looks alike, such "
                              "as from one fixed camera", choices=("near", "exact"))
    seed: int = setting(42, "random seed for folds, order, augmentation, mixup, dropout and "
                        "initial weights", 0, 2**31 - 1)
    # networks
    teacher_weights: str = setting(DOWNLOAD, "ResNet50 .pdparams file; 'paddle' downloads ImageNet "
                                   "weights, 'random' takes an untrained network (to try the "
                                   "program without a download)", free=True)
    student_weights: str = setting(DOWNLOAD, "MobileNetV2 .pdparams file, 'paddle' or 'random'",
                                   free=True)
    freeze_depth: int = setting(14, "frozen blocks of the student, of 19; 0 trains all of it, 19 "
                                "only its head (which the feature loss cannot reach)", 0, 19)
    dropout: float = setting(0.5, "dropout before the student's last layer", 0, 0.95,
                             per_student=True)
    head_views: int = setting(2, "augmented copies of each image that the teacher's heads are "
                              "fitted on, besides the plain one; at most 20,000 / number of images",
                              0, 20)
    head_c: float = setting(0.01, "inverse regularization of the teacher's heads (scikit-learn's "
                            "C)", 1e-8)
    # method
    temperature: float = setting(4.0, "temperature of the soft labels (used when alpha is below 1)",
                                 0.01, 1000, per_student=True)
    alpha: float = setting(0.97, "weight of the true labels; 1 - alpha is the weight of the "
                           "teacher's soft labels, its probabilities of all categories; 1 leaves "
                           "them out", 0, 1, per_student=True, off=1.0)
    feature_weight: float = setting(8.0, "weight of the feature loss: the student regresses the "
                                    "teacher's features through one linear layer; 0 switches it "
                                    "off", 0, 1000, per_student=True, off=0.0)
    no_final_model: bool = setting(False, "train one student per fold only, and no final model, "
                                   "which learns from all images")
    control: bool = setting(False, "also train every student without the teacher, and compare")
    class_weights: str = setting("balanced", "'balanced' gives every category the same weight in "
                                 "the loss, 'none' every image", choices=("balanced", "none"),
                                 per_student=True)
    mixup_alpha: float = setting(0.2, "parameter of mixup's Beta distribution; 0 switches mixup "
                                 "off", 0, 100)
    stored_augmentations: int = setting(8, "number of augmented versions of each image, made "
                                        "once; what the frozen networks compute of them is kept in "
                                        "cache_dir, and each epoch reads one version; 0: new "
                                        "augmentations in every epoch; unless given, at most "
                                        "num_epochs, and 0 without room on the disk or with "
                                        "freeze_depth 0", 0, 10000)
    batch_size: int = setting(16, "images per step and student, rounded so that every fold "
                              "contributes the same number", 2, 65536)
    num_epochs: int = setting(50, "maximum number of epochs", 1, 100000)
    warmup_epochs: int = setting(5, "epochs of linear learning rate warm-up, before mixup starts; "
                                 "unless given, at most a tenth of num_epochs", 0)
    patience: int = setting(20, "early stopping: after this many epochs without improvement",
                            1, per_student=True)
    base_lr: float = setting(1e-3, "peak learning rate of Adam", 1e-9, 10, per_student=True)
    weight_decay: float = setting(1e-4, "L2 penalty", 0, 10, per_student=True)
    # augmentation
    flip_horizontal: float = setting(0.5, "probability of a horizontal flip", 0, 1)
    flip_vertical: float = setting(0.3, "probability of a vertical flip", 0, 1)
    rotation: float = setting(30.0, "largest rotation, degrees", 0, 180)
    crop_pad: int = setting(8, "largest shift of the crop, pixels", 0, 512)
    brightness: float = setting(0.3, "brightness jitter: factor from 1 - X to 1 + X", 0, 1)
    contrast: float = setting(0.3, "contrast jitter: factor from 1 - X to 1 + X", 0, 1)
    saturation: float = setting(0.3, "saturation jitter: factor from 1 - X to 1 + X", 0, 1)
    hue: float = setting(0.1, "hue jitter: shift from -X to X; 1 is a full turn", 0, 0.5)
    erasing: float = setting(0.2, "probability that a random rectangle is erased", 0, 1)
    # machine and output
    device: str = setting("auto", "'auto' takes a GPU if one works; or 'cpu', 'gpu'",
                          choices=("auto", "cpu", "gpu"), free=True)
    no_half: bool = setting(False, "compute the teacher in float32 even where half precision is "
                            "faster (processors with bfloat16, GPUs)")
    threads: int = setting(0, "processor cores to use; 0: all", 0, 4096, free=True)
    log_dir: str = setting("logs", "one sub-folder per run: report, plots, scalars, VisualDL")
    save_dir: str = setting("models_saved", "folder for the best weights of each fold and of the "
                            "final model", free=True)
    save_minutes: float = setting(10.0, "minutes between two checkpoints for --resume; the end of "
                                  "an epoch is saved as well, at most once a minute", 0, free=True)
    show: bool = setting(False, "open windows with images (they are saved as files in any case)",
                         free=True)

    def __post_init__(self):
        for name in ("folds", "categories", "exclude"):  # JSON has lists
            setattr(self, name, tuple(getattr(self, name)))

    def check(self):
        """Returns self. Raises InputError that names the setting whose value cannot be used."""
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            values = value if isinstance(value, tuple) else (value,)
            for v in values:
                check_value(f, v)
            if len(set(values)) < len(values):
                raise InputError(f"--{f.name} {shown(values)}: one is named twice")
        if self.folds and max(self.folds) >= self.num_folds:
            raise InputError(f"--folds {max(self.folds)}: with --num_folds {self.num_folds} the "
                             f"folds are 0 to {self.num_folds - 1}")
        if self.num_epochs <= self.warmup_epochs:
            raise InputError(f"--num_epochs {self.num_epochs}: must be more than --warmup_epochs "
                             f"{self.warmup_epochs}, or the learning rate never reaches --base_lr")
        # the next run would take a folder of output for a category, and plots for images
        inputs = [os.path.join(self.data_dir, c) for c in self.categories] or [self.data_dir]
        for name in ("log_dir", "save_dir", "cache_dir"):
            output, *data = (os.path.join(os.path.realpath(p), "")
                             for p in (getattr(self, name), *inputs))
            if any(output.startswith(d) and not output[len(d):].startswith(".") for d in data):
                where = ("a folder of --categories; choose another place" if self.categories else
                         f"--data_dir {self.data_dir}, where every sub-folder is a category; "
                         "choose another place, or name the categories with --categories")
                raise InputError(f"--{name} {getattr(self, name)}: is or lies in {where}")
        if self.control and not self.has_teacher:
            raise InputError("--control: with --alpha 1 and --feature_weight 0 (or --freeze_depth "
                             "19) the student has no teacher either; leave --control out")
        return self

    @property
    def has_teacher(self):
        """Whether the student learns anything from the teacher."""
        return self.alpha < 1 or self.has_feature_loss

    @property
    def has_feature_loss(self):
        """With all 19 blocks frozen the student's features cannot change."""
        return self.feature_weight > 0 and self.freeze_depth < 19

    def without_teacher(self):
        """The settings of the control: what comes from the teacher is switched off."""
        return dataclasses.replace(self, **{f.name: f.metadata["off"]
                                            for f in dataclasses.fields(self)
                                            if f.metadata["off"] is not None})

    @property
    def augmentation(self):
        """{name: value} of the settings below `# augmentation`."""
        names = [f.name for f in dataclasses.fields(self)]
        between = names[names.index("flip_horizontal"):names.index("device")]
        return {name: getattr(self, name) for name in between}

    @property
    def trained_folds(self):
        """The folds whose students are trained, in order."""
        return sorted(self.folds) or list(range(self.num_folds))

    @property
    def has_final_model(self):
        """Whether one more student learns from all images; its epoch needs at least two folds."""
        return not self.no_final_model and len(self.trained_folds) > 1

    @property
    def held_out(self):
        """The fold that each student does not train on; for the final model num_folds, a fold
        without images."""
        return self.trained_folds + [self.num_folds] * self.has_final_model


FINAL_MODEL = os.path.join(Settings.save_dir, FINAL)  # what inference, export and serve take

# What --sample changes: images drawn by data/make_sample.py, networks that need no download; soft
# labels of an untrained teacher, and stored augmentations, would make its students worse
SAMPLE = dict(data_dir="data/sample", image_size=40, teacher_weights=RANDOM, student_weights=RANDOM,
              freeze_depth=2, dropout=0.0, alpha=1.0, feature_weight=0.3, mixup_alpha=0.0,
              stored_augmentations=0, batch_size=32, num_epochs=24, warmup_epochs=2, base_lr=1e-2,
              crop_pad=3, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.02, erasing=0.0)

# Headings of --help: the first setting below each
HEADINGS = {"data_dir": "images", "num_folds": "folds", "teacher_weights": "networks",
            "temperature": "method", "flip_horizontal": "augmentation",
            "device": "machine and output"}


def check_value(f, value):
    """Raises InputError unless a value of the field `f` is one of its choices, or in its range."""
    choices, low, high = (f.metadata[k] for k in ("choices", "low", "high"))
    if choices and value not in choices:
        raise InputError(f"--{f.name} {value}: must be one of {', '.join(choices)}")
    if isinstance(value, (int, float)) and not (low <= value <= high and abs(value) < math.inf):
        finite = "" if abs(value) < math.inf else "finite, "  # math.isfinite fails with 10**400
        at_most = f" and at most {high}" if high < math.inf else ""
        raise InputError(f"--{f.name} {value}: must be {finite}at least {low}{at_most}")


def parse(argv=None, description=None):
    """Read a command line (default: the program's own); exits at options that do not exist.

    Returns (given, sample, resume): {name: value} of the settings on it, whether --sample is, and
    None, NEWEST or the folder to resume.
    """
    parser = Parser(description, usage="%(prog)s [--resume] [options]")
    parser.add_argument("--sample", action="store_true",
                        help="draw a small set of images and train on it: no download, a few "
                             "minutes on a laptop; changes some defaults (docs/settings.md)")
    parser.add_argument("--resume", nargs="?", const=NEWEST, metavar="FOLDER", type=expanduser,
                        help="continue a run that was stopped, such as logs/20260101-120000 "
                             "(default: the newest unfinished), with its settings")
    for f in dataclasses.fields(Settings):
        if f.name in HEADINGS:
            group = parser.add_argument_group(HEADINGS[f.name])
        several, choices = isinstance(f.default, tuple), f.metadata["choices"]
        kind = f.type.__args__[0] if several else f.type  # tuple[int, ...] -> int
        options = dict(default=None, help=f.metadata["help"])
        if f.type is bool:
            options.update(action="store_true")
        else:
            metavar = None if choices else {int: "N", float: "X", str: "PATH"}[kind]
            options.update(type=expanduser if metavar == "PATH" else kind, choices=choices,
                           metavar=metavar)
            if several:
                options.update(nargs="+", metavar="N" if kind is int else "NAME")
            elif f.default != "":
                bounded = f.metadata["high"] < math.inf
                limits = "{low} to {high}, ".format(**f.metadata) if bounded else ""
                options["help"] += f" ({limits}default: {f.default})"
        group.add_argument(f"--{f.name}", **options)
    given = {k: tuple(v) if isinstance(v, list) else v
             for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    sample, resume = given.pop("sample"), given.pop("resume", None)
    if resume == "":
        raise InputError("--resume '': the name of the folder is empty; leave it out for the "
                         "newest run")
    return given, sample, resume


def new_settings(given, sample=False):
    """The Settings of a new run. Raises InputError for a value that cannot be used."""
    settings = Settings(**{**(SAMPLE if sample else {}), **given})
    if "warmup_epochs" not in given:
        settings.warmup_epochs = min(settings.warmup_epochs, settings.num_epochs // 10)
    if "stored_augmentations" not in given:
        few = settings.num_epochs if settings.freeze_depth else 0  # no frozen block, little gained
        settings.stored_augmentations = min(settings.stored_augmentations, few)
    return settings.check()


def shown(value):
    """A value as one types it."""
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple) else value


def table():
    """The Markdown table of all settings."""
    rows = ["| option | default | meaning |", "| --- | --- | --- |"]
    for f in dataclasses.fields(Settings):
        default = json.dumps(f.default) if not isinstance(f.default, (str, tuple)) else \
            f.default or ("all" if "default: all" in f.metadata["help"] else "none")
        rows.append(f"| `--{f.name}` | {default} | {f.metadata['help']} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
