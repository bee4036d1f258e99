"""Show the output of the current batch, without its graph, in the context of a training."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from types import ModuleType
from typing import Any

import torch
from torch import nn

from mlr3torch_py.training.context import ContextTorch
from mlr3torch_py.training.stand_in import StandIn

__all__ = ["OutputRecorder", "detached", "first_tensor"]


def detached(output: Any) -> Any:
    """Return an output of a network without its graph.

    Parameters
    ----------
    output : object
        A tensor, or a tuple, list, mapping or other object that holds tensors.

    Returns
    -------
    object
        The same structure with detached tensors; what holds none is not copied.

    Examples
    --------
    >>> output = detached({"logits": torch.ones(2, requires_grad=True), "name": "a"})
    >>> output["logits"].requires_grad, output["name"]
    (False, 'a')
    """
    return _detached(output, set())


def first_tensor(output: Any) -> torch.Tensor | None:
    """Return the first tensor of an output, depth first; None if it has none.

    Examples
    --------
    >>> first_tensor([None, {"logits": torch.tensor(1)}])
    tensor(1)
    """
    return _first_tensor(output, set())


class OutputRecorder:
    """Show the outputs of a training in its context.

    skorch passes the output of a batch to its last hook only; that of a training step is caught where it is computed.
    """

    def __init__(self, ctx: ContextTorch) -> None:
        self.ctx = ctx
        self._is_current = False
        self._step: StandIn | None = None

    def begin_step(self) -> None:
        """Start a training step; its output is not known yet."""
        self._is_current = False

    def watch(self) -> None:
        """Catch the output of the next training step."""
        if self._step is None:
            self._step = StandIn(self.ctx.net, "train_step_single", self._take_step)

    def unwatch(self) -> None:
        """Undo `watch` if no step has been taken since."""
        if self._step is not None:
            self._step.remove()
            self._step = None

    def _take_step(self, *args: Any, **kwargs: Any) -> Any:
        self.unwatch()  # at once, so that copies made during the step do not have it
        step = self.ctx.net.train_step_single(*args, **kwargs)
        self.see(step.get("y_pred"))
        return step

    def see(self, output: Any) -> None:
        """Show an output."""
        self._is_current = True
        self.ctx.y_hats = detached(output)
        self.ctx.y_hat = first_tensor(self.ctx.y_hats)

    def end_backward(self) -> None:
        """Show no output of an earlier batch, if the net takes its steps in its own way."""
        if not self._is_current:
            self.ctx.y_hat = self.ctx.y_hats = None

    def end_batch(self, output: Any) -> None:
        """Show the output that skorch says a batch has."""
        self.unwatch()
        self.see(output)
        if self.ctx.keeps_outputs:
            self.ctx.epoch_outputs.append(self.ctx.y_hats)


def _parts_of(output: Any) -> dict[Any, Any]:
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    if isinstance(output, nn.Module | type | ModuleType):
        return {}
    slots = [name for cls in type(output).__mro__ for name in vars(cls).get("__slots__", ()) if hasattr(output, name)]
    return {name: getattr(output, name) for name in slots} | getattr(output, "__dict__", {})


def _with_parts(output: Any, parts: dict[Any, Any]) -> Any:
    if isinstance(output, tuple):
        return type(output)(*parts.values()) if hasattr(output, "_fields") else type(output)(parts.values())
    copied = copy(output)
    for key, part in parts.items():
        if isinstance(output, Mapping | list):
            copied[key] = part
        else:
            object.__setattr__(copied, key, part)  # also of a frozen dataclass
    return copied


def _detached(output: Any, seen: set[int]) -> Any:
    if isinstance(output, torch.Tensor):
        return output.detach()
    if id(output) in seen or isinstance(output, str | bytes):
        return output
    parts = _parts_of(output)
    now = {key: _detached(part, seen | {id(output)}) for key, part in parts.items()}
    return _with_parts(output, now) if any(now[key] is not part for key, part in parts.items()) else output


def _first_tensor(output: Any, seen: set[int]) -> torch.Tensor | None:
    if isinstance(output, torch.Tensor):
        return output
    if id(output) in seen or isinstance(output, str | bytes):
        return None
    parts = _parts_of(output).values()
    return next((first for part in parts if (first := _first_tensor(part, seen | {id(output)})) is not None), None)
