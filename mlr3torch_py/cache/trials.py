"""When calls of a module are tried, and by which of their rows."""

from __future__ import annotations

import secrets
from typing import Final

from mlr3torch_py.cache.layout import N_TRIALS

__all__ = ["Schedule", "sample_rows"]

_MAX_SHARE: Final = 0.25
_CHEAP: Final = 0.005


class Schedule:
    """Decide which computed calls of one kind are tried.

    Those are calls 1 to 4, 8, 16, 32 and so on. A trial that takes more than 5 ms waits for a later call while trials
    have taken more than a quarter of the time of the calls. Of a first one that takes long, only a row alone is
    computed at once.

    Attributes
    ----------
    n_trials : int
    seconds_trying, seconds_computing : float
        The CPU time that trials and calls have taken.
    is_tried : bool
        Whether the last call is tried, or enough calls were before.

    Examples
    --------
    >>> schedule = Schedule()
    >>> [schedule.is_due(has_verdict=True) for _ in range(9)]
    [True, True, True, True, False, False, False, True, False]
    >>> costly = Schedule()
    >>> costly.is_due(has_verdict=False)
    True
    >>> costly.seconds_trying, costly.seconds_computing = 1.0, 2.0
    >>> costly.is_due(has_verdict=True), costly.is_tried
    (False, False)
    """

    __slots__ = ("_n_calls", "is_tried", "n_trials", "seconds_computing", "seconds_trying")

    def __init__(self) -> None:
        self._n_calls = self.n_trials = 0
        self.seconds_trying = self.seconds_computing = 0.0
        self.is_tried = False

    def is_due(self, *, has_verdict: bool) -> bool:
        """Note a call, and decide whether it is tried."""
        self._n_calls += 1
        is_due = not has_verdict or (self.n_trials < self._n_due and not self.is_costly)
        self.n_trials += is_due
        self.is_tried = is_due or self.n_trials >= N_TRIALS
        return is_due

    def postpone(self) -> None:
        """Leave the trial under way to a later call."""
        self.n_trials -= 1
        self.is_tried = False

    def trust(self) -> None:
        """Take the first calls to be tried, as in another process."""
        self._n_calls = self.n_trials = N_TRIALS

    @property
    def _n_due(self) -> int:
        """How many of the calls so far are tried, if none has to wait."""
        return self._n_calls if self._n_calls < N_TRIALS else self._n_calls.bit_length() + 1

    @property
    def is_costly(self) -> bool:
        """Whether trials have taken too long for another one."""
        is_cheap = self.seconds_trying <= _CHEAP * self.n_trials
        return not is_cheap and self.seconds_trying > _MAX_SHARE * self.seconds_computing


def sample_rows(n_rows: int, nth: int) -> list[list[int]]:
    """Choose small batches of rows to be computed again in a trial, the first of which has number 1.

    Examples
    --------
    >>> sample_rows(16, 1), sample_rows(16, 2)
    ([[15], [11, 7, 3]], [[14, 10, 6, 2]])
    """
    step = max(1, min(N_TRIALS, n_rows))
    rows = list(range(n_rows))[-nth % step :: step][::-1]
    if len(rows) == 1 < n_rows:
        rows.append((rows[0] + 1 + secrets.randbelow(n_rows - 1)) % n_rows)
    return [one for one in ((rows[:1], rows[1:]) if nth == 1 else (rows,)) if one]
