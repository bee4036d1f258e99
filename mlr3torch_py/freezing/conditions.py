"""Rows that wait for a condition: which conditions have been met, and at which epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

from xxhash import xxh3_64_hexdigest

from mlr3torch_py.protocols import History, Net
from mlr3torch_py.schedule.plan import Plan
from mlr3torch_py.schedule.plateau import Plateau
from mlr3torch_py.training.scoring import stagnation_of
from mlr3torch_py.training.trained import key_of

__all__ = ["Waiting", "conditions_of", "met_at_latest", "met_by_now"]

# A list of the rows whose conditions were met in an epoch, by the name of the callback and what they did. skorch prints
# no key that ends so.
_CAME: Final = "conditions_met_from_batch_count"


def conditions_of(plans: Iterable[Plan]) -> dict[int, Plateau]:
    """Map the positions of rows to their conditions."""
    rows = (step.row for plan in plans for step in plan.conditions)
    return {row.position: row.time for row in rows if isinstance(row.time, Plateau)}


def met_at_latest(plan: Plan) -> dict[int, int]:
    """Map the positions of rows to the epochs at which their conditions are met at the latest, if there is one."""
    conditions = conditions_of([plan]).items()
    return {position: one.no_later_than for position, one in conditions if one.no_later_than}


@dataclass(frozen=True, slots=True)
class Waiting:
    """The callbacks of a module that have rows with conditions, and what the history says of these.

    Parameters
    ----------
    module : str
        Its name, without the trailing underscore.
    plans_of : mapping of str to sequence of Plan
        Their plans as they are declared, by the name of the callback.
    """

    module: str
    plans_of: Mapping[str, Sequence[Plan]]

    def met_before(self, history: History, name: str) -> dict[int, int]:
        """Read which conditions of a callback have been met, and at which epoch.

        One that was met counts for the row that does the same now, of the callback with the same name or else of
        another one. Of several such rows, the first has come first.

        Returns
        -------
        dict of int to int
            The epochs, by the position of the row.
        """
        key = key_of(_CAME, self.module)
        rows = enumerate(history.to_list(), start=1)
        came = [(entry, epoch) for epoch, row in rows for entry in row.get(key, ())]
        met: dict[tuple[str, int], int] = {}
        for may_be_another in (False, True):
            for owner, position, effect in self._effects():
                fits = (
                    one for one in came if not effect.isdisjoint(one[0][1:]) and (may_be_another or one[0][0] == owner)
                )
                if (owner, position) not in met and (found := next(fits, None)) is not None:
                    came.remove(found)
                    met[owner, position] = found[1]
        return {position: epoch for (owner, position), epoch in met.items() if owner == name}

    def record(self, net: Net, name: str, met: Mapping[int, int], new: Set[int]) -> None:
        """Record which conditions of a callback are met in this epoch, and what the rows do that are new among them."""
        number = list(self.plans_of).index(name)
        for position in conditions_of(self.plans_of[name]):
            column = f"event_unfreeze{1 + number if number else ''}_row{position}"
            net.history.record(key_of(column, self.module), met.get(position) == len(net.history))
        effects = (what for owner, position, what in self._effects() if owner == name and position in new)
        if came := [[name, *sorted(what)] for what in effects]:
            key = key_of(_CAME, self.module)
            net.history.record(key, [*net.history[-1].get(key, ()), *came])

    def _effects(self) -> Iterator[tuple[str, int, Set[str]]]:
        """Yield the name of the callback, the position, and what it does, for each row.

        That is told by the selector, and by what it selects: in another process a selector may print otherwise, and
        after a change of the network it may select others.
        """
        for name, plans in self.plans_of.items():
            for step in (step for plan in plans for step in plan.conditions):
                row = step.row
                selected = xxh3_64_hexdigest(" ".join(sorted(step.names)).encode())
                yield name, row.position, {f"{row.action} {row.weights!r}", f"{row.action} {selected}"}


def met_by_now(net: Net, conditions: Mapping[int, Plateau], met: Mapping[int, int]) -> dict[int, int]:
    """Decide which conditions are met; the last row of the history is that of the epoch that begins.

    Parameters
    ----------
    net : skorch.NeuralNet
    conditions : mapping of int to Plateau
        By the position of the row. Each counts epochs since the one before it was met.
    met : mapping of int to int
        Those that were met before, and at which epoch.
    """
    met, epoch, since = dict(met), len(net.history), 1
    for position, condition in conditions.items():
        if position not in met:
            too_late = condition.no_later_than is not None and epoch >= condition.no_later_than
            if too_late or stagnation_of(net, condition, since=since, before=epoch).epochs_since >= condition.patience:
                met[position] = epoch
        since = met.get(position, epoch)
    return met
