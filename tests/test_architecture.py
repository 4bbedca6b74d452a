"""The order of the modules: imports point down the list below, and Ray stays at the edge.

A new module must be placed in `ROWS` by hand: where it goes is a decision, and the build fails
until it is taken. `docs/architecture.md` says what the rows mean.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ns_ray"

STAGES = frozenset({"train", "pseudo_label", "selection", "evaluate"})
"""They never import each other: they meet in the driver, and in files."""

ROWS: tuple[frozenset[str], ...] = (
    frozenset({"__init__"}),
    frozenset({"errors"}),
    frozenset(
        {
            *("validation", "noise", "config", "settings", "grids"),
            *("storage", "mirror", "schema", "values", "layout"),
            *("steps", "result", "log", "resources"),
        }
    ),
    frozenset(
        {
            *("images", "augment", "pretrained", "models"),
            *("losses", "metrics", "policy", "passes", "rows", "cost"),
        }
    ),
    frozenset({"tasks"}),
    frozenset({"job", "engines", "bundle", "predictor"}),
    frozenset({"sources", "spans", "chunks", "packing", "adopting", "ingest"}),
    frozenset({"inference", "loader", "learner", "loop", "workers"}),
    STAGES,
    frozenset(
        {
            *("robustness", "ablation_table", "report", "export", "predictions", "serving"),
            *("check", "plan", "status"),
        }
    ),
    frozenset({"selftrain"}),
    frozenset({"runtime"}),
    frozenset({"launch"}),
    frozenset({"stages", "sharing", "ablate"}),
    frozenset({"commands"}),
    frozenset({"run", "__main__"}),
)
"""A module imports from rows above its own, and from its own row without going in a circle."""

PLAIN = ROWS[0] | ROWS[1] | ROWS[2]
"""Values and contracts: importable without torch and ray."""

LIGHT = PLAIN | {
    *("report", "commands", "launch", "run"),
    *("tasks", "sources", "packing", "ingest", "policy", "passes", "selection"),
    *("inference", "pseudo_label", "evaluate"),
}
"""Importable without torch and ray: a report is made again on any machine; what a command says of
its options, or of a mistake in them, is said at once; and stages start quickly in a Ray task."""

RAY_BELOW_THE_STAGES = {"tasks", "packing", "ingest", "inference", "loader", "loop", "workers"}
MAY_IMPORT_RAY = (
    STAGES | RAY_BELOW_THE_STAGES | {"robustness", "serving", "runtime", "launch", "commands"}
)

PACKING = {"sources", "spans", "chunks", "adopting"}
NOT_FOR_SERVING = STAGES | RAY_BELOW_THE_STAGES | PACKING | {"learner"}
"""A server needs the predictor and nothing that trains or packs."""

HEAVY = {"torch", "torchvision", "timm", "ray"}

MAX_LINES = 400
"""Of a file, blank lines not counted."""
MAX_FUNCTION_LINES = 80


def sources() -> dict[str, str]:
    """Dotted name below `ns_ray` -> source: `config`, `serving.app`, `__init__`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if len(parts) > 1 and parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path.read_text()
    return found


def imports(module: str, text: str) -> Iterator[str]:
    """Absolute dotted names that a module imports, also lazily and for type checking only."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # no relative imports in the house, but they would be found
                parents = ["ns_ray", *module.split(".")][: -node.level]
                base = ".".join([*parents, base] if base else parents)
            if base == "ns_ray":
                yield from (f"ns_ray.{alias.name}" for alias in node.names)
            else:
                yield base


def row_of(component: str) -> int:
    """Index of the row that lists a component."""
    return next(i for i, row in enumerate(ROWS) if component in row)


def components(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """Component -> components of ns_ray that it imports; a folder is one component."""
    known = {name.split(".")[0] for name in modules}
    graph: dict[str, set[str]] = {name: set() for name in known}
    for module, text in modules.items():
        own = module.split(".")[0]
        for name in imports(module, text):
            parts = name.split(".")
            if parts[0] == "ns_ray":
                target = parts[1] if len(parts) > 1 and parts[1] in known else "__init__"
                if target != own:
                    graph[own].add(target)
    return graph


def violations(modules: Mapping[str, str]) -> list[str]:
    """Everything in which the modules break the rules of this file."""
    found = []
    known = {name for row in ROWS for name in row}
    for module, text in modules.items():
        own = module.split(".")[0]
        if own not in known:
            found.append(f"{own}: not in ROWS; place it there")
            continue
        tops = {name.split(".")[0] for name in imports(module, text)}
        if "ray" in tops and own not in MAY_IMPORT_RAY:
            found.append(f"{module}: imports ray, which only {sorted(MAY_IMPORT_RAY)} may")
        if own in PLAIN and tops & HEAVY:
            found.append(f"{module}: imports {sorted(tops & HEAVY)} but is a plain module")
    graph = {name: targets for name, targets in components(modules).items() if name in known}
    for own, targets in graph.items():
        for target in sorted(targets & known):
            if row_of(target) > row_of(own):
                found.append(f"{own}: imports {target}, which stands below it")
            if own in STAGES and target in STAGES:
                found.append(f"{own}: imports {target}; stages never import each other")
            if own == "serving" and target in NOT_FOR_SERVING:
                found.append(f"{own}: imports {target}, which a server does not need")
    found += [f"{' -> '.join(cycle)}: imports go in a circle" for cycle in cycles(graph)]
    return found


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Import circles, one for each module that starts one."""
    found = []

    def visit(node: str, path: list[str]) -> None:
        for target in sorted(graph.get(node, ())):
            if target in path:
                found.append([*path[path.index(target) :], target])
            elif target not in done:
                visit(target, [*path, target])
        done.add(node)

    done: set[str] = set()
    for start in sorted(graph):
        if start not in done:
            visit(start, [start])
    return found


def test_imports_point_down_and_ray_stays_at_the_edge() -> None:
    assert violations(sources()) == []


@pytest.mark.parametrize(
    ("modules", "complaint"),
    [
        ({"config": "from ns_ray.train import fit", "train": ""}, "stands below it"),
        ({"config": "def f():\n    import ns_ray.run", "run": ""}, "stands below it"),
        ({"config": "from . import run", "run": ""}, "stands below it"),
        ({"losses": "from ray import data"}, "imports ray"),
        ({"selftrain": "import ray"}, "imports ray"),
        ({"storage": "import torch"}, "plain module"),
        (
            {"train": "from ns_ray import evaluate", "evaluate": ""},
            "stages never import each other",
        ),
        (
            {"models": "from ns_ray.images import x", "images": "from ns_ray.models import y"},
            "in a circle",
        ),
        ({"serving.app": "from ns_ray.ingest import x", "ingest": ""}, "does not need"),
        ({"helpers": ""}, "not in ROWS"),
    ],
)
def test_a_break_of_the_rules_is_found(modules: dict[str, str], complaint: str) -> None:
    assert any(complaint in line for line in violations(modules)), violations(modules)


def test_what_the_rules_allow_is_not_reported() -> None:
    modules = {
        "__init__": "__version__ = '1'",
        "config": "from ns_ray import __version__\nfrom ns_ray.errors import E",
        "errors": "",
        "schema": "from ns_ray import storage",
        "storage": "",
        "train": "import ray.train\nfrom ns_ray.config import C\nimport torch",
        "serving": "from ns_ray.serving.app import build_app",
        "serving.app": "from ray import serve",
        "commands": "import ray\nfrom ns_ray import config, train",
    }
    assert violations(modules) == []


def test_no_drawer_modules() -> None:
    drawers = {"utils", "util", "common", "base", "helpers", "misc"}
    parts = {part for name in sources() for part in name.split(".")}
    assert not drawers & parts


def test_files_and_functions_stay_small() -> None:
    found = []
    for module, text in sources().items():
        lines = sum(1 for line in text.splitlines() if line.strip())
        if lines > MAX_LINES:
            found.append(f"{module}: {lines} lines, at most {MAX_LINES}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    found.append(f"{module}.{node.name}: {length} lines")
    assert found == []


def test_plain_modules_import_without_torch_and_ray() -> None:
    light = LIGHT - {"__init__"}
    plain = [f"ns_ray.{name}" for name in sorted(sources()) if name.split(".")[0] in light]
    code = (
        "import sys, importlib\n"
        f"for name in {['ns_ray', *plain]!r}:\n"
        "    importlib.import_module(name)\n"
        f"    assert not {HEAVY!r} & set(sys.modules), name\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
