"""CallbackSetHistory: the scores of all epochs as a table."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.training.context import scores_of

__all__ = ["CallbackSetHistory"]


class CallbackSetHistory(CallbackSet):
    """Keep the scores of all epochs as a table.

    Attributes
    ----------
    history : pandas.DataFrame
        One row per epoch: `epoch`, ``train.<measure>`` and ``valid.<measure>``, from the scores that skorch and its
        ``EpochScoring`` record as ``train_<measure>`` and ``valid_<measure>``. Missing where an epoch has no such
        score.

    See Also
    --------
    t_clbk : Make this callback by its key, ``t_clbk("history")``.

    Notes
    -----
    Ported from ``CallbackSetHistory`` of R's mlr3torch. The table is read off the history of the net, so that it goes
    on across ``partial_fit`` and a history that is loaded.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skorch import NeuralNetClassifier
    >>> from torch.nn import CrossEntropyLoss
    >>> from mlr3torch_py import MLP
    >>> X, y = load_iris(return_X_y=True)
    >>> history = CallbackSetHistory()
    >>> net = NeuralNetClassifier(
    ...     MLP, criterion=CrossEntropyLoss, module__d_in=4, module__d_out=3,
    ...     max_epochs=2, verbose=0, callbacks=[history]
    ... ).fit(X.astype("float32"), y)
    >>> history.history.columns.tolist()
    ['epoch', 'train.loss', 'valid.acc', 'valid.loss']
    """

    label = "History"
    rows_: tuple[dict[str, float], ...] = ()

    @property
    def history(self) -> pd.DataFrame:
        frame = pd.DataFrame(list(self.rows_), columns=None if self.rows_ else ["epoch"])
        return frame[["epoch", *sorted(column for column in frame.columns if column != "epoch")]]

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self._read(net)

    def on_epoch_end(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        self._read(net)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self._read(net)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows.

        Returns
        -------
        dict
            ``{"rows": list of dict}``
        """
        return {"rows": [dict(row) for row in self.rows_]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up rows; a net that has a history of its own puts it in their place when it trains.

        Parameters
        ----------
        state : dict
            As `state_dict` returns it.
        """
        self.rows_ = tuple(dict(row) for row in state["rows"])

    def _read(self, net: Any) -> None:
        self.rows_ = tuple(
            {"epoch": row["epoch"]}
            | {
                f"{part}.{name}": value
                for part in ("train", "valid")
                for name, value in scores_of(row, f"{part}_").items()
            }
            for row in net.history.to_list()
            if "train_batch_count" in row
        )
