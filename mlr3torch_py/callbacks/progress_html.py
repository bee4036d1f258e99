"""The table of a training in a notebook, as HTML that light and dark themes can show."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from mlr3torch_py.callbacks.progress_state import Epoch, ProgressState
from mlr3torch_py.html import html_table

__all__ = ["losses_svg", "table_html"]

_MOST_LIVE_ROWS: Final = 25
_BLUE, _ORANGE = "#3b82c4", "#d97706"  # both can be read on white and on black


def table_html(state: ProgressState, *, is_live: bool, plot: bool) -> str:
    """Draw a table with a row for each epoch, below a bar while training lasts.

    Parameters
    ----------
    state : ProgressState
    is_live : bool
        Whether training lasts; later there is no bar.
    plot : bool
        Whether to draw the losses beneath.

    Returns
    -------
    str
    """
    epochs = state.epochs[-_MOST_LIVE_ROWS:] if is_live else state.epochs
    hidden = len(state.epochs) - len(epochs)
    parts = [_bar(state)] if is_live else []
    if hidden:
        parts.append(f"<div>{hidden} earlier epochs are shown at the end</div>")
    if epochs:
        table = _table(epochs)
        parts.append(table if len(epochs) <= 40 else f'<div style="max-height:32em;overflow:auto">{table}</div>')
    parts += [f'<div style="padding:4px 10px">{escape(note)}</div>' for note in state.notes]
    if plot and len(state.losses) > 1:
        parts.append(losses_svg(state.losses))
    return f'<div class="mlr3torch-progress">{"".join(parts)}</div>'


def _bar(state: ProgressState) -> str:
    known = f' value="{state.n_batches}" max="{state.of_batches}"' if state.of_batches else ""
    of = f"/{state.of_batches}" if state.of_batches else ""
    words = [f"Epoch {state.number}/{state.total_epochs}", f"{state.part} batch {state.n_batches}{of}", state.time_left]
    text = ", ".join(word for word in words if word)
    return f'<div style="padding:4px 10px"><progress{known} style="width:20em"></progress> {escape(text)}</div>'


def _table(epochs: Sequence[Epoch]) -> str:
    scores = list(dict.fromkeys(name for epoch in epochs for name in epoch.scores))
    has_share, has_changes = any(epoch.share for epoch in epochs), any(epoch.changes for epoch in epochs)
    head = ["epoch", *scores, "lr", *["trainable"] * has_share, "time", *["unfrozen, frozen"] * has_changes]
    rows = []
    for epoch in epochs:
        cells = [str(epoch.number), *(epoch.scores.get(name, "") for name in scores), epoch.rate]
        rows.append([*cells, *[epoch.share] * has_share, epoch.seconds, *[epoch.changes] * has_changes])
    return html_table(head, rows, left={len(head) - 1} if has_changes else ())


def losses_svg(losses: Sequence[tuple[int, float | None, float | None]]) -> str:
    """Draw training and validation losses over epochs.

    Parameters
    ----------
    losses : sequence of tuple
        Epoch, training loss, validation loss; None where there is none.

    Returns
    -------
    str
    """
    width, height, left, top, bottom = 460, 190, 58, 28, 22
    known = [loss for _, *pair in losses for loss in pair if loss is not None and abs(loss) < float("inf")]
    if not known:
        return ""
    low, high = min(known), max(known)
    first, last = losses[0][0], losses[-1][0]

    def at(epoch: int, loss: float) -> str:
        x = left + (epoch - first) / max(last - first, 1) * (width - left - 12)
        y = top + (high - loss) / ((high - low) or 1) * (height - bottom - top - 8)
        return f"{x:.1f},{y:.1f}"

    lines = []
    for i, (name, colour) in enumerate((("train.loss", _BLUE), ("valid.loss", _ORANGE))):
        points = [(epoch, pair[i]) for epoch, *pair in losses]
        drawn = " ".join(at(epoch, loss) for epoch, loss in points if loss is not None and abs(loss) < float("inf"))
        if drawn:
            lines.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
            lines.append(f'<text x="{left + 90 * i}" y="12" fill="{colour}">{name}</text>')
    texts = [(left - 6, top + 4, "end", f"{high:.4g}"), (left - 6, height - bottom - 4, "end", f"{low:.4g}")]
    texts += [(left, height - 4, "start", f"epoch {first}"), (width - 12, height - 4, "end", str(last))]
    for x, y, anchor, text in texts:
        lines.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="currentColor">{text}</text>')
    path = f"M{left - 2} {top - 6}V{height - bottom}H{width - 8}"
    frame = f'<path d="{path}" fill="none" stroke="currentColor" opacity=".4"/>'
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-size="11" '
        f'font-family="sans-serif" role="img" aria-label="losses by epoch">{frame}{"".join(lines)}</svg>'
    )
