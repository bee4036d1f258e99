"""Functions between cached modules, such as a residual sum or `flatten`, which are links like modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Final, NamedTuple

import torch
from torch.nn import functional

__all__ = ["Operation", "split"]

_HOMES: Final = (torch, torch.Tensor, functional)
_NAMES: Final = (
    *("abs", "exp", "log", "sqrt", "rsqrt", "square", "clamp", "clip", "sigmoid", "tanh", "softmax", "log_softmax"),
    *("relu", "relu6", "gelu", "silu", "mish", "elu", "selu", "leaky_relu", "softplus", "hardswish", "hardsigmoid"),
    *("layer_norm", "group_norm", "normalize", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "avg_pool1d"),
    *("avg_pool2d", "max_pool1d", "max_pool2d", "interpolate", "pad", "mean", "amax", "amin", "sum"),
    *("cat", "concat", "concatenate", "stack", "flatten", "unflatten", "reshape", "view", "permute", "transpose"),
    *("swapaxes", "movedim", "squeeze", "unsqueeze", "select", "narrow", "contiguous", "__getitem__"),
)
# The numbers in these may be others at each call.
_ARITHMETIC: Final = frozenset(
    getattr(home, name)
    for home in (torch, torch.Tensor)
    for name in ("add", "sub", "mul", "div", "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__")
    if hasattr(home, name)
)
_FUNCTIONS: Final = _ARITHMETIC | frozenset(
    getattr(home, name) for home in _HOMES for name in _NAMES if hasattr(home, name)
)
_RESHAPING: Final = frozenset([torch.reshape, torch.Tensor.reshape, torch.Tensor.view])
_CONSTANTS: Final = (type(None), bool, int, str, type(...), torch.dtype, torch.memory_format)
_LARGEST: Final = 2**20  # values of a tensor for all rows, which is hashed at every call


class _Slot(NamedTuple):
    """The place of a tensor among the arguments."""

    is_by_row: bool
    position: int


class Operation(NamedTuple):
    """A function with all of its arguments but the tensors.

    Parameters
    ----------
    function : callable
    template : hashable
        Its arguments, with slots in place of tensors.
    n_by_row : int
        How many of the tensors, the first, are made of rows.
    repeated : tuple of int
        Which of the others are one row, to be repeated for all.
    """

    function: Callable[..., Any]
    template: Any
    n_by_row: int
    repeated: tuple[int, ...]

    @property
    def identity(self) -> str:
        """What tells it from others, in any process."""
        owner = getattr(self.function, "__objclass__", None)
        module = getattr(self.function, "__module__", None)
        function = module, None if owner is None else owner.__name__, self.function.__name__
        return repr((function, *self[1:]))

    def __call__(self, *tensors: torch.Tensor) -> Any:
        """Apply the function."""
        by_row, others = tensors[: self.n_by_row], list(tensors[self.n_by_row :])
        for i in self.repeated:
            others[i] = others[i].expand(len(by_row[0]), *others[i].shape[1:])
        args, kwargs = _joined(self.template, by_row, others)
        return self.function(*args, **dict(kwargs))


def split(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], by_row: type[torch.Tensor]
) -> tuple[Operation, list[torch.Tensor]] | None:
    """Split a call of a function into an operation and its tensors.

    Parameters
    ----------
    function : callable
    args : tuple
    kwargs : dict
    by_row : type
        The type of the tensors that are made of rows; those of other types are few values for all rows.

    Returns
    -------
    tuple of Operation and list of torch.Tensor, or None
        None if the function may do more than compute tensors, or an argument is large or trainable.

    Examples
    --------
    >>> from torch import nn
    >>> x = nn.Parameter(torch.ones(2, 3))
    >>> operation, tensors = split(torch.cat, ([torch.zeros(1, 3).expand(2, 3), x], 1), {}, nn.Parameter)
    >>> [tuple(one.shape) for one in tensors], tuple(operation(*tensors).shape)
    ([(2, 3), (1, 3)], (2, 6))
    """
    is_given_numbers = kwargs or not all(isinstance(one, torch.Tensor) for one in args)
    if function not in _FUNCTIONS or "out" in kwargs or (function in _ARITHMETIC and is_given_numbers):
        return None
    rows: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    try:
        if function in _RESHAPING and type(args[0]) is by_row:
            args = args[0], _shape(args[0], *args[1:])
        template = _split((args, tuple(kwargs.items())), by_row, (rows, others))
        repeated = _repeated(others, len(rows[0]) if rows[0].ndim else 0)
    except (IndexError, TypeError):
        return None
    return Operation(function, template, len(rows), repeated), rows + [
        one[:1] if i in repeated else one for i, one in enumerate(others)
    ]


def _repeated(others: Sequence[torch.Tensor], n_rows: int) -> tuple[int, ...]:
    """List the positions of tensors that hold one row, expanded to all.

    Raises
    ------
    TypeError
        If there are no rows, or one of the tensors is large, trainable, or has a value for each row.
    """
    found: list[int] = []
    for i, one in enumerate(others):
        is_for_each_row = one.ndim > 0 and len(one) == n_rows > 1
        if one.requires_grad or one.numel() > _LARGEST or (is_for_each_row and one.stride(0) != 0):
            raise TypeError
        if is_for_each_row:
            found.append(i)
    if not n_rows:
        raise TypeError
    return tuple(found)


def _split(value: Any, by_row: type[torch.Tensor], found: tuple[list[torch.Tensor], list[torch.Tensor]]) -> Any:
    """Describe an argument by something hashable, and note its tensors.

    Raises
    ------
    TypeError
        If it holds anything but tensors and constants.
    """
    if isinstance(value, torch.Tensor):
        tensors = found[type(value) is not by_row]
        tensors.append(value)
        return _Slot(type(value) is by_row, len(tensors) - 1)
    if isinstance(value, (tuple, list)):
        kind = list if type(value) is list else tuple
        return kind, tuple([_split(one, by_row, found) for one in value])
    if type(value) is slice:
        return slice, tuple([_split(one, by_row, found) for one in (value.start, value.stop, value.step)])
    if type(value) is float:
        return float, value.hex()  # tells 0.0 from -0.0
    if type(value) in _CONSTANTS:
        return type(value), value
    raise TypeError


def _joined(template: Any, by_row: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> Any:
    """Restore an argument."""
    if type(template) is _Slot:
        return (by_row if template.is_by_row else others)[template.position]
    kind, value = template
    if kind is float:
        return float.fromhex(value)
    if kind not in {tuple, list, slice}:
        return value
    items = [_joined(one, by_row, others) for one in value]
    return slice(*items) if kind is slice else kind(items)


def _shape(tensor: torch.Tensor, *shape: Any) -> tuple[int, ...]:
    """Return a new shape for any number of rows.

    Raises
    ------
    TypeError
        If it is not one, or does not keep the rows.
    """
    sizes = list(shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape)
    n_values = prod(tensor.shape[1:])
    if not all(type(size) is int for size in sizes) or not n_values or len(sizes) < 2:
        raise TypeError
    if sizes[0] == -1 and -1 not in sizes[1:]:
        sizes[0] = len(tensor)
    if sizes[0] != len(tensor):
        raise TypeError
    known = prod(size for size in sizes[1:] if size != -1)
    if known and -1 in sizes[1:]:
        sizes[sizes.index(-1)] = n_values // known
    if prod(sizes[1:]) != n_values:
        raise TypeError
    return -1, *sizes[1:]
