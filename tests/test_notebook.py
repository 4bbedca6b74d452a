"""What a notebook shows of ns_ray: the tutorial, run from top to bottom, and lines as they are."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
LINES = """
from pathlib import Path

from ns_ray.api import Predictions
from ns_ray.log import progress, say
from ns_ray.store import read_json

say("one line")
with progress("count", 2, "images") as meter:
    meter.add(2)
row = {"filename": "a.jpg", "rank": 1, "index": 0, "label": "cat", "prob": 0.5, "error": None}
Path("said.txt").write_text(repr(Predictions([row])))
"""


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ns-ray` is found where Python is."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def tutorial() -> ModuleType:
    """`docs/make_tutorial.py`, which is a script and not part of the package."""
    path = ROOT / "docs" / "make_tutorial.py"
    spec = importlib.util.spec_from_file_location("make_tutorial", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_lines_are_plain_lines_in_a_notebook(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell(LINES)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    streams = [o for o in notebook.cells[0].outputs if o["output_type"] == "stream"]
    text = "".join(o["text"] for o in streams if o["name"] == "stdout")
    assert [line for line in text.splitlines() if line][:1] == ["one line"]
    assert "count: 2 images" in text
    assert "\x1b" not in text
    assert not any(o["output_type"] == "display_data" for o in notebook.cells[0].outputs)
    said = (tmp_path / "said.txt").read_text()
    assert "cat" in said
    assert "\x1b" not in said


@pytest.mark.ray
@pytest.mark.slow
def test_the_tutorial_runs_from_top_to_bottom(tutorial: ModuleType, tmp_path: Path) -> None:
    cells = tutorial.executed(str(tmp_path)).cells
    result = json.loads((tmp_path / "runs" / "photos" / "result.json").read_text())
    assert result["generations"][-1]["scores"]["test"]["top1"] > 0.8
    shown = [
        str(o["data"]["text/plain"])
        for cell in cells
        if cell.cell_type == "code"
        for o in cell.outputs
        if o["output_type"] == "execute_result"
    ]
    assert "'label': 'grass'" in shown[-2]
    assert shown[-1] == "0", "the server ended as it should"
    assert (tmp_path / "runs" / "photos" / "report.html").exists()
    assert str(tmp_path) not in json.dumps(cells)
