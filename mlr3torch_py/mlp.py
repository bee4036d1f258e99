"""The multi-layer perceptron of the example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from torch import nn

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """A multi-layer perceptron, layer by layer as in mlr3torch.

    For every hidden layer a linear layer, an activation and dropout follow each other; a linear layer is the head.
    So ``neurons=(1, 1, 1)`` has the parameters ``0.weight``, ``0.bias``, ``3.weight``, … ``9.bias``.

    Parameters
    ----------
    d_in : int
        The number of features. The input has shape ``(n, d_in)``.
    d_out : int
        The number of outputs. The output has shape ``(n, d_out)``: class scores before any softmax, or predictions.
    neurons : int or sequence of int
        The width of each hidden layer; empty for a linear model.
    p : float
        The probability of dropout, from 0 to 1.
    activation : type or callable
        Makes the activation of a layer, such as `torch.nn.ReLU`.
    activation_args : mapping, optional
        Keyword arguments for `activation`.
    n_layers : int, optional
        How often the single width in `neurons` is repeated.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of its kind or range.

    Examples
    --------
    >>> [name for name, _ in MLP(4, 3, neurons=(8,)).named_parameters()]
    ['0.weight', '0.bias', '3.weight', '3.bias']
    >>> len(MLP(4, 3, neurons=8, n_layers=3))
    10
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        neurons: int | Sequence[int] = (),
        p: float = 0.1,
        activation: Any = nn.ReLU,
        activation_args: Mapping[str, Any] | None = None,
        n_layers: int | None = None,
    ) -> None:
        widths = list(neurons) if isinstance(neurons, Iterable) else [neurons]
        for argument, value in (("d_in", d_in), ("d_out", d_out), *(("neurons", width) for width in widths)):
            _check_count(argument, value)
        if n_layers is not None:
            if len(widths) != 1:
                raise ValueError(f"`n_layers` is {n_layers}, but `neurons` holds {len(widths)} widths; give one width")
            widths *= _check_count("n_layers", n_layers)
        if not isinstance(p, Real) or not 0 <= p <= 1:
            raise ValueError(f"`p` is {p!r}; it is a probability from 0 to 1")
        if not callable(activation) or isinstance(activation, nn.Module):
            raise TypeError(
                f"`activation` is {activation!r}; give a class, such as torch.nn.ReLU, one is made per layer"
            )
        layers: list[nn.Module] = []
        for width, following in zip([d_in, *widths], widths, strict=False):
            layers += [nn.Linear(width, following), activation(**(activation_args or {})), nn.Dropout(float(p))]
        super().__init__(*layers, nn.Linear(widths[-1] if widths else d_in, d_out))

    def __getitem__(self, index: Any) -> Any:
        # A slice of a Sequential is made by its class, which here has other arguments.
        return nn.Sequential(*self)[index]


def _check_count(argument: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{argument}` is {value!r}; it takes whole numbers")
    if value < 1:
        raise ValueError(f"`{argument}` is {value!r}; it must be at least 1")
    return int(value)
