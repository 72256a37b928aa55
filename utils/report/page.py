"""report.html: a whole run on one page that needs no other file, to read or to mail."""
import base64
import html
import os

import cv2
import numpy as np

from utils.errors import InputError
from utils.explain import explain
from utils.predict import load_students, read_images
from utils.report.text import summary
from utils.tables import printable
from utils.weights import read_about, weights_path

PER_CATEGORY, MAX_EXAMPLES = 4, 200  # correct and wrong ones each; in all, at 40 kB each
PLOTS = (("confusion_matrix.png", "Confusion matrix"), ("confidence.png", "Confidence"),
         ("curves.png", "Training"),
         ("mistakes.png", "Most confident mistakes, often label errors"),
         ("augmented_images.png", "Five training images, and their augmentations"))
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #222 }
pre { font-size: 13px; line-height: 1.35; overflow-x: auto; background: #f6f6f6; padding: 1rem }
img { max-width: 100% } h2 { margin-top: 2.5rem }
td { padding: 0 2rem 0 0; vertical-align: top }
figure { display: inline-block; width: 15rem; margin: 0 1rem 1rem 0; vertical-align: top;
  overflow-wrap: anywhere }
figcaption { font-size: 13px } figure img { width: 100% }
"""


def write_page(folder, text, report, predictions, settings):
    """Write report.html into the folder of a run, with the plots that are there.

    text: of the report; predictions: build.Predictions.
    """
    oof, best = report["out_of_fold"], report["out_of_fold"][report["headline"]]
    low, high = best["accuracy_interval"]
    optimistic = ("" if report["headline"] != "student" else
                  " Its epoch was chosen on the same images, so the figure is optimistic.")
    body = [f"<h1>Accuracy {best['accuracy']:.1%}</h1>",
            f"<p>Run {escaped(report['run'])}: {oof['images']} images, each predicted by a student "
            f"that was not trained on it; 95 % interval {low:.1%} to {high:.1%}.{optimistic}</p>",
            *(f"<p>{escaped(line)}</p>" for line in summary(report)),
            f"<pre>{escaped(text)}</pre>"]
    for name, title in PLOTS:
        if os.path.exists(os.path.join(folder, name)):
            with open(os.path.join(folder, name), "rb") as f:
                body.append(f"<h2>{title}</h2>{image_tag(f.read(), 'png', title)}")
    body.append("<h2>Examples</h2><p>The most confident correct and wrong predictions of each "
                f"category, at most {MAX_EXAMPLES} in all, by the student (best epoch) that was "
                "not trained on the image. Red marks what counted for the prediction (Grad-CAM). "
                "The map is coarse, 32 pixels to a cell, and may light up at the borders.</p>")
    category = None
    for label, jpeg, caption in examples(predictions, settings, report["run"]):
        if label != category:
            category = label
            body.append(f"<h3>{escaped(settings.categories[label])}</h3>")
        body.append(f"<figure>{image_tag(jpeg, 'jpeg', caption)}"
                    f"<figcaption>{escaped(caption)}</figcaption></figure>")
    for title, values in (("Settings", report["settings"]), ("Versions", report["versions"])):
        rows = [(k, " ".join(map(str, v)) if isinstance(v, tuple) else v)
                for k, v in values.items()]
        body.append(f"<h2>{title}</h2><table>"
                    + "".join(f"<tr><td>{escaped(k)}<td>{escaped(v)}" for k, v in rows)
                    + "</table>")
    head = ('<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{escaped(report['run'])}</title><style>{STYLE}</style>")
    with open(os.path.join(folder, "report.html"), "w", encoding="utf-8",
              errors="backslashreplace") as f:
        f.write(f'<!doctype html><html lang="en">{head}\n' + "\n".join(body))


def escaped(value):
    return html.escape(str(value))


def image_tag(content, kind, alt):
    """The bytes of an image file as an <img> that holds them."""
    data = base64.b64encode(content).decode()
    return f'<img alt="{escaped(alt)}" src="data:image/{kind};base64,{data}">'


def examples(predictions, settings, run):
    """Yield (label, JPEG bytes, caption): the most confident predictions of each category, correct
    ones first, with a heat map if the student's weights are still there."""
    p = predictions.probabilities["student"]
    labels, predicted, confidence = predictions.labels, p.argmax(1), p.max(1)
    count = max(1, min(PER_CATEGORY, MAX_EXAMPLES // (2 * len(settings.categories))))
    chosen = []
    for label in range(len(settings.categories)):
        for correct in (True, False):
            rows = np.flatnonzero((labels == label) & ((predicted == labels) == correct))
            chosen += rows[np.argsort(-confidence[rows], kind="stable")][:count].tolist()
    chosen = chosen[:MAX_EXAMPLES]
    files = [os.path.join(settings.data_dir, predictions.paths[i]) for i in chosen]
    images = dict(zip(chosen, (image for image, _ in read_images(files, settings.image_size))))

    drawn = {}
    for fold in np.unique(predictions.folds[chosen]):
        student = load_student(settings, fold, run)
        for i in (i for i in chosen if predictions.folds[i] == fold and images[i] is not None):
            drawn[i] = (explain([student], [1.0], images[i], predicted[i]) if student else
                        cv2.imencode(".jpg", cv2.cvtColor(images[i], cv2.COLOR_RGB2BGR))[1])
    if len(drawn) < len(chosen):
        print(f"note: report.html lacks {len(chosen) - len(drawn)} examples that are no longer in "
              f"{settings.data_dir}")
    for i in filter(drawn.__contains__, chosen):
        wrong = "" if predicted[i] == labels[i] else f", wrong: {settings.categories[predicted[i]]}"
        yield labels[i], drawn[i], f"{printable(predictions.paths[i])}{wrong}, {confidence[i]:.3f}"


def load_student(settings, fold, run):
    """The student of one fold, from the weights that this run saved; None and a line if they are
    gone. A later run with the same save_dir moves them to save_dir/<run>."""
    path = weights_path(settings, fold)
    for path in (path, os.path.join(settings.save_dir, run, os.path.basename(path))):
        try:
            if read_about(path).get("run") == run:
                return load_students([path])[1][0]
        except InputError:
            continue
    print(f"note: report.html has no heat maps of fold {fold}: its weights are no longer in "
          f"{settings.save_dir}")
    return None
