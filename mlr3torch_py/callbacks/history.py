"""CallbackSetHistory: keep the scores of all epochs as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final

import pandas as pd

from mlr3torch_py.arguments import check_list
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.callback_set import CallbackSet, check_state
from mlr3torch_py.training.clock import has_ended, row_of, rows_of
from mlr3torch_py.training.context import scores_of
from mlr3torch_py.training.scoring import parts_of_scores
from mlr3torch_py.values import plain

__all__ = ["CallbackSetHistory"]

_PARTS: Final = ("train", "valid")


class CallbackSetHistory(CallbackSet):
    """Keep the scores of all epochs as a table.

    Attributes
    ----------
    history : pandas.DataFrame
        One row per epoch: `epoch`, ``train.<measure>`` and ``valid.<measure>``, from the scores that skorch and its
        ``EpochScoring`` record as ``train_<measure>`` and ``valid_<measure>``, or as ``<measure>`` alone; NaN for an
        epoch without such a score.

    See Also
    --------
    t_clbk : Make this callback by its key, ``t_clbk("history")``.

    Notes
    -----
    Ported from ``CallbackSetHistory`` of R's mlr3torch. The table is made from the history of the net, so it continues
    across ``partial_fit`` and a loaded history.

    Examples
    --------
    >>> history = CallbackSetHistory()
    >>> net = iris_net(max_epochs=2, callbacks=[history]).fit(X, y)
    >>> history.history.columns.tolist()
    ['epoch', 'train.loss', 'valid.acc', 'valid.loss']
    """

    label = "History"
    is_from_history: ClassVar[bool] = True
    rows_: Sequence[dict[str, float]] = ()
    n_seen_: int = 0

    @property
    def history(self) -> pd.DataFrame:
        frame = pd.DataFrame(list(self.rows_), columns=None if self.rows_ else ["epoch"])
        return frame[["epoch", *sorted(column for column in frame.columns if column != "epoch")]]

    def on_train_begin(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self._update(net)

    def on_epoch_end(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        if isinstance(self.rows_, list) and self.n_seen_ == len(net.history) - 1:
            self.rows_ += _scores(net, [row_of(net.history, -1)])
            self.n_seen_ += 1
        else:
            self._update(net)

    def on_train_end(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self._update(net)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows.

        Returns
        -------
        dict
            ``{"rows": list of dict}``
        """
        return {"rows": [dict(row) for row in self.rows_]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore rows; the history of a net replaces them during training.

        Parameters
        ----------
        state : dict
            As `state_dict` returns it.

        Raises
        ------
        TypeError
            If it has another form.
        """
        check_state(state, "rows")
        for row in check_list("rows` of `state", state["rows"], "what state_dict() has returned"):
            check_state(row)
        self.rows_ = tuple(dict(row) for row in state["rows"])

    def _update(self, net: Net) -> None:
        self.rows_, self.n_seen_ = _scores(net, rows_of(net.history)), len(net.history)


def _scores(net: Net, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Return the scores of the complete epochs."""
    parts = parts_of_scores(net)
    return [
        {"epoch": row["epoch"]}
        | {f"{part}.{name}": plain(value) for part in _PARTS for name, value in scores_of(row, part, parts).items()}
        for row in rows
        if has_ended(row, parts)
    ]
