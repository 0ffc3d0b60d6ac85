"""Every notebook runs from top to bottom, and is stored with the outputs of a run."""

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_runs(file, oracle, monkeypatch):
    nbformat, nbclient = oracle("nbformat"), oracle("nbclient")
    oracle("ipykernel")
    notebook = nbformat.read(file, as_version=4)
    stored = [bool(cell.get("outputs")) for cell in notebook.cells]
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    client = nbclient.NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": str(file.parent)}}
    )
    client.execute()
    assert [bool(cell.get("outputs")) for cell in notebook.cells] == stored


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_is_light(file):
    assert file.stat().st_size < 200_000
