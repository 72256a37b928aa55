"""How well is the confidence of several students together calibrated? Measured on new images.

    python benchmarks/ensemble_calibration.py                       # trains the sample run first
    python benchmarks/ensemble_calibration.py --model_path models_saved/best_model_fold*.pdparams

Out-of-fold images cannot tell, since each is new to one student only; but of the sample set, any
number of new images can be drawn. --model_path takes the students of a finished `python main.py
--sample`; then it is one minute on 2 cores.

Measured with five students of `main.py --sample` (commit 5354f6f, seed 42) on 4000 new images, two
minutes on 2 busy cores of an AMD EPYC:

    students                               accuracy   confidence   calibration   negative
                                                                         error   log-likelihood
    one, raw (mean of five)                   0.670        0.620        0.0529           0.7929
    one, calibrated (mean of five)            0.670        0.648        0.0309           0.7838
    all, mean of raw probabilities            0.725        0.583        0.1424           0.7318
    all, mean of calibrated probabilities     0.728        0.606        0.1220           0.7087
    all, mean of calibrated logits            0.728        0.634        0.0949           0.6870

So temperatures fitted on out-of-fold images hold for new ones. inference.py averages calibrated
logits, the best of the three, and is still underconfident: a further temperature of 0.64 would
correct it here. A run cannot fit that one, since no training image is new to two students.
"""
import glob
import os
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
import utils  # before cv2 and numpy

# isort: split
import cv2
import numpy as np
from scipy.special import log_softmax, softmax

import main as program
from data.make_sample import CATEGORIES, draw
from utils.command import Parser, run_command
from utils.engine import choose_device, compiled
from utils.predict import load_students
from utils.report.statistics import calibration_error, fit_temperature
from utils.transforms import normalize, preprocess

IMAGES, SEED = 4000, 12345  # the sample set's own seed is 7


def row(what, probabilities, labels):
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    loss = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    error = calibration_error(probabilities, labels)
    print(f"{what:40}{right.mean():9.3f}{confidence.mean():16.3f}{error:19.4f}{loss:16.4f}"
          f"{fit_temperature(probabilities, labels):18.2f}")


def main():
    parser = Parser(__doc__)
    parser.add_argument("--model_path", nargs="+", metavar="FILE",
                        help="weights of a sample run (default: train one)")
    paths = parser.parse_args().model_path
    choose_device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        if not paths:
            places = [arg for name in ("data", "cache", "log", "save")
                      for arg in (f"--{name}_dir", os.path.join(folder, name))]
            program.main(["--sample", *places])
            paths = sorted(glob.glob(os.path.join(folder, "save", "*.pdparams")))
        about, students, temperatures = load_students(paths, CATEGORIES)

    size = about["image_size"]
    labels = np.arange(IMAGES) % len(CATEGORIES)
    drawn = (draw(CATEGORIES[c], np.random.default_rng([SEED, c, i])) for i, c in enumerate(labels))
    x = normalize([preprocess(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), size) for image in drawn])
    networks = [compiled(s, [3, size, size], utils.CORES) for s in students]
    logits = np.stack([
        np.concatenate([run(x[i:i + 50]).numpy() for i in range(0, IMAGES, 50)]) / temperature
        for run, temperature in zip(networks, temperatures)])

    print(f"\n{IMAGES} new images, temperatures " + " ".join(f"{t:.2f}" for t in temperatures))
    print(f"{'':40} accuracy  mean confidence  calibration error  negative log-l.  "
          "best temperature")
    for path, z, t in zip(paths, logits, temperatures):
        row(f"{os.path.basename(path)}, raw", softmax(z * t, axis=1), labels)
        row(f"{os.path.basename(path)}, calibrated", softmax(z, axis=1), labels)
    raw = logits * np.array(temperatures)[:, None, None]
    row("all, mean of raw probabilities", softmax(raw, axis=2).mean(0), labels)
    row("all, mean of calibrated probabilities", softmax(logits, axis=2).mean(0), labels)
    together = softmax(log_softmax(logits, axis=2).mean(0), axis=1)
    row("all, mean of calibrated logits", together, labels)


if __name__ == "__main__":
    run_command(main)
