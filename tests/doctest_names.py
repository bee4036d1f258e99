"""Give the examples in docstrings the names that docs/_lines.md defines."""

import re
from pathlib import Path

import pytest

LINES = Path(__file__).parents[1] / "docs" / "_lines.md"
PREPARATION = re.search(r"~~~python\n(.*?)~~~", LINES.read_text(encoding="utf-8"), flags=re.DOTALL)[1]


@pytest.fixture(autouse=True)
def _iris(request, doctest_namespace):
    if isinstance(request.node, pytest.DoctestItem):
        prepared = {}
        exec(PREPARATION, prepared)
        doctest_namespace |= {name: prepared[name] for name in ("X", "y", "iris_net")}
        known = prepared["mlr3torch_callbacks"]
        request.getfixturevalue("monkeypatch").setattr(
            known, "_generators", dict(known._generators)
        )  # an example may add a callback
