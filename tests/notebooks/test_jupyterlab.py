"""A notebook in JupyterLab in a browser: trained, interrupted and resumed; what the page shows, and nothing else."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from time import monotonic, sleep

import nbformat
import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SHOTS = os.environ.get("SHOTS")  # a folder for pictures of the page, to look at

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium"),
    pytest.mark.skipif(importlib.util.find_spec("jupyterlab") is None, reason="needs JupyterLab"),
    # The dispatcher of playwright is closed by the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CELLS = [
    """
from mlr3torch_py import *
from tests.helpers import Nested, X, iris_net, y
from skorch.dataset import ValidSplit
def net_for(max_epochs):
    schedule = gradual_unfreezing(every=2, lr_decay=2.0)
    return iris_net(
        t_clbk("progress", plot=True), t_clbk("unfreeze", schedule=schedule),
        t_clbk("checkpoint", path="run", freq=1, resume=True),
        module=Nested, module__blocks=3, max_epochs=max_epochs, batch_size=4, verbose=1, train_split=ValidSplit(3),
    )
freeze_plan(net_for(12), X, y)
""",
    "net = net_for(100_000).fit(X, y)",
    "net_for(len(net.history) + 2).fit(X, y);",
]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def answers(address):
    try:
        with urllib.request.urlopen(f"{address}/api/status", timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module", params=["light", "dark"] if SHOTS else ["light"])
def lab(request, tmp_path_factory):
    """JupyterLab in a folder of its own, without anything of the user's."""
    folder = tmp_path_factory.mktemp("lab")
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "run.ipynb")
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    theme = f'{{"theme": "JupyterLab {request.param.title()}"}}'
    (settings / "themes.jupyterlab-settings").write_text(theme, encoding="utf-8")
    fetch = '{"fetchNews": "false", "checkForUpdates": false}'
    (settings / "notification.jupyterlab-settings").write_text(fetch, encoding="utf-8")
    port = free_port()
    own = {f"JUPYTER_{name}_DIR": str(folder / "home") for name in ("CONFIG", "RUNTIME", "DATA")}
    environment = {**os.environ, **own, "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "IPYTHONDIR": str(folder / "home")}
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--IdentityProvider.token=",
        f"--notebook-dir={folder}",
    ]
    with (folder / "log.txt").open("wb") as log:
        command = [sys.executable, "-W", "ignore", "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    address, end = f"http://127.0.0.1:{port}", monotonic() + 60
    while not answers(address) and server.poll() is None and monotonic() < end:
        sleep(0.2)
    try:
        assert answers(address), (folder / "log.txt").read_text(encoding="utf-8")
        yield address, folder, request.param
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def page(lab):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1600, "height": 1000})
        tab.set_default_timeout(120_000)
        tab.goto(f"{lab[0]}/lab/tree/run.ipynb")
        tab.wait_for_selector(".jp-Notebook .jp-Cell")
        tab.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")  # the kernel has started
        yield tab
        if SHOTS:
            tab.screenshot(path=str(Path(SHOTS) / f"end_{lab[2]}.png"))
        browser.close()


def run_next(page, i):
    """Run a cell; JupyterLab drops what is run while it still connects to the kernel."""
    cell, end = page.locator(".jp-Notebook .jp-Cell").nth(i), monotonic() + 60
    while not re.search(r"[*\d]", cell.locator(".jp-InputArea-prompt").inner_text()) and monotonic() < end:
        cell.locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_timeout(2000)


def output(page, i):
    return page.locator(".jp-Notebook .jp-Cell").nth(i).locator(".jp-Cell-outputArea")


def is_done(page, i):
    prompt = page.locator(".jp-Notebook .jp-Cell").nth(i).locator(".jp-InputArea-prompt")
    page.wait_for_function("one => /\\d/.test(one.innerText)", arg=prompt.element_handle())


def picture(page, lab, name):
    for width in (1600, 900) if SHOTS else ():
        page.set_viewport_size({"width": width, "height": 1000})
        page.screenshot(path=str(Path(SHOTS) / f"{name}_{lab[2]}_{width}.png"))
    page.set_viewport_size({"width": 1600, "height": 1000})


def only_a_table(out):
    """Check that an output is one table without a bar, and return its words."""
    assert out.locator(".jp-OutputArea-output").count() == 1
    assert out.locator("table").count() == 1
    assert out.locator("progress").count() == 0
    return out.inner_text()


def test_a_notebook_is_trained_interrupted_and_resumed(lab, page):
    run_next(page, 0)
    output(page, 0).locator("svg[role=img]").wait_for()
    plan = output(page, 0)
    assert "FreezePlan: 5 phases in 12 epochs" in plan.inner_text()
    assert plan.locator("table").count() == 1
    assert "lr_mult 0.5" in "".join(plan.locator("svg title").all_text_contents())
    is_done(page, 0)
    picture(page, lab, "plan")

    run_next(page, 1)
    out = output(page, 1)
    out.locator("tr").nth(6).wait_for()  # five epochs
    assert out.locator("progress").count() == 1
    assert out.locator("table").count() == 1
    assert re.search(r"Epoch \d+/100000, (train|valid) batch \d+/\d+, .* left", out.inner_text())
    picture(page, lab, "live")
    page.keyboard.press("Escape")
    page.keyboard.press("i")
    page.keyboard.press("i")
    out.get_by_text(re.compile("interrupted (in|after) epoch")).wait_for()
    is_done(page, 1)
    text = only_a_table(out)
    last = int(re.search(r"interrupted (?:in|after) epoch (\d+)", text)[1])
    assert "unfroze encoder.2 (6 tensors)" in text
    assert out.locator("polyline").count() == 2
    picture(page, lab, "interrupted")

    run_next(page, 2)
    again = output(page, 2)
    again.get_by_text("Trained for").wait_for()
    is_done(page, 2)
    words = only_a_table(again)
    since = int(re.search(r"Training: (?:resumed|continued) after epoch (\d+)", words)[1])
    assert last - 1 <= since <= last  # the checkpoint of an epoch that is interrupted at its end is that before
    assert again.locator("tr").count() == 1 + last + 2 - since
    picture(page, lab, "resumed")

    page.keyboard.press("Control+s")
    end = monotonic() + 30
    while not (saved := nbformat.read(lab[1] / "run.ipynb", 4)).cells[2].get("outputs") and monotonic() < end:
        sleep(0.2)
    assert [[one.output_type for one in cell.outputs] for cell in saved.cells if cell.source] == [
        ["execute_result"],
        ["display_data"],
        ["display_data"],
    ]
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
