"""StandIn: something in the place of a method of a net, for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlr3torch_py.protocols import Net

__all__ = ["StandIn"]


class StandIn:
    """Stands in for a method of a net until it is removed; then the net is as it was.

    It stands in the ``__dict__`` of the net, where the user may have put a method of their own before. Copies and
    pickles of a net that are made meanwhile have one that passes the next call on, and is gone.

    Parameters
    ----------
    net : skorch.NeuralNet
    name : str
        The name of the method.
    call : callable
        What is called in its place.

    Examples
    --------
    >>> net = iris_net().initialize()
    >>> stand_in = StandIn(net, "get_params", lambda: stand_in.own(deep=False) | {"seen": True})
    >>> net.get_params()["seen"]
    True
    >>> stand_in.remove()
    >>> "get_params" in vars(net), "seen" in net.get_params()
    (False, False)
    """

    def __init__(self, net: Net, name: str, call: Callable[..., Any]) -> None:
        self.net = net
        self.name = name
        self.call: Callable[..., Any] | None = call
        self.before: Any = vars(net).get(name)
        vars(net)[name] = self

    @property
    def own(self) -> Callable[..., Any]:
        """The method of the net itself."""
        of_class: Callable[..., Any] = getattr(type(self.net), self.name).__get__(self.net)
        return of_class if self.before is None else self.before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.call
        if call is None:  # it is a copy, or somebody has kept it
            call = self.own
            self.remove()
        return call(*args, **kwargs)

    def remove(self) -> None:
        """Give the net its method back."""
        self.call = None
        if vars(self.net).get(self.name) is self:
            del vars(self.net)[self.name]
            if self.before is not None:
                vars(self.net)[self.name] = self.before

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"call": None}
