"""Are several students together as honest about their confidence as one? Measured on new pictures.

    python benchmarks/ensemble_calibration.py                                        # trains the sample run first
    python benchmarks/ensemble_calibration.py --model_path models_saved/best_model_fold*.pdparams

Out-of-fold pictures cannot tell: each is new to one student only. Of the sample set, any number of new pictures can be
drawn. --model_path takes the students of a finished `python main.py --sample`; then it is one minute on 2 cores.

Measured with five students of `main.py --sample` (commit 5354f6f, seed 42), 4000 new pictures, two minutes on 2 cores of an
AMD EPYC beside other work:

    who                                       accuracy   mean confidence   calibration error   negative log-likelihood
    one student, raw (mean of five)              0.670             0.620              0.0529                    0.7929
    one student, calibrated (mean of five)       0.670             0.648              0.0309                    0.7838
    all, mean of raw probabilities               0.725             0.583              0.1424                    0.7318
    all, mean of calibrated probabilities        0.728             0.606              0.1220                    0.7087
    all, mean of calibrated logits               0.728             0.634              0.0949                    0.6870

So the temperatures from out-of-fold pictures hold on new ones; inference.py averages calibrated logits, the best of
the three; and several students remain right more often than they say (dividing by a further 0.64 would mend it here).
That correction is not made: no training picture is new to two students, so nothing that a run has can measure it.
"""
import argparse
import glob
import os
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
from utils import runtime  # noqa: E402
import cv2  # noqa: E402
import numpy as np  # noqa: E402
from scipy.special import log_softmax, softmax  # noqa: E402

import main as program  # noqa: E402
from data.make_sample import CATEGORIES, draw  # noqa: E402
from inference import load_students  # noqa: E402
from utils.statistics import calibration_error, fit_temperature  # noqa: E402
from utils.transforms import normalise, whole_view  # noqa: E402

PICTURES, SEED = 4000, 12345  # the sample set's own seed is 7


def row(what, probabilities, labels):
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    loss = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    print(f"{what:46}{right.mean():9.3f}{confidence.mean():16.3f}{calibration_error(probabilities, labels):19.4f}"
          f"{loss:16.4f}{fit_temperature(probabilities, labels):18.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", nargs="+", metavar="FILE", help="of a sample run (default: train one)")
    paths = parser.parse_args().model_path
    runtime.choose_device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        if not paths:
            places = {f"--{name}_dir": os.path.join(folder, name) for name in ("data", "cache", "log", "save")}
            program.main(["--sample", *(a for pair in places.items() for a in pair)])
            paths = sorted(glob.glob(os.path.join(folder, "save", "*.pdparams")))
        about, students, temperatures = load_students(paths, CATEGORIES)

    size = about["image_size"]
    labels = np.arange(PICTURES) % len(CATEGORIES)
    pictures = (cv2.cvtColor(draw(CATEGORIES[c], np.random.default_rng([SEED, c, i])), cv2.COLOR_BGR2RGB)
                for i, c in enumerate(labels))
    x = normalise([whole_view(p, size) for p in pictures])
    networks = [runtime.compiled(s, [3, size, size], runtime.CORES) for s in students]
    logits = np.stack([np.concatenate([run(x[i:i + 50]).numpy() for i in range(0, PICTURES, 50)]) / t
                       for run, t in zip(networks, temperatures)])

    print(f"\n{PICTURES} new pictures, temperatures " + " ".join(f"{t:.2f}" for t in temperatures))
    print(f"{'':46} accuracy  mean confidence  calibration error  negative log-l.  best temperature")
    for path, z, t in zip(paths, logits, temperatures):
        row(f"{os.path.basename(path)}, raw", softmax(z * t, axis=1), labels)
        row(f"{os.path.basename(path)}, calibrated", softmax(z, axis=1), labels)
    raw = logits * np.array(temperatures)[:, None, None]
    row("all, mean of raw probabilities", softmax(raw, axis=2).mean(0), labels)
    row("all, mean of calibrated probabilities", softmax(logits, axis=2).mean(0), labels)
    row("all, mean of calibrated logits", softmax(log_softmax(logits, axis=2).mean(0), axis=1), labels)


if __name__ == "__main__":
    runtime.command(main)
