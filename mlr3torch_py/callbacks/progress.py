"""CallbackSetProgress: a bar over the batches, and a line for each epoch."""

from __future__ import annotations

import sys
from numbers import Integral, Real
from typing import Any

from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.training.context import scores_of
from mlr3torch_py.training.processes import is_main_process

__all__ = ["CallbackSetProgress"]


class CallbackSetProgress(CallbackSet):
    """Show a progress bar over the batches of an epoch, and a line with its scores.

    In a terminal and in a notebook the bar moves over the training batches, and then over those of validation. Where
    the output is a file, there are only the lines.

    Parameters
    ----------
    digits : int
        How many significant digits of a score are shown, from 1.

    Raises
    ------
    TypeError, ValueError
        When training begins, if `digits` is wrong.

    See Also
    --------
    t_clbk : Make this callback by its key, ``t_clbk("progress")``.

    Notes
    -----
    Ported from ``CallbackSetProgress`` of R's mlr3torch. The bar is that of tqdm. The time at the end is that of all
    epochs in the history of the net, so it goes on across ``partial_fit`` and runs that are resumed. Give the net
    ``verbose=0``, or skorch shows its own table too.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skorch import NeuralNetClassifier
    >>> from torch.nn import CrossEntropyLoss
    >>> from mlr3torch_py import MLP, t_clbk
    >>> X, y = load_iris(return_X_y=True)
    >>> net = NeuralNetClassifier(
    ...     MLP, criterion=CrossEntropyLoss, module__d_in=4, module__d_out=3,
    ...     max_epochs=2, verbose=0, callbacks=[t_clbk("progress", digits=3)],
    ... ).fit(X.astype("float32"), y)  # doctest: +ELLIPSIS
    Epoch 1/2: train.loss ..., valid.acc ..., valid.loss ... (0... s)
    Epoch 2/2: train.loss ..., valid.acc ..., valid.loss ... (0... s)
    Trained for 2 epochs (0... s)
    """

    label = "Progress"
    bar_: Any = None

    def __init__(self, digits: int = 2) -> None:
        self.digits = digits

    def check_params(self) -> None:
        if isinstance(self.digits, bool) or not isinstance(self.digits, Integral):
            raise TypeError(f"`digits` is {self.digits!r}; give a whole number, from 1")
        if self.digits < 1:
            raise ValueError(f"`digits` is {self.digits!r}; give at least 1")

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        self._open(net, dataset_train, training=True)

    def on_batch_end(self, net: Any, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if self.bar_ is not None:
            self.bar_.update()

    def on_before_valid(self, net: Any, **kwargs: Any) -> None:
        if self.ctx is not None and self.ctx.dataset_valid is not None:
            self._open(net, self.ctx.dataset_valid, training=False)

    def on_epoch_end(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        row = net.history.to_list()[-1]
        scores = [
            f"{part}.{name} {float(value):.{self.digits}g}"
            for part in ("train", "valid")
            for name, value in sorted(scores_of(row, f"{part}_").items())
            if isinstance(value, Real) and not isinstance(value, bool)
        ]
        self._say(f"{self._epoch(net)}: {', '.join(scores)} ({_seconds([row])})")

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        rows = [row for row in net.history.to_list() if "train_batch_count" in row]
        self._say(f"Trained for {len(rows)} epochs ({_seconds(rows)})")

    def on_exit(self, net: Any, **kwargs: Any) -> None:
        self._close()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"bar_": None}

    def _epoch(self, net: Any) -> str:
        total = "" if self.ctx is None else f"/{self.ctx.total_epochs}"
        return f"Epoch {len(net.history)}{total}"

    def _open(self, net: Any, dataset: Any, *, training: bool) -> None:
        # tqdm warns where a notebook lacks widgets, so it is asked only when there is a bar to show.
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

    def _say(self, line: str) -> None:
        from tqdm.auto import tqdm

        self._close()
        if is_main_process():
            tqdm.write(line, file=sys.stdout)


def _n_batches(iterator: Any) -> int | None:
    try:
        return len(iterator)
    except (TypeError, NotImplementedError):
        return None


def _seconds(rows: list[dict[str, Any]]) -> str:
    return f"{sum(row.get('dur', 0.0) for row in rows):.1f} s"
