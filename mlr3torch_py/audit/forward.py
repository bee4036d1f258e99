"""ForwardWatch: looks at a net immediately before and after the forward pass of one training batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mlr3torch_py.protocols import Net
from mlr3torch_py.training.stand_in import StandIn

__all__ = ["ForwardWatch"]


class ForwardWatch:
    """Stands in for ``net.infer`` until the next forward pass of a training batch.

    Hooks on the network would tell the same, but others look at them, and compiled networks ignore some. What only
    predicts passes through. Copies of a net that are made in between are not watched.

    Parameters
    ----------
    net : skorch.NeuralNet
    before, after : callable
        Called immediately before the forward pass, without arguments, and after it, with its output.
    """

    def __init__(self, net: Net, before: Callable[[], None], after: Callable[[Any], None]) -> None:
        self.before = before
        self.after = after
        self._infer = StandIn(net, "infer", self._see)

    def _see(self, x: Any, **fit_params: Any) -> Any:
        infer = self._infer.own
        if not torch.is_grad_enabled():
            return infer(x, **fit_params)
        self.remove()
        self.before()
        y_pred = infer(x, **fit_params)
        self.after(y_pred)
        return y_pred

    def remove(self) -> None:
        """Give the net back as it was."""
        self._infer.remove()
