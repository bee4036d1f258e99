"""Residues: whether an optimizer still moves what it has moved before and what is frozen now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch.optim import Optimizer

from mlr3torch_py.freezing.rate_factors import sample, with_closure
from mlr3torch_py.names import listed
from mlr3torch_py.network.bits import has_bits
from mlr3torch_py.warn import warn

__all__ = ["Residues"]

# Some optimizers, such as Lookahead, act on what they remember only with every tenth update or so.
_N_UPDATES: Final = 20
_N_TENSORS: Final = 8


class Residues:
    """See whether updates move what has just been frozen: in a few of the tensors, and for some batches.

    What the forward pass or other callbacks write is not counted: values are compared from the start of a step to that
    of its closure, if it has one, and from the end of the backward pass to that of the update.
    """

    def __init__(self) -> None:
        self._n_left = 0
        self._tensors: dict[str, torch.Tensor] = {}
        self._before: dict[str, torch.Tensor] = {}
        self._moved: dict[str, None] = {}
        self._hooks: list[Any] = []
        self._has_warned = False

    def watch(self, frozen: Mapping[str, torch.Tensor], optimizers: Iterable[Optimizer]) -> None:
        """Watch tensors that were trained and have just been frozen.

        Parameters
        ----------
        frozen : mapping of str to torch.Tensor
            With their names.
        optimizers : iterable of torch.optim.Optimizer
        """
        if not frozen or self._has_warned:
            return
        self.end()
        optimizers = list(optimizers)
        governed = {id(tensor) for one in optimizers for group in one.param_groups for tensor in group["params"]}
        known = [name for name, tensor in frozen.items() if id(tensor) in governed and has_bits(tensor)]
        smallest = sorted(known, key=lambda name: frozen[name].numel())[:_N_TENSORS]
        self._n_left, self._tensors = _N_UPDATES, {name: frozen[name] for name in smallest}
        hooked = (one for one in optimizers if hasattr(one, "_optimizer_step_pre_hooks"))
        self._hooks = [one.register_step_pre_hook(self._begin_step) for one in hooked]

    def begin_update(self) -> None:
        """Record values, after the backward pass."""
        if self._n_left:
            self._before = {name: sample(one) for name, one in self._tensors.items() if not one.requires_grad}

    def end_update(self, optimizer: object, prefix: str) -> None:
        """Warn if an update has moved something.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            The one of the network, or another object that updates it.
        prefix : str
            What the warning begins with.
        """
        if self._n_left:
            self._compare()
            self._n_left -= 1
            if self._moved:
                self._has_warned = True
                warn(
                    f"{prefix}{listed(self._moved, most=3)} moved in an update though frozen: "
                    f"{type(optimizer).__name__} still moves what it has moved before; use another optimizer"
                )
            if self._moved or not self._n_left:
                self.end()

    def end(self) -> None:
        """Watch no longer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._n_left, self._tensors, self._before, self._moved = [], 0, {}, {}, {}

    def _begin_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        if not self._before:  # otherwise a parent class takes its step within that of its child
            self.begin_update()
        return with_closure(args, kwargs, self._comparing_before)

    def _comparing_before(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def computed() -> Any:
            self._compare()
            return closure()

        return computed

    def _compare(self) -> None:
        """Note what has moved since it was recorded last."""
        before, self._before = self._before, {}
        for name, values in before.items():
            if not torch.equal(sample(self._tensors[name]), values):
                self._moved[name] = None
