"""network_summary: the tree of a network with shapes and parameters, and from when on each part trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from sklearn.base import clone
from torch import nn

from mlr3torch_py.arguments import check_whole
from mlr3torch_py.forecast.freeze_plan import freeze_plan
from mlr3torch_py.forecast.module_rows import ModuleRow, module_rows
from mlr3torch_py.forecast.probe import cloned, network_of, split_pipeline, transformed
from mlr3torch_py.forecast.report import FreezePlan
from mlr3torch_py.frames import short_traceback
from mlr3torch_py.freezing.holder import freezing_callbacks
from mlr3torch_py.freezing.pinning import modules_to_pin
from mlr3torch_py.html import html_table
from mlr3torch_py.network.copies import copyable
from mlr3torch_py.network.evaluation import pinned_modules
from mlr3torch_py.network.flow import flow_of
from mlr3torch_py.network.parameters import Flags, trainable_names
from mlr3torch_py.network.randomness import kept_random_states
from mlr3torch_py.protocols import NetOfUser, PipelineOfUser
from mlr3torch_py.schedule.steps import Moment
from mlr3torch_py.values import shown

__all__ = ["NetworkSummary", "network_summary"]


@dataclass(frozen=True, slots=True)
class _Part:
    """A module of a network: one row of the summary."""

    row: ModuleRow
    shape: str
    trains_from: str
    is_pinned: bool


@dataclass(frozen=True)
class NetworkSummary:
    """The modules of a network, from `network_summary`; it prints as text and shows itself in a notebook.

    Parameters
    ----------
    parts : tuple
        The modules, the network itself first.
    has_plan : bool
        Whether callbacks of the net say from when on a part trains.
    """

    parts: tuple[_Part, ...]
    has_plan: bool

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each module.

        Returns
        -------
        pandas.DataFrame
            Its `path`, `type`, `output_shape`, the number of its `weights`, and of those that are `trainable` now, when
            it `trains_from` by the callbacks of the net, and whether they pin it in eval mode at the start (`pinned`).
        """
        columns = ["path", "type", "output_shape", "weights", "trainable", "trains_from", "pinned"]
        rows = [
            (one.path, one.kind, part.shape, one.n_weights, one.n_trainable, part.trains_from, part.is_pinned)
            for part in self.parts
            for one in [part.row]
        ]
        return pd.DataFrame(rows, columns=columns)

    def __repr__(self) -> str:
        head, rows = self._cells("  ")
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = []
        for row in (head, *rows):
            cells = [
                text.ljust(width) if name in _TEXTS else text.rjust(width)
                for name, text, width in zip(head, row, widths, strict=True)
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join([*lines, self._total()])

    def _repr_html_(self) -> str:
        head, rows = self._cells("\N{NO-BREAK SPACE}" * 4)
        left = {i for i, name in enumerate(head) if name in _TEXTS}
        return f"{html_table(head, rows, left=left)}<div>{self._total()}</div>"

    def _cells(self, indent: str) -> tuple[list[str], list[list[str]]]:
        frame = pd.DataFrame(
            {
                "module": [f"{indent * one.row.depth}{one.row.label}" for one in self.parts],
                "output": [one.shape for one in self.parts],
                "weights": [f"{one.row.n_weights:,}" if one.row.n_weights else "" for one in self.parts],
                "trainable": [f"{one.row.n_trainable:,}" if one.row.n_weights else "" for one in self.parts],
                "trains from": [one.trains_from for one in self.parts],
                "pinned": ["eval" if one.is_pinned else "" for one in self.parts],
            }
        )
        needless = [name for name in ("output", "trains from", "pinned") if not frame[name].any()]
        frame = frame.drop(columns=needless)
        return list(frame.columns), frame.to_numpy().tolist()

    def _total(self) -> str:
        whole = self.parts[0].row
        return f"{whole.n_weights:,} weights, {whole.n_trainable:,} of them trainable now"


_TEXTS = ("module", "output", "trains from", "pinned")


@short_traceback
def network_summary(
    net: nn.Module | NetOfUser | PipelineOfUser,
    X: Any = None,
    y: Any = None,
    *,
    batches_per_epoch: int | None = None,
    depth: int | None = None,
    module: str = "module",
) -> NetworkSummary:
    """Show the tree of a network, with output shapes, parameters, and from when on each part trains.

    Parameters
    ----------
    net : skorch.NeuralNet, torch.nn.Module or sklearn.pipeline.Pipeline
        A net, initialized or not, a network, or a pipeline that ends in a net. It is not modified.
    X : object, optional
        Data of a net, or a batch of a network: one argument, a tuple of several, or a mapping. One batch is run through
        the network, for the shapes of the outputs.
    y : array-like, optional
        The targets of a net, which may be needed to split the data.
    batches_per_epoch : int, optional
        The number of batches in an epoch, if the callbacks of the net count batches and the data are not given.
    depth : int, optional
        How many levels of modules to show, from 1; all by default.
    module : str
        The module of the net that is shown, such as "discriminator" for its attribute ``discriminator_``, with the
        plan of the callbacks that govern it. With `X` it must be callable with a batch of the data.

    Returns
    -------
    NetworkSummary
        It prints as text, shows itself in a notebook, and has `to_frame`.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the network cannot be called with `X`.

    See Also
    --------
    freeze_plan : All phases of a training.
    network_blocks : The blocks that schedules use.

    Examples
    --------
    >>> from mlr3torch_py import gradual_unfreezing, t_clbk
    >>> unfreeze = t_clbk("unfreeze", schedule=gradual_unfreezing(every=2), frozen_mode="eval")
    >>> network_summary(iris_net(module__neurons=(8,), callbacks=[unfreeze]), X)
    module          output    weights  trainable  trains from  pinned
    MLP             (128, 3)       67         67  epoch 1 to 3
      0: Linear     (128, 8)       40         40  epoch 3      eval
      1: ReLU       (128, 8)                                   eval
      2: Dropout    (128, 8)                                   eval
      3: Linear     (128, 3)       27         27  epoch 1
    67 weights, 67 of them trainable now
    """
    if depth is not None:
        depth = check_whole("depth", depth, "levels")
    steps, given = split_pipeline(net)
    if isinstance(given, nn.Module):
        return _summary(network_of(given, module), X, None, set(), depth)
    if isinstance(given, type) or not hasattr(given, "initialized_"):
        raise TypeError(f"`net` is {shown(given)}; give a net of skorch, or a torch.nn.Module")
    with kept_random_states(), copyable(vars(given).values()):
        ready = given if given.initialized_ else clone(given).initialize()
        network, plan, pinned = network_of(ready, module), None, set[int]()
        features = X if steps is None or X is None else transformed(steps, X, y)
        batch = None if X is None else _first_batch(ready, features)
    callbacks = freezing_callbacks(ready, module)
    if callbacks:
        data = {"X": X, "y": y} if y is not None or not ready.train_split else {}
        plan = freeze_plan(net, batches_per_epoch=batches_per_epoch, module=module, **data)
        pinned = _pinned_at_the_start(network, callbacks, plan)
    return _summary(network, batch, plan, pinned, depth)


def _first_batch(net: Any, X: Any) -> Any:
    features, _ = next(iter(net.get_iterator(net.get_dataset(X), training=False)))
    return list(features) if isinstance(features, tuple) else features  # which a net passes on as one argument


def _pinned_at_the_start(module: nn.Module, callbacks: Sequence[Any], plan: FreezePlan) -> set[int]:
    """Return the ids of the modules that callbacks pin in eval mode in the first epoch."""
    clones = [cloned(callback) for callback in callbacks]
    for one in clones:
        one.plan_from_start(module)
    held = [(one, one.held(Moment(1, 1, (1,)))) for one in clones]
    flags, gradients = Flags.of(module), [(tensor, tensor.grad) for tensor in module.parameters()]
    try:
        Flags(plan.phases[0].trainable, flags.frozen_by_us).restore(module)
        return {id(one) for one in modules_to_pin(module, held)}
    finally:
        flags.restore(module)
        for tensor, gradient in gradients:
            tensor.grad = gradient


def _summary(
    module: nn.Module, batch: Any, plan: FreezePlan | None, pinned: set[int], depth: int | None
) -> NetworkSummary:
    shapes = {} if batch is None else flow_of(module, batch).shapes
    pinned = pinned | {id(one) for one in pinned_modules(module).values()}
    parts = []
    for row in module_rows(module, frozenset(trainable_names(module))):
        if depth is None or row.depth <= depth:
            when = "" if plan is None else _trains_from(row.names, plan)
            parts.append(_Part(row, shapes.get(row.path, ""), when, id(row.module) in pinned))
    return NetworkSummary(tuple(parts), plan is not None)


def _trains_from(names: Sequence[str], plan: FreezePlan) -> str:
    """Describe from which epoch on some parameters train."""
    first: dict[str, int] = {}
    for phase in plan.phases:
        for name in phase.trainable:
            first.setdefault(name, phase.epoch)
    epochs = sorted({first[name] for name in names if name in first})
    if not names:
        return ""
    if not epochs:
        return "never"
    text = f"epoch {epochs[0]}" + (f" to {epochs[-1]}" if len(epochs) > 1 else "")
    return text if all(name in first for name in names) else f"{text}, or never"
