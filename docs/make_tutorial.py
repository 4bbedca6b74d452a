"""Runs `tutorial.ipynb` from top to bottom, and stores it with what came out.

python docs/make_tutorial.py
"""

import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent / "tutorial.ipynb"
SECONDS = 500
"""What a cell may take."""


def executed(folder: str) -> Any:
    """The notebook, run in a folder, whose name is left out of what came out."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": folder}}
    NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        coalesce_streams=True,
        resources=resources,
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it was run, to the microsecond
    text = nbformat.writes(notebook).replace(f"{folder}/", "").replace(folder, ".")
    return nbformat.reads(text, as_version=4)


def main() -> None:
    """Store it."""
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(executed(folder), NOTEBOOK)


if __name__ == "__main__":
    main()
