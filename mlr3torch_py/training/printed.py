"""skorch's printed table, narrow enough for a terminal."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from skorch.callbacks import PrintLog

from mlr3torch_py.protocols import Net
from mlr3torch_py.training.trained import EVENT

__all__ = ["restore_table", "shorten_table", "shortened"]

_WIDEST: Final = 100
_PREFIX: Final = "event_"  # skorch leaves it out of the header
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_COUNT: Final = re.compile(r" \(\d+ tensors?\)")
_TOKEN: Final = re.compile(rf"{_COLOUR.pattern}|.")
_GAP: Final = "..."
_ROOM: Final = 16
"""The characters that the names of what was unfrozen need beside the header of their column."""
_WHOLE: Final = 32
"""Those that they need if nothing of them is left out."""


def shorten_table(printer: PrintLog, net: Net) -> None:
    """Let a printer shorten the names of what was unfrozen, in rows that exceed 100 characters."""
    if "table" not in vars(printer):
        printer.table = _NarrowTable(printer, net)


def restore_table(printer: PrintLog) -> None:
    """Let a printer print rows of any width again."""
    if isinstance(vars(printer).get("table"), _NarrowTable):
        del printer.table


def shortened(text: str, width: int) -> str:
    """Shorten what `change` describes: leave out the counts, then the middle of the names.

    Parameters
    ----------
    text : str
    width : int
        The number of characters to keep at most.

    Returns
    -------
    str

    Examples
    --------
    >>> text = "+ backbone.{conv1,bn1} (3 tensors)"
    >>> [shortened(text, width) for width in (40, 24, 16)]
    ['+ backbone.{conv1,bn1} (3 tensors)', '+ backbone.{conv1,bn1}', '+ backb...1,bn1}']
    >>> shortened("+ encoder.layer.11, - embeddings (5 tensors)", 20)
    '+ en...11, - em...gs'
    """
    if len(text) <= width:
        return text
    text = _COUNT.sub("", text)
    if len(text) <= width:
        return text
    changes = text.split(", - ")
    left = width - len(", - ") * (len(changes) - 1) - len("+ ")
    if left < len(changes) * (len(_GAP) + 2):
        return text[:width]
    sign, changes[0] = changes[0][:2], changes[0][2:]
    return sign + ", - ".join(_without_middle(one, left // len(changes)) for one in changes)


def _without_middle(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    half = (width - len(_GAP)) // 2
    return f"{name[:half]}{_GAP}{name[len(name) - (width - len(_GAP) - half) :]}"


class _NarrowTable:
    """Stand in for ``printer.table`` during a run.

    The columns are laid out by the first row, with which the header is printed: with narrower gaps if much is to be
    shown, and with room for names, so that rows stay aligned.
    """

    def __init__(self, printer: PrintLog, net: Net) -> None:
        self._printer, self._net = printer, net
        self._is_squeezed = False
        self._room: int | None = None
        self._widest = _WIDEST

    def __call__(self, row: Mapping[str, Any]) -> str:
        """Return the row as a table with a header, as skorch does; empty lines if nobody will see them."""
        if type(self._printer) is PrintLog and self._printer.sink is print and not self._net.verbose:
            return "\n\n"
        keys = [key for key in row if f"{key}_".startswith(f"{EVENT}_") and key not in self._printer.keys_ignored_]
        if not keys:
            return self._table(row)
        if self._room is None:
            self._lay_out({**row, **dict.fromkeys(keys)}, len(keys))
        names = {key: key + " " * (self._room or 0) for key in keys}
        row = {names.get(key, key): value for key, value in row.items()}
        text = self._table(row)
        for name in names.values():
            excess = _width(text) - self._widest
            if excess > 0 and row[name]:
                width = max(len(row[name]) - excess, len(name.removeprefix(_PREFIX)))
                row = {**row, name: shortened(row[name], width)}
                text = self._table(row)
        return text

    def _lay_out(self, row: Mapping[str, Any], n_columns: int) -> None:
        left = _WIDEST - _width(self._table(row))
        if left < _ROOM:
            self._is_squeezed = True
            left = _WIDEST - _width(self._table(row))
        self._room = min(_ROOM, left // n_columns)
        if left < 0:  # scores alone take more than fits
            self._room = _WHOLE
            self._widest += n_columns * _WHOLE - left

    def _table(self, row: Mapping[str, Any]) -> str:
        text: str = type(self._printer).table(self._printer, row)
        return _squeezed(text) if self._is_squeezed else text


def _width(text: str) -> int:
    return max(map(len, _COLOUR.sub("", text).splitlines()))


def _squeezed(text: str) -> str:
    """Remove the two blanks with which tabulate begins each column, where no line of the table needs them."""
    lines = text.splitlines()
    if len(lines) != 3 or not re.fullmatch(r"[- ]+", lines[1]):  # another format
        return text
    header, row = lines[0], _COLOUR.sub("", lines[2])
    begins = [column.start() for column in re.finditer("-+", lines[1])]
    padding = {i for at in begins for i in (at, at + 1) if not (header[at : i + 1] + row[at : i + 1]).strip()}
    return "\n".join(_without(line, padding) for line in lines)


def _without(line: str, positions: Collection[int]) -> str:
    """Remove characters of a line by their position, in whose count colours are left out."""
    kept, i = [], 0
    for token in _TOKEN.findall(line):
        is_colour = token.startswith("\x1b")
        if is_colour or i not in positions:
            kept.append(token)
        i += not is_colour
    return "".join(kept)
