"""Words for people: names listed, the nearest ones, the paths above them, and shares."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

__all__ = ["ancestors", "counted", "is_note", "listed", "nearest", "percent"]


_MOST_NEAR: Final = 3
_OF_THIS_PACKAGE: Final = "_mlr3torch_py"


def ancestors(name: str) -> Iterator[str]:
    """Yield the paths of the modules around a name.

    The innermost comes first; the path of the network itself is "".

    Examples
    --------
    >>> list(ancestors("encoder.0.weight"))
    ['encoder.0', 'encoder', '']
    """
    while name:
        name = name.rpartition(".")[0]
        yield name


def counted(n: int, noun: str) -> str:
    """Put a number before a noun that takes an "s" in the plural.

    Examples
    --------
    >>> counted(1, "tensor"), counted(2000, "tensor")
    ('1 tensor', '2,000 tensors')
    """
    return f"{n:,} {noun}{'s' * (n != 1)}"


def is_note(name: str) -> bool:
    """Whether an attribute of a module or a wrapper is what this package notes there for itself.

    Examples
    --------
    >>> is_note("_frozen_by_mlr3torch_py"), is_note("weight")
    (True, False)
    """
    return name.endswith(_OF_THIS_PACKAGE)


def listed(items: Iterable[object], most: int = 10) -> str:
    """Join items by commas, and count those beyond `most`.

    Examples
    --------
    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    words = [str(item) for item in items]
    rest = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + rest


def nearest(unknown: Iterable[str], known: Iterable[str]) -> str:
    """Suggest known paths that lead through the unknown ones, or else the nearest known words, or list them all.

    Returns
    -------
    str
        A sentence with its end mark: put it last, or start another sentence after it.

    Examples
    --------
    >>> nearest(["wieght"], ["weight", "bias"])
    "did you mean 'weight'?"
    >>> nearest(["x"], ["weight", "bias"])
    "choose from 'weight', 'bias'."
    >>> nearest(["0.weight"], ["0.parametrizations.weight.original0", "2.weight"])
    "did you mean '0.parametrizations.weight.original0'?"
    >>> nearest(["x"], [])
    'there are none.'
    """
    known = list(known)
    near = dict.fromkeys(hit for word in unknown for hit in _near(word, known))
    if near:
        return f"did you mean {listed(map(repr, near))}?"
    return f"choose from {listed(map(repr, known))}." if known else "there are none."


def _near(word: str, known: Sequence[str]) -> Sequence[str]:
    """List the known paths that lead through a word which is a path, or else the words that look like it, a few."""
    through = [path for path in known if "." in word and _leads_through(path, word)]
    return through[:_MOST_NEAR] or difflib.get_close_matches(word, known, _MOST_NEAR)


def _leads_through(path: str, word: str) -> bool:
    """Whether a path has all parts of another one, in their order."""
    parts = iter(path.split("."))
    return all(part in parts for part in word.split("."))


def percent(share: float) -> str:
    """Write a share so that what is neither nothing nor all does not look like it.

    Examples
    --------
    >>> [percent(share) for share in (0, 0.00067, 0.31, 0.9998, 1)]
    ['0%', '0.1%', '31%', '99.98%', '100%']
    """
    for digits in range(9):
        text = f"{share:.{digits}%}"
        if share in (0, 1) or float(text[:-1]) not in (0, 100):
            return text
    return ">0%" if share < 0.5 else "<100%"
