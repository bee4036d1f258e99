"""The multi-layer perceptron of the example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any

from torch import nn

from mlr3torch_py.arguments import check_list, check_mapping, check_number, check_whole
from mlr3torch_py.values import plain, shown

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """A multi-layer perceptron with the layers of mlr3torch.

    Each hidden layer is a linear layer, an activation and dropout; the head is a linear layer. So
    ``neurons=(1, 1, 1)`` has the parameters ``0.weight``, ``0.bias``, ``3.weight``, … ``9.bias``.

    Parameters
    ----------
    d_in : int
        The number of features. The input has shape ``(n, d_in)``.
    d_out : int
        The number of outputs. The output has shape ``(n, d_out)``: class scores before any softmax, or predictions.
    neurons : int or sequence of int
        The width of each hidden layer; empty for a linear model.
    p : float
        The dropout probability, from 0 to 1.
    activation : type or callable
        Makes the activation of each layer, such as `torch.nn.ReLU`.
    activation_args : mapping, optional
        Keyword arguments for `activation`.
    n_layers : int, optional
        The number of hidden layers if `neurons` is a single width.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or is out of range.

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
        activation: Callable[..., nn.Module] = nn.ReLU,
        activation_args: Mapping[str, Any] | None = None,
        n_layers: int | None = None,
    ) -> None:
        d_in, d_out = check_whole("d_in", d_in, "features"), check_whole("d_out", d_out, "outputs")
        widths = [d_in, *_widths(neurons, n_layers), d_out]
        p = check_number("p", p, "a probability from 0 to 1", least=0, most=1)
        check_mapping("activation_args", activation_args, "names to arguments of `activation`")
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [_linear(n_in, n_out), _activation(activation, activation_args), nn.Dropout(p)]
        super().__init__(*layers[:-2])

    def __getitem__(self, index: Any) -> Any:
        # Sequential makes a slice by calling its own class, which here has other arguments.
        return nn.Sequential(*self)[index]


def _widths(neurons: Any, n_layers: int | None) -> list[int]:
    neurons = plain(neurons)
    given = (
        [neurons] if isinstance(neurons, Integral) else check_list("neurons", neurons, "a list of widths", again=True)
    )
    widths = [check_whole("neurons", width, "neurons in each layer") for width in given]
    if n_layers is None:
        return widths
    if len(widths) != 1:
        raise ValueError(f"`n_layers` is {shown(n_layers)}, but `neurons` holds {len(widths)} widths; give one width")
    return widths * check_whole("n_layers", n_layers, "layers", most=10_000)


def _linear(n_in: int, n_out: int) -> nn.Linear:
    try:
        return nn.Linear(n_in, n_out)
    except (RuntimeError, MemoryError) as error:
        raise ValueError(
            f"a layer from {n_in} to {n_out} is too large ({error}); give a smaller `d_in`, `d_out` or `neurons`"
        ) from error


def _activation(activation: Any, arguments: Mapping[str, Any] | None) -> nn.Module:
    remedy = "give a class, such as torch.nn.ReLU, since each layer has its own"
    if not callable(activation) or isinstance(activation, nn.Module):
        raise TypeError(f"`activation` is {shown(activation)}; {remedy}")
    try:
        made = activation(**(arguments or {}))
    except Exception as error:
        raise TypeError(f"`activation` takes other arguments than `activation_args` ({error}); {remedy}") from error
    if not isinstance(made, nn.Module):
        raise TypeError(f"`activation` made {shown(made)}, which is no module; {remedy}")
    return made
