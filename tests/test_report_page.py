"""report.html: a whole run on a page that needs nothing else."""
import glob
import html
import os
import re

from conftest import read_rows
from utils.report.page import escaped, image_tag


def test_the_page_of_a_run_holds_all_of_it_and_needs_nothing_else(sample):
    where, _ = sample
    run = min(glob.glob(str(where / "logs" / "*")))
    with open(os.path.join(run, "report.html"), encoding="utf-8") as f:
        page = f.read()
    with open(os.path.join(run, "report.txt"), encoding="utf-8") as f:
        assert html.escape(f.read()) in page
    assert "num_folds<td>3" in page
    sources = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>]{20})""", page)
    assert len(sources) > 4 + 8 and all(s.startswith("data:image/") for s in sources)
    assert "http" not in page
    answers = read_rows(os.path.join(run, "out_of_fold.csv"))
    for category in ("Harmful", "Kitchen", "Other", "Recyclable"):
        for right in (True, False):
            several = [r for r in answers if r["label"] == category
                       and (r["prediction"] == category) == right]
            shown = [r for r in several if f"<figcaption>{r['path']}"
                     f"{', 0' if right else ', wrong: ' + r['prediction']}" in page]
            assert len(shown) == min(4, len(several)), category


def test_names_cannot_add_to_the_page():
    assert "<script" not in image_tag(b"", "png", '"><script>')
    assert escaped("<b>&\"'") == "&lt;b&gt;&amp;&quot;&#x27;"
