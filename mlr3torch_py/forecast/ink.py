"""Pictures for light and dark themes: a transparent ground, ink that both can show, and shown once in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FROZEN", "INK", "ON_COLOUR", "TRAINABLE", "for_any_theme", "shown_once"]

# Light grey and blue differ in lightness as well as in hue, so everybody can tell them apart.
FROZEN: Final = "#d9d9d9"
TRAINABLE: Final = "#2a78c4"

INK: Final = "#7d7d7d"
"""A grey whose contrast with white is that with black."""

ON_COLOUR: Final = "white"
"""Texts on a coloured ground, which hides the theme."""


def for_any_theme(figure: Figure) -> Figure:
    """Make the ground of a picture transparent, and its texts and axes grey."""
    from matplotlib.text import Text

    figure.set_facecolor("none")
    for ax in figure.axes:
        ax.set_facecolor("none")
        ax.tick_params(colors=INK, which="both")
        for spine in ax.spines.values():
            spine.set_edgecolor(INK)
        for text in ax.findobj(Text):
            if text.get_color() != ON_COLOUR:
                text.set_color(INK)
    return figure


def shown_once(figure: Figure) -> Figure:
    """Let a notebook, which shows open pictures at the end of a cell, show one that is the value of the cell once."""
    vars(figure)["_ipython_display_"] = _Shown(figure)
    return figure


class _Shown:
    """What IPython calls to show a picture."""

    def __init__(self, figure: Figure) -> None:
        self._figure = figure

    def __call__(self) -> None:
        from IPython.display import display
        from matplotlib import get_backend, pyplot

        del vars(self._figure)["_ipython_display_"]
        try:
            display(self._figure)  # type: ignore[no-untyped-call]
        finally:
            shown_once(self._figure)
        if "inline" in get_backend():
            pyplot.close(self._figure)  # or the end of the cell shows it again
