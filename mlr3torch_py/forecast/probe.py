"""Set up what a net would train with, its network, callbacks and batches, without modifying the net."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from sklearn.base import clone
from sklearn.pipeline import Pipeline
from skorch.callbacks import Initializer, InputShapeSetter, ParamMapper
from skorch.dataset import get_len
from torch import nn
from torch.optim import Optimizer

from mlr3torch_py.arguments import check_network, check_text
from mlr3torch_py.forecast.twin import FitData, first_line, learn, shallow_copy, twin_of, undistributed
from mlr3torch_py.freezing.holder import FreezingCallback
from mlr3torch_py.freezing.host import check_module, optimizers_of
from mlr3torch_py.network.unwrap import bare
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.processes import are_several
from mlr3torch_py.values import length_of

__all__ = ["NetProbe", "cloned", "is_one_of", "network_of", "rows_in", "split_pipeline", "transformed"]


class NetProbe:
    """The network, some callbacks and the batches of a net, as they are when it trains.

    Parameters
    ----------
    net : skorch.NeuralNet
        Initialized or not; it is not modified.
    types : tuple of type
        The classes of callbacks to set up.

    Attributes
    ----------
    name : str
        The name of the module that is planned, without the trailing underscore; to be set before the rest.
    net : skorch.NeuralNet
        After `load` a copy that can take steps; before, it is only read.
    callbacks : list of skorch.callbacks.Callback
        Clones, with the parameters that the net sets.
    n_batches, n_train : int or None
        The training batches of an epoch and the rows, once they are loaded, if they have a length.
    n_valid : int
        The validation rows.
    problem : str
        Why the net cannot take a step; empty if nothing is known to prevent it.
    unfit : Exception or None
        The same as an error, if the data cannot even be split.
    is_shared : bool
        Whether several processes train the net.
    doubts : list of str
        What is not known for certain about the number of batches.
    others_that_freeze : list of str
        The names of callbacks of skorch that may freeze or unfreeze parameters.
    """

    name: str = "module"
    n_batches: int | None = None
    n_train: int | None = None
    n_valid: int = 0
    problem: str = "it needs data; give a net with `X` and `y`"
    unfit: Exception | None = None
    is_shared: bool = False

    def __init__(self, net: Net, types: tuple[type, ...]) -> None:
        named = _initialized_callbacks(net, (*types, InputShapeSetter))
        self.callbacks: list[Any] = [cloned(callback) for _, callback in named if isinstance(callback, types)]
        self._shapers = [(name, callback) for name, callback in named if isinstance(callback, InputShapeSetter)]
        self._given = net
        self.net: Net = net if net.initialized_ else shallow_copy(net)
        self._data = FitData(None, None, {})
        self.doubts: list[str] = []
        self.others_that_freeze: list[str] = [
            name
            for name, callback in _named_callbacks(net)
            if is_one_of(callback, (ParamMapper,)) and not is_one_of(callback, (Initializer,))
        ]

    @property
    def module(self) -> nn.Module:
        """The network of the net, or a new one if it has none yet.

        Raises
        ------
        TypeError, ValueError
            If there is none.
        """
        if not hasattr(self.net, f"{self.name}_") and not self.net.initialized_:
            part = "criterion" if self.name == "criterion" else "module"
            try:
                with self.net._current_init_context(part):  # skorch makes modules only within this context
                    getattr(self.net, f"initialize_{part}")()
            except Exception as error:
                cause = first_line(self._data.error or error)
                remedy = "give a net that is initialized or fitted"
                raise ValueError(f"`net` cannot make its network: {cause}; {remedy}") from error
        check_module(self.net, self.name, "freeze_plan")
        network: nn.Module = getattr(self.net, f"{self.name}_")
        return network

    @property
    def fit_error(self) -> Exception | None:
        """What ``fit`` raised before the first epoch."""
        return self._data.error

    @property
    def epochs(self) -> int | None:
        """The number of epochs that ``fit`` sets, if it does."""
        return self._data.epochs

    def optimizers(self) -> list[Optimizer]:
        """Return the optimizers of the net, or new ones if it has none yet; none if they cannot be made."""
        if not all(hasattr(self.net, f"{name}_") for name in self.net._optimizers):
            try:
                for part in ("criterion", "optimizer") if not self.net.initialized_ else ("optimizer",):
                    with self.net._current_init_context(part):
                        getattr(self.net, f"initialize_{part}")()
            except Exception as error:  # whatever it is, it is for fit() to raise, and no reason to lose a plan
                self.problem = self.problem or f"the net cannot make its optimizers: {first_line(error)}"
                return []
        return [optimizer for _, optimizer in optimizers_of(self.net)]

    def load(self, X: Any, y: Any) -> None:
        """Let a copy of the net prepare and split the data as ``fit`` does; see `problem` and `unfit`."""
        self.problem, self._data = "", FitData(X, y, {})
        self._copy()
        self.module  # noqa: B018
        self.optimizers()
        try:
            self.datasets: list[Any] = list(self.net.get_split_datasets(*self._data[:2], **self._data.fit_params))
        except Exception as error:
            self.unfit = self._unfit(error)
            self.problem = str(self.unfit)
            return
        try:
            self._load_batches()
        except Exception as error:
            self.problem = str(self._unfit(error))
            self.doubts.append(f"the number of batches in an epoch is not known: {self.problem}")

    def _copy(self) -> None:
        """Copy the net, and let its ``fit`` prepare the copy and the data."""
        try:
            self.net = twin_of(self._given, self._shapers)
        except Exception as error:  # whatever a network raises that cannot be copied
            self.problem = f"the network cannot be copied: {first_line(error)}; give its class as `module`"
            self.net = shallow_copy(self._given)
        else:
            if self.net.initialized_:
                self.optimizers()
            self._data = learn(self.net, *self._data[:2])
            self._undistribute()

    def _undistribute(self) -> None:
        """Let the copy train alone, if several processes train the net."""
        self.is_shared = are_several(self.net) or (self._given.initialized_ and are_several(self._given))
        for name in (*self.net._modules, *self.net._criteria):
            part = getattr(self.net, f"{name}_", None)
            if isinstance(part, nn.Module):
                vars(self.net)[f"{name}_"] = undistributed(part)

    def _load_batches(self) -> None:
        train, valid = self.datasets
        self.n_train, self.n_valid = length_of(train), length_of(valid) or 0
        self.batches: Any = self.net.get_iterator(train, training=True)
        self.valid_batches: Any = None if valid is None else self.net.get_iterator(valid, training=False)
        self.n_batches = length_of(self.batches)
        if self.n_batches is None and self.n_train is None:
            self.doubts.append("the training iterator does not know its length, so that of an epoch is not known")
        elif self.n_batches is None and self.n_train is not None:
            n_rows = rows_in(self.first_batch)
            self.n_batches = -(-self.n_train // n_rows)
            self.doubts.append(
                f"the training iterator does not know its length; {self.n_batches} batches in an epoch are assumed, "
                f"as the first has {n_rows} of {self.n_train} rows; pass `batches_per_epoch` if that is wrong"
            )

    @property
    def n_valid_batches(self) -> int:
        """The validation batches of an epoch."""
        if not self.n_valid:
            return 0
        n_batches = length_of(self.valid_batches)
        return -(-self.n_valid // rows_in(self.first_batch)) if n_batches is None else n_batches

    @cached_property
    def first_batch(self) -> Any:
        """The first training batch."""
        return next(iter(self.batches))

    def begin(self) -> None:
        """Begin an epoch."""
        train, valid = self.datasets
        self.net.notify("on_epoch_begin", dataset_train=train, dataset_valid=valid)

    def train(self, batches: Iterable[Any]) -> None:
        """Train on batches, by the net's own steps."""
        step = self.net.train_step
        self.net.run_single_epoch(batches, training=True, prefix="train", step_fn=step, **self._data.fit_params)

    def validate(self, batches: Iterable[Any]) -> None:
        """Compute validation batches, by the net's own steps."""
        step = self.net.validation_step
        self.net.run_single_epoch(batches, training=False, prefix="valid", step_fn=step, **self._data.fit_params)

    def _unfit(self, error: Exception) -> Exception:
        cause = self._data.error or error
        kind = TypeError if isinstance(cause, TypeError) else ValueError
        return kind(f"`X` and `y` cannot be split and loaded by the net: {first_line(cause)}")


def rows_in(batch: Any) -> int:
    """Return the number of rows in a batch, as skorch counts them."""
    n_rows: int = get_len(batch[0]) if isinstance(batch, (tuple, list)) else get_len(batch)
    return n_rows


def _initialized_callbacks(net: Net, types: tuple[type, ...]) -> list[tuple[str, Any]]:
    """Return copies of some callbacks, with the parameters that the net sets, by name."""
    if net.initialized_:
        return [(name, cloned(one)) for name, one in _named_callbacks(net) if isinstance(one, types)]
    probe = shallow_copy(net)
    probe.callbacks = [(name, cloned(one)) for name, one in _named_callbacks(net) if is_one_of(one, types)]
    for name in vars(net).keys() & {f"callbacks__{name}" for name, _ in probe.callbacks}:
        delattr(probe, name)
    vars(probe)["get_default_callbacks"] = list  # those that are chosen are among the others now
    probe.initialize_callbacks()
    return [(name, one) for name, one in probe.callbacks_ if isinstance(one, types)]


def _named_callbacks(net: Net) -> list[tuple[str, Any]]:
    """Return the callbacks of a net by name; of one that is not initialized they may be classes."""
    if net.initialized_:
        return net.callbacks_
    named = [] if net.callbacks == "disable" else net._uniquely_named_callbacks()
    return [(name, vars(net).get(f"callbacks__{name}", callback)) for name, callback in named]


def cloned(callback: Any) -> Any:
    """Clone a callback, with a loaded state that the next fit will adopt."""
    return callback.clone_to_plan() if isinstance(callback, FreezingCallback) else clone(callback, safe=False)


def network_of(net: Any, module: str) -> nn.Module:
    """Return a module of an initialized net, or a network that is given itself, without its wrappers.

    Raises
    ------
    TypeError, ValueError
        If the net lacks the module, or a network is given together with the name of one.
    """
    if check_text("module", module, "the name of a module of the net") == "module":
        return bare(check_network("net", net))
    if isinstance(net, nn.Module):
        raise ValueError(f"`module` is {module!r}, but `net` is a network, not a net of skorch; leave `module` out")
    check_module(net, module, "a callback")
    network: nn.Module = getattr(net, f"{module}_")
    return bare(network)


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


def is_one_of(item: Any, types: tuple[type, ...]) -> bool:
    """Check whether a callback, a (name, callback) pair, or a class is of one of some types."""
    callback = item[1] if isinstance(item, (tuple, list)) and len(item) == 2 else item
    return isinstance(callback, types) or (isinstance(callback, type) and issubclass(callback, types))
