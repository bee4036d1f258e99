"""log_to_console: print what is frozen and unfrozen, and when, while a net trains."""

from __future__ import annotations

import logging
import sys

from mlr3torch_py.arguments import check_choice, check_whole

__all__ = ["log_to_console"]


class _Console(logging.StreamHandler):  # type: ignore[type-arg] # no class of the standard library is subscripted here
    """Print to the standard output of the moment, which notebooks and tests replace."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)


def log_to_console(level: int | str | None = logging.INFO) -> None:
    """Print what happens while a net trains, such as what is unfrozen when.

    Unlike Python's ``logging.basicConfig``, it prints to the standard output, which no notebook shows in red, and
    only what this package logs. A second call replaces the first.

    Parameters
    ----------
    level : int, str or None
        The least level that is printed; None ends the printing.

    Raises
    ------
    TypeError, ValueError
        If `level` is no level of Python's logging.

    Examples
    --------
    >>> from mlr3torch_py import log_to_console, select_last, t_clbk
    >>> log_to_console()
    >>> net = iris_net(max_epochs=1, callbacks=[t_clbk("unfreeze", starting_weights=select_last(1))]).fit(X, y)
    training the following weights at the start: 0.weight, 0.bias
    >>> log_to_console(None)
    """
    logger = logging.getLogger("mlr3torch_py")
    if isinstance(level, str):
        check_choice("level", level, ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"))
    elif level is not None:
        level = check_whole("level", level, "a level of logging, such as logging.INFO", least=0)
    logger.setLevel(logging.NOTSET if level is None else level)
    for handler in [one for one in logger.handlers if isinstance(one, _Console)]:
        logger.removeHandler(handler)
    if level is None:
        return
    console = _Console()
    console.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(console)
