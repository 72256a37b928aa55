"""report.html: a whole run on a page that needs nothing else."""
import glob
import html
import os
import re
import shutil
import string
import subprocess

import pytest

from conftest import read_rows
from utils.report.languages import TEXTS
from utils.report.page import escaped, image_tag, say

CATEGORIES = ("Harmful", "Kitchen", "Other", "Recyclable")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)
HEADINGS = ("categories", "confusion_matrix.png", "confidence.png", "curves.png", "mistakes.png",
            "augmented_images.png", "examples", "text", "settings", "versions")


def test_the_page_of_a_run_holds_all_of_it_and_needs_nothing_else(sample):
    where, _ = sample
    run = min(glob.glob(str(where / "logs" / "*")))
    with open(os.path.join(run, "report.html"), encoding="utf-8") as f:
        page = f.read()
    with open(os.path.join(run, "report.txt"), encoding="utf-8") as f:
        top, rest = f.read().split("\n\n", 1)
    assert html.escape(rest.strip()) in page
    notes = [line for line in top.splitlines() if line.startswith("note: ")]
    assert len(notes) > 0 and "note: " not in page
    for note in notes:  # each once
        key = note.removeprefix("note: ").partition("; ")[0].replace("never", "Never")
        assert page.count(html.escape(key)) == 1
    assert "num_folds<td>3" in page
    sources = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>]{20})""", page)
    assert len(sources) > 4 + 8 and all(s.startswith("data:image/") for s in sources)
    assert "http" not in page
    answers = read_rows(os.path.join(run, "out_of_fold.csv"))
    for category in CATEGORIES:
        for right in (True, False):
            several = [r for r in answers if r["label"] == category
                       and (r["prediction"] == category) == right]
            shown = [r for r in several if f"<figcaption>{r['path']}" + (
                say("correct" if right else "wrong", name=r["prediction"],
                    confidence=max(float(r[f"p_{c}"]) for c in CATEGORIES))) in page]
            assert len(shown) == min(4, len(several)), category


def test_names_cannot_add_to_the_page():
    assert "<script" not in image_tag(b"", "png", '"><script>')
    assert escaped("<b>&\"'") == "&lt;b&gt;&amp;&quot;&#x27;"


def test_every_text_says_the_same_figures_in_both_languages():
    for key, texts in TEXTS.items():
        english, chinese = (sorted(field for _, *field, _ in string.Formatter().parse(t)
                                   if field[0]) for t in texts)
        assert english == chinese, key
        assert key in ("f1", "interval", "other") or re.search("[一-鿿]", texts[1]), key
        assert key == "other" or texts[0].isascii(), key
    assert say("largest", name="<纸>").count("&lt;纸&gt;") == 2


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
@pytest.mark.parametrize("locale, clicks, shown", [("zh-CN", 0, 1), ("en-US", 0, 0), ("de", 0, 0),
                                                   ("zh-CN", 1, 0), ("en-US", 1, 1)])
def test_the_page_follows_the_language_of_its_reader(sample, tmp_path, locale, clicks, shown):
    with open(min(glob.glob(str(sample[0] / "logs" / "*" / "report.html"))), encoding="utf-8") as f:
        page = f.read()
    visible = "document.body.textContent = document.body.innerText"
    (tmp_path / "page.html").write_text(
        f"{page}<script>{'button.click();' * clicks}{visible}</script>", "utf-8")
    done = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
                           f"--lang={locale}", f"--accept-lang={locale}",
                           f"--user-data-dir={tmp_path / 'profile'}",
                           (tmp_path / "page.html").as_uri()], capture_output=True, timeout=120)
    dom = done.stdout.decode()
    lines = html.unescape(dom[dom.index("<body>") + len("<body>"):]).splitlines()
    assert f'lang="{("en", "zh")[shown]}"' in dom and TEXTS["other"][shown] in lines[0]
    for key in HEADINGS:
        assert (TEXTS[key][shown] in lines, TEXTS[key][1 - shown] in lines) == (True, False), key
    titles = [line[:-1].rstrip("0123456789.") for line in lines if re.search(r" \d+\.\d%$", line)]
    assert titles == [("Accuracy ", "准确率 ")[shown]]
