"""Documents name files, modules and tests that exist."""
import glob
import os
import re

import pytest

from conftest import ROOT


def known_names():
    """Paths in the repository, and the last parts of them."""
    paths = [os.path.relpath(p, ROOT).replace(os.sep, "/")
             for p in glob.glob(os.path.join(ROOT, "**", "*"), recursive=True)]
    return {part for p in paths for part in (p, p + "/", os.path.basename(p))}


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "README.md", "README.zh-CN.md",
                                      *sorted(glob.glob("docs/*.md", root_dir=ROOT))])
def test_named_code_exists(document):
    with open(os.path.join(ROOT, document), encoding="utf-8") as f:
        text = f.read()
    code = "".join(open(p, encoding="utf-8").read()
                   for p in glob.glob(os.path.join(ROOT, "tests", "*.py")))
    names = known_names()
    named = re.findall(r"`([\w./-]+\.(?:py|sh|ipynb))`|`(test_\w+)`", text)
    missing = [n for n in (a or b for a, b in named)
               if n not in names and f"def {n}(" not in code and f"{n}.py" not in names]
    assert not missing
