"""The outputs of a module: how they are put together from tensors, and those from rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch

from mlr3torch_py.cache.errors import NotCacheableError
from mlr3torch_py.cache.identity.portable import NotPortableError
from mlr3torch_py.cache.rows.call import PLAIN
from mlr3torch_py.network.internals import TreeSpec, tree_flatten, tree_unflatten, treespec_dumps, treespec_loads

__all__ = ["OutputSpec", "RowSpec", "device_named", "name_of_device"]

# What keeps a leaf of an output from being split into rows: the first that applies is the reason given.
_OBSTACLES: Final[tuple[tuple[Callable[[Any, int], bool], str], ...]] = (
    (
        lambda leaf, _: not isinstance(leaf, torch.Tensor),
        "its output holds a {type}, which is not made of rows",
    ),
    (
        lambda leaf, _: type(leaf) is not torch.Tensor,
        "its output holds a {type}, which is more than its values",
    ),
    (
        lambda leaf, _: bool(vars(leaf)),
        "its output holds a tensor with an attribute {attribute!r}, which is no part of its values",
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
        lambda leaf, _: leaf.is_quantized,
        "its output holds a quantized tensor",
    ),
    (
        lambda leaf, n_rows: leaf.ndim == 0 or len(leaf) != n_rows,
        "its output holds a tensor of shape {shape} for {n_rows} rows",
    ),
)
# Plain values that files of tensors hold, too.
_PACKED: Final = frozenset({type(None), bool, int, float, str})


class RowSpec(NamedTuple):
    """The shape of a row, and the dtype, device and order of dimensions, outermost in memory first, of a tensor."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    order: tuple[int, ...]

    def empty(self, n_rows: int) -> torch.Tensor:
        """Allocate a tensor."""
        return torch.empty_permuted((n_rows, *self.shape), self.order, dtype=self.dtype, device=self.device)

    def strides(self, n_rows: int) -> tuple[int, ...]:
        """Compute the strides of a tensor."""
        sizes, strides, step = (n_rows, *self.shape), [0] * len(self.order), 1
        for dim in reversed(self.order):
            strides[dim] = step
            step *= max(1, sizes[dim])
        return tuple(strides)


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """How an output is put together from tensors.

    Parameters
    ----------
    tree : torch.utils._pytree.TreeSpec
        How its tensors and plain values are nested.
    plain : tuple
        The plain values, and Ellipsis in the place of each tensor.
    tensors : tuple of RowSpec
    places : tuple of int
        Which tensor is in each of these places; one may be in several.
    is_tensor : bool
        Whether the output is a tensor itself.

    Examples
    --------
    >>> output = {"features": torch.arange(6).reshape(3, 2), "kind": "last"}
    >>> spec = OutputSpec.of(output, 3)
    >>> (features,) = spec.tensors_of(output, 3)
    >>> spec.join([features[[2, 0]]])
    {'features': tensor([[4, 5],
            [0, 1]]), 'kind': 'last'}
    """

    tree: TreeSpec
    plain: tuple[Any, ...]
    tensors: tuple[RowSpec, ...]
    places: tuple[int, ...]
    is_tensor: bool

    def packed(self) -> dict[str, Any]:
        """Return plain values of which `unpacked` makes the spec.

        Raises
        ------
        NotPortableError
            If there are none; the message names what is to blame.
        """
        if other := [type(leaf).__name__ for leaf in self.plain if leaf is not ... and type(leaf) not in _PACKED]:
            raise NotPortableError(f"the {other[0]}")
        try:
            tree = treespec_dumps(self.tree)
        except Exception as error:  # of whatever kind, for containers that are not torch's
            raise NotPortableError("the containers") from error
        plain = [[] if leaf is ... else [leaf] for leaf in self.plain]
        tensors = [(list(row.shape), row.dtype, str(row.device), list(row.order)) for row in self.tensors]
        places = list(self.places)
        return {"tree": tree, "plain": plain, "tensors": tensors, "places": places, "is_tensor": self.is_tensor}

    @classmethod
    def unpacked(cls, packed: Mapping[str, Any]) -> OutputSpec:
        """Make a spec of what `packed` returned."""
        plain = tuple(leaf[0] if leaf else ... for leaf in packed["plain"])
        tensors = tuple(
            RowSpec(torch.Size(shape), dtype, torch.device(device), tuple(order))
            for shape, dtype, device, order in packed["tensors"]
        )
        places = tuple(packed.get("places", range(len(tensors))))
        return cls(treespec_loads(packed["tree"]), plain, tensors, places, packed["is_tensor"])

    @classmethod
    def of(cls, output: Any, n_rows: int) -> OutputSpec:
        """Derive the spec of an output.

        Raises
        ------
        NotCacheableError
            If a part of the output is not made of `n_rows` rows, requires a gradient, or is more than a tensor.
        """
        leaves, tree = tree_flatten(output)
        plain = tuple(leaf if isinstance(leaf, PLAIN) else ... for leaf in leaves)
        found = [leaf for leaf in leaves if not isinstance(leaf, PLAIN)]
        tensors = _distinct(found)
        for leaf in tensors:
            _check_leaf(leaf, n_rows)
        rows = tuple(RowSpec(leaf.shape[1:], leaf.dtype, leaf.device, _order(leaf)) for leaf in tensors)
        numbers = {id(leaf): i for i, leaf in enumerate(tensors)}
        return cls(tree, plain, rows, tuple(numbers[id(leaf)] for leaf in found), isinstance(output, torch.Tensor))

    def tensors_of(self, output: Any, n_rows: int) -> list[torch.Tensor]:
        """List the tensors of an output, each once.

        Raises
        ------
        NotCacheableError
            If it has another spec; only the order of dimensions in memory may differ.
        """
        spec = OutputSpec.of(output, n_rows)
        if (spec.tree, spec.plain, spec.places, *(row[:3] for row in spec.tensors)) != (
            self.tree,
            self.plain,
            self.places,
            *(row[:3] for row in self.tensors),
        ):
            raise NotCacheableError("the structure of its output changes from batch to batch")
        return _distinct(leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, torch.Tensor))

    def join(self, tensors: Iterable[torch.Tensor]) -> Any:
        """Put an output together from its tensors."""
        if self.is_tensor:
            return next(iter(tensors))
        each, places = list(tensors), iter(self.places)
        return tree_unflatten([each[next(places)] if leaf is ... else leaf for leaf in self.plain], self.tree)


def name_of_device(device: torch.device, here: torch.device) -> str:
    """Name a device: by its kind alone if it is that of the input, which may be another one in each process."""
    return device.type if device == here else str(device)


def device_named(name: str, here: torch.device) -> torch.device:
    """Return the device that `name_of_device` has named."""
    return here if name == here.type else torch.device(name)


def _distinct(leaves: Iterable[Any]) -> list[Any]:
    """List objects, each once."""
    return list({id(leaf): leaf for leaf in leaves}.values())


def _check_leaf(leaf: Any, n_rows: int) -> None:
    for applies, reason in _OBSTACLES:
        if applies(leaf, n_rows):
            shape, attribute = tuple(getattr(leaf, "shape", ())), next(iter(getattr(leaf, "__dict__", ())), "")
            raise NotCacheableError(
                reason.format(type=type(leaf).__name__, attribute=attribute, shape=shape, n_rows=n_rows)
            )


def _order(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
