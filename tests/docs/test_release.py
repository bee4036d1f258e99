"""What the index page of a release shows: the README, with links that work there."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("hatchling")
HOOK = Path(__file__).parents[2] / "docs" / "release_readme.py"
TEXT = "![a plan](docs/plan.png)\nThe [guide](docs/guide.md), [skorch](https://skorch.org) and [below](#below)."


@pytest.fixture
def hook():
    spec = importlib.util.spec_from_file_location("release_readme", HOOK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_an_address_links_to_files_become_words(hook):
    text = hook.readme(TEXT, "")
    assert text == "\nThe guide, [skorch](https://skorch.org) and [below](#below)."
    assert hook.urls("") == {}


def test_with_an_address_links_to_files_are_absolute(hook):
    text = hook.readme(TEXT, "https://example.org/us")
    assert "![a plan](https://example.org/us/raw/HEAD/docs/plan.png)" in text
    assert "[guide](https://example.org/us/blob/HEAD/docs/guide.md)" in text
    assert hook.urls("https://example.org/us")["Source"] == "https://example.org/us"
