"""Set up what a net would train with, its network, callbacks and batches, without modifying the net."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from sklearn.base import clone
from sklearn.pipeline import Pipeline
from skorch.dataset import get_len, unpack_data
from torch import nn
from torch.optim import Optimizer

from mlr3torch_py.protocols import Net

__all__ = ["NetProbe", "is_one_of", "split_pipeline", "transformed"]


class NetProbe:
    """The network and some callbacks of a net, as they are when it trains.

    Parameters
    ----------
    net : skorch.NeuralNet
        Initialized or not; it is not modified.
    types : tuple of type
        The classes of callbacks to set up.

    Attributes
    ----------
    module : torch.nn.Module
        The network of the net, or a new one if it has none yet.
    callbacks : list of skorch.callbacks.Callback
        Clones, with the parameters that the net sets.
    n_batches, n_train, n_valid : int
        The training batches of an epoch, and the rows of the data; 0 before `load`.
    """

    n_batches: int = 0
    n_train: int = 0
    n_valid: int = 0

    def __init__(self, net: Net, types: tuple[type, ...]) -> None:
        self.net = net
        probe = net
        if not net.initialized_:
            probe = _copied(net)
            named = [] if net.callbacks == "disable" else net._uniquely_named_callbacks()
            chosen = ((name, vars(net).get(f"callbacks__{name}", callback)) for name, callback in named)
            probe.callbacks = [(name, clone(one, safe=False)) for name, one in chosen if is_one_of(one, types)]
            for name in vars(net).keys() & {f"callbacks__{name}" for name, _ in probe.callbacks}:
                delattr(probe, name)
            probe.initialize_callbacks()
            with probe._current_init_context("module"):  # skorch makes modules only within this context
                probe.initialize_module()
        self._probe = probe
        self.module: nn.Module = probe.module_
        self.callbacks: list[Any] = [clone(callback) for _, callback in probe.callbacks_ if isinstance(callback, types)]

    def optimizers(self) -> list[Optimizer]:
        """Return the optimizers of the net, or new ones if it has none yet; none if they cannot be made."""
        probe = self._probe
        if not self.net.initialized_:
            try:
                for part in ("criterion", "optimizer"):
                    with probe._current_init_context(part):
                        getattr(probe, f"initialize_{part}")()
            except Exception:  # whatever it is, it is for fit() to raise, and no reason to lose a plan
                return []
        return [getattr(probe, f"{name}_") for name in probe._optimizers]

    def load(self, X: Any, y: Any) -> None:
        """Split the data as the net does.

        Raises
        ------
        TypeError, ValueError
            If the data does not fit the net, or the number of batches in an epoch cannot be known.
        """
        probe = _copied(self.net)
        probe.train_split = deepcopy(self.net.train_split)  # it may hold a random generator of its own
        try:
            train, valid = probe.get_split_datasets(X, y)
            self._batches = probe.get_iterator(train, training=True)
        except Exception as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"`X` and `y` cannot be split and loaded by the net: {error}") from error
        try:
            self.n_train, self.n_valid = len(train), 0 if valid is None else len(valid)
            self.n_batches = len(self._batches)
        except TypeError as error:
            raise ValueError("the training iterator does not know its length; pass `batches_per_epoch`") from error

    def first_batch(self) -> tuple[Callable[[nn.Module], Any], int]:
        """Return a function that calls a network with the first batch, and the batch's length."""
        features, _ = unpack_data(next(iter(self._batches)))

        def call(module: nn.Module) -> Any:
            probe = _copied(self.net)
            vars(probe)["module_"] = module
            return probe.infer(features)

        return call, get_len(features)


def split_pipeline(net: Any) -> tuple[Any, Any]:
    """Return the steps of a pipeline before its last one, None without any, and the last one.

    Examples
    --------
    >>> split_pipeline("net")
    (None, 'net')
    """
    if not isinstance(net, Pipeline):
        return None, net
    steps = net[:-1]
    return (steps if len(steps) else None), net.steps[-1][1]


def transformed(steps: Any, X: Any, y: Any) -> Any:
    """Transform data as a pipeline does when it is trained, without fitting its own steps.

    Raises
    ------
    ValueError
        If the steps cannot be fitted to the data.
    """
    try:
        return clone(steps).fit_transform(X, y)
    except Exception as error:
        raise ValueError(f"`X` and `y` cannot be transformed by the pipeline: {error}") from error


def _copied(net: Net) -> Net:
    """Copy a net without its attributes; copy.copy() would pickle its module."""
    copied: Net = object.__new__(type(net))
    vars(copied).update(vars(net))
    return copied


def is_one_of(item: Any, types: tuple[type, ...]) -> bool:
    """Check whether a callback, a (name, callback) pair, or a class is of one of some types."""
    callback = item[1] if isinstance(item, (tuple, list)) and len(item) == 2 else item
    return isinstance(callback, types) or (isinstance(callback, type) and issubclass(callback, types))
