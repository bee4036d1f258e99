"""Every page of the built site, opened in a browser: ``nox -s docs`` builds it and runs this."""

import functools
import http.server
import os
import re
import shutil
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest

SITE = Path(os.environ.get("SITE", Path(__file__).parents[2] / "build" / "docs"))
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PAGES = sorted(
    page.relative_to(SITE).as_posix()
    for page in SITE.rglob("*.html")
    if not {"_modules", "_static"} & set(page.relative_to(SITE).parts)
)
# One page of each kind; the colours are the same on all of a kind.
KINDS = [
    "index.html",
    "guide.html",
    "guide/weights.html",
    "migration/lighter.html",
    "api/mlr3torch_py.CallbackSetUnfreeze.html",
    "auto_examples/plot_1_iris.html",
    "notebooks/iris_mlp_unfreeze.html",
    "troubleshooting.html",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="needs the site: nox -s docs builds it"),
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium"),
    # The dispatcher of playwright is closed by the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    """Where the site is served, on this machine alone."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(SITE)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(browser, address, width=1400, scheme="light"):
    """Make a tab that sees this site only."""
    tab = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    tab.route(lambda url: not url.startswith(address), lambda route: route.abort())
    return tab


WIDTHS = (1400, 390)
LOOK = """() => {
    const all = what => [...document.querySelectorAll(`article ${what}`)]
    const prose = ["p", "blockquote", "li"].flatMap(all).filter(one => !one.closest("pre, .output"))
    return {
        prompts: prose.map(one => one.innerText.trim()).filter(text => /^(>>>|```)/.test(text)),
        blocks: all("div.highlight pre").length,
        buttons: all("button.copybtn").length,
        empty: [...document.images].filter(one => one.complete && !one.naturalWidth).map(one => one.alt),
    }
}"""


@pytest.fixture(scope="module")
def seen(browser, address):
    """Visit every page once, and return what was seen on it."""
    tab, found = opened(browser, address), {}
    for page in PAGES:
        tab.goto(address + page, wait_until="load")
        found[page] = tab.evaluate(LOOK) | {"over": {}}
        for width in WIDTHS:
            tab.set_viewport_size({"width": width, "height": 900})
            size = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            found[page]["over"][width] = tab.evaluate(size)
    tab.context.close()
    return found


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_the_window(seen, width):
    assert {page: look["over"][width] for page, look in seen.items() if look["over"][width] > 0} == {}


def test_code_blocks_are_code_blocks(seen):
    assert {page: look["prompts"] for page, look in seen.items() if look["prompts"]} == {}
    assert sum(look["blocks"] for look in seen.values()) > 200


def test_code_has_copy_buttons(seen):
    assert [page for page, look in seen.items() if look["blocks"] and not look["buttons"]] == []


def test_pictures_are_loaded(seen):
    assert {page: look["empty"] for page, look in seen.items() if look["empty"]} == {}


def test_no_internal_link_or_picture_is_broken():
    ids, broken = {}, []
    for page in PAGES:
        text = (SITE / page).read_text(encoding="utf-8")
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            target, fragment = urldefrag(urljoin(f"/{page}", link.replace("&amp;", "&")))
            if urlparse(link).scheme or link.startswith("//") or "?" in target:
                continue
            file = SITE / unquote(target).lstrip("/")
            file = file / "index.html" if file.is_dir() else file
            if not file.exists():
                broken.append(f"{page}: {link}")
            elif fragment and file.suffix == ".html":
                if file not in ids:
                    ids[file] = set(re.findall(r'\bid="([^"]+)"', file.read_text(encoding="utf-8")))
                if unquote(fragment) not in ids[file]:
                    broken.append(f"{page}: {link}")
    assert broken == []


def test_the_search_finds_lr_mult(browser, address):
    tab = opened(browser, address)
    tab.goto(f"{address}search.html?q=lr_mult")
    tab.wait_for_selector("#search-results li a")
    found = tab.locator("#search-results li a").all_inner_texts()
    tab.context.close()
    assert any("rates" in title.lower() for title in found), found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(browser, address, scheme):
    axe = pytest.importorskip("axe_core_python.sync_playwright").Axe()
    tab, poor = opened(browser, address, scheme=scheme), []
    for page in KINDS:
        tab.goto(address + page, wait_until="load")
        assert tab.evaluate("document.documentElement.dataset.theme") == scheme
        found = axe.run(tab, options={"runOnly": ["color-contrast"]})
        poor += [(page, node["html"][:120]) for one in found["violations"] for node in one["nodes"]]
    tab.context.close()
    assert poor == []
