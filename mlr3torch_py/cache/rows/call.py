"""The inputs of a module, split into rows that are identified by their content."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from xxhash import xxh3_128_digest

from mlr3torch_py.cache.errors import NotCacheableError
from mlr3torch_py.network.bits import as_array, has_parts, version_of
from mlr3torch_py.network.device_hash import hash_rows, hash_tensors
from mlr3torch_py.network.internals import tree_flatten, tree_unflatten

if TYPE_CHECKING:
    from mlr3torch_py.cache.passes.answer import Answer
    from mlr3torch_py.cache.rows.output import RowSpec

__all__ = ["PLAIN", "Call", "Reference"]

PLAIN: Final = (type(None), bool, int, float, complex, str, torch.dtype, torch.device)
_CPU: Final = torch.device("cpu")
# Other hashes have other seeds.
_SEED: Final = 0x6D6C7233746F7263


class Reference:
    """A tensor in the output of an earlier call, in place of its values.

    Parameters
    ----------
    answer : Answer
        The output.
    index : int
        The position of the tensor in it.
    """

    __slots__ = ("answer", "index")

    def __init__(self, answer: Answer, index: int) -> None:
        self.answer: Answer = answer
        self.index: int = index

    @property
    def _row(self) -> RowSpec:
        return self.answer.layout.spec.tensors[self.index]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return len(self.answer.keys), *self._row.shape

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self._row.order)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the tensor."""
        return self._row.dtype

    @property
    def device(self) -> torch.device:
        """The device of the tensor."""
        return self._row.device


_ARRAY: Final = (torch.Tensor, Reference)
_LEAF: Final = (*_ARRAY, *PLAIN)


class Call:
    """The arguments of a call, split into rows.

    Tensors as long as the first one are split into rows; all other arguments are shared by the rows.

    Parameters
    ----------
    args : tuple
    kwargs : dict
        Tensors, references to tensors and plain values, in any nesting of tuples, lists and dicts.

    Raises
    ------
    NotCacheableError
        If there is an argument of another type.

    Examples
    --------
    >>> call = Call((torch.ones(3, 2),), {"mask": torch.ones(3), "scale": 2.0})
    >>> len(call)
    3
    >>> call.take([0, 2]).kwargs
    {'mask': tensor([1., 1.]), 'scale': 2.0}
    >>> one, other = call.row_keys()[:2]
    >>> one == other
    True
    """

    __slots__ = (
        "_is_by_row",
        "_leaves",
        "_n_rows",
        "_structure",
        "_versions",
        "args",
        "kwargs",
        "references",
        "tensors",
    )

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs
        self._leaves, self._structure = _flatten(args, kwargs)
        self.tensors: list[torch.Tensor] = []
        self.references: list[Reference] = []
        for leaf in self._leaves:
            if isinstance(leaf, torch.Tensor):
                if kind := _kind_without_rows(leaf):
                    raise NotCacheableError(f"it is given a {kind}, whose rows cannot be read")
                self.tensors.append(leaf)
            elif type(leaf) is Reference:
                self.references.append(leaf)
            elif not isinstance(leaf, PLAIN):
                raise NotCacheableError(f"it is given a {type(leaf).__name__}, whose content cannot be read")
        self._n_rows = next((leaf.shape[0] for leaf in self._leaves if isinstance(leaf, _ARRAY) and leaf.ndim), 0)
        self._is_by_row = [
            isinstance(leaf, _ARRAY) and leaf.ndim > 0 and leaf.shape[0] == self._n_rows for leaf in self._leaves
        ]
        self._versions = [version_of(tensor) for tensor in self.tensors]

    def __len__(self) -> int:
        return self._n_rows

    @property
    def pattern(self) -> Hashable:
        """The nesting and types of the arguments, without their sizes and values."""
        return self._structure, tuple(
            (by_row, leaf.ndim, leaf.dtype, leaf.device) if isinstance(leaf, _ARRAY) else (type(leaf),)
            for leaf, by_row in zip(self._leaves, self._is_by_row, strict=True)
        )

    @property
    def shared(self) -> Hashable:
        """The shape or origin of a row, the values that all rows share, and which arguments have the same keys."""
        return tuple(map(_in_common, self._leaves, self._is_by_row)), self._repetitions

    @property
    def device(self) -> torch.device:
        """Where the first tensor is."""
        return next((leaf.device for leaf in self._leaves if isinstance(leaf, _ARRAY)), _CPU)

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype that autocast computes the call in; None outside of autocast."""
        device = self.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    @property
    def is_ambiguous(self) -> bool:
        """Whether a list of plain values is as long as the batch, so that each may belong to a row."""
        is_flat = isinstance(self._structure, tuple)
        return not is_flat and self._n_rows > 1 and _has_list((self.args, self.kwargs), self._n_rows)

    @property
    def shares_references(self) -> bool:
        """Whether a tensor whose values are not known would be shared by all rows."""
        return any(reference.shape[0] != self._n_rows for reference in self.references)

    @property
    def has_rows(self) -> bool:
        """Whether rows are given by value, and not by reference alone."""
        return any(
            by_row and type(leaf) is not Reference for leaf, by_row in zip(self._leaves, self._is_by_row, strict=True)
        )

    @property
    def _repetitions(self) -> Hashable:
        """For each argument with keys of its own, the first one with the same; empty if none is repeated."""
        known = [id(reference.answer.keys) for reference in self.references]
        return () if len(set(known)) in {1, len(known)} else tuple(map(known.index, known))

    def row_keys(self) -> list[bytes]:
        """Identify each row: by a hash of its content, or by the key that it came with.

        Keys that several arguments have in common count once; `shared` tells which ones these are.
        """
        by_row = [leaf for leaf, is_by_row in zip(self._leaves, self._is_by_row, strict=True) if is_by_row]
        known = {id(leaf.answer.keys): leaf.answer.keys for leaf in by_row if type(leaf) is Reference}
        different = [*known.values(), *_row_hashes([leaf for leaf in by_row if type(leaf) is not Reference])]
        if len(different) == 1:
            return different[0]
        return [xxh3_128_digest(b"".join(row), seed=_SEED) for row in zip(*different, strict=True)]

    def take(self, rows: Sequence[int] | None, values: Callable[[Reference], torch.Tensor] | None = None) -> Call:
        """Select some of the rows, or all.

        Parameters
        ----------
        rows : sequence of int or None
        values : callable, optional
            Gives the values of these rows for a reference.
        """
        if rows is None and not self.references:
            return self
        index = None if rows is None else list(rows)
        leaves = [
            values(leaf)
            if values is not None and type(leaf) is Reference
            else leaf[index]
            if by_row and index is not None
            else leaf
            for leaf, by_row in zip(self._leaves, self._is_by_row, strict=True)
        ]
        return Call(*_unflatten(leaves, self._structure))

    def has_changed(self) -> bool:
        """Check whether the arguments were modified after this object was made."""
        leaves, structure = _flatten(self.args, self.kwargs)
        return (
            structure != self._structure
            or any(now is not before for now, before in zip(leaves, self._leaves, strict=True))
            or any(version_of(t) != version for t, version in zip(self.tensors, self._versions, strict=True))
        )


def _kind_without_rows(tensor: torch.Tensor) -> str:
    """Name the kind of a tensor in which the bytes of a row do not lie together; empty for others."""
    if tensor.is_quantized or tensor.is_nested:
        return "quantized tensor" if tensor.is_quantized else "nested tensor"
    return type(tensor).__name__ if type(tensor) is not torch.Tensor and has_parts(tensor) else ""


def _flatten(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
    """Flatten the arguments of a call; several times faster where none of them is nested."""
    leaves = [*args, *kwargs.values()]
    if all(isinstance(leaf, _LEAF) for leaf in leaves):
        return leaves, (len(args), *kwargs)
    return tree_flatten((args, kwargs))


def _unflatten(leaves: list[Any], structure: Any) -> Any:
    if not isinstance(structure, tuple):
        return tree_unflatten(leaves, structure)
    n_args, *names = structure
    return tuple(leaves[:n_args]), dict(zip(names, leaves[n_args:], strict=True))


def _in_common(leaf: Any, is_by_row: bool) -> Hashable:
    """Describe what the rows of an argument share: shape and origin, or a value."""
    if isinstance(leaf, Reference):
        return leaf.answer.layout, leaf.index
    if not isinstance(leaf, torch.Tensor):
        return leaf if isinstance(leaf, torch.device) else repr(leaf)
    return (leaf.shape[1:], None) if is_by_row else (leaf.shape, *hash_tensors([leaf]))


def _row_hashes(tensors: Sequence[torch.Tensor]) -> list[list[bytes]]:
    """Hash the rows of each tensor; those on a GPU there, and all hashes cross to the CPU together."""
    hashed = [hash_rows(tensor) for tensor in tensors if tensor.is_cuda]
    crossed = iter(torch.stack([one.to(hashed[0].device) for one in hashed]).cpu().numpy() if hashed else ())
    return [
        [row.tobytes() for row in next(crossed)] if tensor.is_cuda else _hashes_on_cpu(tensor) for tensor in tensors
    ]


def _hashes_on_cpu(tensor: torch.Tensor) -> list[bytes]:
    if not tensor.numel():
        return [xxh3_128_digest(b"", seed=_SEED)] * len(tensor)
    table: Any = np.ascontiguousarray(as_array(tensor)).reshape(len(tensor), -1)
    return [xxh3_128_digest(row, seed=_SEED) for row in table]


def _has_list(value: Any, length: int) -> bool:
    if isinstance(value, dict):
        return any(_has_list(item, length) for item in value.values())
    if not isinstance(value, (list, tuple)):
        return False
    is_plain = len(value) == length and all(isinstance(item, PLAIN) for item in value)
    return is_plain or any(_has_list(item, length) for item in value)
