"""What mkdocs does not do of itself for the site (mkdocs.yml).

The tutorial is a notebook and becomes a page with its outputs. Decisions list themselves.
Links that leave docs/ work where the whole repository is; on the site they become plain code.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

NOTEBOOK, PAGE = "tutorial.ipynb", "tutorial.md"
DECISIONS = "decisions"
FRAME = re.compile(r"(<style scoped>.*?</style>\s*)?<table [^>]*class=\"dataframe\">", re.DOTALL)
LINK = re.compile(r"(?<!!)\[(?P<words>[^\]]*)\]\((?P<target>[^)#\s:]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the decisions."""
    config.nav = _listed(config.nav, Path(config.docs_dir))
    return config


def _listed(nav: Any, docs: Path) -> Any:
    if isinstance(nav, list):
        return [_listed(entry, docs) for entry in nav]
    if isinstance(nav, dict):
        return {title: _listed(entry, docs) for title, entry in nav.items()}
    if nav == DECISIONS:
        return [path.relative_to(docs).as_posix() for path in sorted((docs / nav).glob("*.md"))]
    return nav


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of the notebook."""
    text, _ = MarkdownExporter().from_filename(str(Path(config.docs_dir) / NOTEBOOK))
    text = FRAME.sub("<table>", text)  # a table as all others
    files.append(File.generated(config, PAGE, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Make code of the links that leave docs/, and of those to a folder; the notebook is a page."""
    docs = Path(config.docs_dir).resolve()
    here = (docs / page.file.src_uri).parent

    def linked(match: re.Match[str]) -> str:
        words, place = match["words"], (here / match["target"]).resolve()
        if place.name == NOTEBOOK and page.file.src_uri != PAGE:
            return match[0].replace(NOTEBOOK, PAGE)
        if not place.is_dir() and place.is_relative_to(docs):
            return match[0]
        if place == docs / DECISIONS:
            return words
        return words if words.startswith("`") else f"`{words}`"

    return LINK.sub(linked, markdown)
