"""Documents name files, modules, tests, pages and headings that exist."""
import glob
import os
import re

import pytest

from conftest import ROOT
from utils import VERSION
from utils.command import Parser
from utils.settings import table

DOCUMENTS = ["CONTRIBUTING.md", "README.md", "README.zh-CN.md", "data/README.md",
             *sorted(glob.glob("docs/*.md", root_dir=ROOT))]


def read(document):
    with open(os.path.join(ROOT, document), encoding="utf-8") as f:
        return f.read()


def known_names():
    """Paths in the repository, and the last parts of them."""
    paths = [os.path.relpath(p, ROOT).replace(os.sep, "/")
             for p in glob.glob(os.path.join(ROOT, "**", "*"), recursive=True)]
    return {part for p in paths for part in (p, p + "/", os.path.basename(p))}


def anchors(text):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_code_exists(document):
    text = read(document)
    code = "".join(read(p) for p in glob.glob("tests/*.py", root_dir=ROOT))
    names = known_names()
    named = re.findall(r"`([\w./-]+\.(?:py|sh|ipynb))`|`(test_\w+)`", text)
    missing = [n for n in (a or b for a, b in named)
               if n not in names and f"def {n}(" not in code and f"{n}.py" not in names]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", read(document)):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        folder = os.path.dirname(document)
        target = os.path.normpath(os.path.join(folder, path)) if path else document
        assert os.path.exists(os.path.join(ROOT, target)), link
        assert not anchor or anchor in anchors(read(target)), link


def outline(text):
    """What both languages must share: depths of the headings, commands, figures of the tables."""
    depths = [len(h) for h in re.findall(r"^(#+) ", text, re.MULTILINE)]
    commands = re.findall(r"^    ((?:python3?|curl|visualdl|git|cd) .*)$", text, re.MULTILINE)
    # but for comments, placeholders, the mirror of pip and VisualDL's language
    commands = [re.sub(r" +#.*|(?<=<)[^>]*(?=>)| -i \S+|(?<=--language )\w+", "", c)
                for c in commands]
    rows = re.findall(r"^\|.*\|$", text, re.MULTILINE)
    figures = [re.findall(r"(?<![\w.])\d+(?:[.,]\d+)*", row, re.ASCII) for row in rows]
    return depths, commands, [f for f in figures if f]


@pytest.mark.parametrize("depth", range(3))
@pytest.mark.parametrize("chinese", [d for d in DOCUMENTS if d.endswith(".zh-CN.md")])
def test_both_languages_have_the_same_headings_commands_and_figures(chinese, depth):
    english = chinese.replace(".zh-CN", "")
    assert outline(read(english))[depth] == outline(read(chinese))[depth]


def test_the_version_is_the_same_everywhere(capsys):
    with pytest.raises(SystemExit):
        Parser("").parse_args(["--version"])
    assert capsys.readouterr().out == f"VisionDistillGC {VERSION}\n"
    assert f"version: {VERSION}\n" in read("CITATION.cff")
    assert f"## [{VERSION}]" in read("CHANGELOG.md")


def test_the_page_lists_the_settings_as_they_are():
    with open(os.path.join(ROOT, "docs/settings.md"), encoding="utf-8") as f:
        assert table() in f.read(), "python -m utils.settings prints the table"


def test_the_chinese_page_has_the_same_settings_and_defaults():
    with open(os.path.join(ROOT, "docs/settings.zh-CN.md"), encoding="utf-8") as f:
        options = re.findall(r"^\| `--\w+` \| [^|]+ \|", f.read(), re.MULTILINE)
    assert options == re.findall(r"^\| `--\w+` \| [^|]+ \|", table(), re.MULTILINE)
