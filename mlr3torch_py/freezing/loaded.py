"""A state that was loaded into `CallbackSetUnfreeze`: what it unfreezes, and since when."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

from mlr3torch_py.names import listed, nearest
from mlr3torch_py.protocols import Net

__all__ = ["LoadedState"]


class LoadedState(NamedTuple):
    """The names of a state, and the epoch and the net that adopted it.

    Parameters
    ----------
    names : tuple of str
    epoch : int, optional
        None until a net has adopted it.
    net : weakref.ref, optional
        None for any net, as after a pickle.

    Examples
    --------
    >>> LoadedState(("0.weight",)).renamed({"0.weight_orig": "0.weight"}).names
    ('0.weight_orig',)
    """

    names: tuple[str, ...]
    epoch: int | None = None
    net: weakref.ref[Net] | None = None

    @classmethod
    def from_plain(cls, kept: Any) -> LoadedState | None:
        """Return what `to_plain` has written; None for None."""
        return None if kept is None else cls(tuple(kept[0]), kept[1])

    def to_plain(self) -> list[Any]:
        """Return plain values, which hold for any net."""
        return [list(self.names), self.epoch]

    def is_adopted_by(self, net: Net) -> bool:
        """Whether it acts in a net."""
        return self.epoch is not None and (self.net is None or self.net() is net)

    def adopted_by(self, net: Net) -> LoadedState:
        """Return it as the net has it that begins an epoch."""
        return LoadedState(self.names, len(net.history), weakref.ref(net))

    def renamed(self, before: Mapping[str, str]) -> LoadedState:
        """Return it for parameters that have other names now; `before` has the name before, by the name now."""
        now = {old: new for new, old in before.items()}
        return self._replace(names=tuple(now.get(name, name) for name in self.names))

    def check(self, names: Mapping[str, object]) -> None:
        """Check that a state that no net has adopted yet names parameters of the network.

        Raises
        ------
        ValueError
            If the network lacks a name.
        """
        unknown = [name for name in self.names if name not in names] if self.epoch is None else []
        if unknown:
            raise ValueError(
                f"the state that was loaded names {listed(map(repr, unknown))}, which the network lacks; "
                f"{nearest(unknown, names)} Load a state that was saved from this network"
            )
