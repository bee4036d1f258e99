"""AuditReport: which tensors were frozen from when to when, how often they were compared, and whether they moved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from mlr3torch_py.names import counted, listed

__all__ = ["AuditReport", "Stretch"]


@dataclass(slots=True)
class Stretch:
    """The epochs from the freezing of a tensor to its release.

    Parameters
    ----------
    names : tuple of str
        All names of the tensor.
    n_values : int
        How many of its values are compared.
    frozen_from, frozen_to : int
        Epochs.
    place : str
        What its names begin with: the module of the net; empty for ``module_``.
    """

    names: tuple[str, ...]
    n_values: int
    frozen_from: int
    frozen_to: int
    comparisons: int = 0
    moved: bool = False
    place: str = ""

    def compared(self, epoch: int, moved: bool) -> None:
        """Count a comparison."""
        self.frozen_to = epoch
        self.comparisons += 1
        self.moved = self.moved or moved


class AuditReport:
    """All stretches of one training.

    Examples
    --------
    >>> report = AuditReport()
    >>> report.stretch(("0.weight",), 12, epoch=1).compared(epoch=1, moved=False)
    >>> report.stretch(("0.weight",), 12, epoch=1).compared(epoch=2, moved=False)
    >>> report.stretch(("0.bias",), 3, epoch=2).compared(epoch=2, moved=False)
    >>> report.as_frame()
           name  frozen_from  frozen_to  comparisons  moved
    0  0.weight            1          2            2  False
    1    0.bias            2          2            1  False
    >>> report.summary()
    'compared 2 frozen tensors with 15 values, 3 comparisons in all: nothing moved'
    """

    def __init__(self) -> None:
        self._stretches: list[Stretch] = []
        self._open: dict[tuple[str, ...], Stretch] = {}

    def stretch(self, names: tuple[str, ...], n_values: int, epoch: int, place: str = "") -> Stretch:
        """Return the stretch of a tensor that is frozen: the open one, or a new one.

        Parameters
        ----------
        names : tuple of str
            All names of the tensor.
        n_values : int
            How many of its values are compared.
        epoch : int
        place : str
            What the names begin with.

        Returns
        -------
        Stretch
        """
        if names not in self._open:
            self._open[names] = Stretch(names, n_values, frozen_from=epoch, frozen_to=epoch, place=place)
            self._stretches.append(self._open[names])
        return self._open[names]

    def close_all_but(self, stretches: Iterable[Stretch], place: str = "") -> None:
        """End the stretches of all other tensors of a module, which are not frozen any more."""
        elsewhere = {names: one for names, one in self._open.items() if one.place != place}
        self._open = elsewhere | {one.names: one for one in stretches}

    def as_frame(self) -> pd.DataFrame:
        """Return one row for each name and stretch.

        Returns
        -------
        pandas.DataFrame
        """
        rows = [
            (name, one.frozen_from, one.frozen_to, one.comparisons, one.moved)
            for one in self._stretches
            for name in one.names
        ]
        frame = pd.DataFrame(rows, columns=["name", "frozen_from", "frozen_to", "comparisons", "moved"])
        return (
            frame if rows else frame.astype({"frozen_from": int, "frozen_to": int, "comparisons": int, "moved": bool})
        )

    def summary(self) -> str:
        """Describe, for the log, how much was compared.

        Returns
        -------
        str
        """
        n_values = {one.names: one.n_values for one in self._stretches}
        comparisons = sum(one.comparisons for one in self._stretches)
        if not comparisons:
            return "compared nothing, since nothing was frozen"
        moved = dict.fromkeys(name for one in self._stretches if one.moved for name in one.names)
        return (
            f"compared {counted(len(n_values), 'frozen tensor')} with {counted(sum(n_values.values()), 'value')}, "
            f"{counted(comparisons, 'comparison')} in all: {f'{listed(moved)} moved' if moved else 'nothing moved'}"
        )
