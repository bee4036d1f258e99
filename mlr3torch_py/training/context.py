"""ContextTorch: what a callback can see of the training it is part of."""

from __future__ import annotations

from typing import Any

from mlr3torch_py.network.unwrap import bare

__all__ = ["ContextTorch"]


class ContextTorch:
    """The training that a callback is part of; `CallbackSet.ctx` while it goes on.

    Attributes
    ----------
    net : skorch.NeuralNet
    terminate : bool
        Set it to True to end training after the epoch, with all callbacks and the printed line of that epoch.
    dataset_train, dataset_valid : torch.utils.data.Dataset or None
    step : int or None
        The training batch in the epoch, from 1; None before the first.
    global_step : int
        The training batch over the whole life of the net, from 1; 0 before the first.
    is_resumed : bool
        Whether this call goes on with a run from its files; ``max_epochs`` counts the epochs of that run too then.
    total_epochs : int
        The last epoch of this call.
    batch : object
        The batch at hand, of training or validation; None between batches.
    y_hat : torch.Tensor or None
        The last output of the network, without its graph.
    y_hats : list of torch.Tensor
        The outputs of the training, or validation, batches of this epoch so far. They are kept only where
        `keeps_outputs` is True, since they may need much memory.
    keeps_outputs : bool
        Whether a callback of the net has the attribute ``keeps_outputs = True``.

    Notes
    -----
    Ported from ``ContextTorch`` of R's mlr3torch.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skorch import NeuralNetClassifier
    >>> from torch.nn import CrossEntropyLoss
    >>> from mlr3torch_py import MLP, torch_callback
    >>> def stop(self):
    ...     self.ctx.terminate = self.ctx.epoch == 3
    >>> X, y = load_iris(return_X_y=True)
    >>> net = NeuralNetClassifier(
    ...     MLP, criterion=CrossEntropyLoss, module__d_in=4, module__d_out=3,
    ...     verbose=0, callbacks=[torch_callback("stop", on_epoch_end=stop)]
    ... ).fit(X.astype("float32"), y)
    >>> len(net.history)
    3
    """

    def __init__(self, net: Any) -> None:
        self.net = net
        self.terminate = False
        self.dataset_train: Any = None
        self.dataset_valid: Any = None
        self.step: int | None = None
        self.global_step = 0
        self.is_resumed = False
        self.keeps_outputs = False
        self.total_epochs = len(net.history) + net.max_epochs
        self.batch: Any = None
        self.y_hat: Any = None
        self.y_hats: list[Any] = []

    @property
    def network(self) -> Any:
        """The network of the net, without wrappers."""
        return bare(self.net.module_)

    @property
    def optimizer(self) -> Any:
        """The optimizer of the net."""
        return self.net.optimizer_

    @property
    def loss(self) -> Any:
        """The criterion of the net."""
        return self.net.criterion_

    @property
    def device(self) -> Any:
        """The device of the net."""
        return self.net.device

    @property
    def loader_train(self) -> Any:
        """A new loader of the training data, as the net makes it; None before the first epoch."""
        return None if self.dataset_train is None else self.net.get_iterator(self.dataset_train, training=True)

    @property
    def loader_valid(self) -> Any:
        """A new loader of the validation data, as the net makes it; None without such data."""
        return None if self.dataset_valid is None else self.net.get_iterator(self.dataset_valid, training=False)

    @property
    def epoch(self) -> int:
        """The epoch over the whole life of the net, from 1; 0 before the first."""
        return len(self.net.history)

    @property
    def last_loss(self) -> float | None:
        """The loss of the last training batch in the history; None where it has none."""
        entries = (entry for row in reversed(self.net.history.to_list()) for entry in reversed(row.get("batches", ())))
        return next((entry["train_loss"] for entry in entries if "train_loss" in entry), None)

    @property
    def last_scores_train(self) -> dict[str, float]:
        """The training scores in the last row of the history, by their names without ``train_``."""
        return self._scores("train_")

    @property
    def last_scores_valid(self) -> dict[str, float]:
        """The validation scores in the last row of the history, by their names without ``valid_``."""
        return self._scores("valid_")

    @property
    def callbacks(self) -> dict[str, Any]:
        """All callbacks of the net by their names, in the order in which they run."""
        return dict(self.net.callbacks_)

    def epochs_left(self, epochs: int | None = None) -> int:
        """Count the epochs that are still to be trained.

        Parameters
        ----------
        epochs : int, optional
            How many are asked for, ``max_epochs`` of the net if missing.

        Returns
        -------
        int
        """
        asked = self.net.max_epochs if epochs is None else epochs
        self.total_epochs = asked if self.is_resumed else self.epoch + asked
        return 0 if self.terminate else self.total_epochs - self.epoch

    def _scores(self, prefix: str) -> dict[str, float]:
        row = self.net.history.to_list()[-1] if len(self.net.history) else {}
        return scores_of(row, prefix)


def scores_of(row: dict[str, Any], prefix: str) -> dict[str, float]:
    """Return the scores in a row of a history whose names begin with a prefix, by the rest of their names."""
    return {
        key.removeprefix(prefix): value
        for key, value in row.items()
        if key.startswith(prefix) and not key.endswith(("_best", "_batch_count"))
    }
