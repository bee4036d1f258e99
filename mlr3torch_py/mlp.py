"""The multi-layer perceptron of the example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from torch import nn

from mlr3torch_py.arguments import check_whole

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
        widths = list(neurons) if isinstance(neurons, Iterable) else [neurons]
        check_whole("d_in", d_in, "features")
        check_whole("d_out", d_out, "outputs")
        for width in widths:
            check_whole("neurons", width, "neurons in each layer")
        if n_layers is not None:
            if len(widths) != 1:
                raise ValueError(f"`n_layers` is {n_layers}, but `neurons` holds {len(widths)} widths; give one width")
            widths *= check_whole("n_layers", n_layers, "layers")
        if not isinstance(p, Real) or not 0 <= p <= 1:
            raise ValueError(f"`p` is {p!r}; give a probability from 0 to 1")
        if not callable(activation) or isinstance(activation, nn.Module):
            raise TypeError(
                f"`activation` is {activation!r}; give a class, such as torch.nn.ReLU, since each layer has its own"
            )
        layers: list[nn.Module] = []
        for width, following in zip([d_in, *widths], widths, strict=False):
            layers += [nn.Linear(width, following), activation(**(activation_args or {})), nn.Dropout(float(p))]
        super().__init__(*layers, nn.Linear(widths[-1] if widths else d_in, d_out))

    def __getitem__(self, index: Any) -> Any:
        # Sequential makes a slice by calling its own class, which here has other arguments.
        return nn.Sequential(*self)[index]
