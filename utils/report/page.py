"""report.html: a whole run on one page that needs no other file, to read or to mail."""
import base64
import html
import os

import cv2
import numpy as np

from utils.errors import InputError
from utils.explain import explain
from utils.predict import one_student, read_images
from utils.report.languages import TEXTS
from utils.report.text import summary
from utils.tables import listed, printable
from utils.weights import read_about, weights_path

PER_CATEGORY, MAX_EXAMPLES = 4, 200  # correct and wrong ones each; in all, at 40 kB each
PLOTS = ("confusion_matrix.png", "confidence.png", "curves.png", "mistakes.png",
         "augmented_images.png")
STYLE = """
html[lang="en"] [lang="zh"], html[lang="zh"] [lang="en"], [hidden] { display: none }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #222 }
button { float: right; font: inherit; padding: .3rem .8rem }
pre { font-size: 13px; line-height: 1.35; overflow-x: auto; background: #f6f6f6; padding: 1rem }
img { max-width: 100% } h2 { margin-top: 2.5rem }
th, td { padding: 0 1.5rem 0 0; vertical-align: top; text-align: left }
figure { display: inline-block; width: 15rem; margin: 0 1rem 1rem 0; vertical-align: top;
  overflow-wrap: anywhere }
figcaption { font-size: 13px } figure img { width: 100% }
"""
SCRIPT = """
const page = document.documentElement, button = document.querySelector("button");
if (navigator.language.startsWith("zh")) page.lang = "zh";
button.onclick = () => { page.lang = page.lang === "zh" ? "en" : "zh"; };
button.hidden = false;
"""


def write_page(folder, text, report, predictions, settings):
    """Write report.html into the folder of a run, with the plots that are there.

    text: of the report; predictions: build.Predictions.
    """
    body = [f"<button hidden>{say('other')}</button>", *headline(report), *notes(report),
            f"<h2>{say('categories')}</h2>", category_table(report)]
    shown = summary(report)
    text = "\n".join(line for line in text.splitlines() if line not in shown)
    for name in PLOTS:
        if os.path.exists(os.path.join(folder, name)):
            with open(os.path.join(folder, name), "rb") as f:
                body.append(f"<h2>{say(name)}</h2>{image_tag(f.read(), 'png', name)}")
    body.append(f"<h2>{say('examples')}</h2>"
                f"<p>{say('examples_explained', most=MAX_EXAMPLES)}</p>")
    category = None
    for label, jpeg, path, caption in examples(predictions, settings, report["run"]):
        if label != category:
            category = label
            body.append(f"<h3>{escaped(settings.categories[label])}</h3>")
        body.append(f"<figure>{image_tag(jpeg, 'jpeg', path)}"
                    f"<figcaption>{escaped(path)}{caption}</figcaption></figure>")
    body.append(f"<h2>{say('text')}</h2><pre>{escaped(text)}</pre>")
    for key in ("settings", "versions"):
        rows = [(escaped(k), escaped(" ".join(map(str, v)) if isinstance(v, tuple) else v))
                for k, v in report[key].items()]
        body.append(f"<h2>{say(key)}</h2>{table(rows)}")
    head = ('<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{escaped(report['run'])}</title><style>{STYLE}</style>")
    with open(os.path.join(folder, "report.html"), "w", encoding="utf-8",
              errors="backslashreplace") as f:
        f.write(f'<!doctype html><html lang="en">{head}\n' + "\n".join(body)
                + f"<script>{SCRIPT}</script>")


def headline(report):
    """The accuracy, and a table of what to compare it with."""
    oof, best = report["out_of_fold"], report["out_of_fold"][report["headline"]]
    low, high = best["accuracy_interval"]
    optimistic = report["headline"] == "student"
    lines = [f"<h1>{say('title', **best)}</h1>",
             "<p>" + say("run", run=report["run"], images=oof["images"], low=low, high=high)
             + say("optimistic") * optimistic + "</p>"]
    control, largest = report["headline"].replace("student", "control"), report["largest_category"]
    rows = [(say(name), interval(oof[name], "accuracy"), f"{oof[name]['balanced_accuracy']:.3f}")
            for name in (report["headline"], control, "teacher") if name in oof]
    rows.append((say("largest", name=printable(largest["name"])), f"{largest['accuracy']:.3f}",
                 f"{largest['balanced_accuracy']:.3f}"))
    lines += [table(rows, ("", say("accuracy"), say("balanced_accuracy"))),
              f"<p>{say('balanced')}{'' if optimistic else say('cross_fitted')}</p>"]
    c, final = report.get("student_against_control"), report.get("final_model")
    if c:
        low, high = c["difference_interval"]
        lines.append(f"<p>{say('compared', **c, low=low, high=high)}</p>")
    if final:
        lines.append(f"<p>{say('final', accuracy=final['expected_accuracy'])}</p>")
    return lines


def notes(report):
    """Categories never predicted, failures and notes: HTML, nothing if there are none."""
    lines = []
    if report["never_predicted"]:
        lines.append(f"<p>{say('never_predicted', names=listed(report['never_predicted']))}</p>")
    found = report.get("failed", []) + report.get("notes", [])
    if found:
        lines += [f"<h2>{say('notes')}</h2><p>{say('notes_explained')}</p><ul>",
                  *(f"<li>{escaped(note)}" for note in found), "</ul>"]
    return lines


def category_table(report):
    """Precision, recall and F1 of each category: HTML."""
    rows = [(escaped(printable(name)), interval(c, "precision"), interval(c, "recall"),
             f"{c['f1-score']:.3f}", f"{c['support']:.0f}")
            for name, c in report["categories"].items()]
    header = [say(key) for key in ("category", "precision", "recall", "f1", "images")]
    return table(rows, header)


def say(key, **values):
    """A text in both languages; the page shows the one of its reader."""
    return "".join(f'<span lang="{language}">{escaped(text.format(**values))}</span>'
                   for language, text in zip(("en", "zh"), TEXTS[key]))


def interval(figures, key):
    """A figure with its 95 % interval: HTML."""
    low, high = figures[f"{key}_interval"]
    return say("interval", value=figures[key], low=low, high=high)


def table(rows, header=()):
    """Rows of cells, which are HTML, as a <table>."""
    lines = ["".join(f"<th>{cell}" for cell in header)] if header else []
    lines += ["".join(f"<td>{cell}" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}" for line in lines) + "</table>"


def escaped(value):
    """Any value as text that HTML cannot take for markup."""
    return html.escape(str(value))


def image_tag(content, kind, alt):
    """The bytes of an image file as an <img> that holds them."""
    data = base64.b64encode(content).decode()
    return f'<img alt="{escaped(alt)}" src="data:image/{kind};base64,{data}">'


def examples(predictions, settings, run):
    """Yield (label, JPEG bytes, path, rest of the caption): the most confident predictions of each
    category, correct ones first, with a heat map if the student's weights are still there."""
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
        key = "correct" if predicted[i] == labels[i] else "wrong"
        name = settings.categories[predicted[i]]
        yield labels[i], drawn[i], printable(predictions.paths[i]), say(
            key, name=name, confidence=confidence[i])


def load_student(settings, fold, run):
    """The student of one fold, from the weights that this run saved; None and a line if they are
    gone. A later run with the same save_dir moves them to save_dir/<run>."""
    path = weights_path(settings, fold)
    for path in (path, os.path.join(settings.save_dir, run, os.path.basename(path))):
        try:
            if read_about(path).get("run") == run:
                return one_student(path)[1]
        except InputError:
            continue
    print(f"note: report.html has no heat maps of fold {fold}: its weights are no longer in "
          f"{settings.save_dir}")
    return None
