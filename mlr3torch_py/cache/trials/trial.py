"""Trials of calls: what is noted before one, when they are held, and by which rows."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from mlr3torch_py.cache.errors import NotCacheableError
from mlr3torch_py.cache.identity.surroundings import Look
from mlr3torch_py.cache.rows.call import Call
from mlr3torch_py.cache.storage.layout import N_TRIALS
from mlr3torch_py.network.randomness import random_states

__all__ = ["Schedule", "Trial", "halves", "sample_rows"]

_MAX_SHARE: Final = 0.25
_CHEAP: Final = 0.1  # below, what is cached must not depend on how fast a machine is just then


class Trial(NamedTuple):
    """The state of things before a call that is being tried.

    Parameters
    ----------
    is_module_changed : bool
        Whether the module was modified unseen, through ``.data`` or numpy, since it was last compared.
    generators : mapping
        All random generators that the call might draw from.
    random_states : mapping
        Their states.
    samples : sequence of pairs of list of int and Call
        Small batches to be computed again: which rows, and their values. None if the call is only watched.
    surroundings : mapping, NotCacheableError or None
        What the module can reach outside of itself, or why that cannot be read; None if the call is only watched.
    began : float
        When the call began, by the CPU time of the thread.
    """

    is_module_changed: bool
    generators: Mapping[str, Any]
    random_states: Mapping[str, Any]
    samples: Sequence[tuple[list[int], Call]] = ()
    surroundings: Look | NotCacheableError | None = None
    began: float = 0.0

    @property
    def moved(self) -> dict[str, Any]:
        """The generators that have moved since."""
        now = random_states(self.generators)
        return {name: one for name, one in self.generators.items() if now[name] != self.random_states[name]}


class Schedule:
    """Decide which computed calls of one kind are tried.

    Those are calls 1 to 4, 8, 16, 32 and so on, and each batch that is larger than any before. A trial that takes more
    than 100 ms waits for a later call while trials have taken more than a quarter of the time of the calls. Of a first
    one that takes long, only a row alone is computed at once. Trials that have waited are held before rows from memory
    are used.

    Attributes
    ----------
    n_trials : int
    seconds_trying, seconds_computing : float
        The CPU time that trials and calls have taken.
    n_tried : int
        For how many trials the last call counts; 0 if its rows were not tried, and too few calls were before.
    largest_batch : int
        The rows of the largest batch that was tried.

    Examples
    --------
    >>> schedule = Schedule()
    >>> [schedule.is_due(has_verdict=True) for _ in range(9)]
    [True, True, True, True, False, False, False, True, False]
    >>> costly = Schedule()
    >>> costly.is_due(has_verdict=False)
    True
    >>> costly.seconds_trying, costly.seconds_computing = 1.0, 2.0
    >>> costly.is_due(has_verdict=True), costly.n_tried, costly.is_behind
    (False, 0, True)
    """

    __slots__ = ("_n_calls", "largest_batch", "n_trials", "n_tried", "seconds_computing", "seconds_trying")

    def __init__(self) -> None:
        self._n_calls = 0
        self.n_trials: int = 0
        self.n_tried: int = 0
        self.largest_batch: int = 0
        self.seconds_trying: float = 0.0
        self.seconds_computing: float = 0.0

    @property
    def is_behind(self) -> bool:
        """Whether trials that try all positions of a batch have to wait."""
        return self.n_trials < min(self._n_due, N_TRIALS)

    def is_due(self, *, has_verdict: bool) -> bool:
        """Note a call, and decide whether it is tried."""
        self._n_calls += 1
        is_due = not has_verdict or (self.n_trials < self._n_due and not self.is_costly)
        self.n_trials += is_due
        self.n_tried = int(is_due or self.n_trials >= N_TRIALS)
        return is_due

    def catch_up(self) -> None:
        """Note a call of which all rows are tried."""
        self._n_calls += 1
        self.n_trials = self.n_tried = N_TRIALS

    def postpone(self) -> None:
        """Leave the trial under way to a later call."""
        self.n_trials -= 1
        self.n_tried = 0

    def trust(self, largest_batch: int) -> None:
        """Take the first calls to be tried, as in another process."""
        self._n_calls = self.n_trials = N_TRIALS
        self.largest_batch = max(self.largest_batch, largest_batch)

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


def halves(n_rows: int) -> list[list[int]]:
    """Split rows into two small batches, each in reverse order.

    Examples
    --------
    >>> halves(5)
    [[4, 2, 0], [3, 1]]
    """
    rows = list(range(n_rows))
    return [one for one in (rows[::-2], rows[-2::-2] if n_rows > 1 else []) if one]
