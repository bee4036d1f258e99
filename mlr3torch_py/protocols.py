"""What this package relies on in others, as types: a net of skorch, its history, and an engine that counts events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn

__all__ = [
    "AcceleratedNet",
    "EventCounter",
    "History",
    "Net",
    "NetOfUser",
    "PipelineOfUser",
    "last_event",
    "pinned_kinds",
    "rates_in_use",
]


class History(Protocol):
    """The history of a net, plain or distributed."""

    def to_list(self) -> list[dict[str, Any]]: ...
    def record(self, attr: str, value: object) -> None: ...
    def record_batch(self, attr: str, value: object) -> None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, i: Any) -> Any: ...


class Net(Protocol):
    """An initialized ``skorch.NeuralNet``."""

    module_: nn.Module
    optimizer_: torch.optim.Optimizer
    criterion_: Any
    history: History
    callbacks_: list[tuple[str, Any]]
    callbacks: Any
    max_epochs: int
    verbose: int
    device: Any
    initialized_: bool
    train_split: Any
    fit_loop: Callable[..., Any]
    train_step_single: Callable[..., Any]
    use_caching: Any
    _modules: list[str]
    _criteria: list[str]
    _optimizers: list[str]

    def get_iterator(self, dataset: Any, training: bool = False) -> Any: ...
    def get_all_learnable_params(self) -> Iterator[tuple[str, torch.Tensor]]: ...
    def get_split_datasets(self, X: Any, y: Any = None, **fit_params: Any) -> tuple[Any, Any]: ...
    def infer(self, x: Any, **fit_params: Any) -> Any: ...
    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> Any: ...
    def train_step(self, batch: Any, **fit_params: Any) -> Any: ...
    def validation_step(self, batch: Any, **fit_params: Any) -> Any: ...
    def run_single_epoch(self, iterator: Any, *, training: bool, prefix: str, step_fn: Any, **params: Any) -> None: ...
    def notify(self, method_name: str, **cb_kwargs: Any) -> None: ...
    def get_params(self, deep: bool = True) -> dict[str, Any]: ...
    def get_default_callbacks(self) -> list[tuple[str, Any]]: ...
    def initialize_callbacks(self) -> Any: ...
    def initialize_module(self) -> Any: ...
    def initialize_criterion(self) -> Any: ...
    def _uniquely_named_callbacks(self) -> Iterator[tuple[str, Any]]: ...
    def _current_init_context(self, name: str) -> AbstractContextManager[None]: ...


class NetOfUser(Protocol):
    """An initialized net, as it is given by users: skorch has no types, so little of it can be asked for."""

    @property
    def module_(self) -> Any: ...


class PipelineOfUser(Protocol):
    """A pipeline of scikit-learn, which has no types either."""

    @property
    def steps(self) -> Any: ...


class AcceleratedNet(Net, Protocol):
    """A net with skorch's ``AccelerateMixin``."""

    accelerator: Any
    _wrapped_with_accelerator: bool

    def _initialize_accelerator(self) -> Any: ...


class EventCounter(Protocol):
    """What freezes and unfreezes, to those who only want to know whether it has."""

    @property
    def event(self) -> int:
        """The number of the last event; every event of every net has its own."""

    @property
    def rates_in_use(self) -> set[str]:
        """The names under which the history has the rates of trainable parameters; empty if none is scaled."""


def last_event(net: Net, module: str = "module") -> int | None:
    """Return the number of the last event in a module of a net; None without any."""
    return next((engine.event for name, engine in _engines(net) if name == module), None)


def rates_in_use(net: Net) -> set[str]:
    """Return the names under which the history has the rates of what is trainable; empty if none is scaled."""
    return {name for _, engine in _engines(net) for name in engine.rates_in_use}


def _engines(net: Net) -> Iterator[tuple[str, EventCounter]]:
    """Yield the engines of a net with the modules that they govern."""
    for _, callback in net.callbacks_:
        # Not by getattr, since an object such as a Mock may answer every attribute.
        attributes = getattr(callback, "__dict__", {})
        engine: Any = attributes.get("engine_")
        if hasattr(type(engine), "rates_in_use"):
            yield attributes.get("module", "module"), engine


def pinned_kinds(callbacks: Iterable[Any]) -> tuple[bool, bool]:
    """Tell whether callbacks pin frozen normalisation layers of ``module_``, and all other frozen modules, in eval."""
    freezing = [callback for callback in callbacks if hasattr(type(callback), "modes")]
    modes: list[tuple[str, str]] = [callback.modes for callback in freezing if callback.module == "module"]
    return any(norm == "eval" for norm, _ in modes), any(other == "eval" for _, other in modes)
