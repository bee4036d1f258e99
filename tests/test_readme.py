import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_the_code_in_the_readme_runs(capsys):
    readme = ROOT / "README.md"
    for block in re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), flags=re.DOTALL):
        scope = {}
        exec(compile(block, str(readme), "exec"), scope)
    assert scope["net"].history[:, "n_trainable"] == [8, 12, 12, 12, 14, 14]
    assert "n_trainable" in capsys.readouterr().out


LOGGING = {
    "README.md": re.compile(r"`(import logging; .*)`"),
    "docs/guide.md": re.compile(r"```python\n(import logging\n.*?)```", flags=re.DOTALL),
}

TRAINING = """
from mlr3torch_py import Freezer
from tests.helpers import X, iris_net, y

iris_net(Freezer(names="0.weight", until_epoch=1), max_epochs=2, audited=False).fit(X, y)
"""


@pytest.mark.slow
@pytest.mark.parametrize("page", LOGGING)
def test_the_line_that_shows_the_log_shows_it(page):
    """In a process of its own, since logging is set up once."""
    (line,) = LOGGING[page].findall((ROOT / page).read_text(encoding="utf-8"))
    done = subprocess.run([sys.executable, "-c", line + TRAINING], capture_output=True, text=True, check=True)
    assert "INFO:mlr3torch_py:freezing 0.weight until after epoch 1" in done.stderr
    assert "INFO:mlr3torch_py:unfreezing at epoch 2: 0.weight" in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prompts_stand_in_fences(page):
    outside = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"^>>>.*", outside, flags=re.MULTILINE) == []
