"""CallbackSetProgress: show a bar over the batches, and print a line for each epoch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

from mlr3torch_py.arguments import check_whole
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.training.clock import row_of
from mlr3torch_py.training.context import scores_of
from mlr3torch_py.training.processes import is_main_process
from mlr3torch_py.training.trained import EVENT, governed_modules, key_of

__all__ = ["CallbackSetProgress"]


class CallbackSetProgress(CallbackSet):
    """Show a progress bar over the batches of an epoch, then its scores.

    The line of an epoch also says what was unfrozen and frozen in it, shortened by blocks.

    In a terminal and in a notebook the bar moves over the training batches, then over the validation batches. If the
    output is a file, only the lines with the scores are written.

    Parameters
    ----------
    digits : int
        The number of significant digits of a score, at least 1.

    Raises
    ------
    TypeError, ValueError
        When training begins, if `digits` is invalid.

    See Also
    --------
    t_clbk : Make this callback by its key, ``t_clbk("progress")``.

    Notes
    -----
    Ported from ``CallbackSetProgress`` of R's mlr3torch; the bar is tqdm's. The time at the end is that of all epochs
    in the history of the net, across ``partial_fit`` and resumed runs. Give the net ``verbose=0``, or skorch prints its
    own table too.

    Examples
    --------
    >>> from mlr3torch_py import t_clbk
    >>> progress = t_clbk("progress", digits=3)
    >>> net = iris_net(max_epochs=2, callbacks=[progress]).fit(X, y)  # doctest: +ELLIPSIS
    Epoch 1/2: train.loss ..., valid.acc ..., valid.loss ... (0... s)
    Epoch 2/2: train.loss ..., valid.acc ..., valid.loss ... (0... s)
    Trained for 2 epochs (0... s)
    """

    label = "Progress"
    bar_: Any = None

    def __init__(self, digits: int = 2) -> None:
        self.digits = digits

    def check_params(self) -> None:
        check_whole("digits", self.digits, "significant digits", most=100)

    def on_epoch_begin(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        self._open(net, dataset_train, training=True)

    def on_batch_end(self, net: Net, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if self.bar_ is not None:
            self.bar_.update()

    def on_before_valid(self, net: Net, **kwargs: Any) -> None:
        if self.ctx is not None and self.ctx.dataset_valid is not None:
            self._open(net, self.ctx.dataset_valid, training=False)

    def on_epoch_end(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        row = row_of(net.history, -1)
        scores = [
            f"{part}.{name} {float(value):.{int(self.digits)}g}"
            for part in ("train", "valid")
            for name, value in sorted(scores_of(row, f"{part}_").items())
            if isinstance(value, Real) and not isinstance(value, bool)
        ]
        self._print(f"{self._epoch(net)}: {', '.join(scores)} ({_seconds([row])}){''.join(_changes(row))}")

    def on_train_end(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        rows = [row for row in net.history.to_list() if "train_batch_count" in row]
        self._print(f"Trained for {len(rows)} epochs ({_seconds(rows)})")

    def on_exit(self, net: Net, **kwargs: Any) -> None:
        self._close()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"bar_": None}

    def _epoch(self, net: Net) -> str:
        total = "" if self.ctx is None else f"/{self.ctx.total_epochs}"
        return f"Epoch {len(net.history)}{total}"

    def _open(self, net: Net, dataset: Any, *, training: bool) -> None:
        # Imported late, since tqdm warns in a notebook without widgets.
        from tqdm.auto import tqdm

        self._close()
        if not is_main_process():
            return
        self.bar_ = tqdm(
            total=_n_batches(net.get_iterator(dataset, training=training)),
            desc=f"{self._epoch(net)} {'train' if training else 'valid'}",
            unit="batch",
            leave=False,
            disable=None,
        )

    def _close(self) -> None:
        if self.bar_ is not None:
            self.bar_.close()
            self.bar_ = None

    def _print(self, line: str) -> None:
        from tqdm.auto import tqdm

        self._close()
        if is_main_process():
            tqdm.write(line, file=sys.stdout)


def _changes(row: Mapping[str, Any]) -> Iterator[str]:
    for module in governed_modules(row):
        if text := row.get(key_of(EVENT, module)):
            place = "" if module == "module" else f"{module}_: "
            yield f"; {place}{text.replace('+ ', 'unfroze ').replace('- ', 'froze ')}"


def _n_batches(iterator: Any) -> int | None:
    try:
        return len(iterator)
    except (TypeError, NotImplementedError):
        return None


def _seconds(rows: list[dict[str, Any]]) -> str:
    return f"{sum(row.get('dur', 0.0) for row in rows):.1f} s"
