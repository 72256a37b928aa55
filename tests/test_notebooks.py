"""The notebooks run from top to bottom, as committed."""
import glob
import os

import pytest
from conftest import ROOT

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")


@pytest.mark.parametrize("path", glob.glob(os.path.join(ROOT, "notebooks", "*.ipynb")), ids=os.path.basename)
def test_runs_from_top_to_bottom(path):
    notebook = nbformat.read(path, 4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": os.path.dirname(path)}}).execute()
