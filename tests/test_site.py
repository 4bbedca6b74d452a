"""The site of the documents: built strictly, whole, and with nothing from elsewhere."""

import functools
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_files import encoded, picture
from playwright.sync_api import Browser, expect
from served import CLASSES, make_bundle

from ns_ray.data.images import eval_pixels
from ns_ray.model.bundle import load
from ns_ray.store import open_bundle

ROOT = Path(__file__).resolve().parent.parent
FETCHED = {"script": "src", "img": "src", "source": "src", "iframe": "src", "link": "href"}
"""Elements that fetch what they name; a link of another kind waits for a click."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return out


class Fetched(HTMLParser):
    """What a page fetches."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        place = dict(attrs).get(FETCHED.get(tag, ""))
        if place is not None:
            self.places.append(place)


def test_every_document_is_a_page(site: Path) -> None:
    sources = [*(ROOT / "docs").rglob("*.md"), ROOT / "docs" / "tutorial.ipynb"]
    pages = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in sources]
    assert [page for page in pages if not (site / page).exists()] == []


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    elsewhere = re.compile(r"(\w+:)?//")
    for page in site.rglob("*.html"):
        parser = Fetched()
        parser.feed(page.read_text())
        assert parser.places
        assert [place for place in parser.places if elsewhere.match(place)] == [], page.name
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(\w+:)?//", style.read_text()), style.name


def test_links_out_of_the_documents_are_code(site: Path) -> None:
    assert "<code>serve/config.yaml</code>" in (site / "configuration.html").read_text()
    for page in site.rglob("*.html"):
        assert not re.search(r'href="[^"]*(ns_ray|serve|cluster)/[^"#]*"', page.read_text()), (
            page.name
        )


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a server of `tmp_path`."""
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    """Says nothing of its requests."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


def opened(browser: Browser, url: str) -> Any:
    """A page that asks its own server only, and whose console stays empty."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(60_000)
    problems: list[str] = []
    own = (url, "blob:", "data:")
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(own) else problems.append(r.url))
    page.problems = problems  # type: ignore[attr-defined]
    return page


def test_the_site_in_a_browser(site: Path, browser: Browser, served: str, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path, dirs_exist_ok=True)
    page = opened(browser, served)
    page.goto(f"{served}/index.html")
    expect(page.locator("article img")).to_have_js_property("complete", True)
    assert page.locator("article img").evaluate("image => image.naturalWidth") > 500
    for name, words in {
        "tutorial": "photos/pile",
        "python": "fit the run into this time",
        "commands": "ns-ray label-next",
        "messages": "exit code",
    }.items():
        page.goto(f"{served}/{name}.html")
        expect(page.locator("article")).to_contain_text(re.compile(words))
    page.locator("input.md-search__input").click()
    page.keyboard.type("logit adjustment")
    expect(page.locator(".md-search-result__item").first).to_be_visible()
    assert page.problems == []


STUB = """
const ort = {
  Tensor: class { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } },
  InferenceSession: { create: async (file) => ({ run: async ({ input }) => {
    window.given = { file, type: input.type, dims: input.dims, data: Array.from(input.data) };
    return { logits: { data: Float32Array.from([0, 2, 1]) } };
  } }) },
};
"""


@pytest.mark.parametrize(("width", "height"), [(35, 35), (80, 50)])
def test_the_page_with_onnx_makes_the_input_that_the_model_wants(
    browser: Browser, served: str, tmp_path: Path, width: int, height: int
) -> None:
    _, plain = load(open_bundle(str(make_bundle(tmp_path / "bundle"))))
    spec = replace(plain, crop_pct=0.9, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    page_text = (ROOT / "docs" / "how-to" / "onnx-in-a-browser.md").read_text()
    html = re.search(r"```html\n(.*?)```", page_text, re.S)
    assert html is not None
    (tmp_path / "index.html").write_text(f'<link rel="icon" href="data:,">{html[1]}')
    (tmp_path / "ort.wasm.min.js").write_text(STUB)
    facts = {"labels": CLASSES, "preprocess": vars(spec)}
    (tmp_path / "model.json").write_text(json.dumps(facts))
    image = encoded(picture(1, width, height), "PNG")

    page = opened(browser, served)
    page.goto(f"{served}/index.html")
    page.locator("input").set_input_files(
        {"name": "a.png", "mimeType": "image/png", "buffer": image}
    )
    expect(page.locator("pre")).to_contain_text('"green"')
    found = json.loads(page.locator("pre").inner_text())
    odds = np.exp([2.0, 1.0, 0.0])
    assert [label for label, _ in found] == ["green", "red", "blue"]
    np.testing.assert_allclose([p for _, p in found], odds / odds.sum(), rtol=1e-6)

    given = page.evaluate("window.given")
    assert (given["file"], given["type"]) == ("model.onnx", "float32")
    assert given["dims"] == [1, 3, spec.size, spec.size]
    expected = ((eval_pixels(image, spec) / 255.0 - spec.mean) / spec.std).transpose(2, 0, 1)
    off = np.abs(np.array(given["data"]).reshape(expected.shape) - expected)
    # A browser resizes in its own way; without resizing the pixels are the same.
    assert off.max() < 1e-5 if (width, height) == (35, 35) else off.mean() < 0.1
    assert page.problems == []
