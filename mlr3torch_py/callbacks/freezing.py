"""The one engine that decides what is frozen: it asks every freezing callback of a net what it holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Set
from typing import Any

from torch import nn

from mlr3torch_py.callbacks.callback_set import CallbackSet
from mlr3torch_py.parameters import bare, freeze, n_trainable, thaw
from mlr3torch_py.plan import Unit

__all__ = ["FreezingCallback", "batches_trained"]


class FreezingCallback(CallbackSet, ABC):
    """A callback that holds some parameters of ``net.module_`` frozen for some time.

    A subclass answers what it holds at an epoch and a batch, from its arguments and the network alone. This class
    keeps the clock, which it reads off the history of the net, and applies the answers of all freezing callbacks of
    the net together: a parameter trains when none of them holds it. Applying twice changes nothing, so it is done
    when training begins, at every epoch, and before a batch only if something is due.

    Only ``module_`` is governed. Further modules of a net, and a criterion with weights, are left as they are.
    """

    net_: Any = None
    epoch_ = 0
    batch_ = 0
    due_: float | None = None

    @abstractmethod
    def resolve(self, module: nn.Module) -> None:
        """Work out what the arguments mean for a bare network, and raise if they do not fit it."""

    @property
    @abstractmethod
    def governed(self) -> Set[str]:
        """The parameters whose flags the callback sets when training begins, whatever they were."""

    @abstractmethod
    def held(self, epoch: int, batch: int) -> Set[str]:
        """Return the parameters that the callback holds frozen at a moment."""

    @abstractmethod
    def next_batch(self, batch: int) -> float:
        """Return the next batch after `batch` at which the answer changes within an epoch, infinity if none."""

    @abstractmethod
    def report(self, unit: Unit, moment: int) -> None:
        """Log what the callback changes at exactly this epoch or batch."""

    @abstractmethod
    def why_held(self) -> str:
        """Say, for a user whose network does not train at all, what this callback holds and until when."""

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        callbacks = _freezing_callbacks(net)
        for callback in callbacks:
            callback.require_params()
            callback.resolve(bare(net.module_))
        self.net_ = net
        self.due_ = None
        self._set_clock(net)
        self._apply(net, governed=frozenset().union(*(callback.governed for callback in callbacks)))

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        if self.net_ is None:
            self.on_train_begin(net)
        self._check_net(net)
        self._set_clock(net)
        self._apply(net)
        self.due_ = self.batch_ + 1
        self.report("epoch", self.epoch_)

    def on_batch_begin(self, net: Any, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if training:
            self.batch_ = batch_ = self.batch_ + 1
            if batch_ >= self.due_ or net is not self.net_:  # type: ignore[operator]
                self._check_net(net)
                self._apply(net)
                self._check_something_trains(net)
                self.due_ = self.next_batch(self.batch_)
                self.report("batch", self.batch_)

    def on_epoch_end(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        net.history.record("n_trainable", n_trainable(net.module_))

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self.net_ = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"net_": None}

    def _set_clock(self, net: Any) -> None:
        self.epoch_ = len(net.history)
        self.batch_ = batches_trained(net.history)

    def _apply(self, net: Any, governed: Set[str] = frozenset()) -> None:
        answers = (callback.held(self.epoch_, self.batch_) for callback in _freezing_callbacks(net))
        freeze(net.module_, frozenset().union(*answers), governed=governed)

    def _check_net(self, net: Any) -> None:
        if net is not self.net_:
            raise RuntimeError(
                f"one {type(self).__name__} is used by two nets at once; give each net its own, "
                "for instance sklearn.base.clone(callback)"
            )

    def _check_something_trains(self, net: Any) -> None:
        if any(tensor.requires_grad for _, tensor in net.get_all_learnable_params()):
            return
        thaw(net.module_)
        why = "; ".join(callback.why_held() for callback in _freezing_callbacks(net))
        raise ValueError(
            f"nothing trains at batch {self.batch_} (epoch {self.epoch_}), so the step cannot be taken: {why}. "
            "At every step at least one weight that the optimizer holds must be trainable"
        )


def batches_trained(history: Any) -> int:
    """Count the training batches that are finished, over the whole life of a net.

    Parameters
    ----------
    history : skorch.history.History or skorch.history.DistributedHistory
        Batches of an epoch that was interrupted count as far as they have a training loss. A distributed history
        holds the batches of all ranks in such a row; counted are those of one rank.

    Returns
    -------
    int
        Micro-batches under gradient accumulation. Validation batches do not count.

    Examples
    --------
    >>> from skorch.history import History
    >>> batches_trained(History([{"train_batch_count": 3}, {"batches": [{"train_loss": 0.5}, {}]}]))
    4
    """
    n_ranks = getattr(history, "world_size", 1)
    return sum(
        row["train_batch_count"]
        if "train_batch_count" in row
        else sum("train_loss" in entry for entry in row.get("batches", ())) // n_ranks
        for row in history.to_list()
    )


def _freezing_callbacks(net: Any) -> list[FreezingCallback]:
    return [callback for _, callback in net.callbacks_ if isinstance(callback, FreezingCallback)]
