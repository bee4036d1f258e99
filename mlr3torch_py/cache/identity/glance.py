"""What a module was at one time, in columns, with which it is compared in few steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from logging import Logger
from operator import attrgetter, is_
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from mlr3torch_py.names import is_note
from mlr3torch_py.network.device_hash import hash_tensors
from mlr3torch_py.network.holdings import attributes_of_array

__all__ = ["ELSEWHERE", "Form", "Glance", "Seen", "form_of", "names_of_settings"]

# What every module has, hooks among it, is looked at elsewhere, or may differ.
_NOT_SETTINGS: Final = frozenset({*vars(nn.Module()), "train", "_compiled_call_impl"})

Form = tuple[torch.Size, torch.dtype, torch.device]
_MEMBERS: Final[Callable[..., Iterable[Any]]] = dict.values
_ADDRESS: Final[Callable[..., int]] = torch.Tensor.data_ptr
_REQUIRES_GRAD: Final = attrgetter("requires_grad")
_VERSION: Final = attrgetter("_version")
_ATTRIBUTES: Final = attrgetter("__dict__")
_OWNERS: Final[Callable[..., Iterable[dict[str, Any]]]] = attrgetter("_parameters", "_buffers", "_modules")
form_of: Final[Callable[[torch.Tensor], Form]] = attrgetter("shape", "dtype", "device")
_NUMBERS: Final = frozenset({bool, int, float})
# What cannot be modified in place, or is looked at elsewhere.
_FIXED: Final = _NUMBERS | {str, bytes, type(None), torch.dtype, torch.device, torch.Size}
ELSEWHERE: Final = (type, FunctionType, ModuleType, Logger)


class Seen(NamedTuple):
    """A parameter or buffer as it was at one time, in the dict of its layer."""

    owner: dict[str, Any]
    name: str
    tensor: torch.Tensor
    address: int
    version: int | None
    form: Form
    hash: bytes


class Glance:
    """Compare a module with what it was when this was made.

    Parameters
    ----------
    layers : sequence of torch.nn.Module
        The modules in it, itself included.
    settings : sequence of dict
        Their attributes that count, by name.
    seen : sequence of Seen
        Their parameters and buffers.

    Attributes
    ----------
    others : list of int
        The positions of the layers whose settings `is_current` does not compare, since they can be modified in place.
    """

    def __init__(
        self, layers: Sequence[nn.Module], settings: Sequence[Mapping[str, Any]], seen: Sequence[Seen]
    ) -> None:
        self._layers, self._classes = layers, list(map(type, layers))
        self._owners = list(chain.from_iterable(map(_OWNERS, layers)))
        self._filled = list(filter(None, self._owners))
        self._sizes, self._names = list(map(len, self._owners)), list(chain.from_iterable(self._owners))
        self._members = list(chain.from_iterable(map(_MEMBERS, self._filled)))
        self._watched: list[torch.Tensor] = [one.tensor for one in seen]
        self._addresses, self._forms, self._hashes = ([one[i] for one in seen] for i in (3, 5, 6))
        versioned = [(one.tensor, one.version) for one in seen if one.version is not None]
        self._versioned, self._versions = ([pair[i] for pair in versioned] for i in range(2))
        pairs = enumerate(zip(map(vars, layers), settings, strict=True))
        self.others: list[int] = [i for i, (own, of_layer) in pairs if not _are_fixed(own, of_layer)]
        fixed = [(layers[i], settings[i]) for i in sorted({*range(len(layers))}.difference(self.others))]
        self._fixed = [layer for layer, _ in fixed]
        self._attributes = [([*vars(layer)], [*names], [vars(layer)[name] for name in names]) for layer, names in fixed]
        owners = (owner for layer, _ in fixed for owner in (layer._parameters, layer._buffers))
        self._bare = [tensor for owner in owners for tensor in owner.values() if tensor is not None]

    @property
    def seems_current(self) -> bool:
        """Whether nothing was replaced or is trainable, and no version counter has moved."""
        members = list(chain.from_iterable(map(_MEMBERS, self._filled)))
        return (
            len(members) == len(self._members)
            and all(map(is_, members, self._members))
            and not any(map(_REQUIRES_GRAD, self._watched))
            and list(map(_ADDRESS, self._watched)) == self._addresses
            and list(map(_VERSION, self._versioned)) == self._versions
        )

    @property
    def is_current(self) -> bool:
        """Whether all else is what it was, too, apart from the settings of the `others`.

        Raises
        ------
        RuntimeError
            If a tensor has no values any more.
        """
        return (
            self.seems_current
            and all(map(is_, chain.from_iterable(map(_OWNERS, self._layers)), self._owners))
            and list(map(len, self._owners)) == self._sizes
            and list(chain.from_iterable(self._owners)) == self._names
            and list(map(type, self._layers)) == self._classes
            and all(
                ([*own] == present or names_of_settings(own) == names) and all(map(is_, map(own.get, names), values))
                for own, (present, names, values) in zip(map(vars, self._fixed), self._attributes, strict=True)
            )
            and not any(map(attributes_of_array, filter(_ATTRIBUTES, self._bare)))
            and list(map(form_of, self._watched)) == self._forms
            and hash_tensors(self._watched) == self._hashes
        )


def names_of_settings(own: Mapping[str, Any]) -> Sequence[str]:
    """List the names of the attributes of a layer that may affect what it gives, in alphabetical order."""
    return _counting(tuple(own))


@lru_cache(maxsize=1000)
def _counting(names: Sequence[str]) -> Sequence[str]:
    return [name for name in sorted({*names} - _NOT_SETTINGS) if not is_note(name)]


def _are_fixed(own: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether all settings of a layer are attributes that cannot be modified in place."""
    return own.keys() >= settings.keys() and all(_is_fixed(own[name]) for name in settings)


def _is_fixed(value: Any) -> bool:
    if type(value) is tuple:
        return _NUMBERS.issuperset(map(type, value))
    if type(value) is BuiltinFunctionType:  # which may be a method of something that can be
        value = value.__self__
    return type(value) in _FIXED or issubclass(type(value), ELSEWHERE)
