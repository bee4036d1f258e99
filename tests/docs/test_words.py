"""The rules of CONTRIBUTING.md about English, as far as a pattern can check them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {"docs": "*.md", "mlr3torch_py": "*.py", "benchmarks": "*.py", "docs/gallery": "*.py"}
FILES = sorted(
    {*ROOT.glob("*.md"), *(file for room, pattern in ROOMS.items() for file in (ROOT / room).rglob(pattern))}
    - {*(ROOT / "docs" / "auto_examples").rglob("*")}
)
BETTER = {
    r"\btak(?:e|es|en|ing) up\b": "adopt, start",
    r"\blets? go of\b": "release",
    r"\bgo(?:es)? on\b": "continue",
    r"\bwhat came of\b": "the result of",
    r"\bno function of\b": "does not depend on",
    r"\bthe begin\b": "the start, the beginning",
    r"\bfor granted\b": "assume",
    r"\bmade up for\b": "say what is done",
    r"\bcomes? to an end\b": "end",
}


@pytest.mark.parametrize("banned", BETTER)
def test_no_text_uses_a_calque(banned):
    found = [
        f"{file.relative_to(ROOT)}: {match[0]!r}; write: {BETTER[banned]}"
        for file in FILES
        for match in re.finditer(banned, " ".join(file.read_text(encoding="utf-8").split()), flags=re.IGNORECASE)
    ]
    assert found == []
