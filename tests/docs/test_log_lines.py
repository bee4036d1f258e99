"""The lines of the README and the guide that show the log."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LOGGING = {
    "README.md": re.compile(r"`(mlr3torch_py.log_to_console\(\))`"),
    "docs/guide/watch.md": re.compile(r"```python\n(.*?log_to_console\(\)\n)```", flags=re.DOTALL),
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
    done = subprocess.run(
        [sys.executable, "-c", "import mlr3torch_py\n" + line + TRAINING], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["freezing 0.weight until after epoch 1", "unfreezing at epoch 2: 0.weight"]
