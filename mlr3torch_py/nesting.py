"""How deeply, and how often, values are nested in each other."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

__all__ = ["is_nested_beyond"]

_MOST: Final = 10**6


def is_nested_beyond(deepest: int, value: Any, parts_of: Callable[[Any], Collection[Any]]) -> bool:
    """Check whether a value is nested too deeply, or has too many parts, to be walked through.

    A part that is shared counts as often as it occurs, but is looked at once in each level. So an answer comes soon
    also for a value that contains itself.

    Parameters
    ----------
    deepest : int
        How many values may be nested in each other.
    value : object
    parts_of : callable
        Returns the parts of a value; none for one that has none.

    Returns
    -------
    bool

    Examples
    --------
    >>> cycle = []
    >>> cycle.append(cycle)
    >>> def parts_of(value):
    ...     return value if isinstance(value, list) else ()
    >>> is_nested_beyond(100, cycle, parts_of), is_nested_beyond(100, [[1], [2]], parts_of)
    (True, False)
    """
    level, total = {id(value): (value, 1)}, 1
    for _ in range(deepest):
        below: dict[int, tuple[Any, int]] = {}
        for one, times in level.values():
            parts = parts_of(one)
            total += times * len(parts)
            if total > _MOST:
                return True
            for part in parts:
                before = below[id(part)][1] if id(part) in below else 0
                below[id(part)] = part, before + times
        if not below:
            return False
        level = below
    return True
