"""plot_history: a picture of a training, with what was unfrozen when, on the time axis of its plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np
from torch import nn

from mlr3torch_py.arguments import check_flag, check_network
from mlr3torch_py.forecast.history_scores import LOSSES, scores_to_draw
from mlr3torch_py.forecast.ink import TRAINABLE, for_any_theme, shown_once
from mlr3torch_py.forecast.picture import MOST_ROWS, check_axes, draw_epochs, pyplot
from mlr3torch_py.forecast.probe import split_pipeline
from mlr3torch_py.forecast.report import FreezePlan
from mlr3torch_py.forecast.trained_when import module_in
from mlr3torch_py.frames import short_traceback
from mlr3torch_py.network.unwrap import named_parameters, names_by_tensor
from mlr3torch_py.protocols import NetOfUser, PipelineOfUser
from mlr3torch_py.training.trained import RATE, Span, change, key_of, spans_of
from mlr3torch_py.values import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_history"]

_Row = Mapping[str, Any]

_MOST_LABELS: Final = 8
_GAP: Final = 1e-6


@overload
def plot_history(
    net: NetOfUser | PipelineOfUser,
    metrics: str | Sequence[str] | None = None,
    *,
    rates: bool = True,
    names: bool = True,
    plan: FreezePlan | None = None,
    ax: None = None,
    module: str | None = None,
) -> Figure: ...
@overload
def plot_history(
    net: NetOfUser | PipelineOfUser,
    metrics: str | Sequence[str] | None = None,
    *,
    rates: bool = True,
    names: bool = True,
    plan: FreezePlan | None = None,
    ax: Axes,
    module: str | None = None,
) -> Axes: ...
@short_traceback
def plot_history(
    net: NetOfUser | PipelineOfUser,
    metrics: str | Sequence[str] | None = None,
    *,
    rates: bool = True,
    names: bool = True,
    plan: FreezePlan | None = None,
    ax: Axes | None = None,
    module: str | None = None,
) -> Figure | Axes:
    """Draw the losses of a training, and what was unfrozen when.

    The time axis is that of a plan: epoch 3 goes from 3 to 4, and a change before the second of its four batches is
    marked at 3.25. What belongs to a whole epoch, such as its losses, is drawn in its middle.

    Parameters
    ----------
    net : skorch.NeuralNet or sklearn.pipeline.Pipeline
        A net, or a pipeline that ends in a net, that was trained with a freezing callback, or has loaded its history.
    metrics : str or sequence of str, optional
        Which scores to draw besides the losses, by their names in the history, such as ``"valid_acc"``; ``()`` for
        none. By default the first four that it has, each for training and validation.
    rates : bool
        Whether to draw the learning rates, where the history has any: those of a scheduler, and of param groups with
        factors (`lr_mult`).
    names : bool
        Whether to name what was unfrozen (+) and frozen (-), up to four tensors or the blocks that hold them. Names
        that would cover the one before are left out.
    plan : FreezePlan, optional
        What `freeze_plan` returned, to be drawn below, on the same time axis.
    ax : matplotlib.axes.Axes, optional
        Where to draw the losses and what was unfrozen, without the other panels; a new figure if missing.
    module : str, optional
        The module of the net, as for `trained_when`.

    Returns
    -------
    matplotlib.figure.Figure or matplotlib.axes.Axes
        `ax`, if it is given. Otherwise a figure, whose axes are, from top to bottom: the losses, one for each score,
        the rates if there are any, the share of trainable weights, and the plan if given. Its ground is transparent,
        with ink that light and dark themes show.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the history has no finished epoch with `n_trainable`.
    ImportError
        If matplotlib is missing; the message has the line that installs it.

    See Also
    --------
    freeze_plan : The same before training.
    trained_when : The same as a table.

    Examples
    --------
    >>> from mlr3torch_py import freeze_plan, gradual_unfreezing, t_clbk
    >>> unfreeze = t_clbk("unfreeze", schedule=gradual_unfreezing(every=2))
    >>> net = iris_net(module__neurons=(8,), max_epochs=4, callbacks=[unfreeze]).fit(X, y)
    >>> losses, accuracy, share, planned = plot_history(net, plan=freeze_plan(net)).axes
    >>> losses.get_xlim() == planned.get_xlim() == (1, 5)
    True
    """
    trained, history, module, rows = _finished(net, module)
    network = check_network("net", trained if module == "module" else getattr(trained, f"{module}_", None))
    scores = scores_to_draw(metrics, [row for _, row in rows])
    series = dict(_rates(rows)) if check_flag("rates", rates) else {}
    check_flag("names", names)
    if not isinstance(plan, FreezePlan | None):
        raise TypeError(f"`plan` is {shown(plan)}; give what freeze_plan returned")
    spans = list(spans_of(history, getattr(trained.history, "world_size", 1), module))
    changes = list(_changes(rows, spans, names_by_tensor(network)))
    n_epochs = max(len(history), 0 if plan is None else plan.max_epochs)
    if (ax := check_axes(ax)) is not None:
        _draw_losses(ax, rows, changes, n_epochs, names=names)
        draw_epochs(ax, n_epochs)
        ax.set_xlim(1, n_epochs + 1)
        return ax
    figure: Figure
    figure, axes = _panels(n_more=len(scores) + bool(series), plan=plan)
    if plan is not None:
        plan.plot(axes[-1])
        axes = axes[:-1]
    _draw_losses(axes[0], rows, changes, n_epochs, names=names)
    for panel, (score, keys) in zip(axes[1:], scores.items(), strict=False):
        _draw_scores(panel, rows, keys, score)
    if series:
        _draw_rates(axes[-2], series)
    _draw_share(axes[-1], rows, spans, network)
    for panel in axes:
        if panel is not axes[0]:
            _mark(panel, [x for x, _ in changes])
        panel.spines[["top", "right"]].set_visible(False)
    draw_epochs(figure.axes[-1], n_epochs)
    figure.axes[-1].set_xlim(1, n_epochs + 1)
    return shown_once(for_any_theme(figure))


def _draw_losses(
    ax: Axes, rows: Sequence[tuple[int, _Row]], changes: Sequence[tuple[float, str]], n_epochs: int, *, names: bool
) -> None:
    _draw_scores(ax, rows, LOSSES, "loss")
    _mark(ax, [x for x, _ in changes])
    if names:
        _name(ax, changes, n_epochs)
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)  # where it covers nothing


def _finished(net: Any, module: str | None) -> tuple[Any, list[dict[str, Any]], str, list[tuple[int, _Row]]]:
    """Return the net itself, its history, the module, and the finished epochs with a freezing callback for it.

    Their keys are those of ``module_``.
    """
    trained = split_pipeline(net)[1]
    if isinstance(trained, type) or not hasattr(trained, "initialized_"):
        raise TypeError(f"`net` is {shown(net)}; give a net of skorch that was trained with a freezing callback")
    history = [] if trained.history is None else trained.history.to_list()
    module = module_in(history, module)
    keys = {key: key_of(key, module) for key in ("n_trainable", "event_unfreeze")}
    rows: list[tuple[int, _Row]] = [
        (epoch, row | {key: row.get(own) for key, own in keys.items()})
        for epoch, row in enumerate(history, 1)
        if keys["n_trainable"] in row and "train_loss" in row
    ]
    if not rows:
        raise ValueError("`net` has no history of a finished epoch with a freezing callback; train it first")
    return trained, history, module, rows


def _panels(n_more: int, plan: FreezePlan | None) -> Any:
    heights = [3.0, *[1.5] * n_more, 1.0]
    if plan is not None:
        heights.append(1.5 + min(len(plan.sizes), MOST_ROWS) / 3)
    size = 7, 2.5 + 0.55 * sum(heights)
    return pyplot().subplots(len(heights), 1, sharex=True, figsize=size, height_ratios=heights, layout="constrained")


def _draw_scores(ax: Axes, rows: Sequence[tuple[int, _Row]], keys: Iterable[str], name: str) -> None:
    """Draw a score of training, and of validation, in the same two styles in all panels."""
    for key in keys:
        if any(key in row for _, row in rows):
            values = [row.get(key, np.nan) for _, row in rows]
            style, colour = ("--", "C1") if key.startswith("valid_") else ("-", "C0")
            middles = [epoch + 0.5 for epoch, _ in rows]
            ax.plot(middles, values, style, color=colour, label=key.replace("_", " "))
    ax.set_ylabel(name.replace("_", " "))


def _rates(rows: Sequence[tuple[int, _Row]]) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Yield the name of each rate, and its times and values: by batch if the history has them so, else by epoch."""
    series: dict[str, list[tuple[float, float]]] = {}
    ends: dict[str, float] = {}
    for key, start, end, rate in _rates_used(rows):
        points = series.setdefault(key, [])
        if points and start - ends[key] > _GAP:  # as after a warm-up, when its part has the rate of another one
            points += [(ends[key], points[-1][1]), (ends[key], np.nan)]
        points.append((start, rate))
        ends[key] = end
    for key, points in series.items():
        points.append((ends[key], points[-1][1]))
    yield from sorted(series.items())


def _rates_used(rows: Sequence[tuple[int, _Row]]) -> Iterator[tuple[str, float, float, float]]:
    """Yield the name of each rate, when it is used from and until, and its value."""
    for epoch, row in rows:
        entries = [entry for entry in row.get("batches", ()) if "train_loss" in entry]
        has_parts = any(RATE.fullmatch(key) for entry in entries for key in entry)
        n, in_batches = len(entries), False
        for i, entry in enumerate(entries):
            for key in entry:
                # The rate of a scheduler is that of the first part.
                if RATE.fullmatch(key) or (key == "event_lr" and not has_parts):
                    in_batches = True
                    yield key, epoch + i / n, epoch + (i + 1) / n, float(entry[key])
        if not in_batches and row.get("event_lr") is not None:
            yield "event_lr", epoch, epoch + 1, float(row["event_lr"])


def _draw_rates(ax: Axes, series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    for name, points in series.items():
        ax.step(*zip(*points, strict=True), where="post", label=name.removeprefix("event_"))
    values = [value for points in series.values() for _, value in points if value > 0]
    if values and max(values) > 20 * min(values):
        ax.set_yscale("log")
    ax.set_ylabel("rate")
    if len(series) <= _MOST_LABELS:
        ax.legend(frameon=False, fontsize="x-small")


def _draw_share(ax: Axes, rows: Sequence[tuple[int, _Row]], spans: Sequence[Span], network: nn.Module) -> None:
    from matplotlib.ticker import PercentFormatter

    tensors, tied = named_parameters(network), names_by_tensor(network)
    sizes = [(set(names), tensors[names[0]].numel()) for names in tied]
    total = sum(size for _, size in sizes) or 1
    points: list[tuple[float, float]] = []
    for epoch, row in rows:
        of_epoch = [span for span in spans if span.epoch == epoch and {*span.names} == tensors.keys()]
        for span in of_epoch:
            share = sum(size for names, size in sizes if not span.trainable.isdisjoint(names)) / total
            points += [(epoch + span.start / span.n_batches, share), (epoch + span.end / span.n_batches, share)]
        if not of_epoch:
            points += [(epoch, row["n_trainable"] / total), (epoch + 1, row["n_trainable"] / total)]
    ax.plot(*zip(*points, strict=True), color=TRAINABLE)
    ax.set(ylim=(0, 1.05), ylabel="trainable")
    ax.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))


def _changes(
    rows: Sequence[tuple[int, _Row]], spans: Sequence[Span], tied: Sequence[Sequence[str]]
) -> Iterator[tuple[float, str]]:
    """Yield when something was unfrozen or frozen, and its names."""
    told, further = {span.epoch for span in spans}, {name for names in tied for name in names[1:]}
    at = {float(epoch): "" for epoch, row in rows if row.get("event_unfreeze") and epoch not in told}
    for before, now in pairwise(spans):
        known = [name for name in dict.fromkeys(now.names + before.names) if name not in further]
        unfrozen, frozen = now.trainable - before.trainable - further, before.trainable - now.trainable - further
        if unfrozen or frozen:
            at[now.epoch + now.start / now.n_batches] = change(unfrozen, frozen, known)
    yield from sorted(at.items())


def _mark(ax: Axes, times: Sequence[float]) -> None:
    for i, x in enumerate(times):
        ax.axvline(x, color=TRAINABLE, linewidth=1, alpha=0.6, label=None if i else "unfrozen or frozen")


def _name(ax: Axes, changes: Sequence[tuple[float, str]], n_epochs: int) -> None:
    last = -np.inf
    for x, text in changes:
        if text and x - last >= 0.03 * n_epochs:
            style: dict[str, Any] = {"rotation": 90, "va": "top", "ha": "right", "fontsize": "x-small"}
            ax.annotate(text, (x, 0.98), (-2, 0), ("data", "axes fraction"), "offset points", **style)
            last = x
