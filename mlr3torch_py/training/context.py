"""ContextTorch: the state of a training, as its callbacks see it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from mlr3torch_py.names import listed, nearest
from mlr3torch_py.network.unwrap import bare
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.asked import epochs_asked_for
from mlr3torch_py.training.clock import row_of, rows_of
from mlr3torch_py.training.scoring import parts_of_scores, work_out_scores

__all__ = ["ContextTorch", "scores_of"]

_IN_R: Final = {
    "learner": "`ctx.net`",
    "task_train": "`ctx.dataset_train`",
    "task_valid": "`ctx.dataset_valid`",
    "loss_fn": "`ctx.loss`",
    "measures_train": "skorch's EpochScoring, and `ctx.last_scores_train`",
    "measures_valid": "skorch's EpochScoring, and `ctx.last_scores_valid`",
    "prediction_encoder": "`ctx.net.predict`",
    "eval_freq": "the `train_split` of the net",
}
_PARTS: Final = ("train_", "valid_")


class ContextTorch:
    """The state of a training; `CallbackSet.ctx` during that training.

    Attributes
    ----------
    net : skorch.NeuralNet
    terminate : bool
        Set it to True to stop training after the current epoch, once all callbacks have run and its line is printed.
    dataset_train, dataset_valid : torch.utils.data.Dataset or None
    step : int or None
        The training batch within the epoch, from 1; None before the first.
    global_step : int
        The training batch over the whole life of the net, from 1; 0 before the first.
    is_resumed : bool
        Whether this call continues a run from its files; the epochs it asks for include the earlier ones of that run.
    asked_epochs : int
        The number of epochs that the call asks for: ``epochs`` if it is given, else ``max_epochs`` of the net.
    total_epochs : int
        The last epoch of this call.
    epochs_before : int or None
        The epochs before the call that is resumed; None if none is.
    ended_epoch : int
        The last epoch all of whose batches are done.
    loaders : list
        The loaders that skorch iterates over in this call, that of the training data first.
    batch : object
        The current batch, of training or validation; None between batches.
    y_hats : object
        The latest output of the network, detached from its graph: a tensor, or whatever the network returns. From the
        stage ``after_backward`` on it is that of the current batch.
    y_hat : torch.Tensor or None
        The first tensor of `y_hats`.
    epoch_outputs : list
        The outputs of the training, or validation, batches of this epoch so far, detached. Recorded only if
        `keeps_outputs` is True, since they may need much memory.
    keeps_outputs : bool
        Whether a callback of the net has the attribute ``keeps_outputs = True``.

    Notes
    -----
    Ported from ``ContextTorch`` of R's mlr3torch.

    Examples
    --------
    >>> from mlr3torch_py import torch_callback
    >>> def stop(self):
    ...     self.ctx.terminate = self.ctx.epoch == 3
    >>> net = iris_net(callbacks=[torch_callback("stop", on_epoch_end=stop)]).fit(X, y)
    >>> len(net.history)
    3
    """

    def __init__(self, net: Net) -> None:
        self.net = net
        self.terminate = False
        self.dataset_train: Any = None
        self.dataset_valid: Any = None
        self.step: int | None = None
        self.global_step = 0
        self.is_resumed = False
        self.is_starting = False
        self.keeps_outputs = False
        self.loaders: list[Any] = []
        self.epochs_before: int | None = None
        self.ended_epoch: int = 0
        self.asked_epochs: int = epochs_asked_for(net)
        self.total_epochs: int = len(net.history) + self.asked_epochs
        self.batch: Any = None
        self.y_hat: torch.Tensor | None = None
        self.y_hats: Any = None
        self.epoch_outputs: list[Any] = []
        self._thread: int = threading.get_ident()
        self._worked_out: dict[str, dict[str, Any]] = {}
        self._finished: set[str] = set()

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in vars(self) and _is_misspelt(name):
            raise AttributeError(f"`ctx` has no `{name}`, so nothing would read it; did you mean `terminate`?")
        super().__setattr__(name, value)

    if not TYPE_CHECKING:  # which would take it for any attribute

        def __getattr__(self, name: str) -> Any:
            if name in _IN_R:
                raise AttributeError(f"`ctx` has no `{name}` as in R; use {_IN_R[name]}")
            return object.__getattribute__(self, name)  # which says what is missing

    @property
    def is_in_another_thread(self) -> bool:
        """Whether a thread that is alive trains, and it is not the one that asks."""
        return self._thread != threading.get_ident() and self._thread in [one.ident for one in threading.enumerate()]

    @property
    def asked_by(self) -> str:
        """What gives the number of epochs: "epochs" of the call, or "max_epochs" of the net."""
        return "max_epochs" if self.asked_epochs == self.net.max_epochs else "epochs"

    @property
    def network(self) -> nn.Module:
        """The network of the net, without wrappers."""
        return bare(self._main("module_", self.net._modules))

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the net."""
        optimizer: torch.optim.Optimizer = self._main("optimizer_", self.net._optimizers)
        return optimizer

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
        """The loss of the last training batch in the history; None if there is none."""
        entries = (entry for row in reversed(rows_of(self.net.history)) for entry in reversed(row.get("batches", ())))
        return next((entry["train_loss"] for entry in entries if "train_loss" in entry), None)

    @property
    def last_scores_train(self) -> dict[str, float]:
        """The latest training scores, without the prefix ``train_`` if they have it.

        From the stage ``before_valid`` on they are those of the current epoch, before it those of the epoch before.
        Until skorch records them, when the epoch ends, they are worked out from the outputs of the epoch: of
        ``EpochScoring`` with caching, ``BatchScoring`` and ``PassthroughScoring``, and not of other callbacks, nor of
        an ``EpochScoring`` without caching. Its scoring function is then called once more.
        """
        return self._last_scores("train")

    @property
    def last_scores_valid(self) -> dict[str, float]:
        """The latest validation scores, without the prefix ``valid_``.

        From the stage ``valid_end`` on they are those of the current epoch; see `last_scores_train`.
        """
        return self._last_scores("valid")

    @property
    def callbacks(self) -> dict[str, Any]:
        """The callbacks that the user gave, by name, in the order in which they run."""
        own = {name for name, _ in self.net.get_default_callbacks()}
        given = [(name, one) for name, one in self.net.callbacks_ if not getattr(type(one), "adapts_a_run", False)]
        return {name: one for name, one in given if name not in own}

    def _main(self, attribute: str, names: Sequence[str]) -> Any:
        if not hasattr(self.net, attribute):
            others = listed(f"`ctx.net.{name}_`" for name in names) or "none"
            raise AttributeError(f"{type(self.net).__name__} has no `{attribute}`; what it has instead: {others}")
        return getattr(self.net, attribute)

    def _begin_epoch(self, dataset_train: Any, dataset_valid: Any) -> None:
        """Forget the outputs and scores of the epoch before."""
        self.dataset_train, self.dataset_valid = dataset_train, dataset_valid
        self.epoch_outputs = []
        self._worked_out.clear()
        self._finished.clear()

    def _finish(self, part: str) -> None:
        """Note that all batches of a part of the epoch, "train" or "valid", are finished."""
        self._finished.add(part)

    def epochs_left(self, epochs: int | None = None) -> int:
        """Count the remaining epochs, and set `total_epochs`.

        Parameters
        ----------
        epochs : int, optional
            The number of epochs asked for; by default `asked_epochs`.

        Returns
        -------
        int
        """
        self.asked_epochs = self.asked_epochs if epochs is None else int(epochs)
        self.total_epochs = self.asked_epochs + (self.epochs_before or 0 if self.is_resumed else self.epoch)
        return 0 if self.terminate else self.total_epochs - self.epoch

    def _last_scores(self, part: str) -> dict[str, float]:
        worked_out: dict[str, Any] = {}
        rows = rows_of(self.net.history)
        if part in self._finished:
            if part not in self._worked_out:
                self._worked_out[part] = work_out_scores(self.net, part, self.dataset_train, self.dataset_valid)
            worked_out = self._worked_out[part] | row_of(self.net.history, -1)
        parts = parts_of_scores(self.net)
        scores = (scores_of(row, part, parts) for row in chain([worked_out], reversed(rows)))
        return _Scores(part, next((found for found in scores if found), {}))


@lru_cache(maxsize=1000)
def _is_misspelt(name: str) -> bool:
    """Whether an attribute is a near miss of the one that callbacks set."""
    return name != "terminate" and bool(get_close_matches(name, ["terminate"], cutoff=0.75))


class _Scores(dict[str, float]):
    """Scores by name; a missing one is explained."""

    def __init__(self, part: str, scores: Mapping[str, float]) -> None:
        super().__init__(scores)
        self.part = part

    def __missing__(self, name: str) -> float:
        raise KeyError(f"the last epoch has no {self.part} score {name!r}; {nearest([str(name)], self)}")


def scores_of(row: Mapping[str, Any], part: str, parts: Mapping[str, str]) -> dict[str, float]:
    """Select the scores of training, or of validation, from a row of a history.

    Parameters
    ----------
    row : mapping
    part : {"train", "valid"}
    parts : mapping of str to str
        The part of each key that a scoring callback records, as `parts_of_scores` returns it.

    Returns
    -------
    dict
        Without the prefix, which not all keys have; with it, where another key is what is left of it.

    Examples
    --------
    >>> scores_of({"valid_loss": 0.5, "f1": 0.8, "train_loss": 0.4}, "valid", {"f1": "valid"})
    {'f1': 0.8, 'loss': 0.5}
    """
    scores = {key: value for key, value in row.items() if not key.endswith(("_best", "_batch_count"))}
    unprefixed = {key: value for key, value in scores.items() if parts.get(key) == part and not key.startswith(_PARTS)}
    prefix = f"{part}_"
    prefixed = {key.removeprefix(prefix): key for key in scores if key.startswith(prefix)}
    return unprefixed | {key if name in unprefixed else name: scores[key] for name, key in prefixed.items()}
