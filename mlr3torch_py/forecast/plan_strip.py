"""The strip of a plan in a notebook: blocks down, epochs across, as inline SVG that light and dark themes show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from mlr3torch_py.forecast.ink import TRAINABLE
from mlr3torch_py.forecast.plan_changes import epochs_of, warmup_end
from mlr3torch_py.names import listed
from mlr3torch_py.patterns import cover, patterns

if TYPE_CHECKING:
    from mlr3torch_py.forecast.report import FreezePlan, Pending

__all__ = ["strip_html"]

_MOST_ROWS: Final = 40
_MOST_LETTERS: Final = 34
_WIDTH: Final = 700
_HEIGHT: Final = 20
_FROZEN: Final = 'fill="#808080" fill-opacity=".3"'
_LINE: Final = 'fill="none" stroke="currentColor" stroke-opacity=".55"'


class _Row(NamedTuple):
    name: str
    names: tuple[str, ...]


class _Time(NamedTuple):
    """What a phase has, made once for all rows."""

    trainable: frozenset[str]
    mults: Mapping[str, float]
    warmups: Mapping[str, tuple[int, str]]
    waiting: Sequence[tuple[Pending, frozenset[str]]]


@dataclass(frozen=True, slots=True)
class _Cell:
    """A row in a phase, or in several that are the same to it.

    Parameters
    ----------
    share : float
        The share of its weights that train.
    is_waiting, never_comes : bool
        Whether some of its parameters wait for a condition, or for a row that never comes.
    rates : str
        The factors on its learning rates; empty if all are 1.
    warmup_end : int
        The batch at which the last warm-up that is in progress ends; 0 without any.
    tip : str
        What a tooltip says of it, without the epochs.
    """

    share: float
    is_waiting: bool
    never_comes: bool
    rates: str
    warmup_end: int
    tip: str


def strip_html(plan: FreezePlan) -> str:
    """Draw a plan, with a legend above it; empty for a network without parameters."""
    rows = _rows(plan)
    if not rows or not plan.phases:
        return ""
    times = [
        _Time(phase.trainable, phase.mults, _warmups(plan, i), [(one, one.waiting(phase)) for one in plan.pending])
        for i, phase in enumerate(plan.phases)
    ]
    cells = [[_cell(plan, row, time) for time in times] for row in rows]
    return f"{_legend(plan, cells)}{_drawn(plan, rows, cells)}"


def _rows(plan: FreezePlan) -> list[_Row]:
    """Return the blocks, split into parameters where these differ in a phase; of many, neighbours are joined."""
    known = list(plan.sizes)
    blocks = [_Row(name, tuple(one for one in known if one in names)) for name, names in plan.blocks]
    if not blocks:
        blocks = [_Row(name, (name,)) for name in known]
    split = [row for block in blocks for row in ([block] if _is_whole(plan, block) else _by_name(block))]
    rows = split if len(split) <= _MOST_ROWS else blocks
    n = max(1, -(-len(rows) // _MOST_ROWS))
    return [_joined(rows[i : i + n], known) for i in range(0, len(rows), n)]


def _warmups(plan: FreezePlan, i: int) -> dict[str, tuple[int, str]]:
    """Return, for each parameter that is in a warm-up when a phase begins, the batch of its end, and a description."""
    phase = plan.phases[i]
    return {
        name: (
            warmup_end(plan.phases, i, name),
            f"warmup over {one.warmup} batches" + (f" since batch {one.first}" if one.first < phase.batch else ""),
        )
        for name, one in phase.factors.items()
        if one.is_rising(phase.batch)
    }


def _is_whole(plan: FreezePlan, block: _Row) -> bool:
    return all(len({name in phase.trainable for name in block.names}) == 1 for phase in plan.phases)


def _by_name(block: _Row) -> list[_Row]:
    return [_Row(name, (name,)) for name in block.names]


def _joined(rows: Sequence[_Row], known: Sequence[str]) -> _Row:
    if len(rows) == 1:
        return rows[0]
    names = tuple(name for row in rows for name in row.names)
    return _Row(listed(patterns(cover(names, known)), most=3), names)


def _cell(plan: FreezePlan, row: _Row, time: _Time) -> _Cell:
    train, total = [name for name in row.names if name in time.trainable], _size(plan, row.names)
    rates = sorted({time.mults.get(name, 1.0) for name in train})
    text = ", ".join(f"x{rate:.3g}" for rate in rates) if any(rate != 1 for rate in rates) else ""
    warmups = dict.fromkeys(time.warmups[name] for name in train if name in time.warmups)
    rows = [one for one, names in time.waiting if not names.isdisjoint(row.names)]
    tip = [*_parts(plan, "trainable", train), *_parts(plan, "frozen", [one for one in row.names if one not in train])]
    tip += [f"lr_mult {listed((f'{rate:.3g}' for rate in rates), most=6)}"] if text else []
    tip += dict.fromkeys(text for _, text in warmups)
    tip += [f"waits for {one.waits_for}" if one.is_condition else f"{one.waits_for} never comes" for one in rows]
    conditions = {one.is_condition for one in rows}
    share = _size(plan, train) / total if total else len(train) / len(row.names)
    end = max((end for end, _ in warmups), default=0)
    return _Cell(share, True in conditions, False in conditions, text, end, "\n".join(tip))


def _size(plan: FreezePlan, names: Sequence[str]) -> int:
    return sum(plan.sizes[name] for name in names)


def _parts(plan: FreezePlan, what: str, names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"{what}: {listed((f'{name} ({plan.sizes[name]:,})' for name in names), most=8)}"


def _legend(plan: FreezePlan, cells: Sequence[Sequence[_Cell]]) -> str:
    every = [cell for row in cells for cell in row]
    entries = [("frozen", _Cell(0, False, False, "", 0, "")), ("trainable", _Cell(1, False, False, "", 0, ""))]
    if any(0 < cell.share < 1 for cell in every):
        entries.insert(1, ("in part", _Cell(0.5, False, False, "", 0, "")))
    for is_condition, what in ((True, "waits for"), (False, "never comes:")):
        texts = dict.fromkeys(one.waits_for for one in plan.pending if one.is_condition is is_condition)
        if texts:
            entries.append((f"{what} {listed(texts, most=2)}", _Cell(0, is_condition, not is_condition, "", 0, "")))
    drawn = (
        f'<span style="margin-right:16px;display:inline-block"><svg width="14" height="14" aria-hidden="true" '
        f'style="vertical-align:-2px">{"".join(_filled(0, 0, 14, 14, cell))}</svg> {escape(text)}</span>'
        for text, cell in entries
    )
    return f'<div style="font-size:12px;margin:2px 0 4px">{"".join(drawn)}</div>'


def _drawn(plan: FreezePlan, rows: Sequence[_Row], cells: Sequence[Sequence[_Cell]]) -> str:
    labels = [row.name if len(row.name) <= _MOST_LETTERS else f"…{row.name[1 - _MOST_LETTERS :]}" for row in rows]
    left = 10 + round(6.7 * max(map(len, labels)))
    per_epoch, wide = plan.batches_per_epoch or 1, (_WIDTH - left - 2) / plan.max_epochs
    edges = [left + (phase.batch - 1) / per_epoch * wide for phase in plan.phases] + [left + plan.max_epochs * wide]
    top = 2 if plan.measured is None else 18
    bottom = top + _HEIGHT * len(rows)
    parts = []
    for y, (row, label, of_row) in enumerate(zip(rows, labels, cells, strict=True)):
        parts.append(
            f'<text x="{left - 6}" y="{top + _HEIGHT * y + 14}" text-anchor="end" fill="currentColor">'
            f"<title>{escape(row.name)}: {_size(plan, row.names):,} weights</title>{escape(label)}</text>"
        )
        for start, end, cell in _runs(of_row):
            width, warm = edges[end] - edges[start], cell.warmup_end - plan.phases[start].batch
            rise = min(max(0, warm) / per_epoch * wide, width)
            title = f"{row.name}, epoch {_span(plan, start, end)}\n{cell.tip}"
            drawn = "".join(_in_cell(edges[start], top + _HEIGHT * y, width, rise, cell))
            parts.append(f"<g><title>{escape(title)}</title>{drawn}</g>")
        parts += _rising(plan, row, edges, top + _HEIGHT * y, wide / per_epoch)
    parts += [*_axis(plan, left, wide, bottom), *_milliseconds(plan, edges)]
    height = bottom + 34
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" font-size="12" '
        f'font-family="sans-serif" style="max-width:100%;height:auto;display:block" role="img" '
        f'aria-label="blocks by epoch: what trains when">{"".join(parts)}</svg>'
    )


def _runs(cells: Sequence[_Cell]) -> Iterator[tuple[int, int, _Cell]]:
    """Yield the cells that differ from the one before, with the first phase of each and the one after its last."""
    groups = [(cell, [i for i, _ in same]) for cell, same in groupby(enumerate(cells), key=lambda pair: pair[1])]
    yield from ((phases[0], phases[-1] + 1, cell) for cell, phases in groups)


def _span(plan: FreezePlan, start: int, end: int) -> str:
    first, last = epochs_of(plan, start), epochs_of(plan, end - 1)
    if end == start + 1:
        return first
    return f"{first.split()[0]} to {last.partition(',')[0].split()[-1]}"


def _in_cell(x: float, y: float, width: float, rise: float, cell: _Cell) -> Iterator[str]:
    yield from _filled(x, y, width, _HEIGHT, cell)
    if cell.rates and width - rise > 8 + 6.5 * len(cell.rates):
        yield f'<text x="{x + rise + 5:.1f}" y="{y + 14}" fill="#fff" font-size="11">{escape(cell.rates)}</text>'


def _rising(plan: FreezePlan, row: _Row, edges: Sequence[float], y: float, per_batch: float) -> Iterator[str]:
    """Draw the warm-ups of a row, each by a line that rises to the top as far as it gets."""
    for i, phase in enumerate(plan.phases):
        warmups = phase.warmups
        for end, length in {(warmup_end(plan.phases, i, name), warmups[name]) for name in row.names if name in warmups}:
            width = min((end - phase.batch) * per_batch, edges[-1] - edges[i])
            rise = (4 - _HEIGHT) * width / (length * per_batch)
            yield f'<path d="M{edges[i]:.1f} {y + _HEIGHT - 2}l{width:.1f} {rise:.1f}" stroke="#fff" fill="none"/>'


def _filled(x: float, y: float, width: float, height: float, cell: _Cell) -> Iterator[str]:
    place = f'x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{max(width - 1, 0.5):.1f}" height="{height - 1}"'
    yield f"<rect {place} {_FROZEN}/>"
    if cell.share > 0:
        yield f'<rect {place} fill="{TRAINABLE}" fill-opacity="{0.2 + 0.8 * cell.share:.2f}"/>'
    lean, step = min(8.0, width - 1), 6
    starts = [x + 0.5 + step * i for i in range(int((width - 1 - lean) / step) + 1)]
    for is_drawn, up in ((cell.is_waiting or cell.never_comes, True), (cell.never_comes, False)):
        if is_drawn:
            low, rise = (y + height - 0.5, 1 - height) if up else (y + 0.5, height - 1)
            path = "".join(f"M{start:.1f} {low:.1f}l{lean:.1f} {rise}" for start in starts)
            yield f'<path d="{path}" {_LINE}/>'


def _axis(plan: FreezePlan, left: float, wide: float, bottom: float) -> Iterator[str]:
    style = 'text-anchor="middle" fill="currentColor"'
    every = max(1, -(-plan.max_epochs // 12), round(26 / wide + 0.5) if wide < 26 else 1)
    for epoch in range(1, plan.max_epochs + 1, every):
        x = left + (epoch - 1) * wide
        yield f'<path d="M{x:.1f} {bottom}v4" {_LINE}/>'
        yield f'<text x="{x + wide / 2:.1f}" y="{bottom + 15}" {style}>{epoch}</text>'
    yield f'<text x="{left + plan.max_epochs * wide / 2:.1f}" y="{bottom + 30}" {style}>epoch</text>'


def _milliseconds(plan: FreezePlan, edges: Sequence[float]) -> Iterator[str]:
    costs = () if plan.measured is None else plan.measured.phases
    for (start, end), cost in zip(pairwise(edges), costs, strict=False):
        text = f"{cost.seconds * 1e3:.3g} ms"
        if end - start > 8 + 6.5 * len(text):
            yield (
                f'<text x="{(start + end) / 2:.1f}" y="13" text-anchor="middle" fill="currentColor" '
                f'font-size="11">{text}</text>'
            )
