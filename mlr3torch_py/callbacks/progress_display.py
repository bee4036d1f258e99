"""Where progress is shown: a table that is updated in a notebook, a bar and lines in a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any, Protocol

from mlr3torch_py.callbacks.progress_html import table_html
from mlr3torch_py.callbacks.progress_state import ProgressState

__all__ = ["Display", "display_for"]


class Display(Protocol):
    """What shows the progress of a call of ``fit``."""

    def part_begins(self, state: ProgressState) -> None:
        """Show that training or validation of an epoch begins."""

    def batch_ended(self, state: ProgressState) -> None:
        """Show that a batch is finished."""

    def epoch_ended(self, state: ProgressState) -> None:
        """Show the last epoch."""

    def say(self, state: ProgressState) -> None:
        """Show the last note of the state."""

    def close(self, state: ProgressState) -> None:
        """Leave only what is final."""


def display_for(*, plot: bool) -> Display:
    """Return the display for where the output goes.

    Parameters
    ----------
    plot : bool
        Whether to draw the losses, in a notebook.
    """
    return Notebook(plot=plot) if _is_notebook() else Console()


def _is_notebook() -> bool:
    """Check whether a kernel runs this; a notebook's `%run` and a process it starts are not the same."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


class Notebook:
    """One table, updated in place."""

    def __init__(self, *, plot: bool) -> None:
        self._plot = plot
        self._handle: Any = None
        self._next = 0.0

    def part_begins(self, state: ProgressState) -> None:
        self.batch_ended(state)

    def batch_ended(self, state: ProgressState) -> None:
        if monotonic() >= self._next:
            self._update(state, is_live=True)

    def epoch_ended(self, state: ProgressState) -> None:
        self.batch_ended(state)

    def say(self, state: ProgressState) -> None:
        self._update(state, is_live=False)

    def close(self, state: ProgressState) -> None:
        if self._handle is not None or state.epochs:
            self._update(state, is_live=False)

    def _update(self, state: ProgressState, *, is_live: bool) -> None:
        from IPython.display import display

        start = monotonic()
        lines = [f"Epoch {epoch.number}/{state.total_epochs}: {epoch.line}" for epoch in state.epochs]
        shown = {
            "text/html": table_html(state, is_live=is_live, plot=self._plot),
            "text/plain": "\n".join([*lines, *state.notes]),
        }
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(shown, raw=True)
        now = monotonic()
        self._next = now + max(0.1, 20 * (now - start))  # 5 % of the time at most


class Console:
    """A bar over the batches if errors go to a terminal, and a line for each epoch."""

    def __init__(self) -> None:
        self._bar: Any = None

    def part_begins(self, state: ProgressState) -> None:
        from tqdm import tqdm

        self._close_bar()
        desc = f"Epoch {state.number}/{state.total_epochs} {state.part}"
        self._bar = tqdm(total=state.of_batches, desc=desc, unit="batch", leave=False, disable=None)

    def batch_ended(self, state: ProgressState) -> None:
        if self._bar is not None:
            if not self._bar.disable:
                self._bar.set_postfix_str(state.time_left, refresh=False)
            self._bar.update()

    def epoch_ended(self, state: ProgressState) -> None:
        epoch = state.epochs[-1]
        self._print(f"Epoch {epoch.number}/{state.total_epochs}: {epoch.line}")

    def say(self, state: ProgressState) -> None:
        self._print(state.notes[-1])

    def close(self, state: ProgressState) -> None:
        self._close_bar()

    def _print(self, line: str) -> None:
        from tqdm import tqdm

        self._close_bar()
        tqdm.write(line, file=sys.stdout)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
