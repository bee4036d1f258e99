"""Say in a line how a training ended, as callbacks of skorch do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from mlr3torch_py.arguments import check_callable
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.processes import is_main_process
from mlr3torch_py.training.stages import is_staged
from mlr3torch_py.values import shown

__all__ = ["Sink", "check_sink", "say"]

Sink: TypeAlias = Callable[[str], object]


def check_sink(sink: object) -> None:
    """Check that a sink can be called.

    Raises
    ------
    TypeError
        If it cannot, or takes other arguments than a text.
    """
    if not callable(sink):
        raise TypeError(f"`sink` is {shown(sink)}; give a function of a text, such as print")
    check_callable("sink", sink, "a text")


def say(net: Net, sink: Sink, line: str) -> None:
    """Give a line to a sink: to `print` only if the net is verbose, and no callback of its shows progress.

    Parameters
    ----------
    net : skorch.NeuralNet
    sink : callable
    line : str
    """
    is_shown = any(is_staged(one) and one.shows_progress for _, one in net.callbacks_)
    if is_main_process(net) and (sink is not print or (net.verbose and not is_shown)):
        sink(line)
