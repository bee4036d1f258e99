"""Pins: modules that stay in eval mode while the network around them is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakSet

import torch
from torch import nn

from mlr3torch_py.names import ancestors
from mlr3torch_py.network.parameters import can_train
from mlr3torch_py.network.unwrap import all_modules, bare, named_modules, named_parameters

__all__ = [
    "Pins",
    "frozen_modules",
    "overruled_pins",
    "pinned_modules",
    "traced_in_training",
]

_TRAIN: Final = nn.Module.train
_TRAINING_FLAGS: Final = frozenset({"training", "use_input_stats"})  # of operations, as torch calls them
_NO_SCHEMA: Final = "(no schema)"


@dataclass(slots=True)
class _Part:
    """What is known of the parameters at and below a path."""

    trains: bool = False
    is_held: bool = False

    @property
    def is_frozen(self) -> bool:
        return self.is_held and not self.trains


def frozen_modules(module: nn.Module, held: Set[str]) -> dict[str, nn.Module]:
    """Find the modules that are frozen as a whole.

    A module with parameters is frozen as a whole when none of them is trainable and at least one of them is held. A
    module without parameters goes with what runs before it: in a sequence with the nearest earlier element that has
    parameters, and otherwise with the nearest module around it that has some. A module that stands in several places
    must be frozen in all of them. Integer parameters do not count, since they never train.

    Parameters
    ----------
    module : torch.nn.Module
    held : set of str
        Parameter names.

    Returns
    -------
    dict of str to torch.nn.Module
        The modules by their paths; a shared one under each of its paths.

    Examples
    --------
    >>> from mlr3torch_py.network.parameters import freeze
    >>> network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    >>> held = {"0.weight", "0.bias"}
    >>> freeze(network, held)
    True
    >>> list(frozen_modules(network, held))
    ['0', '1']
    """
    tensors = named_parameters(module)
    held_tensors = {id(tensor) for name, tensor in tensors.items() if name in held}
    parts: dict[str, _Part] = {}
    for name, tensor in tensors.items():
        for path in ancestors(name) if can_train(tensor) else ():
            part = parts.setdefault(path, _Part())
            part.trains = part.trains or tensor.requires_grad
            part.is_held = part.is_held or id(tensor) in held_tensors
    places = list(_places(module, "", None, parts))
    elsewhere = {id(one) for _, one, part in places if part is None or not part.is_frozen}
    return {path: one for path, one, _ in places if id(one) not in elsewhere}


def _places(
    module: nn.Module, path: str, around: _Part | None, parts: Mapping[str, _Part]
) -> Iterator[tuple[str, nn.Module, _Part | None]]:
    """Yield every module with its path and the part that it goes with."""
    module = bare(module)
    part = parts.get(path, around)
    yield path, module, part
    before = part
    for name, child in module._modules.items():
        if child is not None:
            below = f"{path}.{name}" if path else name
            yield from _places(child, below, before, parts)
            if isinstance(module, nn.Sequential):
                before = parts.get(below, before)


class Pins:
    """The modules that are kept in eval mode, whatever ``train()`` says.

    A pin acts on the flag of its module alone: the mode still reaches the children. When it ends, the module is in the
    mode that it would have had without it. Copies and pickles of a network that are made in between have no pins.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> pins = Pins()
    >>> pins.set([network[1]])
    True
    >>> network.train()[1].training
    False
    >>> pins.set([])
    True
    >>> network[1].training
    True
    """

    def __init__(self) -> None:
        self._pinned: dict[int, nn.Module] = {}

    def set(self, modules: Iterable[nn.Module]) -> bool:
        """Pin some modules, and release all others that were pinned here.

        Parameters
        ----------
        modules : iterable of torch.nn.Module

        Returns
        -------
        bool
            Whether other modules are pinned than before.
        """
        wanted = {id(module): module for module in modules}
        if has_changed := wanted.keys() != self._pinned.keys():
            for key in self._pinned.keys() - wanted.keys():
                _release(self._pinned[key], self)
        for key, module in wanted.items():
            own_state = module.__dict__
            if own_state.get("training", True) or key not in self._pinned or type(own_state.get("train")) is not _Pin:
                _pin(module, self)
        self._pinned = wanted
        return has_changed


def pinned_modules(module: nn.Module) -> dict[str, nn.Module]:
    """List the modules of a network that are pinned in eval mode, by their paths.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    dict of str to torch.nn.Module
    """
    return {path: one for path, one in named_modules(module) if isinstance(vars(one).get("train"), _Pin)}


def overruled_pins(module: nn.Module) -> list[str]:
    """List the pinned modules that another module's ``train`` puts into training mode all the same.

    A ``train`` method does that if it sets ``training`` of modules below it, instead of calling their ``train``.

    Parameters
    ----------
    module : torch.nn.Module
        Its ``train`` is called, unless no module in it has one of its own. Its modes are restored.

    Returns
    -------
    list of str
        Their paths.

    Examples
    --------
    >>> network, pins = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), Pins()
    >>> pins.set([network[1]])
    True
    >>> network.train = lambda mode=True: [setattr(one, "training", mode) for one in network.modules()]
    >>> overruled_pins(network)
    ['1']
    """
    pinned, modules = pinned_modules(module), all_modules(module)
    if not pinned or not any(map(_has_own_train, modules)):
        return []
    root = bare(module)
    modes = [(one, one.training) for one in modules if hasattr(one, "training")]
    pins = [vars(one)["train"] for one in pinned.values()]
    pin_modes = [pin.mode for pin in pins]
    is_training = root.training
    root.train()
    overruled = [path for path, one in pinned.items() if one.training]
    if not is_training:
        root.eval()
    for one, mode in modes:
        if one.training != mode:
            one.training = mode
    for pin, mode in zip(pins, pin_modes, strict=True):
        pin.mode = mode
    return overruled


def traced_in_training(module: nn.Module) -> list[str]:
    """List the pinned modules whose running statistics move all the same, since ``torch.jit.trace`` has fixed that.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    list of str
        Their paths, those of outermost ones alone.
    """
    found = [path for path, one in pinned_modules(module).items() if _moves_statistics(one)]
    return [path for path in found if not any(around in found for around in ancestors(path))]


def _moves_statistics(module: nn.Module) -> bool:
    """Whether the graph of a module of TorchScript has normalisation in training mode, whatever the module's mode."""
    graph = getattr(module, "inlined_graph", None) if isinstance(module, torch.jit.ScriptModule) else None
    return graph is not None and any(map(_is_norm_in_training, _nodes(graph)))


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _is_norm_in_training(node: Any) -> bool:
    if (schema := node.schema()) == _NO_SCHEMA:
        return False
    names = [one.name for one in torch._C.parse_schema(schema).arguments]
    given = dict(zip(names, node.inputs(), strict=False))
    has_statistics = "running_mean" in given and not given["running_mean"].node().mustBeNone()
    return has_statistics and any(given[flag].toIValue() is True for flag in _TRAINING_FLAGS & given.keys())


def _has_own_train(module: nn.Module) -> bool:
    own = vars(module).get("train")
    return type(module).train is not nn.Module.train or not (own is None or isinstance(own, _Pin))


class _Pin:
    """Stands in for the ``train`` method of one module, beside its class, since skorch calls it inside every step."""

    def __init__(self, module: nn.Module) -> None:
        own = vars(module).get("train")
        self.module = module
        self.own = None if isinstance(own, _Unpinned) else own  # somebody may have switched train() off
        self.mode = getattr(module, "training", True)  # torch.jit.freeze removes it
        self.owners = WeakSet[Pins]()  # several, if a network is trained in the middle of its own training

    def __call__(self, mode: bool = True, *args: Any, **kwargs: Any) -> nn.Module:
        own_state = vars(self.module)
        if self.own is None and type(self.module).train is _TRAIN and "training" in own_state:
            # As below, but fast: setting an attribute of a module is slow, and skorch calls this at every step.
            self.mode, own_state["training"] = mode, False
            _train_children(own_state, mode)
            return self.module
        self.module.training = self.mode
        if self.own is None:
            type(self.module).train(self.module, mode, *args, **kwargs)
        else:
            self.own(mode, *args, **kwargs)
        self.mode, self.module.training = self.module.training, False
        return self.module

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpinned, (self.module, self.own)


def _train_children(state: Mapping[str, Any], mode: bool) -> None:
    """Call ``train`` of the children of a module with this state, and what it would do where that is a plain pin."""
    for child in state["_modules"].values():
        if child is not None:
            own_state = child.__dict__  # faster than vars()
            pin = own_state.get("train")
            if type(pin) is _Pin and pin.own is None and type(child).train is _TRAIN and "training" in own_state:
                pin.mode, own_state["training"] = mode, False
                if own_state["_modules"]:
                    _train_children(own_state, mode)
            else:
                child.train(mode)


class _Unpinned:
    """What a copy of a pinned module has in the place of the pin; the first call of ``train`` removes it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> nn.Module:
        del self.module.__dict__["train"]
        return self.module.train(*args, **kwargs)


def _unpinned(module: nn.Module, own: Any) -> Any:
    return _Unpinned(module) if own is None else own


def _pin(module: nn.Module, owner: Pins) -> None:
    pin = vars(module).get("train")
    if not isinstance(pin, _Pin):
        pin = module.__dict__["train"] = _Pin(module)
    pin.owners.add(owner)
    module.training = False


def _release(module: nn.Module, owner: Pins) -> None:
    pin = vars(module).get("train")
    if not isinstance(pin, _Pin):
        return
    pin.owners.discard(owner)
    if pin.owners:
        return
    if pin.own is None:
        del module.__dict__["train"]
    else:
        module.__dict__["train"] = pin.own
    module.training = pin.mode
