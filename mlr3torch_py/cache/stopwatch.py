"""A stopwatch for blocks of code."""

from __future__ import annotations

from time import perf_counter

__all__ = ["Stopwatch"]


class Stopwatch:
    """Measure the wall-clock seconds of a ``with`` block.

    Attributes
    ----------
    seconds : float
        The duration, once the block has ended.

    Examples
    --------
    >>> with Stopwatch() as watch:
    ...     total = sum(range(1000))
    >>> 0 < watch.seconds < 1
    True
    """

    __slots__ = ("_start", "seconds")

    def __enter__(self) -> Stopwatch:
        self._start = perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds: float = perf_counter() - self._start
