"""A plan in a notebook: the strip of its blocks by epoch, a table with a row for each phase, and notes."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Final

from mlr3torch_py.forecast.plan_changes import changes, epochs_of, n_weights, range_of_rates, size_in_words, waits
from mlr3torch_py.forecast.plan_strip import strip_html
from mlr3torch_py.html import html_table
from mlr3torch_py.names import percent

if TYPE_CHECKING:
    from mlr3torch_py.forecast.report import FreezePlan

__all__ = ["plan_html"]

_MOST_ROWS: Final = 30


def plan_html(plan: FreezePlan) -> str:
    """Draw a plan: a strip, and beneath it phases, rows that wait or never come, and notes."""
    head = ["phase", "epoch", "releases (+), freezes (-)", "trainable", "share", *_columns(plan)]
    rows = [*_phases(plan), *_pending(plan, len(head))]
    table = html_table(head, rows, left={1, 2})
    if len(rows) > _MOST_ROWS:
        table = f'<div style="max-height:36em;overflow:auto">{table}</div>'
    notes = "".join(f"<li>{escape(line, quote=False)}</li>" for line in [*plan.warnings(), *plan.notes])
    return (
        f'<div class="mlr3torch-plan"><div style="margin-bottom:4px"><b>FreezePlan</b>: {size_in_words(plan)}</div>'
        f"{strip_html(plan)}{table}{f'<ul>{notes}</ul>' if notes else ''}</div>"
    )


def _columns(plan: FreezePlan) -> dict[str, list[str]]:
    """Return the columns of some plans only: rates if they are scaled, and costs if they are measured."""
    columns = {}
    if any(phase.mults for phase in plan.phases):
        columns["lr_mult"] = [range_of_rates(phase) for phase in plan.phases]
    if any(phase.warmups for phase in plan.phases):
        columns["warmup"] = [str(max(phase.warmups.values(), default="")) for phase in plan.phases]
    if plan.measured is not None:
        columns["ms per batch"] = [f"{cost.seconds * 1e3:,.3g}" for cost in plan.measured.phases]
        columns["peak MB"] = [f"{cost.peak_bytes / 1e6:,.3g}" for cost in plan.measured.phases]
    return columns


def _phases(plan: FreezePlan) -> Iterator[list[str]]:
    total, further = n_weights(plan, plan.sizes), _columns(plan).values()
    for i, (phase, lines) in enumerate(zip(plan.phases, changes(plan), strict=True)):
        count = n_weights(plan, phase.trainable)
        share = percent(count / total) if total else ""
        when = epochs_of(plan, i).replace(" ", "\N{NO-BREAK SPACE}")
        cells = [str(i + 1), when, "\n".join(lines), f"{count:,}", share]
        yield [*cells, *(column[i] for column in further)]


def _pending(plan: FreezePlan, width: int) -> Iterator[list[str]]:
    for row in plan.pending:
        yield [*waits(plan, row), *[""] * (width - 3)]
