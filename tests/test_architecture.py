"""The house: rooms that import downwards and show one face each, small files, and Ray at the edge.

The order of the rooms, and who may import Ray, are contracts of import-linter in pyproject.toml.
A new module at the top, or a new room, must be placed there: where it goes is a decision, and the
build fails until it is taken. docs/architecture.md says what the rooms mean.
"""

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ns_ray"
ROOMS = sorted(p.parent.name for p in PACKAGE.glob("*/__init__.py"))

HEAVY = {"torch", "torchvision", "timm", "ray"}

MAY_BE_HEAVY = (
    *("model", "robustness", "stages"),
    *("planning.budget", "planning.check", "planning.costs", "planning.forecast"),
    *("planning.models", "planning.pile", "planning.plan", "planning.proposal"),
    *(
        "training.calibration",
        "training.checkpoints",
        "training.forward",
        "training.head",
        "training.learner",
    ),
    *("training.loader", "training.loop", "training.losses", "training.mixing", "training.network"),
    *("training.workers", "serving.app", "serving.deployment", "serving.paths", "serving.replica"),
)
"""All others import neither torch nor Ray until there is work for them: a report is made again on
any machine; what a command says of its options, or of a mistake in them, is said at once; and a
step that is done already is found so in a second. So is what a room shows: its face imports a
module when it is first asked for something of it."""

NAMESPACES = {"schema", "resources", "tasks"}
"""Modules that are shown whole: their names say more with the module before them."""

MAX_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_LINES = 150


def modules(folder: Path = PACKAGE) -> dict[str, Path]:
    """Dotted name below the package -> file: `steps`, `store`, `store.files`."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(text: str) -> Iterator[tuple[str, list[str]]]:
    """(module, names) of each import in a source, also of those inside functions."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", [alias.name for alias in node.names]


def face(room: str) -> set[str]:
    """The names that a room shows."""
    stub = PACKAGE / room / "__init__.pyi"
    if not stub.exists():
        tree = ast.parse((PACKAGE / room / "__init__.py").read_text())
        return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} | {
            name.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            for name in ast.walk(node.value)
            if isinstance(name, ast.Constant) and isinstance(name.value, str)
        }
    return {name for _, names in imports(stub.read_text()) for name in names}


def behind_a_face(text: str, room: str | None) -> list[str]:
    """What a source imports that the room it is in does not show."""
    found = []
    for module, names in imports(text):
        parts = module.split(".")
        if parts[0] != "ns_ray" or len(parts) < 2 or parts[1] not in ROOMS or parts[1] == room:
            continue
        hidden = sorted(set(names) - face(parts[1]))
        if len(parts) > 2 or hidden:
            found.append(f"{module}: {', '.join(hidden or names)}")
    return found


def test_imports_point_down_and_ray_stays_at_the_edge() -> None:
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


@pytest.mark.parametrize("name", [name for name in modules() if name])
def test_a_room_is_entered_by_its_face(name: str) -> None:
    room = name.split(".")[0]
    text = modules()[name].read_text()
    assert behind_a_face(text, room if room in ROOMS else None) == []


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("from ns_ray.store import read_json", []),
        ("from ns_ray.store.files import read_json", ["ns_ray.store.files: read_json"]),
        ("from ns_ray.store import files", ["ns_ray.store: files"]),
        ("def f():\n    from ns_ray.model import _padded", ["ns_ray.model: _padded"]),
        ("from ns_ray.data.images import decode", []),
        ("from ns_ray.steps import steps", []),
    ],
)
def test_a_way_around_a_face_is_found(text: str, hidden: list[str]) -> None:
    assert behind_a_face(text, "data") == hidden


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_shows_functions_and_no_module_of_the_same_name(room: str) -> None:
    """The import of a module would hide a function of its name from then on."""
    own = {name.removeprefix(f"{room}.") for name in modules() if name.startswith(f"{room}.")}
    assert face(room) & own <= NAMESPACES


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_goes_in_what_comes_out_and_what_it_does_not_know(room: str) -> None:
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text())
    says = " ".join((ast.get_docstring(tree) or "").split())
    for words in ("In go", "out come", "nothing"):
        assert words in says, f"{room}: {words}"
    files = [path for path in (PACKAGE / room).rglob("*.py") if path.name != "__init__.py"]
    assert len(files) >= 3


def test_no_drawer_modules() -> None:
    drawers = {"utils", "util", "common", "base", "helpers", "misc"}
    parts = {part for name in modules() for part in name.split(".")}
    assert not drawers & parts


def test_files_and_functions_stay_small() -> None:
    found, sizes = [], []
    for name, path in modules().items():
        text = path.read_text()
        sizes.append(len(text.splitlines()))
        if sizes[-1] > MAX_LINES:
            found.append(f"{name}: {sizes[-1]} lines, at most {MAX_LINES}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    found.append(f"{name}.{node.name}: {length} lines")
    assert found == []
    assert statistics.median(sizes) <= MAX_MEDIAN_LINES


def test_rooms_and_what_is_light_import_without_torch_and_ray() -> None:
    light = [
        f"ns_ray.{name}"
        for name in modules()
        if name in ROOMS or not any(f"{name}.".startswith(f"{part}.") for part in MAY_BE_HEAVY)
    ]
    light = [name.removesuffix(".") for name in light if not name.endswith("__main__")]
    code = (
        "import sys, importlib\n"
        f"for name in {light!r}:\n"
        "    importlib.import_module(name)\n"
        f"    assert not {HEAVY!r} & set(sys.modules), name\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
