"""The inputs and outputs of a module, split into rows that are identified by their content."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from xxhash import xxh3_128_digest

from mlr3torch_py.network.bits import as_bytes, content_hash, version_of
from mlr3torch_py.network.internals import TreeSpec, tree_flatten, tree_unflatten

__all__ = ["Call", "NotCacheableError", "OutputSpec", "RowTensors"]

# One row of an output: a slice of each of its tensors.
RowTensors = tuple[torch.Tensor, ...]

_PLAIN: Final = (type(None), bool, int, float, complex, str, torch.dtype, torch.device)
_LEAF: Final = (torch.Tensor, *_PLAIN)


class NotCacheableError(Exception):
    """A module that cannot be cached as it is.

    Parameters
    ----------
    reason : str
    remedy : str
        What a user could do about it.
    may_depend_on_mode : bool
        Whether the module might be cached in eval mode.
    may_fit_below : bool
        Whether its children might be cached nevertheless.
    """

    def __init__(
        self, reason: str, remedy: str = "", *, may_depend_on_mode: bool = False, may_fit_below: bool = True
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.may_depend_on_mode = may_depend_on_mode
        self.may_fit_below = may_fit_below


class Call:
    """The arguments of a call, split into rows.

    Tensors as long as the first one are split into rows; all other arguments are shared by the rows.

    Parameters
    ----------
    args : tuple
    kwargs : dict
        Tensors and plain values, in any nesting of tuples, lists and dicts.

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
    >>> one, other = call.row_keys(seed=0)[:2]
    >>> one == other
    True
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs
        self._leaves, self._structure = _flatten(args, kwargs)
        for leaf in self._leaves:
            if not isinstance(leaf, _LEAF):
                raise NotCacheableError(f"it is given a {type(leaf).__name__}, whose content cannot be read")
        self.tensors: list[torch.Tensor] = [leaf for leaf in self._leaves if isinstance(leaf, torch.Tensor)]
        self._n_rows = next((tensor.shape[0] for tensor in self.tensors if tensor.ndim), 0)
        self._versions = [version_of(tensor) for tensor in self.tensors]

    def __len__(self) -> int:
        return self._n_rows

    @property
    def pattern(self) -> Hashable:
        """The nesting and types of the arguments, without their sizes and values."""
        return self._structure, tuple(
            (self._is_by_row(leaf), leaf.ndim, leaf.dtype, leaf.device)
            if isinstance(leaf, torch.Tensor)
            else (type(leaf),)
            for leaf in self._leaves
        )

    @property
    def shared(self) -> Hashable:
        """The shape of a row, and the values that all rows share."""
        return tuple(
            repr(leaf)
            if not isinstance(leaf, torch.Tensor)
            else (leaf.shape[1:], None)
            if self._is_by_row(leaf)
            else (leaf.shape, content_hash(leaf))
            for leaf in self._leaves
        )

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype that autocast computes the call in; None outside of autocast."""
        device = self.tensors[0].device.type if self.tensors else "cpu"
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    @property
    def is_ambiguous(self) -> bool:
        """Whether a list of plain values is as long as the batch, so that each may belong to a row."""
        return self._n_rows > 1 and _has_list((self.args, self.kwargs), self._n_rows)

    def row_keys(self, seed: int) -> list[bytes]:
        """Hash the content of each row."""
        hashes = [_row_hashes(leaf, seed) for leaf in self.tensors if self._is_by_row(leaf)]
        return hashes[0] if len(hashes) == 1 else [b"".join(row) for row in zip(*hashes, strict=True)]

    def take(self, rows: Sequence[int]) -> Call:
        """Select some of the rows."""
        leaves = [leaf[list(rows)] if self._is_by_row(leaf) else leaf for leaf in self._leaves]
        return Call(*_unflatten(leaves, self._structure))

    def has_changed(self) -> bool:
        """Check whether the arguments were modified after this object was made."""
        leaves, structure = _flatten(self.args, self.kwargs)
        return (
            structure != self._structure
            or any(now is not before for now, before in zip(leaves, self._leaves, strict=True))
            or any(version_of(t) != version for t, version in zip(self.tensors, self._versions, strict=True))
        )

    def _is_by_row(self, leaf: Any) -> bool:
        return isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == self._n_rows


# What keeps a leaf of an output from being split into rows: the first that applies is the reason given.
_OBSTACLES: Final[tuple[tuple[Callable[[Any, int], bool], str], ...]] = (
    (
        lambda leaf, _: not isinstance(leaf, torch.Tensor),
        "its output holds a {type}, which is not made of rows",
    ),
    (
        lambda leaf, _: leaf.requires_grad,
        "its output requires a gradient, so it uses something trainable that is not its own",
    ),
    (
        lambda leaf, _: leaf.layout is not torch.strided or leaf.is_nested,
        "its output holds a tensor that is not strided",
    ),
    (
        lambda leaf, n_rows: leaf.ndim == 0 or len(leaf) != n_rows,
        "its output holds a tensor of shape {shape} for {n_rows} rows",
    ),
)


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """How an output is put together from rows.

    Parameters
    ----------
    tree : torch.utils._pytree.TreeSpec
        How its tensors and plain values are nested.
    plain : tuple
        The plain values, and None for each tensor.
    tensors : tuple
        The shape of a row, the dtype and the device of each tensor; None for each plain value.
    orders : tuple
        The dimensions of each tensor by decreasing stride; None for each plain value.

    Examples
    --------
    >>> output = {"features": torch.arange(6).reshape(3, 2), "kind": "last"}
    >>> spec = OutputSpec.of(output, 3)
    >>> rows = spec.split(output, 3)
    >>> spec.join([rows[2], rows[0]])
    {'features': tensor([[4, 5],
            [0, 1]]), 'kind': 'last'}
    """

    tree: TreeSpec
    plain: tuple[Any, ...]
    tensors: tuple[Hashable, ...]
    orders: tuple[tuple[int, ...] | None, ...]

    @classmethod
    def of(cls, output: Any, n_rows: int) -> OutputSpec:
        """Derive the spec of an output.

        Raises
        ------
        NotCacheableError
            If a part of the output is not made of `n_rows` rows, or requires a gradient.
        """
        leaves, tree = tree_flatten(output)
        plain, tensors, orders = [], [], []
        for leaf in leaves:
            is_plain = isinstance(leaf, _PLAIN)
            if not is_plain:
                _check_leaf(leaf, n_rows)
            plain.append(leaf if is_plain else None)
            tensors.append(None if is_plain else (leaf.shape[1:], leaf.dtype, leaf.device))
            orders.append(None if is_plain else _order(leaf))
        return cls(tree, tuple(plain), tuple(tensors), tuple(orders))

    def split(self, output: Any, n_rows: int) -> list[RowTensors]:
        """Split an output into rows.

        Raises
        ------
        NotCacheableError
            If it has another spec; only the order of dimensions in memory may differ.
        """
        spec = OutputSpec.of(output, n_rows)
        if (spec.tree, spec.plain, spec.tensors) != (self.tree, self.plain, self.tensors):
            raise NotCacheableError("the structure of its output changes from batch to batch")
        tensors = [leaf.detach() for leaf in tree_flatten(output)[0] if isinstance(leaf, torch.Tensor)]
        return list(zip(*(tensor.unbind(0) for tensor in tensors), strict=True)) if tensors else [()] * n_rows

    def join(self, rows: Sequence[RowTensors]) -> Any:
        """Join rows into an output of new tensors, with strides in the original order."""
        tensors = iter(zip(*rows, strict=True))
        leaves = [
            plain if order is None else _stack(next(tensors), order)
            for plain, order in zip(self.plain, self.orders, strict=True)
        ]
        return tree_unflatten(leaves, self.tree)


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


def _row_hashes(tensor: torch.Tensor, seed: int) -> list[bytes]:
    table = as_bytes(tensor).reshape(len(tensor), -1) if tensor.numel() else tensor.new_empty(len(tensor), 0)
    return [xxh3_128_digest(row, seed=seed) for row in table.cpu().numpy()]


def _has_list(value: Any, length: int) -> bool:
    if isinstance(value, dict):
        return any(_has_list(item, length) for item in value.values())
    if not isinstance(value, (list, tuple)):
        return False
    is_plain = len(value) == length and all(isinstance(item, _PLAIN) for item in value)
    return is_plain or any(_has_list(item, length) for item in value)


def _check_leaf(leaf: Any, n_rows: int) -> None:
    for applies, reason in _OBSTACLES:
        if applies(leaf, n_rows):
            shape = tuple(getattr(leaf, "shape", ()))
            raise NotCacheableError(reason.format(type=type(leaf).__name__, shape=shape, n_rows=n_rows))


def _order(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))


def _stack(rows: Sequence[torch.Tensor], order: tuple[int, ...]) -> torch.Tensor:
    if order == tuple(range(len(order))):
        return torch.stack(list(rows))
    like = rows[0]
    out = torch.empty_permuted((len(rows), *like.shape), order, dtype=like.dtype, device=like.device)
    return torch.stack(list(rows), out=out)
