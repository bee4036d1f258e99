"""Layers that stay in evaluation while the network trains: normalisation that keeps its statistics, idle dropout."""

from __future__ import annotations

from collections.abc import Iterable, Set
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from mlr3torch_py.network.unwrap import all_modules, bare, named_modules, named_parameters

__all__ = ["DROPOUT", "NORMALISATION", "frozen_layers", "pin_in_eval_mode", "pinned_layers"]

# Of the normalisation layers, those alone that keep statistics behave otherwise in evaluation.
NORMALISATION: tuple[type[nn.Module], ...] = (_NormBase,)
DROPOUT: tuple[type[nn.Module], ...] = (_DropoutNd, nn.MultiheadAttention)


def frozen_layers(module: nn.Module, held: Set[str], kinds: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    """Find the layers of some kinds that are frozen as a whole.

    A layer is, when none of its parameters trains and at least one of them is in `held`. One without parameters is
    when the next module around it that has some is. One that stands in several places must be frozen in all of them.

    Parameters
    ----------
    module : torch.nn.Module
    held : set of str
        Parameter names.
    kinds : tuple of type
        `NORMALISATION`, `DROPOUT`, or other classes of modules.

    Returns
    -------
    dict of str to torch.nn.Module
        The layers by their paths.

    Examples
    --------
    >>> from mlr3torch_py.network.parameters import freeze
    >>> network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    >>> frozen = {"1.weight", "1.bias", "2.0.weight", "2.0.bias"}
    >>> freeze(network, frozen)
    True
    >>> list(frozen_layers(network, frozen, NORMALISATION + DROPOUT))
    ['1', '2.1']
    """
    below: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, tensor in named_parameters(module).items():
        path = name
        while path:
            path = path.rpartition(".")[0]
            below.setdefault(path, []).append((name, tensor))
    frozen, elsewhere_trains = {}, set()
    for path, layer in named_modules(module):
        if isinstance(layer, kinds):
            home = path
            while home and home not in below:
                home = home.rpartition(".")[0]
            parameters = below.get(home, [])
            trains = any(tensor.requires_grad for _, tensor in parameters)
            if not trains and any(name in held for name, _ in parameters):
                frozen[path] = layer
            else:
                elsewhere_trains.add(id(layer))
    return {path: layer for path, layer in frozen.items() if id(layer) not in elsewhere_trains}


def pin_in_eval_mode(module: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Keep layers of a network in evaluation, whatever ``train()`` says, and let go of all others.

    A layer that is let go of is in the mode of the network again. What holds a layer goes with it through pickle and
    deepcopy, and can be let go of there.

    Parameters
    ----------
    module : torch.nn.Module
    layers : iterable of torch.nn.Module

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> pin_in_eval_mode(network, [network[1]])
    >>> network.train()[1].training
    False
    >>> pin_in_eval_mode(network, [])
    >>> network[1].training
    True
    """
    wanted = {id(layer) for layer in layers}
    module = bare(module)
    for layer in all_modules(module):
        if id(layer) in wanted:
            if not _is_held(layer):
                # Beside the class, since skorch calls train() inside every step, after all callbacks.
                layer.__dict__["train"] = partial(_stay, layer)
            layer.train()
        elif _is_held(layer):
            del layer.__dict__["train"]
            layer.train(module.training)


def pinned_layers(module: nn.Module) -> dict[str, nn.Module]:
    """List the layers that `pin_in_eval_mode` holds, by their paths.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    dict of str to torch.nn.Module
    """
    return {path: layer for path, layer in named_modules(module) if _is_held(layer)}


def _is_held(layer: nn.Module) -> bool:
    return getattr(layer.__dict__.get("train"), "func", None) is _stay


def _stay(layer: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001
    return type(layer).train(layer, False)
