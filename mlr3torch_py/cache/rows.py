"""The batches that go into and come out of a module, as rows that are known by their content."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from xxhash import xxh3_128_digest

from mlr3torch_py.network.bits import as_bytes, content_hash, version_of

__all__ = [
    "Call",
    "OutputForm",
    "Row",
    "UnfitError",
    "is_near",
    "largest_values",
]

Row = tuple[torch.Tensor, ...]

_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device)


class UnfitError(Exception):
    """A module, or a call of it, is not made of rows that are independent of each other; the message says why."""


def _row_hashes(tensor: torch.Tensor, seed: int) -> list[bytes]:
    table = as_bytes(tensor).reshape(len(tensor), -1) if tensor.numel() else tensor.new_empty(len(tensor), 0)
    return [xxh3_128_digest(row, seed=seed) for row in table.cpu().numpy()]


class Call:
    """The arguments of a module, as rows.

    Tensors of as many rows as the first one are taken by row; all else belongs to every row.

    Parameters
    ----------
    args : tuple
    kwargs : dict
        Tensors and plain values, in any tuples, lists and dicts.

    Raises
    ------
    UnfitError
        If there is something else among them.

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
        self.args, self.kwargs = args, kwargs
        self._leaves, self._spec = tree_flatten((args, kwargs))
        for leaf in self._leaves:
            if not isinstance(leaf, (torch.Tensor, *_PLAIN)):
                raise UnfitError(f"it is given a {type(leaf).__name__}, whose content cannot be read")
        self.tensors = [leaf for leaf in self._leaves if isinstance(leaf, torch.Tensor)]
        self._n_rows = next((len(tensor) for tensor in self.tensors if tensor.ndim), 0)
        self._versions = [version_of(tensor) for tensor in self.tensors]

    def __len__(self) -> int:
        return self._n_rows

    @property
    def pattern(self) -> Hashable:
        """Which arguments are taken by row, and what all arguments are but for their sizes and values."""
        return self._spec, tuple(
            (self._is_by_row(leaf), leaf.ndim, leaf.dtype, leaf.device)
            if isinstance(leaf, torch.Tensor)
            else (type(leaf),)
            for leaf in self._leaves
        )

    @property
    def shared(self) -> Hashable:
        """The sizes of rows, and what belongs to every row."""
        return tuple(
            repr(leaf)
            if not isinstance(leaf, torch.Tensor)
            else (leaf.shape[1:], None)
            if self._is_by_row(leaf)
            else (leaf.shape, content_hash(leaf))
            for leaf in self._leaves
        )

    @property
    def is_ambiguous(self) -> bool:
        """Whether a list of plain values is as long as there are rows, so that they may belong to one row each."""
        return len(self) > 1 and _has_list((self.args, self.kwargs), len(self))

    def row_keys(self, seed: int) -> list[bytes]:
        """Return one hash per row, of the contents of all tensors that are taken by row."""
        hashes = [_row_hashes(leaf, seed) for leaf in self.tensors if self._is_by_row(leaf)]
        return hashes[0] if len(hashes) == 1 else [b"".join(row) for row in zip(*hashes, strict=True)]

    def take(self, rows: Sequence[int]) -> Call:
        """Return a call with some of the rows."""
        leaves = [leaf[list(rows)] if self._is_by_row(leaf) else leaf for leaf in self._leaves]
        return Call(*tree_unflatten(leaves, self._spec))

    def has_changed(self) -> bool:
        """Whether somebody has written into the arguments since."""
        leaves, spec = tree_flatten((self.args, self.kwargs))
        return (
            spec != self._spec
            or any(now is not before for now, before in zip(leaves, self._leaves, strict=True))
            or any(version_of(t) != version for t, version in zip(self.tensors, self._versions, strict=True))
        )

    def _is_by_row(self, leaf: Any) -> bool:
        return isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and len(leaf) == len(self)


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How an output is made of rows.

    Parameters
    ----------
    spec : torch.utils._pytree.TreeSpec
        How its tensors and plain values are put together.
    plain : tuple
        The plain values, and None for each tensor.
    tensors : tuple
        The shape of a row, the type and the device of each tensor; None for each plain value.
    orders : tuple
        How the dimensions of each tensor lie in memory, outermost first; None for each plain value.

    Examples
    --------
    >>> output = {"features": torch.arange(6).reshape(3, 2), "kind": "last"}
    >>> form = OutputForm.of(output, 3)
    >>> rows = form.split(output, 3)
    >>> form.join([rows[2], rows[0]])
    {'features': tensor([[4, 5],
            [0, 1]]), 'kind': 'last'}
    """

    spec: TreeSpec
    plain: tuple[Any, ...]
    tensors: tuple[Hashable, ...]
    orders: tuple[tuple[int, ...] | None, ...]

    @classmethod
    def of(cls, output: Any, n_rows: int) -> OutputForm:
        """Read the form off an output.

        Raises
        ------
        UnfitError
            If a part of the output is not made of `n_rows` rows, or needs a gradient.
        """
        leaves, spec = tree_flatten(output)
        plain, tensors, orders = [], [], []
        for leaf in leaves:
            is_tensor = isinstance(leaf, torch.Tensor)
            if is_tensor and leaf.requires_grad:
                raise UnfitError(
                    "its output needs a gradient, so that something trainable is in it that is not its own"
                )
            if is_tensor and (leaf.layout is not torch.strided or leaf.is_nested):
                raise UnfitError("its output holds a tensor that is not strided")
            if is_tensor and (leaf.ndim == 0 or len(leaf) != n_rows):
                raise UnfitError(f"its output holds a tensor of shape {tuple(leaf.shape)} for {n_rows} rows")
            if not is_tensor and not isinstance(leaf, _PLAIN):
                raise UnfitError(f"its output holds a {type(leaf).__name__}, which is not made of rows")
            plain.append(None if is_tensor else leaf)
            tensors.append((leaf.shape[1:], leaf.dtype, leaf.device) if is_tensor else None)
            orders.append(_order(leaf) if is_tensor else None)
        return cls(spec, tuple(plain), tuple(tensors), tuple(orders))

    def split(self, output: Any, n_rows: int) -> list[Row]:
        """Take an output apart.

        Raises
        ------
        UnfitError
            If it has another form.
        """
        form = OutputForm.of(output, n_rows)
        if (form.spec, form.plain, form.tensors) != (self.spec, self.plain, self.tensors):
            raise UnfitError("its output is of another form for each batch")
        tensors = [leaf.detach() for leaf in tree_flatten(output)[0] if isinstance(leaf, torch.Tensor)]
        return list(zip(*(tensor.unbind(0) for tensor in tensors), strict=True)) if tensors else [()] * n_rows

    def join(self, rows: Sequence[Row]) -> Any:
        """Put an output together; its tensors are new ones, and lie in memory as they did."""
        tensors = iter(zip(*rows, strict=True))
        leaves = [
            plain if order is None else _stack(next(tensors), order)
            for plain, order in zip(self.plain, self.orders, strict=True)
        ]
        return tree_unflatten(leaves, self.spec)


def _has_list(value: Any, length: int) -> bool:
    if isinstance(value, dict):
        return any(_has_list(item, length) for item in value.values())
    if not isinstance(value, (list, tuple)):
        return False
    is_plain = len(value) == length and all(isinstance(item, _PLAIN) for item in value)
    return is_plain or any(_has_list(item, length) for item in value)


def _order(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))


def _stack(rows: Sequence[torch.Tensor], order: tuple[int, ...]) -> torch.Tensor:
    if order == tuple(range(len(order))):
        return torch.stack(list(rows))
    like = rows[0]
    out = torch.empty_permuted((len(rows), *like.shape), order, dtype=like.dtype, device=like.device)
    return torch.stack(list(rows), out=out)


def largest_values(rows: Sequence[Row]) -> list[float]:
    """Return the largest absolute value of each tensor in some rows, infinite ones left out; 0 where there is none.

    Parameters
    ----------
    rows : sequence of tuples of torch.Tensor

    Returns
    -------
    list of float
    """
    return [
        _sizes(torch.stack(tensors)).max().item() if tensors[0].numel() else 0.0 for tensors in zip(*rows, strict=True)
    ]


def is_near(rows: Sequence[Row], others: Sequence[Row], *, precision: float, largest: Sequence[float]) -> bool:
    """Whether two lists of rows differ by no more than rounding.

    Batches of other sizes are computed in another order, which rounds otherwise.

    Parameters
    ----------
    rows, others : sequence of tuples of torch.Tensor
    precision : float
        The relative error of one operation. What is allowed is its square root, relative to the largest value in the
        same place of all rows, and 64 times itself, relative to the largest value.
    largest : sequence of float
        What the largest value of each tensor is in other rows.

    Returns
    -------
    bool

    Examples
    --------
    >>> one, other = torch.tensor([1.0, 1000.0]), torch.tensor([1.0001, 1000.01])
    >>> is_near([(one,)], [(other,)], precision=1e-7, largest=[0.0])
    True
    >>> is_near([(one,)], [(other + 1,)], precision=1e-7, largest=[0.0])
    False
    """
    return all(
        _is_near(torch.stack(ours), torch.stack(theirs), precision, size)
        for ours, theirs, size in zip(zip(*rows, strict=True), zip(*others, strict=True), largest, strict=True)
    )


def _is_near(one: torch.Tensor, other: torch.Tensor, precision: float, largest: float) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.numel() or not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    sizes = _sizes(one)
    allowed = math.sqrt(precision) * sizes.amax(0) + 64 * precision * sizes.max().clamp(min=largest) + precision
    is_same = (one == other) | (one.isnan() & other.isnan())
    return bool((is_same | ((one - other).abs() <= allowed)).all())


def _sizes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.abs().nan_to_num(0, 0, 0)
