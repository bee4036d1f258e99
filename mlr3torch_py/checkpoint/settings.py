"""Write the settings of a net as plain data, and compare them with those of an earlier call."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial
from inspect import signature
from typing import Any, Final

import numpy as np
import pandas as pd
import torch

from mlr3torch_py.names import listed
from mlr3torch_py.network.bits import content_hash
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.order import own_callbacks
from mlr3torch_py.training.stages import is_staged
from mlr3torch_py.warn import warn

__all__ = ["as_data", "check_settings", "has_no_repr", "own_settings", "settings_by_name", "settings_of"]

_WHAT: Final = ("batch_size", "lr", "module", "criterion", "optimizer", "iterator_train", "iterator_valid")
_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_DONE: Final = {1: "{", 2: "}", 3: ", "}  # what stands for braces and commas of sets that are sorted
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")


def settings_of(net: Net) -> dict[str, Any]:
    """Return what a net trains with, as plain data.

    Returns
    -------
    dict
        Batch size, learning rate, classes and arguments of modules, criteria, optimizers and loaders by the names of
        the net's parameters, and the arguments of callbacks as ``callbacks__<name>__<argument>``.
    """
    return {name: as_data(value) for name, value in settings_by_name(net).items()}


def settings_by_name(net: Net) -> dict[str, Any]:
    """Return the values of what a net trains with, under the names that `settings_of` gives them."""
    parts = (*_WHAT, *net._modules, *net._criteria, *net._optimizers)
    own = {
        name: value
        for name, value in net.get_params(deep=False).items()
        if name in parts or name.startswith(tuple(f"{part}__" for part in parts))
    }
    return dict(sorted(own.items())) | dict(_arguments_of_callbacks(net))


def own_settings(net: Net) -> dict[str, Any]:
    """Return the arguments that only a class of net of one's own takes."""
    of_skorch, of_others = (
        {name for cls in type(net).__mro__ if _is_of_skorch(cls) is kind for name in signature(cls).parameters}
        for kind in (True, False)
    )
    names = of_others - of_skorch - settings_by_name(net).keys()  # skorch takes other attributes for parameters, too
    return {name: one for name, one in net.get_params(deep=False).items() if name in names}


def check_settings(
    kept: Mapping[str, Any], here: Mapping[str, Any], objects: Sequence[str], *, is_finished: bool
) -> None:
    """Compare the settings of two calls, apart from callbacks that only one of them has.

    Parameters
    ----------
    kept, here : mapping
        What `settings_of` returned for the call that is resumed, and for this one.
    objects : sequence of str
        What `different_objects` said of the two.
    is_finished : bool
        Whether nothing is left to train.

    Raises
    ------
    ValueError
        If they differ and nothing is left to train.

    Warns
    -----
    UserWarning
        If they differ.
    """
    callbacks = {_callback(name) for name in kept} & {_callback(name) for name in here}
    different = [
        f"{name} ({here.get(name, 'not set')!r} here, {kept.get(name, 'not set')!r} there{_fate(name)})"
        for name in sorted(kept.keys() | here.keys())
        if kept.get(name, _NOTHING) != here.get(name, _NOTHING) and _callback(name) in callbacks
    ]
    different += objects
    if different and is_finished:
        raise ValueError(
            f"`path`: the run is finished, but had other settings: {listed(different)}; so its results are not those "
            "of this net: give each training a folder of its own, or raise `max_epochs` to continue it"
        )
    if different:
        warn(f"the run is resumed with other settings: {listed(different)}; set them back if it was not meant")


def _fate(name: str) -> str:
    return ", which stays" if name == "lr" or name.startswith("optimizer__") else ""


_NOTHING: Final = object()


def as_data(value: Any) -> Any:
    """Return a value as plain data that is equal for equal settings, in any process."""
    if value is None or isinstance(value, bool | int | float | str):
        is_plain = type(value) in (bool, int, float, str, type(None)) and value == value  # NaN equals nothing
        return value if is_plain else str(value)
    if isinstance(value, torch.Tensor):
        return f"tensor {tuple(value.shape)} {content_hash(value).hex()}"
    if isinstance(value, np.ndarray | np.generic):
        return as_data(torch.from_numpy(np.array(value))) if np.asarray(value).dtype.kind in "biufc" else str(value)
    if isinstance(value, pd.DataFrame):
        return as_data(value.to_dict("list"))
    if isinstance(value, Mapping):
        return {str(key): as_data(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [as_data(item) for item in value]
    if isinstance(value, Set):
        return sorted(repr(as_data(item)) for item in value)
    return _name(value)


def _name(value: Any) -> str:
    if isinstance(value, partial):
        return f"partial({as_data(value.func)}, {as_data(value.args)}, {as_data(value.keywords)})"
    if hasattr(value, "__qualname__"):
        owner = value if hasattr(value, "__module__") else getattr(value, "__objclass__", type(value))
        return f"{owner.__module__}.{value.__qualname__}"  # torch.Tensor.relu, for one, has no module
    if isinstance(value, torch.nn.Module) or has_no_repr(value):
        return type(value).__qualname__
    return _in_order(_ADDRESS.sub("", repr(value)))


def _in_order(text: str) -> str:
    """Sort what is between braces in the text of an object, since the order of sets differs from process to process.

    Examples
    --------
    >>> _in_order("Config(names={'b', 'a'}, n=1)")
    "Config(names={'a', 'b'}, n=1)"
    """
    while (ordered := _BRACES.sub(_sorted_items, text)) != text:  # from the inside out
        text = ordered
    return text.translate(_DONE)


def _sorted_items(braces: re.Match[str]) -> str:
    return "\1" + "\3".join(sorted(braces[1].split(", "))) + "\2"


def has_no_repr(value: Any) -> bool:
    """Whether the text of an object says its class and address only."""
    default: Any = object.__repr__
    return type(value).__repr__ is default


def _arguments_of_callbacks(net: Net) -> Iterator[tuple[str, Any]]:
    for name, callback in own_callbacks(net).items():
        has_settings = callback.has_settings if is_staged(callback) else hasattr(type(callback), "get_params")
        for argument, value in callback.get_params(deep=False).items() if has_settings else ():
            if argument != "sink":
                yield f"callbacks__{name}__{argument}", value


def _is_of_skorch(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "skorch"


def _callback(name: str) -> str:
    """Return the name of the callback to which a setting belongs; an empty string for the net."""
    return name.split("__")[1] if name.startswith("callbacks__") else ""
