"""Writes `commands.md` from the commands of `ns-ray` and what they say of themselves.

    python docs/make_commands.py

A test fails while the page is out of date.
"""

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parent / "commands.md"

INTRO = """\
# Commands

<!-- Written by docs/make_commands.py from ns_ray/commands: edit the help there. -->

`ns-ray COMMAND --help` says the same, and `ns-ray --version` the version. `python -m ns_ray.run` is
`ns-ray run`. Every command also takes `--debug`, which shows the traceback of an error. The
settings that `--set` changes are in [configuration](configuration.md), and what goes wrong is in
[messages](messages.md).

"""
EVERYWHERE = ("* `--debug`", "* `--help`")


def page() -> str:
    """The page: what typer says of all commands, after words of our own."""
    typer = [sys.executable, "-m", "typer", "ns_ray.commands", "utils", "docs", "--name", "ns-ray"]
    made = subprocess.run(typer, capture_output=True, text=True, check=True, cwd=PAGE.parent.parent)
    _, heading, commands = made.stdout.partition("## `ns-ray ")
    lines = (heading + commands).splitlines()
    text = "\n".join(line for line in lines if not line.startswith(EVERYWHERE))
    return INTRO + text.replace("\\[", "[").replace("```console\n$ ", "```text\n").rstrip() + "\n"


def rendered() -> dict[Path, str]:
    """File -> what it must hold."""
    return {PAGE: page()}


def main() -> None:
    """Write the page."""
    for path, text in rendered().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
