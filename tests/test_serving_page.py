"""The page and the documents of the server, in a real browser, and every operation of the OpenAPI
document called as the document says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from axe_playwright_python.sync_playwright import Axe
from broken_files import encoded, jpeg, picture
from hypothesis import HealthCheck, Phase, settings
from playwright.sync_api import Browser, Page, expect
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.result import Ok
from served import Server, make_bundle, serving
from web_server import serving as other_site

KEY = "page-key"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as started:
        yield started


def opened(
    browser: Browser, url: str, width: int = 1000, scheme: Any = "light", path: str = "/"
) -> Page:
    """A page whose console stays empty and which talks to the server only."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.set_default_timeout(60_000)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda r: None if r.url.startswith((url, "blob:", "data:")) else problems.append(r.url),
    )
    page.problems = problems  # type: ignore[attr-defined]
    page.goto(f"{url}{path}")
    return page


def file(name: str, data: bytes) -> Any:
    return {"name": name, "mimeType": "image/jpeg", "buffer": data}


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1000, "light"), (1000, "dark"), (360, "light")])
def test_images_are_classified(browser: Browser, server: Server, width: int, scheme: str) -> None:
    page = opened(browser, server.url, width, scheme)
    expect(page.locator("#model")).to_contain_text("test_resnet from run tiny, 3 classes")
    expect(page.locator("#about")).to_contain_text("tiny-gen-01-")
    page.locator("#files").set_input_files([file("one.jpg", jpeg(1)), file("two.jpg", jpeg(2))])
    expect(page.get_by_role("status")).to_have_text("2 classified")
    cards = page.locator("#results > li")
    expect(cards).to_have_count(2)
    first = cards.filter(has_text="one.jpg")
    expect(first.locator("ol > li")).to_have_count(3)
    expect(first).to_contain_text(" ms")
    answer = server.post_image(jpeg(1)).json[0]
    expect(first.locator("ol > li").first).to_contain_text(answer["label"])
    expect(first.locator("ol > li").first).to_contain_text(f"{100 * answer['score']:.1f} %")
    shown = first.locator("img")
    assert shown.evaluate("image => image.complete && image.naturalWidth > 0")
    expect(shown).to_have_attribute("alt", f"one.jpg: {answer['label']}")

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert Axe().run(page).violations_count == 0
    page.get_by_role("button", name="Clear").click()
    expect(cards).to_have_count(0)
    assert page.problems == []  # type: ignore[attr-defined]
    page.close()


@pytest.mark.slow
def test_a_phone_shows_the_answer_without_scrolling(browser: Browser, server: Server) -> None:
    screen = {"width": 390, "height": 844}
    page = browser.new_page(viewport=screen, is_mobile=True, has_touch=True)  # type: ignore[arg-type]
    page.set_default_timeout(60_000)
    page.goto(server.url)
    expect(page.get_by_text("Take or choose photos")).to_be_visible()
    expect(page.get_by_text("Drop images here")).to_be_hidden()
    tall = encoded(picture(1, 300, 400), "JPEG")
    page.locator("#files").set_input_files([file("IMG_20260102_" + "1234567890" * 4, tall)])
    expect(page.get_by_role("status")).to_have_text("1 classified")
    expect(page.locator("#results ol > li").last).to_be_in_viewport(ratio=1)
    page.wait_for_function("document.querySelector('#results img').naturalWidth > 0")

    page.locator("#files").set_input_files([file("bad.jpg", b"no image")])
    expect(page.get_by_role("status")).to_have_text("1 classified, 1 failed")
    bad = page.locator("#results > li").filter(has_text="bad.jpg")
    expect(bad.locator("img")).to_be_hidden()
    for locator in ("#drop", "#clear", "footer a"):
        box = page.locator(locator).bounding_box()
        assert box is not None
        assert box["height"] >= 40, locator
    for place in ("/", "/docs"):
        page.goto(server.url + place)
        expect(page.get_by_role("link").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= screen["width"]
    page.close()


SHOP = b"<!doctype html><title>A shop</title>"
ASK = """async ([url, key, method]) => {
    const headers = {"Content-Type": "image/jpeg", ...(key ? {"X-API-Key": key} : {})};
    const image = new Uint8Array(IMAGE);
    const asked = method === "GET" ? {headers} : {method, headers, body: image};
    try {
        const reply = await fetch(url, asked);
        return [reply.status, await reply.json(), reply.headers.get("X-Model-Version")];
    } catch (error) { return String(error); }
}"""


@pytest.mark.slow
def test_a_page_of_another_origin_asks_where_it_is_allowed(browser: Browser, folder: Path) -> None:
    ask = ASK.replace("IMAGE", str(list(jpeg(1))))
    with other_site() as shop, other_site() as stranger:
        for site in (shop, stranger):
            site.files["/"], site.headers["Content-Type"] = SHOP, "text/html"
        with serving(folder, keys=[KEY], allow_origins=[shop.url]) as server:
            page = browser.new_page()
            page.goto(shop.url)
            for method in ("POST", "PUT"):
                status, classes, version = page.evaluate(
                    ask, [f"{server.url}/predict?top_k=2", KEY, method]
                )
                assert (status, len(classes)) == (200, 2)
                assert version.startswith("tiny-gen-01-")
            status, refused, _ = page.evaluate(ask, [f"{server.url}/predict", "", "POST"])
            assert status == 401
            assert "X-API-Key" in refused["error"]
            status, info, _ = page.evaluate(ask, [f"{server.url}/info", KEY, "GET"])
            assert (status, info["classes"]) == (200, 3)

            page.goto(stranger.url)
            for method in ("POST", "GET"):
                path = "/predict" if method == "POST" else "/info"
                asked = page.evaluate(ask, [server.url + path, KEY, method])
                assert asked == "TypeError: Failed to fetch"
            page.close()


@pytest.mark.slow
def test_clearing_forgets_what_is_under_way(browser: Browser, server: Server) -> None:
    page = opened(browser, server.url)
    held: list[Any] = []
    page.route("**/predict", lambda route: held.append(route))  # answered never
    page.locator("#files").set_input_files([file(f"{i}.jpg", jpeg(i)) for i in range(6)])
    expect(page.get_by_role("status")).to_have_text("0 of 6 classified")
    page.get_by_role("button", name="Clear").click()
    page.unroute("**/predict")
    page.locator("#files").set_input_files([file("new.jpg", jpeg(7))])
    expect(page.locator("#results > li ol > li")).to_have_count(3)
    assert len(held) == 4
    page.wait_for_timeout(1000)  # for answers that should have been forgotten
    expect(page.get_by_role("status")).to_have_text("1 classified")
    expect(page.locator("#results > li")).to_have_count(1)
    page.close()


@pytest.mark.slow
def test_paste_drop_errors_and_the_keyboard(browser: Browser, server: Server) -> None:
    page = opened(browser, server.url)
    give = """([kind, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], kind + ".jpg", {type: "image/jpeg"}));
        const event = kind === "paste"
            ? new ClipboardEvent("paste", {clipboardData: data})
            : new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
        document.dispatchEvent(event);
    }"""
    for kind in ("paste", "drop"):
        page.evaluate(give, [kind, list(jpeg(3))])
        card = page.locator("#results > li").filter(has_text=f"{kind}.jpg")
        expect(card.locator("ol > li")).to_have_count(3)
    assert page.problems == []  # type: ignore[attr-defined]
    page.locator("#files").set_input_files([file("bad.jpg", b"no image")])
    expect(page.get_by_role("alert")).to_contain_text("not_an_image")
    expect(page.get_by_role("status")).to_have_text("2 classified, 1 failed")

    # A listener of its own: `expect_file_chooser` asks the browser to report choosers and goes on
    # before the browser has, so that a quick key press would open one nobody sees.
    page.on("filechooser", lambda _: None)
    page.reload()
    expect(page.locator("#model")).to_contain_text("3 classes")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([file("keys.jpg", jpeg(4))])
    expect(page.get_by_role("status")).to_have_text("1 classified")
    page.close()


@pytest.mark.slow
def test_a_key_is_asked_for(browser: Browser, folder: Path) -> None:
    with serving(folder, keys=[KEY]) as locked:
        page = opened(browser, locked.url)
        expect(page.locator("#model")).to_have_text("An API key is needed.")
        page.get_by_label("This server asks for an API key:").fill(KEY)
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#model")).to_contain_text("3 classes")
        page.locator("#files").set_input_files([file("one.jpg", jpeg(1))])
        expect(page.locator("#results ol > li")).to_have_count(3)
        page.close()


@pytest.mark.slow
def test_the_documents_work_without_a_network(browser: Browser, server: Server) -> None:
    page = opened(browser, server.url, path="/docs")
    operations = page.locator("details")
    expect(operations).to_have_count(15)
    operations.first.locator("summary").click()
    expect(operations.first).to_contain_text("Too many bytes, pixels, images, values or parts")
    assert Axe().run(page).violations_count == 0
    assert page.problems == []  # type: ignore[attr-defined]
    page.close()


@pytest.mark.slow
def test_the_server_does_what_its_document_says(server: Server) -> None:
    load_all_checks()
    # A document cannot say that bytes must be an image, so what fits it may still be refused.
    excluded = CHECKS.get_by_names(["positive_data_acceptance"])
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    called = []
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        called.append(operation.label)
        checked = settings(
            max_examples=12,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )

        def call(case: Any) -> None:
            case.call_and_validate(excluded_checks=excluded)

        checked(_given(operation)(call))()
    assert len(called) == 15


def _given(operation: Any) -> Any:
    from hypothesis import given

    return given(case=operation.as_strategy())
