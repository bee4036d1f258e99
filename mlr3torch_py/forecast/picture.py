"""Pictures of a plan, and the time axis of all pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from mlr3torch_py.forecast.ink import FROZEN, INK, ON_COLOUR, TRAINABLE, for_any_theme
from mlr3torch_py.forecast.plan_changes import warmup_end
from mlr3torch_py.names import listed
from mlr3torch_py.values import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mlr3torch_py.forecast.report import Pending, Phase

__all__ = [
    "MOST_ROWS",
    "check_axes",
    "draw_epochs",
    "plot_plan",
    "pyplot",
    "share_colours",
    "share_legend",
]

HATCH = "#7f7f7f"
MOST_ROWS = 40


def plot_plan(
    phases: Sequence[Phase],
    sizes: Mapping[str, int],
    max_epochs: int,
    per_epoch: int,
    ax: Axes | None = None,
    *,
    pending: Sequence[Pending] = (),
    labels: Sequence[str] = (),
) -> Axes:
    """Draw which parameters are trainable in which phase.

    Parameters
    ----------
    phases : sequence of Phase
    sizes : mapping of str to int
        The numbers of weights of the parameters, in the order of the network.
    max_epochs : int
        The last epoch that is drawn.
    per_epoch : int
        The number of batches in an epoch, by which the `batch` of a phase is placed.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if missing.
    pending : sequence of Pending
        The rows whose parameters are hatched while they wait.
    labels : sequence of str
        What stands above each phase.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If matplotlib is missing; the message has the line that installs it.
    """
    plt = pyplot()
    rows = _rows(list(sizes))
    begins = [1 + (phase.batch - 1) / per_epoch for phase in phases]
    shares = np.array(
        [[np.mean([name in phase.trainable for name in group]) for phase in phases] for group in rows.values()]
    )
    is_own = ax is None
    if ax is None:
        _, ax = plt.subplots(figsize=(7, 1.6 + 0.24 * max(len(rows), 4)), layout="constrained")
    edges = [*begins, max_epochs + 1]
    if rows:  # a network may have no parameters
        ax.pcolormesh(edges, np.arange(len(rows) + 1), shares, cmap=share_colours(), vmin=0, vmax=1)
    ax.hlines(np.arange(1, len(rows)), edges[0], edges[-1], color=INK, linewidth=0.5)
    if len(begins) <= MOST_ROWS:
        ax.vlines(begins[1:], 0, len(rows), color=INK, linewidth=0.5)
    _write_rates(ax, edges, phases, per_epoch, rows)
    ax.set_yticks(np.arange(len(rows)) + 0.5, labels=list(rows))
    ax.invert_yaxis()
    draw_epochs(ax, max_epochs)
    _frame(ax, [sum(sizes[name] for name in group) for group in rows.values()], max_epochs)
    ax.tick_params(length=0, axis="y")
    ax.spines[:].set_visible(False)
    handles = share_legend(is_mixed=bool(np.any((shares > 0) & (shares < 1))))
    handles += _hatch(ax, edges, [[row.waiting(phase) for phase in phases] for row in pending], pending, rows)
    height = _label(ax, edges, labels)
    ncols = len(handles) if len(handles) <= 3 else 2
    ax.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=ncols, frameon=False, borderaxespad=height
    )
    if is_own:
        for_any_theme(ax.figure)  # type: ignore[arg-type] # the figure was made here
    return ax


def share_colours() -> Any:
    """Return the colours of parts of a network, by their share of trainable weights."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("frozen to trainable", [FROZEN, TRAINABLE])


def share_legend(*, is_mixed: bool) -> list[Any]:
    """Return the entries of a legend for these colours."""
    from matplotlib.patches import Patch

    shares = {"frozen": 0.0, "in part": 0.5, "trainable": 1.0}
    colours = share_colours()
    return [Patch(color=colours(at), label=label) for label, at in shares.items() if is_mixed or label != "in part"]


def draw_epochs(ax: Axes, max_epochs: int) -> None:
    """Label the time axis, on which epoch 3 goes from 3 to 4."""
    epochs = np.arange(1, max_epochs + 1, max(1, -(-max_epochs // 12)))
    ax.set_xticks(epochs, labels=map(str, epochs))
    ax.set_xlabel("epoch")


def _frame(ax: Axes, sizes: Sequence[int], max_epochs: int) -> None:
    """Write the number of weights right of each row, and mark the end of the training."""
    end, n = max_epochs + 1, len(sizes)
    ax.axvline(end, color=INK, linewidth=2, clip_on=False)
    small: dict[str, Any] = {"textcoords": "offset points", "fontsize": "x-small"}
    for y, size in enumerate(sizes):
        ax.annotate(f"{size:,}", (end, y + 0.5), (5, 0), ha="left", va="center", **small)
    ax.annotate("weights", (end, 0), (5, 3), ha="left", va="bottom", **small)
    ax.annotate(f"max_epochs: {max_epochs}", (end, n), (0, -20), ha="right", va="top", **small)


def _write_rates(
    ax: Axes, edges: Sequence[float], phases: Sequence[Phase], per_epoch: int, rows: Mapping[str, Sequence[str]]
) -> None:
    """Write the factors on learning rates where they begin, and x1 where they end, and draw their warm-ups."""
    style: dict[str, Any] = {"color": ON_COLOUR, "fontsize": "x-small", "ha": "left", "va": "center"}
    warmups, factors = [phase.warmups for phase in phases], [phase.mults for phase in phases]
    for y, group in enumerate(rows.values()):
        before = ""
        for i, (x, phase) in enumerate(zip(edges, phases, strict=False)):
            right, rising = x, [name for name in group if name in warmups[i]]
            for end, length in {(warmup_end(phases, i, name), warmups[i][name]) for name in rising}:
                n = min(end - phase.batch, (edges[-1] - x) * per_epoch)
                ax.plot([x, x + n / per_epoch], [y + 1, y + 1 - n / length], color=ON_COLOUR, linewidth=1)
                right = max(right, x + n / per_epoch)
            mults = sorted({factors[i].get(name, 1.0) for name in group if name in phase.trainable})
            text = ", ".join(f"x{mult:.3g}" for mult in mults) if before or mults != [1.0] else ""
            if text not in ("", before):
                ax.text(right, y + 0.5, f" {text}", **style)
            before = "" if text == "x1" else text


def _label(ax: Axes, edges: Sequence[float], labels: Sequence[str]) -> float:
    """Write labels above the phases that are wide enough, and return the space that the legend leaves below."""
    if not labels:
        return 0.5
    least = (edges[-1] - edges[0]) / 12
    for (start, end), label in zip(pairwise(edges), labels, strict=True):
        if end - start >= least:
            where = (start + end) / 2, 0
            ax.annotate(label, where, (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize="small")
    return 2.0


def _hatch(
    ax: Axes,
    edges: Sequence[float],
    waiting: Sequence[Sequence[Set[str]]],
    pending: Sequence[Pending],
    rows: Mapping[str, Sequence[str]],
) -> list[Any]:
    """Hatch what waits for a row, and return the entries of the legend."""
    from matplotlib.patches import Patch, Rectangle

    handles = []
    for is_condition, hatch, what in ((True, "///", "waits for"), (False, "xxx", "never comes:")):
        ours = [i for i, row in enumerate(pending) if row.is_condition is is_condition]
        style: dict[str, Any] = {"facecolor": "none", "edgecolor": HATCH, "hatch": hatch, "linewidth": 0}
        for y, group in enumerate(rows.values()):
            for x, (start, end) in enumerate(pairwise(edges)):
                if any(not waiting[i][x].isdisjoint(group) for i in ours):
                    ax.add_patch(Rectangle((start, y), end - start, 1, **style))
        if ours:
            label = listed(dict.fromkeys(pending[i].waits_for for i in ours), most=2)
            handles.append(Patch(label=f"{what} {label}", **style))
    return handles


def _rows(names: list[str]) -> dict[str, list[str]]:
    """Group parameters into at most `MOST_ROWS` rows, by module paths and then by neighbours."""
    if len(names) <= MOST_ROWS:
        return {name: [name] for name in names}
    by_depth = [_grouped(names, depth) for depth in range(1, 1 + max(name.count(".") for name in names))]
    fitting = [groups for groups in by_depth if MOST_ROWS / 4 <= len(groups) <= MOST_ROWS]
    if fitting:
        return fitting[-1]
    groups = next((groups for groups in by_depth if len(groups) > MOST_ROWS), {name: [name] for name in names})
    paths = list(groups)
    n = -(-len(paths) // MOST_ROWS)
    runs = [paths[i : i + n] for i in range(0, len(paths), n)]
    return {
        " … ".join(dict.fromkeys((run[0], run[-1]))): [name for path in run for name in groups[path]] for run in runs
    }


def _grouped(names: Sequence[str], depth: int) -> dict[str, list[str]]:
    """Group names by the first components of their paths."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(".".join(name.split(".")[:depth]), []).append(name)
    return groups


def pyplot() -> Any:
    """Import matplotlib, or say how to install it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'mlr3torch_py[plot]'") from error
    return plt


def check_axes(ax: object) -> Axes | None:
    """Return axes of matplotlib, or None where a new picture is to be made."""
    if ax is None or isinstance(ax, pyplot().Axes):
        return ax
    raise TypeError(f"`ax` is {shown(ax)}; give axes of matplotlib, as plt.subplots() makes them")
