"""ForwardWatch: looks at a net immediately before and after the forward pass of one training batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from mlr3torch_py.protocols import Net

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
        self.net = net
        self.before: Callable[[], None] | None = before
        self.after: Callable[[Any], None] | None = after
        self.own: Any = vars(net).get("infer")  # somebody else may have put something in its place
        net.__dict__["infer"] = self

    def __call__(self, x: Any, **fit_params: Any) -> Any:
        infer = partial(type(self.net).infer, self.net) if self.own is None else self.own
        if self.before is not None and not torch.is_grad_enabled():
            return infer(x, **fit_params)
        self.remove()
        if self.before is not None:
            self.before()
        y_pred = infer(x, **fit_params)
        if self.after is not None:
            self.after(y_pred)
        return y_pred

    def remove(self) -> None:
        """Give the net back as it was."""
        if vars(self.net).get("infer") is self:
            del self.net.__dict__["infer"]
            if self.own is not None:
                self.net.__dict__["infer"] = self.own

    def __getstate__(self) -> dict[str, Any]:
        return {"net": self.net, "own": self.own, "before": None, "after": None}
