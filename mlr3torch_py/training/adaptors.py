"""Adaptors: callbacks by which skorch drives a run, before, between and behind those of the net."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skorch.callbacks import Callback

from mlr3torch_py.protocols import Net

if TYPE_CHECKING:
    from mlr3torch_py.training.run import Run

__all__ = ["First", "Last", "LiveAdaptor", "Scored"]


class Adaptor(Callback):  # type: ignore[misc]
    """Keep the names of all other callbacks in skorch's order.

    In a copy of a net, and after a run without an end, skorch calls its ``on_train_begin`` first.
    """

    adapts_a_run = True

    def __init__(self, names: list[str]) -> None:
        self.names_ = names

    def on_train_begin(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Start a run."""
        __tracebackhide__ = True
        from mlr3torch_py.training.run import Run  # which puts adaptors into a net

        Run(net).start(self, X, y, **kwargs)


class LiveAdaptor(Adaptor):
    """Tell a run what skorch does."""

    def __init__(self, run: Run, names: list[str]) -> None:
        super().__init__(names)
        self.run_ = run

    def __reduce__(self) -> tuple[type[Adaptor], tuple[list[str]]]:
        return Adaptor, (self.names_,)


class First(LiveAdaptor):
    """Stand before all other callbacks."""

    def on_epoch_begin(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        self.run_.begin_epoch(dataset_train, dataset_valid)

    def on_batch_begin(self, net: Net, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        self.run_.begin_batch(batch, training)

    def on_grad_computed(self, net: Net, named_parameters: Any = None, **kwargs: Any) -> None:
        self.run_.end_backward()

    def on_batch_end(
        self, net: Net, batch: Any = None, training: bool | None = None, y_pred: Any = None, **kwargs: Any
    ) -> None:
        self.run_.end_batch(batch, training, y_pred)

    def on_epoch_end(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        self.run_.end_epoch()

    def on_train_end(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self.run_.end(X, y, **kwargs)


class Scored(LiveAdaptor):
    """Stand after all callbacks of finite weight."""

    def on_train_begin(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Do nothing: the run has started."""

    def on_epoch_end(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        self.run_.find_late_scores()


class Last(LiveAdaptor):
    """Stand after all other callbacks."""

    def on_epoch_begin(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        self.run_.epoch_has_begun()

    def on_batch_begin(self, net: Net, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if training:
            self.run_.watch_step()

    def on_grad_computed(self, net: Net, named_parameters: Any = None, **kwargs: Any) -> None:
        self.run_.watch_step()  # an optimizer such as LBFGS takes the same batch several times

    def on_batch_end(self, net: Net, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        self.run_.ctx.batch = None
        self.run_.arrange()

    def on_epoch_end(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        self.run_.epoch_has_ended()
        self.run_.check_hidden_scores()
        if self.run_.ctx.terminate:
            raise KeyboardInterrupt
