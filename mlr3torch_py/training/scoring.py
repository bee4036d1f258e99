"""Ask the scoring callbacks of a net which direction is better, and for scores before an epoch ends."""

from __future__ import annotations

from mlr3torch_py.protocols import Net
from mlr3torch_py.warn import warn

__all__ = ["lower_is_better", "warn_of_unknown_direction"]


def lower_is_better(net: Net, monitor: str) -> bool:
    """Return whether a lower score is better.

    The callback that records the score knows: ``EpochScoring`` and its kin have ``lower_is_better``. Where no callback
    knows, lower is taken to be better.

    Parameters
    ----------
    net : skorch.NeuralNet
    monitor : str
        The key of the score in a row of ``net.history``.

    Examples
    --------
    >>> net = iris_net().initialize()
    >>> lower_is_better(net, "valid_loss"), lower_is_better(net, "valid_acc")
    (True, False)
    """
    said = _said_by_callbacks(net, monitor)
    return True if said is None else said


def warn_of_unknown_direction(net: Net, monitor: str, remedy: str) -> None:
    """Warn of a score that is minimised although neither a callback nor its name says so.

    Parameters
    ----------
    net : skorch.NeuralNet
    monitor : str
    remedy : str
        What to give.

    Warns
    -----
    UserWarning
    """
    if _said_by_callbacks(net, monitor) is None and not monitor.endswith("_loss"):
        warn(
            f"`monitor` is {monitor!r}, which is minimised, since no callback of the net says that higher is better; "
            f"give {remedy}"
        )


def _said_by_callbacks(net: Net, monitor: str) -> bool | None:
    for _, callback in net.callbacks_:
        recorded = getattr(callback, "name_", getattr(callback, "name", None))
        said = getattr(callback, "lower_is_better", None)
        if isinstance(recorded, str) and recorded == monitor and isinstance(said, bool):
            # Of scikit-learn's scorers, which are given by name, higher is better; True is only skorch's default.
            return None if said and isinstance(getattr(callback, "scoring", None), str) else said
    return None
