"""Tell whether a net's history is the one to which a stored state belongs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mlr3torch_py.protocols import History

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

    Examples
    --------
    >>> from skorch.history import History
    >>> mark = HistoryMark.of(History([{"train_loss": 0.5}]))
    >>> mark.fits(History([{"train_loss": 0.5}])), mark.fits(History([{"train_loss": 0.4}])), mark.fits(History())
    (True, False, False)
    """

    n_rows: int
    last: Mapping[str, str]

    @classmethod
    def of(cls, history: History) -> HistoryMark:
        """Mark a history as it is now."""
        return cls(len(history), _plain(history))

    def fits(self, history: History) -> bool:
        """Whether a history is the marked one; values that were added to its last row do not matter."""
        return len(history) == self.n_rows and self.last.items() <= _plain(history).items()


def _plain(history: History) -> dict[str, str]:
    rows: Any = history
    if not len(history):
        return {}
    row = list.__getitem__(rows, -1) if isinstance(history, list) else history.to_list()[-1]
    return {key: repr(value) for key, value in row.items() if isinstance(value, bool | int | float | str)}
