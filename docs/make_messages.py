"""Writes `messages.md`: what every error says, and what to do.

    python docs/make_messages.py

The messages are read from the source: wherever an error of `ns_ray/errors.py` is made, its text is
taken, with … for what is put in. Words about them are in docs/messages.yaml. A test fails while the
page is out of date.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ns_ray import errors

FOLDER = Path(__file__).resolve().parent
PACKAGE = FOLDER.parent / "ns_ray"
PAGE = FOLDER / "messages.md"
WORDS = FOLDER / "messages.yaml"

HOLE = "…"
FEWEST_LETTERS = 5
"""Messages with fewer letters of their own only pass on what another program said."""

KINDS: dict[str, type[errors.NsRayError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.NsRayError)
}
SECOND = {"DamagedFileError", "MissingSourceError"}
"""Errors whose text is their second argument: the first says where."""


@dataclass(frozen=True)
class Message:
    """What an error may say.

    Attributes:
        kind: its class.
        room: the part of the package that says it.
        text: the message, with … for what is put in.
    """

    kind: type[errors.NsRayError]
    room: str
    text: str


def collected() -> list[Message]:
    """All messages, each once, in the order of rooms and their files."""
    found: dict[Message, None] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        known = _texts(tree)
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for kind, node in _made(tree, room):
            text = re.sub(f"{HOLE}+", HOLE, template(node, known))
            if kind is errors.DamagedFileError:
                text = f"{HOLE} is damaged: {text}"
            if len(re.findall(r"[a-z]", text)) >= FEWEST_LETTERS:
                found[Message(kind, room, text)] = None
    return list(found)


def _texts(tree: ast.Module) -> dict[str, str]:
    """The names that a module gives to texts."""
    named = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            for target in node.targets:
                if isinstance(target, ast.Name) and isinstance(node.value.value, str):
                    named[target.id] = node.value.value
    return named


def _made(tree: ast.Module, room: str) -> Iterator[tuple[type[errors.NsRayError], ast.expr]]:
    """Errors that a module makes, and what they say. Those of a setting are `ValueError`, which
    `ns_ray.config.validate` makes a ConfigError of, with words of its own for some."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (room, node.name) == ("config", "_explain"):
            returns = (inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return))
            yield from ((errors.ConfigError, value) for value in returns if value is not None)
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
            continue
        name = node.func.id
        if name in KINDS:
            kind = KINDS[name]
        elif name == "ValueError" and room == "config":
            kind = errors.ConfigError
        else:
            continue
        if kind is errors.ImageError and len(node.args) > 1:
            yield kind, ast.JoinedStr([node.args[0], ast.Constant(": "), node.args[1]])
        else:
            yield kind, node.args[1 if name in SECOND and len(node.args) > 1 else 0]


def template(node: ast.expr, known: Mapping[str, str]) -> str:
    """What an expression says, with … where that is not known before it happens."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(template(part, known) for part in parts)
        case ast.FormattedValue(value=ast.Name(id=name)) | ast.Name(id=name):
            return known.get(name, HOLE)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template(left, known) + template(right, known)
    return HOLE


def page(messages: list[Message], words: Mapping[str, Any]) -> str:
    """The page.

    Args:
        messages: all of them.
        words: what messages.yaml says: `first`, the messages that people meet most, each with its
            cause and what to do; `kinds` and `rooms`, a sentence each.
    """
    lines = [words["intro"], "## What people meet first\n"]
    for entry in words["first"]:
        lines += [f"{code(entry['says'])}\n", f"{flat(entry['cause'])} *{flat(entry['do'])}*\n"]
    for title, about, some in _groups(messages, words["kinds"]):
        lines += [f"## {title}\n", f"{flat(about)}\n"]
        for room in sorted({message.room for message in some}):
            lines += [f"**{room}.** {flat(words['rooms'][room])}\n"]
            lines += [f"- {code(m.text)}" for m in some if m.room == room]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _groups(
    messages: list[Message], kinds: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[str, str, list[Message]]]:
    """Title, words and messages of each kind of error: one that has words, with those below it."""
    for name, about in kinds.items():
        some = [m for m in messages if _worded(m.kind, kinds) == name]
        yield about["title"], about["about"], some


def _worded(kind: type, kinds: Mapping[str, object]) -> str:
    return next(parent.__name__ for parent in kind.__mro__ if parent.__name__ in kinds)


def missing(messages: list[Message], words: Mapping[str, Any]) -> list[str]:
    """Texts of `first` that no error says any more."""
    said = {message.text for message in messages}
    return [entry["says"] for entry in words["first"] if entry["says"] not in said]


def code(text: str) -> str:
    """Text as it is, in a line of Markdown."""
    return f"`` {flat(text)} ``" if "`" in text else f"`{flat(text)}`"


def flat(text: str) -> str:
    """Text as one line."""
    return " ".join(text.split())


def rendered() -> dict[Path, str]:
    """File -> what it must hold."""
    messages, words = collected(), yaml.safe_load(WORDS.read_text())
    if new := {message.room for message in messages} - set(words["rooms"]):
        raise ValueError(f"{WORDS.name}: no words about the rooms {sorted(new)}")
    if gone := missing(messages, words):
        raise ValueError(f"{WORDS.name}: no error says {gone}")
    return {PAGE: page(messages, words)}


def main() -> None:
    """Write the page."""
    for path, text in rendered().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
