"""Tables and trees for notebooks, in the ink of the theme; everything is escaped."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape
from typing import Final

__all__ = ["html_lines", "html_table"]

_LINE: Final = "border-bottom:1px solid rgba(127,127,127,.35)"
_LEFT: Final = "text-align:left;white-space:pre-line"
_RIGHT: Final = "text-align:right;white-space:nowrap"
_CELL: Final = "padding:2px 10px;color:inherit;background:none;vertical-align:top"


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[int] = ()) -> str:
    """Draw a table.

    Parameters
    ----------
    head : sequence of str
    rows : iterable of sequence of str
        One text for each column.
    left : collection of int
        The columns of texts, which may break, and keep their line breaks; all others hold numbers, and are aligned to
        the right.

    Returns
    -------
    str

    Examples
    --------
    >>> html_table(["n"], [["<1"]]).count("&lt;1")
    1
    """
    lines = [_row("th", head, left, f";{_LINE}"), *(_row("td", row, left, "") for row in rows)]
    return f'<table style="border-collapse:collapse;margin:0;color:inherit">{"".join(lines)}</table>'


def html_lines(lines: Iterable[str]) -> str:
    """Draw lines of text in a fixed width, such as a tree.

    Examples
    --------
    >>> html_lines(["<a>"]).endswith("&lt;a&gt;</pre>")
    True
    """
    text = escape("\n".join(lines))
    return f'<pre style="color:inherit;background:none;line-height:1.25;overflow-x:auto">{text}</pre>'


def _row(tag: str, cells: Sequence[str], left: Collection[int], line: str) -> str:
    styles = [_LEFT if i in left else _RIGHT for i in range(len(cells))]
    drawn = (
        f'<{tag} style="{style};{_CELL}{line}">{escape(cell)}</{tag}>'
        for style, cell in zip(styles, cells, strict=True)
    )
    return f"<tr>{''.join(drawn)}</tr>"
