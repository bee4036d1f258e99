"""A plan as text, as wide as the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Final

import pandas as pd

from mlr3torch_py.forecast.plan_changes import changes, range_of_rates
from mlr3torch_py.names import percent

if TYPE_CHECKING:
    from mlr3torch_py.forecast.report import FreezePlan

__all__ = ["plan_text"]

_LONG: Final = 1800
_FEWER: Final = (10, 7, 5, 4, 3)
_MOST_WARNINGS: Final = 3
_LEAST_WIDTH: Final = 40
_HEADER: Final = 2


def plan_text(plan: FreezePlan) -> str:
    """Write a plan: a table with a row for each phase, what it releases by block, and notes.

    Where that is long, only the first and the last phases are written.
    """
    width = max(shutil.get_terminal_size().columns, _LEAST_WIDTH)
    frame, told, n = _frame(plan), changes(plan), len(plan.phases)
    warnings = plan.warnings()
    if len(warnings) > _MOST_WARNINGS:
        warnings = [
            *warnings[:_MOST_WARNINGS],
            f"{len(warnings) - _MOST_WARNINGS} more phases are alike; see warnings()",
        ]
    warned = [line for text in warnings for line in _wrapped(text, width)]
    lines = _of_phases(frame, told, range(n), width)
    for half in _FEWER:
        if sum(map(len, lines + warned)) > _LONG and 2 * half < n:
            lines = _of_phases(frame, told, [*range(half), *range(n - half, n)], width)
    return "\n".join([*lines, *warned, *(line for text in plan.notes for line in _wrapped(text, width))])


def _of_phases(frame: pd.DataFrame, told: Sequence[Sequence[str]], shown: Sequence[int], width: int) -> list[str]:
    """Write some phases: the table, and what they change."""
    lines = _table(frame.iloc[list(shown)], width)
    if len(shown) < len(told) and len(lines) == _HEADER + len(shown):
        lines.insert(_HEADER + len(shown) // 2, "...")
    for i, following in zip(shown, [*shown[1:], len(told)], strict=True):
        lines += [line for text in told[i] for line in _wrapped(f"{i + 1} {text}", width)]
        if following > i + 1:
            lines.append(f"... {following - i - 1} more phases, see summary() and to_frame()")
    return lines


def _frame(plan: FreezePlan) -> pd.DataFrame:
    """Return the summary, for people."""
    frame = plan.summary().rename(columns={"trainable_tensors": "tensors"})
    frame["share"] = frame["share"].map(percent)
    for name in frame.columns.intersection(["ms_per_batch", "peak_mb"]):
        frame[name] = frame[name].map("{:,.3g}".format)
    if "lr_mult" in frame:
        frame["lr_mult"] = [range_of_rates(phase) for phase in plan.phases]
    return frame


def _table(frame: pd.DataFrame, width: int) -> list[str]:
    without_total = frame.drop(columns="total")  # it is the same in every row
    texts = frame.to_string(), without_total.to_string()
    fitting = (text for text in texts if max(map(len, text.splitlines())) <= width)
    text: str = next(fitting, without_total.to_string(line_width=width))
    return [line.rstrip() for line in text.splitlines()]


def _wrapped(text: str, width: int) -> Iterator[str]:
    yield from wrap(text, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False) or [text]
