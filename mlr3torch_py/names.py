"""Names: reading lists of them, listing them, guessing which were meant, and the paths above them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Set

__all__ = ["ancestors", "as_names", "listed", "nearest"]


def ancestors(name: str) -> Iterator[str]:
    """Yield the paths of the modules around a parameter or module, innermost first; the network is the path "".

    Examples
    --------
    >>> list(ancestors("encoder.0.weight"))
    ['encoder.0', 'encoder', '']
    """
    while name:
        name = name.rpartition(".")[0]
        yield name


def as_names(argument: str, value: object) -> tuple[str, ...]:
    """Return a name, or a list of names, as a tuple.

    Raises
    ------
    TypeError
        If `value` is neither; the message calls it `argument`.

    Examples
    --------
    >>> as_names("names", "0.weight")
    ('0.weight',)
    """
    is_list = isinstance(value, Iterable) and not isinstance(value, (str, Set, Mapping))
    names = tuple(value) if is_list else (value,)  # type: ignore[arg-type]
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"`{argument}` is {value!r}; it must be a name or a list of names")
    return tuple(map(str, names))


def listed(items: Iterable[object], most: int = 10) -> str:
    """Join `items` by commas, at most `most` of them.

    Examples
    --------
    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    words = [str(item) for item in items]
    rest = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + rest


def nearest(unknown: Iterable[str], known: Iterable[str]) -> str:
    """Say which of the `known` words may have been meant, or which there are.

    Examples
    --------
    >>> nearest(["wieght"], ["weight", "bias"])
    "did you mean 'weight'?"
    >>> nearest(["x"], ["weight", "bias"])
    "known are 'weight', 'bias'"
    """
    known = list(known)
    near = dict.fromkeys(hit for word in unknown for hit in difflib.get_close_matches(word, known))
    return f"did you mean {listed(map(repr, near))}?" if near else f"known are {listed(map(repr, known))}"
