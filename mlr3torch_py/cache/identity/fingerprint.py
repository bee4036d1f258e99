"""Fingerprints of modules: everything that an output depends on besides the input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, Final, NamedTuple
from weakref import ReferenceType

import torch
from torch import nn

from mlr3torch_py.cache.errors import NotCacheableError
from mlr3torch_py.cache.identity.classes import is_aside
from mlr3torch_py.cache.identity.glance import ELSEWHERE, Form, Glance, Seen, form_of, names_of_settings
from mlr3torch_py.cache.identity.portable import NotPortableError, portable_hash
from mlr3torch_py.network.bits import buffer_hash, content_hash, version_of
from mlr3torch_py.network.device_hash import hash_tensors
from mlr3torch_py.network.holdings import all_attributes, attributes_of_array, items_in

__all__ = ["Fingerprint", "settings_of"]

_NUMBERS: Final = frozenset({bool, int, float})
_PLAIN: Final = frozenset({*_NUMBERS, str, type(None)})
_BY_VALUE: Final = frozenset({*_PLAIN, bytes, frozenset})
_WITH_VALUE: Final = (bool, int, float, str, bytes, frozenset)
_EXACTLY: Final = frozenset({list, tuple, dict, set})  # which have no attributes


def settings_of(layer: nn.Module) -> dict[str, Any]:
    """Return the attributes of a layer and of its tensors that may affect what it gives, by name.

    What is looked at elsewhere is left out.
    """
    own = vars(layer)
    found = {name: own[name] for name in names_of_settings(own)}
    for owner in (layer._parameters, layer._buffers):
        for name, tensor in owner.items():
            for end, value in attributes_of_array(tensor).items():
                found[name + end] = value
    return found


class _Contents(NamedTuple):
    """The contents of a container, tensor, array or object."""

    leaves: Sequence[Any]
    structure: type | tuple[Any, ...] | None = None


_EMPTY: Final = _Contents(())


class Fingerprint:
    """The state of a module at one time: parameters, buffers, children and all other attributes.

    Parameters and buffers are compared by value, by identity and by their attributes; other attributes by value if they
    are tensors, arrays or plain, item by item if they are containers, and otherwise by identity and by what they hold
    at any depth, as a configuration does. Of modules elsewhere in the network that it refers to, attributes count, and
    neither parameters nor buffers.

    Parameters
    ----------
    module : torch.nn.Module
    before : Fingerprint, optional
        An earlier fingerprint; its hashes are reused for tensors whose version counter has not moved since.

    Raises
    ------
    NotCacheableError
        If a tensor of the module cannot be read.

    Examples
    --------
    >>> linear = nn.Linear(2, 1).requires_grad_(False)
    >>> before = Fingerprint(linear)
    >>> linear.bias.data += 1
    >>> before.seems_current
    True
    >>> before.difference(Fingerprint(linear))
    "the 'bias' of its Linear"
    """

    def __init__(self, module: nn.Module, before: Fingerprint | None = None) -> None:
        known: dict[int, Seen] = {} if before is None else {id(seen.tensor): seen for seen in before._tensors}
        self._layers = [(layer, type(layer)) for layer in module.modules()]
        try:
            self._tensors: list[Seen] = _see(
                (
                    (owner, name, tensor)
                    for layer, _ in self._layers
                    for owner in (layer._parameters, layer._buffers)
                    for name, tensor in owner.items()
                    if tensor is not None
                ),
                known,
            )
            # What is alive as long as this has its id.
            self._places = [[(name, id(one)) for name, one in owner.items()] for owner in self._owners()]
            memo = self._new_memo()
            self._settings = [_settings(layer, memo) for layer, _ in self._layers]
            self._glance = Glance([layer for layer, _ in self._layers], self._settings, self._tensors)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise NotCacheableError(f"its attributes cannot be read: {error}") from error
        self._digest = ""

    @property
    def _is_lasting(self) -> bool:
        """Whether all settings were compared by value."""
        return all(_has_value(value) for settings in self._settings for value in settings.values())

    @property
    def seems_current(self) -> bool:
        """Whether nothing was replaced or is trainable, and no version counter has moved.

        This misses writes through ``.data`` and numpy, statistics of BatchNorm, and attributes other than tensors and
        children.
        """
        return self._glance.seems_current

    @property
    def is_current(self) -> bool:
        """Whether a new fingerprint would be the same, as can be told in fewer steps; False where it cannot."""
        try:
            if not self._glance.is_current:
                return False
            memo = self._new_memo() if self._glance.others else {}
            known = set[tuple[int, int]]()
            return not any(
                _differing(self._settings[i], _settings(self._layers[i][0], memo), known) for i in self._glance.others
            )
        except (AttributeError, RuntimeError, TypeError, ValueError):  # as a new fingerprint will say
            return False

    def _new_memo(self) -> dict[int, tuple[Any, Any]]:
        return {id(layer): (layer, layer) for layer, _ in self._layers}

    @property
    def parameter_hashes(self) -> list[bytes]:
        """The hashes of all parameters."""
        return [seen.hash for seen in self._tensors if isinstance(seen.tensor, nn.Parameter)]

    @property
    def digest(self) -> str:
        """A hash of the state, which is the same in other processes.

        Raises
        ------
        NotPortableError
            If an attribute has no name there, such as a lambda; the message names the attribute.
        """
        if self._digest:
            return self._digest
        places = {id(layer): i for i, (layer, _) in enumerate(self._layers)}
        tensors: dict[int, list[Any]] = {}
        for seen in self._tensors:
            tensors.setdefault(id(seen.owner), []).append((seen.name, seen.tensor.shape, seen.tensor.dtype, seen.hash))
        hashes, described = [], []
        for (layer, cls), settings in zip(self._layers, self._settings, strict=True):
            own = [tensors.get(id(owner)) for owner in (layer._parameters, layer._buffers)]
            children = [(name, places.get(id(child))) for name, child in layer._modules.items()]
            plain = {name: value for name, value in settings.items() if _is_plain(value)}
            others = sorted(settings.keys() - plain.keys())
            described.append((cls, repr((own, children, sorted(plain.items()), others))))
            for name in others:
                try:
                    hashes.append(portable_hash(settings[name], places))
                except NotPortableError as error:
                    raise NotPortableError(f"the {name!r} of its {cls.__name__}") from error
        digest = portable_hash((described, hashes), {})
        if self._is_lasting:
            self._digest = digest
        return digest

    def take_digest(self, other: Fingerprint) -> None:
        """Take the digest of an equal fingerprint, if equal ones have the same."""
        if self._is_lasting:
            self._digest = other._digest

    def difference(self, other: Fingerprint) -> str | None:
        """Name something that differs; None if nothing does."""
        if len(self._layers) != len(other._layers) or len(self._tensors) != len(other._tensors):
            return "its layers"
        pairs = zip(self._layers, other._layers, strict=True)
        if any(layer is not other_layer or cls is not other_cls for (layer, cls), (other_layer, other_cls) in pairs):
            return "its layers"
        return self._changed_tensor(other) or self._changed_setting(other) or self._changed_place(other)

    def _changed_tensor(self, other: Fingerprint) -> str | None:
        for before, now in zip(self._tensors, other._tensors, strict=True):
            if before.tensor is not now.tensor or (before.form, before.hash) != (now.form, now.hash):
                owners = {
                    id(owner): cls for layer, cls in self._layers for owner in (layer._parameters, layer._buffers)
                }
                return f"the {before.name!r} of its {owners[id(now.owner)].__name__}"
        return None

    def _changed_place(self, other: Fingerprint) -> str | None:
        """Name a child or tensor that is elsewhere, or under another name."""
        classes = (cls for _, cls in self._layers for _ in range(3))
        for cls, before, now in zip(classes, self._places, other._places, strict=True):
            if before != now:
                (name, _), *_ = [one for one in (*now, *before) if one not in before or one not in now] or before
                return f"the {name!r} of its {cls.__name__}"
        return None

    def _owners(self) -> Iterator[dict[str, Any]]:
        for layer, _ in self._layers:
            yield from (layer._parameters, layer._buffers, layer._modules)

    def _changed_setting(self, other: Fingerprint) -> str | None:
        known = set[tuple[int, int]]()
        for (_, cls), before, now in zip(self._layers, self._settings, other._settings, strict=True):
            if name := _differing(before, now, known):
                return f"the {name!r} of its {cls.__name__}"
        return None


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], known: set[tuple[int, int]]) -> str:
    """Name a setting of a layer that differs; empty if none does."""
    if before.keys() != now.keys():
        return min(before.keys() ^ now.keys())
    return next((name for name, value in before.items() if not _are_same(value, now[name], known)), "")


def _see(found: Iterable[tuple[dict[str, Any], str, torch.Tensor]], known: Mapping[int, Seen]) -> list[Seen]:
    """Look at tensors, with the dicts that they are in and their names; hash those that are not known."""
    seen: list[tuple[dict[str, Any], str, torch.Tensor, int, int | None, Form]] = []
    hashes: list[bytes | None] = []
    for owner, name, tensor in found:
        address, version, form = tensor.data_ptr(), version_of(tensor), form_of(tensor)
        before = known.get(id(tensor))
        is_known = before is not None and version is not None and before[3:6] == (address, version, form)
        seen.append((owner, name, tensor, address, version, form))
        hashes.append(before.hash if before is not None and is_known else None)
    fresh = iter(hash_tensors([one[2] for one, value in zip(seen, hashes, strict=True) if value is None]))
    return [Seen(*one, next(fresh) if value is None else value) for one, value in zip(seen, hashes, strict=True)]


def _settings(layer: nn.Module, memo: dict[int, tuple[Any, Any]]) -> dict[str, Any]:
    """Copy the attributes of a layer, with the contents of containers and tensors in place of these.

    The memo keeps the contents of what was seen, with that itself, so that nothing else gets its id.
    """
    return {
        name: value if type(value) in _PLAIN else _contents(value, memo) for name, value in settings_of(layer).items()
    }


def _contents(value: Any, memo: dict[int, tuple[Any, Any]]) -> Any:
    """Return what is compared in place of a value: that itself, or its contents at any depth."""
    kind = type(value)
    if kind is tuple and _NUMBERS.issuperset(map(type, value)):  # such as the size of a kernel
        return _Contents(value, tuple) if value else _EMPTY
    if kind in _BY_VALUE or issubclass(kind, ELSEWHERE) or is_aside(value):
        return value  # as it is, also a placeholder
    if id(value) not in memo:
        memo[id(value)] = value, value  # for what leads back to it
        memo[id(value)] = value, _contents_of(value, memo)
    return memo[id(value)][1]


def _contents_of(value: Any, memo: dict[int, tuple[Any, Any]]) -> Any:
    kind = type(value)
    if issubclass(kind, torch.Tensor):
        return _contents_of_array(content_hash(value), (value.shape, value.dtype), value, memo)
    if issubclass(kind, ReferenceType):
        return _Contents((value, _contents(value(), memo)))
    if issubclass(kind, nn.Module):  # of another part of the network, such as the one around
        settings = _settings(value, memo)
        return _Contents((value, *settings.values()), tuple(settings))
    if (written := buffer_hash(value)) is not None:
        view = memoryview(value)
        return _contents_of_array(written, (kind, view.format, view.shape), value, memo)
    if kind in _EXACTLY and not value:
        return _EMPTY
    return _contents_of_object(value, memo)


def _contents_of_array(elements: bytes, form: tuple[Any, ...], value: Any, memo: dict[int, tuple[Any, Any]]) -> Any:
    attributes = attributes_of_array(value)
    return _Contents((elements, *(_contents(one, memo) for one in attributes.values())), (*form, *attributes))


def _contents_of_object(value: Any, memo: dict[int, tuple[Any, Any]]) -> Any:
    kind, items = type(value), items_in(value)
    attributes = {} if kind in _EXACTLY else all_attributes(value)
    if items is None and not attributes:
        written = _written(value)
        return _Contents([value, *written]) if written else value
    inner = [_contents(one, memo) for one in (*(items or ()), *attributes.values())]
    if items is None:
        return _Contents([value, *inner], tuple(attributes))
    return _Contents(inner, (kind, len(items), *attributes))


def _written(value: Any) -> Sequence[Any]:
    """List what a file would hold of an object without attributes that can be modified, such as a buffer, if plain."""
    kind: Any = type(value)
    if kind.__hash__ is not object.__hash__ or kind.__module__ == "itertools":  # whose iterators warn
        return ()
    try:
        arguments, state = (*value.__reduce_ex__(4)[1:3], None)[:2]
    except Exception:  # of whatever kind: it cannot be written
        return ()
    found = [one for one in (*arguments[1:], *(state if type(state) is tuple else [state])) if type(one) is not dict]
    return found if _BY_VALUE.issuperset(map(type, found)) else ()


def _is_plain(value: Any) -> bool:
    """Whether the same values, and no others, print the same in each process."""
    if isinstance(value, _Contents):
        return value is _EMPTY or value.structure is tuple
    return type(value) in _PLAIN


def _has_value(value: Any) -> bool:
    """Whether a setting is compared by value, and not by identity."""
    if isinstance(value, _Contents):
        return all(map(_has_value, value.leaves))
    return _BY_VALUE.issuperset(map(type, value)) if type(value) is frozenset else type(value) in _BY_VALUE


def _are_same(one: Any, other: Any, known: set[tuple[int, int]]) -> bool:
    """Compare what settings hold; of contents that are held in many places, the known ones are the same."""
    if one is other or (id(one), id(other)) in known:
        return True
    if isinstance(one, _Contents) and isinstance(other, _Contents):
        if one.structure != other.structure or len(one.leaves) != len(other.leaves):
            return False
        if all(map(_are_same, one.leaves, other.leaves, repeat(known))):
            known.add((id(one), id(other)))
            return True
        return False
    return type(one) is type(other) and isinstance(one, _WITH_VALUE) and bool(one == other)
