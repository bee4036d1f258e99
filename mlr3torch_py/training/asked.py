"""How many epochs a call of ``fit`` asks for."""

from __future__ import annotations

import sys
from contextlib import suppress
from inspect import unwrap
from operator import index
from types import FrameType
from typing import Final

from skorch import NeuralNet

from mlr3torch_py.protocols import Net
from mlr3torch_py.values import plain

__all__ = ["epochs_asked_for"]

_CODE: Final = unwrap(NeuralNet.partial_fit).__code__


def epochs_asked_for(net: Net) -> int:
    """Return the number of epochs that the call under way asks for: its `epochs`, or ``max_epochs`` of the net.

    skorch tells callbacks nothing about `epochs` when training begins, so that it is read where skorch has it. A net
    whose own ``partial_fit`` does not call skorch's counts as asking for ``max_epochs`` until its first epoch.

    Examples
    --------
    >>> from mlr3torch_py import torch_callback
    >>> asked = torch_callback("asked", on_begin=lambda self: print(epochs_asked_for(self.ctx.net)))
    >>> _ = iris_net(max_epochs=2, callbacks=[asked]).fit(X, y, epochs=3)
    3
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _CODE and frame.f_locals.get("self") is net:
            with suppress(TypeError):  # if none are given, or what is no number
                return index(frame.f_locals["fit_params"].get("epochs"))
            break
        frame = frame.f_back
    return plain(net.max_epochs)  # type: ignore[no-any-return]
