"""Ratios that hold on a busy machine: the ways of doing a thing take turns, and are compared within each round.

Time is CPU time of the process, which other processes on the machine disturb less than time on the wall; all torch
work runs in one thread.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from math import nan
from random import sample
from time import process_time
from timeit import timeit
from unittest.mock import patch

import pandas as pd

COLUMNS = ["benchmark", "case", "against", "ratio", "low", "high", "limit", "value", "unit", "note"]


def in_turns(ways: Mapping[str, Callable[[], float]], rounds: int) -> pd.DataFrame:
    """The figures that the ways return, by round. Each round has an order by chance, and the first warms up."""
    names = list(ways)
    figures = [{name: ways[name]() for name in sample(names, len(names))} for _ in range(rounds + 1)]
    return pd.DataFrame(figures[1:], columns=names)


def per_call(statement: str | Callable[[], object], number: int, **scope: object) -> Callable[[], float]:
    """A way: CPU microseconds of one call."""
    return lambda: timeit(statement, timer=process_time, number=number, globals=scope) / number * 1e6


class Stopwatch:
    """Adds up the CPU seconds inside methods, given as pairs of class and name, each moment once."""

    def __init__(self, methods):
        self.methods, self.seconds, self.depth = methods, 0.0, 0

    @contextmanager
    def running(self) -> Iterator["Stopwatch"]:
        with ExitStack() as stack:
            for owner, name in self.methods:
                stack.enter_context(patch.object(owner, name, self.timed(getattr(owner, name))))
            yield self

    def timed(self, method):
        @wraps(method)
        def timed_method(*args, **kwargs):
            self.depth += 1
            begin = process_time()
            try:
                return method(*args, **kwargs)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.seconds += process_time() - begin

        return timed_method


def row(benchmark: str, case: str, against: str, ours: pd.Series, theirs: pd.Series, limit=nan, unit="us", note=""):
    """A row of the table: the median of the rounds' ratios with their quartiles, and the median of our own figures."""
    low, ratio, high = (ours / theirs).quantile([0.25, 0.5, 0.75])
    cells = (benchmark, case, against, ratio, low, high, limit, ours.median(), unit, note)
    return dict(zip(COLUMNS, cells, strict=True))


def table(rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS)
