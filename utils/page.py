"""report.html: all of a run on one page that needs nothing else, to read or to mail.

    python main.py --sample        # writes it into logs/<run>/
"""
import base64
import html
import os

import numpy as np

from utils.checkpoint import load_into
from utils.explain import explain
from utils.tables import printable
from utils.transforms import eval_view

EXAMPLES, MOST = 4, 200  # of each category, right and wrong; of all, at 40 kB each in a page to mail
PLOTS = (("confusion_matrix.png", "Confusion matrix"), ("confidence.png", "Confidence"), ("curves.png", "Training"),
         ("mistakes.png", "The surest mistakes: many will be wrong labels"),
         ("training_views.png", "Five pictures and what the networks saw of them in training"))
STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
pre { font-size: 13px; line-height: 1.35; overflow-x: auto; background: #f6f6f6; padding: 1rem }
img { max-width: 100% } h2 { margin-top: 2.5rem } td { padding: 0 2rem 0 0; vertical-align: top }
figure { display: inline-block; width: 15rem; margin: 0 1rem 1rem 0; vertical-align: top; overflow-wrap: anywhere }
figcaption { font-size: 13px } figure img { width: 100% }"""


def write_page(folder, text, report, folds, answers, pictures):
    """Write report.html into the folder of a run, from the report, its text, and the plots that stand there."""
    best = report["out_of_fold"][report["headline"]]
    low, high = best["accuracy_interval"]
    flattered = " Its epoch was chosen on these very pictures, which flatters." if report["headline"] == "student" else ""
    parts = [f"<h1>{best['accuracy']:.1%} right</h1><p>Run {escaped(report['run'])}: {report['out_of_fold']['pictures']} "
             f"pictures, each judged by a student that never saw it; 95 % interval {low:.1%} to {high:.1%}.{flattered}</p>"
             f"<pre>{escaped(text)}</pre>"]
    for name, title in PLOTS:
        path = os.path.join(folder, name)
        if os.path.exists(path):
            with open(path, "rb") as f:
                parts.append(f"<h2>{title}</h2>{image(f.read(), 'png', title)}")
    parts.append("<h2>Examples</h2><p>The surest right and wrong answers of each category, the "
                 f"first {MOST} of them, each by the student (best epoch) "
                 "that never saw the picture. Red is what spoke for its answer (Grad-CAM); what a network looks at is "
                 "coarse, 32 pixels to a cell, and glows at borders too.</p>")
    for category, shown in examples(folds, answers["student"].probabilities, pictures).items():
        parts += [f"<h3>{escaped(category)}</h3>"] * bool(shown)
        parts += [f"<figure>{image(jpeg, 'jpeg', caption)}<figcaption>{escaped(caption)}</figcaption></figure>"
                  for jpeg, caption in shown]
    for title, values in (("Settings", report["settings"]), ("Versions", report["versions"])):
        rows = "".join(f"<tr><td>{escaped(k)}<td>{escaped(' '.join(map(str, v)) if isinstance(v, tuple) else v)}"
                       for k, v in values.items())
        parts.append(f"<h2>{title}</h2><table>{rows}</table>")
    page = (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{escaped(report['run'])}</title><style>{STYLE}</style>" + "\n".join(parts))
    with open(os.path.join(folder, "report.html"), "w", encoding="utf-8", errors="backslashreplace") as f:
        f.write(page)


def escaped(value):
    return html.escape(str(value))


def image(content, kind, alt):
    """The bytes of a picture file as an element that holds them."""
    return f'<img alt="{escaped(alt)}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'


def examples(folds, probabilities, pictures):
    """{category: [(JPEG file of a picture and its heat map, caption)]}, the surest answers first, right before wrong.

    probabilities: float [N, C], calibrated, rows in the order of the folds' pictures.
    """
    few = max(1, min(EXAMPLES, MOST // (2 * len(pictures.categories))))
    rows, shown = np.concatenate([f.pictures for f in folds]), {c: [] for c in pictures.categories}
    labels, guess, confidence = pictures.labels[rows], probabilities.argmax(1), probabilities.max(1)
    chosen = []
    for c in range(len(pictures.categories)):
        for some in (labels == c) & (guess == labels), (labels == c) & (guess != labels):
            there = np.flatnonzero(some)
            chosen += there[np.argsort(-confidence[there], kind="stable")][:few].tolist()
    chosen = chosen[:MOST]
    drawn = {}
    for f in folds:
        load_into(f.student, f.best_weights, f.name)
        for i in np.array(chosen)[np.isin(rows[chosen], f.pictures)]:
            view = eval_view(pictures.square(rows[i]), f.settings.image_size)
            drawn[i] = explain([f.student], [1.0], view, guess[i])
    for i in chosen:
        is_wrong = "" if guess[i] == labels[i] else f", wrong: {pictures.categories[guess[i]]}"
        shown[pictures.categories[labels[i]]].append(
            (drawn[i], f"{printable(pictures.paths[rows[i]])}{is_wrong}, {confidence[i]:.3f}"))
    return shown
