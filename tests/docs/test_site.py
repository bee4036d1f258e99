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
GUIDES = [page for page in PAGES if not page.startswith(("api/", "genindex", "py-modindex", "search"))]
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


@pytest.mark.parametrize("width", [390, 1400])
def test_no_page_is_wider_than_the_window(browser, address, width):
    tab, wide = opened(browser, address, width), {}
    for page in PAGES:
        tab.goto(address + page, wait_until="domcontentloaded")
        over = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if over > 0:
            wide[page] = over
    tab.context.close()
    assert wide == {}


def test_code_blocks_are_code_blocks_with_copy_buttons(browser, address):
    tab, seen = opened(browser, address), 0
    for page in GUIDES:
        tab.goto(address + page, wait_until="load")
        prose = tab.evaluate(
            "[...document.querySelectorAll('article p, article blockquote, article li')]"
            ".filter(one => !one.closest('pre, .output')).map(one => one.innerText)"
        )
        assert [text for text in prose if text.lstrip().startswith((">>>", "```"))] == [], page
        blocks = tab.locator("article div.highlight pre").count()
        assert tab.locator("article button.copybtn").count() >= min(blocks, 1), page
        seen += blocks
    tab.context.close()
    assert seen > 100


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


def test_pictures_are_loaded(browser, address):
    tab = opened(browser, address)
    for page in GUIDES:
        tab.goto(address + page, wait_until="load")
        tab.evaluate("document.querySelectorAll('img').forEach(one => one.loading = 'eager')")
        empty = tab.evaluate(
            "[...document.images].filter(one => one.complete && !one.naturalWidth).map(one => one.src)"
        )
        assert empty == [], page
    tab.context.close()


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
