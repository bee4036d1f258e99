"""Tell whether a net's history is the one to which a stored state belongs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mlr3torch_py.protocols import History
from mlr3torch_py.training.clock import row_of

__all__ = ["HistoryMark"]


class HistoryMark(NamedTuple):
    """What identifies a history: its length, and the scores and the duration of its last epoch.

    A callback that stores a state between calls stores it with the mark of the history that it belongs to. Another
    net has another history, and so has a net whose history was taken back.

    Parameters
    ----------
    n_rows : int
    last : mapping
        The plain values of the last row, as text.
    row : mapping, optional
        The last row itself.

    Examples
    --------
    >>> from skorch.history import History
    >>> mark = HistoryMark.of(History([{"train_loss": 0.5}]))
    >>> mark.fits(History([{"train_loss": 0.5}])), mark.fits(History([{"train_loss": 0.4}])), mark.fits(History())
    (True, False, False)
    """

    n_rows: int
    last: Mapping[str, str]
    row: Mapping[str, Any] | None

    @classmethod
    def of(cls, history: History) -> HistoryMark:
        """Mark a history as it is now."""
        row = _last_row(history)
        return cls(len(history), _plain(row), row)

    def fits(self, history: History) -> bool:
        """Whether a history is the marked one; values that were added to its last row do not matter."""
        if len(history) != self.n_rows:
            return False
        row = _last_row(history)
        return row is self.row or self.last.items() <= _plain(row).items()


def _last_row(history: History) -> Mapping[str, Any] | None:
    return row_of(history, -1) if len(history) else None


def _plain(row: Mapping[str, Any] | None) -> dict[str, str]:
    return {key: repr(value) for key, value in (row or {}).items() if isinstance(value, bool | int | float | str)}
