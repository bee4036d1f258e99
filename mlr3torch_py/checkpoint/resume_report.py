"""ResumeReport: what of a resumed run equals one that never stopped."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

__all__ = ["ResumeReport"]


@dataclass(frozen=True)
class ResumeReport:
    """What `check_resume` has found.

    Attributes
    ----------
    table : pandas.DataFrame
        One row per part of the training: `part`, how many entries were `compared`, whether all are `equal`, the names
        of the `different` ones, and the `likely_cause`.
    ok : bool
        Whether everything is equal. The report itself is true if it is.
    pending_after : int
        The last epoch that was trained, if rows of a schedule are pending after it; 0 if none is.

    See Also
    --------
    check_resume

    Examples
    --------
    >>> columns = {"part": ["weights"], "compared": [2], "equal": [True], "different": [""], "likely_cause": [""]}
    >>> ResumeReport(pd.DataFrame(columns))
    A run that is stopped after each epoch and resumed equals one that never stops.
    * weights: 2 of 2 equal, bit for bit
    """

    table: pd.DataFrame
    pending_after: int = 0

    @property
    def ok(self) -> bool:
        return bool(self.table["equal"].all())

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = [self._verdict()]
        for row in self.table.to_dict("records"):
            if row["equal"]:
                lines.append(f"* {row['part']}: {row['compared']} of {row['compared']} equal, bit for bit")
            else:
                lines.append(f"* {row['part']}: different in {row['different']}")
                lines += [f"  likely cause: {row['likely_cause']}"] if row["likely_cause"] else []
        return "\n".join([*lines, *self._unchecked()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        unchecked = "".join(f"<p>{line}</p>" for line in self._unchecked())
        return f"<p>{self._verdict()}</p>{self.table.to_html(index=False)}{unchecked}"

    def _unchecked(self) -> list[str]:
        after = f"Rows of a schedule are pending after epoch {self.pending_after}, so they were not checked"
        return [f"{after}; give more `epochs`."] if self.pending_after else []

    def _verdict(self) -> str:
        equals = "equals" if self.ok else "does NOT equal"
        return f"A run that is stopped after each epoch and resumed {equals} one that never stops."
