"""What a user gets: the wheel, and documents that tell the truth about the files."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ns_ray

ROOT = Path(__file__).resolve().parent.parent
NOT_SOURCE = (".*", "runs", "build", "dist", "*.egg-info", "__pycache__", "venv")
LINK = re.compile(r"\[[^\]]*\]\((?!\w+:|#)([^)#\s]+)[^)]*\)")


def source_copy(folder: Path) -> Path:
    """The checkout as it is cloned, so that what is built leaves nothing in it."""
    return Path(shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_SOURCE)))


def wheel_of(source: Path, out: Path) -> Path:
    """The wheel, built into a folder."""
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out)]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *build, str(source)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy."""
    copy = source_copy(tmp_path_factory.mktemp("source") / "ns-ray")
    return wheel_of(copy, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert top == {"ns_ray", f"ns_ray-{ns_ray.__version__}.dist-info"}


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    here = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "ns_ray").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "ns_ray/py.typed" in here
    assert here - names == set()


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"ns_ray-{ns_ray.__version__}.dist-info"
    metadata = archive.read(f"{info}/METADATA").decode()
    assert f"\nVersion: {ns_ray.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert "ns-ray = ns_ray.commands:main" in archive.read(f"{info}/entry_points.txt").decode()


@pytest.mark.parametrize(
    "what",
    [
        ["ns_ray", "docs", "serve"],
        # Scripts of the repository may import what only developers install.
        ["tests", "benchmarks", "--ignore", "DEP002,DEP004"],
    ],
    ids=["package", "scripts"],
)
def test_what_is_imported_is_declared_and_what_is_declared_is_imported(what: list[str]) -> None:
    command = [sys.executable, "-m", "deptry", "--no-ansi", *what]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_citation_names_this_version() -> None:
    assert f"\nversion: {ns_ray.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def tree_paths(text: str) -> list[str]:
    """Paths named by the file tree of a document: the first code block with a line that begins
    with `ns_ray/`. Files stand first on a line, two spaces before the words about them; indented
    lines continue the folder above."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.M | re.S)
    block = next((b for b in blocks if re.search(r"^ns_ray/", b, flags=re.M)), "")
    paths: list[str] = []
    folders: list[tuple[int, str]] = []
    for line in block.splitlines():
        indent = len(line) - len(line.lstrip())
        folders = [(i, folder) for i, folder in folders if i < indent]
        parent = folders[-1][1] if folders else ""
        for name in re.split(r"\s+", line.strip()):
            if not re.fullmatch(
                r"[\w.-]*(/[\w.-]+)*(\.[a-z]+|/)|Makefile|LICENSE|Dockerfile", name
            ):
                break
            paths.append(parent + name)
            if name.endswith("/"):
                folders.append((indent, parent + name))
    return paths


def test_a_file_tree_is_read() -> None:
    text = (
        "```\nns_ray/\n  run.py  cli.py    the doors\n  recipes/  what. else\nMakefile  it\n```\n"
    )
    assert tree_paths(text) == [
        "ns_ray/",
        "ns_ray/run.py",
        "ns_ray/cli.py",
        "ns_ray/recipes/",
        "Makefile",
    ]


def test_the_file_tree_of_the_readme_is_true() -> None:
    named = tree_paths((ROOT / "README.md").read_text())
    assert "ns_ray/" in named
    assert [path for path in named if not (ROOT / path).exists()] == []
    package = ROOT / "ns_ray"
    parts = {f"ns_ray/{p.name}" for p in package.glob("[!_]*.py")}
    parts |= {f"ns_ray/{p.parent.name}/" for p in package.glob("*/__init__.py")}
    assert parts - set(named) == set(), "modules and rooms that the file tree does not name"


def test_links_between_documents_lead_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = []
    for document in documents:
        if any(part.startswith(".") for part in document.relative_to(ROOT).parts):
            continue
        for target in LINK.findall(document.read_text()):
            if not (document.parent / target).exists():
                broken.append(f"{document.relative_to(ROOT)}: {target}")
    assert broken == []


def test_make_bench_says_at_once_what_it_will_run_and_for_how_long(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text("#!/bin/sh\necho ran $3\n")
    python.chmod(0o755)
    (tmp_path / ".installed").touch()
    asked = ["make", "--silent", f"VENV={tmp_path}", f"BIN={tmp_path}/bin", "bench"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, _, rest = done.stdout.partition("ran ")
    first, *listed = said.splitlines()
    minutes = [int(line.split()[0]) for line in listed]
    assert f"about {sum(minutes)} minutes" in first
    assert sum(minutes) <= 20
    ran = re.findall(r"^== (.+), about (\d+) minutes\nran benchmarks/(\w+).py$", rest, re.M)
    assert [f"{time} {what}" for what, time, _ in ran] == [line.strip() for line in listed]
    for _, _, script in ran:
        assert (ROOT / "benchmarks" / f"{script}.py").exists()
