"""The notebooks run from top to bottom, as committed but for the number of epochs."""
import glob
import os

import pytest

from conftest import ROOT

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
NOTEBOOKS = glob.glob(os.path.join(ROOT, "notebooks", "*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=os.path.basename)
def test_runs_from_top_to_bottom(path):
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        cell.source = (cell.source.replace("num_epochs=16", "num_epochs=4")
                       .replace('"--num_epochs", "3"', '"--num_epochs", "1", "--image_size", "32"'))
    resources = {"metadata": {"path": os.path.dirname(path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
