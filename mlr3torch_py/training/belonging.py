"""Tell to which net, and to which history, a stored state belongs."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

from mlr3torch_py.protocols import History, Net
from mlr3torch_py.training.clock import row_of

__all__ = ["HistoryMark", "Owner"]


class HistoryMark(NamedTuple):
    """What identifies a history: its length, and the scores and durations of its last two epochs.

    Parameters
    ----------
    n_rows : int
    last : tuple of mapping
        The plain values of the last two rows, as text, the last one first; empty if they are not known.
    row : mapping, optional
        The last row itself.

    Examples
    --------
    >>> from skorch.history import History
    >>> mark = HistoryMark.of(History([{"train_loss": 0.5}]))
    >>> mark.fits(History([{"train_loss": 0.5}])), mark.fits(History([{"train_loss": 0.4}])), mark.fits(History())
    (True, False, False)
    >>> longer = History([{"train_loss": 0.5}, {"train_loss": 0.3}])
    >>> mark.fits(longer), mark.is_in(longer)
    (False, True)
    """

    n_rows: int
    last: tuple[Mapping[str, str], ...] = ()
    row: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, history: History) -> HistoryMark:
        """Mark a history as it is now."""
        n_rows = len(history)
        rows = [row_of(history, i) for i in range(n_rows - 1, max(n_rows - 3, -1), -1)]
        return cls(n_rows, tuple(map(_plain, rows)), rows[0] if rows else None)

    def fits(self, history: History) -> bool:
        """Whether a history is the marked one; values that were added to its rows do not matter."""
        return len(history) == self.n_rows and self.is_in(history)

    def is_in(self, history: History) -> bool:
        """Whether a history begins with the marked one."""
        if len(history) < self.n_rows:
            return False
        return self.shares_rows(history) or all(
            plain.items() <= _plain(row_of(history, self.n_rows - i)).items()
            for i, plain in enumerate(self.last, start=1)
        )

    def shares_rows(self, history: History) -> bool:
        """Whether the last marked row is also in a history, as the same object."""
        return self.row is not None and len(history) >= self.n_rows and row_of(history, self.n_rows - 1) is self.row


class Owner:
    """The net, and its history, to which what a callback keeps between calls belongs.

    A copy of an owner, as in a copy of its net, knows the history alone.

    Parameters
    ----------
    net : skorch.NeuralNet

    Examples
    --------
    >>> net = iris_net(max_epochs=2).fit(X, y)
    >>> owner = Owner(net)
    >>> owner.fits(net), owner.fits(iris_net(max_epochs=2).fit(X, y))
    (True, False)
    >>> owner.fits(net.partial_fit(X, y))
    False
    """

    def __init__(self, net: Net) -> None:
        self._net: weakref.ref[Net] | None = weakref.ref(net)
        self._mark = HistoryMark.of(net.history)

    def fits(self, net: Net) -> bool:
        """Whether a net is the owner, and has the history that it had."""
        return self._mark.fits(net.history) and (self.may_be(net) or self._mark.shares_rows(net.history))

    def may_be(self, net: Net) -> bool:
        """Whether a net may be the owner, with whatever history: False if that is known to be another net."""
        owner = None if self._net is None else self._net()
        return owner is None or owner is net

    def is_behind(self, net: Net) -> bool:
        """Whether a net is the owner, but its history was taken back to an earlier epoch."""
        is_owner = self._net is not None and self._net() is net
        return is_owner and 0 < len(net.history) < self._mark.n_rows

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_net": None}


def _plain(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the plain values of a row as text that is the same after a file of the history was read."""
    return {
        key: repr(float(value) if isinstance(value, float) else value)
        for key, value in row.items()
        if isinstance(value, bool | int | float | str)
    }
