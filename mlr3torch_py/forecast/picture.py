"""Pictures of a plan, and of a history with the times of unfreezing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mlr3torch_py.arguments import check_network, shown
from mlr3torch_py.forecast.probe import split_pipeline
from mlr3torch_py.names import listed
from mlr3torch_py.network.unwrap import named_parameters, names_by_tensor
from mlr3torch_py.protocols import NetOfUser, PipelineOfUser

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_history", "plot_plan"]

# Light grey and dark blue differ in lightness as well as in hue, so everybody can tell them apart.
FROZEN, TRAINABLE = "#d9d9d9", "#0b5394"
HATCH = "#7f7f7f"
MOST_ROWS = 40


class _Phase(Protocol):
    @property
    def batch(self) -> int: ...
    @property
    def trainable(self) -> Set[str]: ...


class _Pending(Protocol):
    @property
    def waits_for(self) -> str: ...
    @property
    def is_condition(self) -> bool: ...
    def waiting(self, phase: Any) -> Set[str]: ...


def plot_plan(
    phases: Sequence[_Phase],
    names: Sequence[str],
    max_epochs: int,
    per_epoch: int,
    ax: Axes | None = None,
    *,
    pending: Sequence[_Pending] = (),
) -> Axes:
    """Draw which parameters are trainable in which phase.

    Parameters
    ----------
    phases : sequence of Phase
    names : sequence of str
        The parameters, in the order of the network.
    max_epochs : int
        The last epoch that is drawn.
    per_epoch : int
        The number of batches in an epoch, by which the `batch` of a phase is placed.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if missing.
    pending : sequence of Pending
        The rows whose parameters are hatched while they wait.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If matplotlib is missing; the message has the line that installs it.
    """
    plt = _pyplot()
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Patch

    rows = _rows(list(names))
    begins = [1 + (phase.batch - 1) / per_epoch for phase in phases]
    shares = np.array(
        [[np.mean([name in phase.trainable for name in group]) for phase in phases] for group in rows.values()]
    )
    if ax is None:
        _, ax = plt.subplots(figsize=(7, 1.6 + 0.24 * max(len(rows), 4)), layout="constrained")
    colours = LinearSegmentedColormap.from_list("frozen to trainable", [FROZEN, TRAINABLE])
    edges = [*begins, max_epochs + 1]
    ax.pcolormesh(edges, np.arange(len(rows) + 1), shares.reshape(len(rows), -1), cmap=colours, vmin=0, vmax=1)
    ax.hlines(np.arange(1, len(rows)), edges[0], edges[-1], color="white", linewidth=1)
    if len(begins) <= MOST_ROWS:
        ax.vlines(begins[1:], 0, len(rows), color="white", linewidth=1)
    ax.set_yticks(np.arange(len(rows)) + 0.5, labels=list(rows))
    ax.invert_yaxis()
    step = max(1, -(-max_epochs // 12))
    epochs = np.arange(1, max_epochs + 1, step)
    ax.set_xticks(epochs, labels=map(str, epochs))
    ax.tick_params(length=0, axis="y")
    ax.spines[:].set_visible(False)
    ax.set_xlabel("epoch")
    handles = [Patch(color=FROZEN, label="frozen"), Patch(color=TRAINABLE, label="trainable")]
    if np.any((shares > 0) & (shares < 1)):
        handles.insert(1, Patch(color=colours(0.5), label="in part"))
    handles += _hatch(ax, edges, [[row.waiting(phase) for phase in phases] for row in pending], pending, rows)
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    return ax


def _hatch(
    ax: Axes,
    edges: Sequence[float],
    waiting: Sequence[Sequence[Set[str]]],
    pending: Sequence[_Pending],
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


def plot_history(net: NetOfUser | PipelineOfUser) -> Figure:
    """Draw the losses and the share of trainable weights of a training.

    Epochs in which something was frozen or unfrozen are marked where they begin, between the losses of the epoch before
    and their own.

    Parameters
    ----------
    net : skorch.NeuralNet or sklearn.pipeline.Pipeline
        A net, or a pipeline that ends in a net, that was trained with a freezing callback.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TypeError
        If `net` is no net.
    ValueError
        If the history has no finished epoch with `n_trainable`.
    ImportError
        If matplotlib is missing; the message has the line that installs it.

    See Also
    --------
    freeze_plan : The same before training.
    """
    trained = split_pipeline(net)[1]
    if isinstance(trained, type) or not hasattr(trained, "initialized_"):
        raise TypeError(f"`net` is {shown(net)}; give a net of skorch that was trained with a freezing callback")
    history = [] if trained.history is None else trained.history.to_list()
    rows = [row for row in history if "n_trainable" in row and "train_loss" in row]
    if not rows:
        raise ValueError("`net` has no history of a finished epoch with a freezing callback; train it first")
    plt = _pyplot()
    network = check_network("net", trained)
    tensors = named_parameters(network)
    total = sum(tensors[names[0]].numel() for names in names_by_tensor(network))
    epochs = [row["epoch"] for row in rows]
    figure: Figure
    figure, (losses, share) = plt.subplots(
        2, 1, sharex=True, figsize=(7, 4.5), height_ratios=(3, 1), layout="constrained"
    )
    _draw_losses(losses, epochs, rows)
    for ax in (losses, share):
        _mark_events(ax, rows)
        ax.spines[["top", "right"]].set_visible(False)
    share.step(epochs, [row["n_trainable"] / total for row in rows], where="mid", color=TRAINABLE)
    share.set(ylim=(0, 1.05), ylabel="trainable", xlabel="epoch")
    share.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    losses.legend(frameon=False)
    return figure


def _draw_losses(ax: Axes, epochs: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> None:
    for key, style in (("train_loss", "-"), ("valid_loss", "--")):
        if any(key in row for row in rows):
            values = [row.get(key, np.nan) for row in rows]
            ax.plot(epochs, values, style, color="black", label=key.replace("_", " "))
    ax.set_ylabel("loss")


def _mark_events(ax: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for i, row in enumerate(row for row in rows if row.get("event_unfreeze")):
        label = None if i else "unfrozen or frozen"
        ax.axvline(row["epoch"] - 0.5, color=TRAINABLE, linewidth=1, alpha=0.6, label=label)


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


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'mlr3torch_py[plot]'") from error
    return plt
