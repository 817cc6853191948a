"""Every notebook runs from its first cell to its last, in its small mode."""

import warnings
from pathlib import Path

import pytest

from rheobase.spiking.ops.native import library

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("default")
def test_notebook(path, monkeypatch, tmp_path):
    """The kernel's own libraries warn about their internals, so that here warnings are not errors."""
    if library() is None and any(word in path.read_text() for word in ("import Stream", 'on=\\"firmware')):
        pytest.skip("no C library: no compiler at install")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nbformat
        from nbclient import NotebookClient

        monkeypatch.setenv("RHEOBASE_SMALL", "1")
        monkeypatch.setenv("TMPDIR", str(tmp_path))  # what a notebook leaves behind goes with the test
        notebook = nbformat.read(path, as_version=4)
        stored = cells_with_pictures(notebook)
        client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
        client.execute()
    errors = [o for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]
    skipped = [c.id for c in notebook.cells if any(" skipped, " in o.get("text", "") for o in c.get("outputs", []))]
    shown = cells_with_pictures(notebook)
    assert not errors and shown and set(shown) <= set(stored) <= {*shown, *skipped}


def cells_with_pictures(notebook) -> list[str]:
    """The cells that show one: what is stored, and what a run shows."""
    return [c.id for c in notebook.cells if any("image/png" in o.get("data", {}) for o in c.get("outputs", []))]


def test_there_are_notebooks():
    assert NOTEBOOKS
