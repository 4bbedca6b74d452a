"""What documents tell people to type is right, and pages that scripts write are up to date."""

import ast
import importlib.util
import inspect
import json
import re
import shlex
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import crossplane
import pytest
import typer
import yaml

import ns_ray
from ns_ray.commands import app, run_app
from ns_ray.config import RunConfig, parse_sections
from ns_ray.config.loading import load_config, load_recipe
from ns_ray.serving import ServeSettings

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("[cs]*/README.md")]
)
FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>[\w-]*)[^\n]*\n(?P<text>.*?)^ *```", re.M | re.S)
INLINE = re.compile(r"`((?:ns-ray|python -m ns_ray\.run) [^`…]+)`")
SMALLEST = {"name": "x", "data": {"labeled": "digits"}, "teacher": {"model": "resnet18"}}
SHELL = ("", "bash", "sh")
WRITERS = ("make_commands", "make_messages")


class Block(NamedTuple):
    """A block of code in a document."""

    document: str
    kind: str
    text: str


def blocks(document: str) -> Iterator[Block]:
    for found in FENCE.finditer((ROOT / document).read_text()):
        yield Block(document, found["kind"], found["text"])


def blocks_of(*kinds: str) -> list[Any]:
    return [
        pytest.param(block, id=f"{document}-{number}")
        for document in DOCUMENTS
        for number, block in enumerate(blocks(document))
        if block.kind in kinds
    ]


def commands(text: str) -> Iterator[list[str]]:
    """The calls of ns-ray in the lines of a shell, as words after the name of the program; those
    of `ns-ray run` and of `python -m ns_ray.run` begin with `run`."""
    for line in text.replace("\\\n", " ").splitlines():
        if not re.search(r"(^|\s)(ns-ray|python -m ns_ray\.run)(\s|$)", line):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words = list(lexer)
        while words:
            end = next((i for i, w in enumerate(words) if set(w) <= set("|&;<>")), len(words))
            call, words = words[:end], words[end + 1 :]
            for start, word in enumerate(call):
                if not (start == 0 or call[start - 1] == "--" or "=" in call[start - 1]):
                    continue
                if word == "ns-ray":
                    yield call[start + 1 :]
                elif call[start : start + 3] == ["python", "-m", "ns_ray.run"]:
                    yield ["run", *call[start + 3 :]]


CALLS = {
    f"{document}: {' '.join(call)}": call
    for document in DOCUMENTS
    for block in blocks(document)
    if block.kind in SHELL
    for call in commands(block.text)
}
MENTIONED = {
    f"{document}: {' '.join(call)}": call
    for document in DOCUMENTS
    for words in INLINE.findall(FENCE.sub("", (ROOT / document).read_text()))
    for call in commands(words)
    if re.match("[a-z]", call[0]) and call[-1] != "..."
}
"""Those in a sentence, which may leave out what has to be said."""


def understood(call: list[str], config: Path, *, whole: bool = True) -> None:
    """What a command says to wrong words, without doing anything: names of options, values that
    they take, and settings.

    Args:
        call: as `commands` gives it.
        config: the file of a run, for all commands that take settings of one.
        whole: whether nothing may be missing.

    Raises:
        ConfigError: a setting is wrong.
        Exception: typer's, of a wrong option.
    """
    name, *words = call
    group: Any = typer.main.get_command(app)
    if name.startswith("-"):
        assert name in {option for param in group.params for option in param.opts}
        return
    command = typer.main.get_command(run_app) if name == "run" else group.commands[name]
    try:
        command.make_context(name, list(words))
    except Exception as error:
        if whole or type(error).__name__ not in ("MissingParameter", "BadOptionUsage"):
            raise
    changes = [after for word, after in pairwise(words) if word == "--set"]
    recipes = [after for word, after in pairwise(words) if word == "--recipe"]
    if name == "serve":
        parse_sections(ServeSettings, changes, serve={"bundle": "runs/birds"})
    elif recipes:
        load_recipe(recipes[0], changes)
    else:
        load_config(str(config), changes)


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """The run.yaml of README."""
    text = next(b.text for b in blocks("README.md") if b.kind == "yaml" and "name: birds" in b.text)
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_commands_are_understood(call: list[str], birds: Path) -> None:
    understood(call, birds)


@pytest.mark.parametrize("call", MENTIONED.values(), ids=MENTIONED)
def test_mentioned_commands_have_such_options(call: list[str], birds: Path) -> None:
    understood(call, birds, whole=False)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("ns-ray label --bundle A --data B --output C", "--output"),
        ("ns-ray label --bundle A", "Missing"),
        ("ns-ray pack data/train --out corpora", "data/train|Missing"),
        ("ns-ray serve --bundle A --set serve.topk=3", "serve.topk"),
        ("ns-ray select --labels A --out B --set select.treshold=0.5", "select.treshold"),
        ("ns-ray predict --bundle A --format xml a.jpg", "xml"),
        ("python -m ns_ray.run --recipe digits --set train.epochs=many", "many"),
        ("python -m ns_ray.run --set refit=true control=false", "control"),
        ("ray job submit --working-dir . -- python -m ns_ray.run --confg run.yaml", "--confg"),
        ("export A=1 && ns-ray status runs/birds --folow | less", "--folow"),
    ],
)
def test_wrong_commands_are_found(line: str, says: str, birds: Path) -> None:
    (call,) = commands(line)
    with pytest.raises(Exception) as found:  # noqa: PT011  typer's are no part of what it shows
        understood(call, birds)
    assert re.search(says, getattr(found.value, "message", "") or str(found.value))


def test_commands_of_a_program_that_follow_others_are_found() -> None:
    text = (
        "make && ns-ray plan --recipe digits | cat > a; ns-ray status \\\n  --recipe digits # so\n"
    )
    assert list(commands(text)) == [
        ["plan", "--recipe", "digits"],
        ["status", "--recipe", "digits"],
    ]


@pytest.mark.parametrize("block", blocks_of("yaml"))
def test_settings_are_valid(block: Block, tmp_path: Path) -> None:
    found = yaml.safe_load(block.text)
    if isinstance(found, dict) and set(found) <= set(RunConfig.model_fields):
        whole = {**SMALLEST, **found, "data": {**SMALLEST["data"], **found.get("data", {})}}  # type: ignore[dict-item]
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(whole))
        load_config(str(file), [])


@pytest.mark.parametrize("block", blocks_of("python"))
def test_python_is_python_and_calls_what_there_is(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="ns_ray"), attr=name)):
                keywords = {str(k.arg): k.value for k in node.keywords}
                inspect.signature(getattr(ns_ray, name)).bind(*node.args, **keywords)
                settings = {
                    *RunConfig.model_fields,
                    *inspect.signature(getattr(ns_ray, name)).parameters,
                }
                assert set(keywords) <= settings
            case ast.Attribute(value=ast.Name(id="ns_ray"), attr=name):
                assert hasattr(ns_ray, name)


@pytest.mark.parametrize("block", blocks_of("nginx"))
def test_nginx_would_take_the_file(block: Block, tmp_path: Path) -> None:
    (tmp_path / "nginx.conf").write_text(f"events {{}}\nhttp {{\n{block.text}\n}}\n")
    found = crossplane.parse(str(tmp_path / "nginx.conf"), strict=True)
    assert found["errors"] == []


def test_blocks_have_kinds_that_are_looked_at() -> None:
    known = {"", "bash", "sh", "yaml", "python", "nginx", "html", "js", "text"}
    assert {b.kind for document in DOCUMENTS for b in blocks(document)} <= known


def script(name: str) -> ModuleType:
    """A script of docs/, which is no part of the package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", WRITERS)
def test_written_pages_are_up_to_date(name: str) -> None:
    for path, text in script(name).rendered().items():
        assert path.read_text() == text, "run `make schema`"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ('raise ConfigError(f"a={a!r} must be {LEAST}, " f"not {b:g}")', "a=… must be two, not …"),
        ('raise DataError("one" + f" and {two()}")', "one and …"),
        ('return StageError("as it is")', "as it is"),
        ('raise DamagedFileError(path, f"its key {k}")', "… is damaged: its key …"),
        ('raise MissingSourceError(f"a={a}", f"{a}: no such file")', "…: no such file"),
        ('raise ImageError("empty", "no bytes")', "empty: no bytes"),
        ("raise ConfigError(str(error))", None),
        ('raise ValueError("no error of ours")', None),
    ],
)
def test_messages_are_read_from_the_source(
    source: str, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = script("make_messages")
    monkeypatch.setattr(maker, "PACKAGE", tmp_path)
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text(f'LEAST = "two"\n\ndef f():\n    {source}\n')
    assert [message.text for message in maker.collected()] == ([says] if says else [])


def test_a_message_that_nobody_says_any_more_is_named() -> None:
    maker = script("make_messages")
    words = {"first": [{"says": "once upon a time"}]}
    assert maker.missing(maker.collected(), words) == ["once upon a time"]


def test_every_exit_code_is_on_the_page() -> None:
    page = (ROOT / "docs" / "messages.md").read_text()
    for kind in script("make_messages").KINDS.values():
        assert f"| {kind.exit_code} |" in page


def test_the_tutorial_is_stored_with_what_came_out() -> None:
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not any(o["output_type"] == "error" for cell in code for o in cell["outputs"])
    assert sum(bool(cell["outputs"]) for cell in code) >= len(code) - 1
