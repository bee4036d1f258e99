"""The modules and parameters of a network under their own names, whatever wraps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final

import torch
from torch import nn

from mlr3torch_py.protocols import Net

__all__ = [
    "Places",
    "Structure",
    "all_modules",
    "bare",
    "grouped_names",
    "is_sharded",
    "modules_of",
    "named_modules",
    "named_parameters",
    "names_by_tensor",
    "own_parameters",
    "tied_names",
]

# The attribute under which each wrapper keeps its module. Wrappers are listed by name so that none has to be imported:
# an instance exists only if its class has been imported already.
_WRAPPED_UNDER = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": "_fsdp_wrapped_module",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.CheckpointWrapper": "_checkpoint_wrapped_module",
}
_FSDP = frozenset({"FullyShardedDataParallel", "FSDPModule"})

_OF_PARAMETERS: Final = frozenset({nn.Parameter, type(None)})


@cache
def _wrapped_under(module_type: type) -> str | None:
    for parent in module_type.__mro__:
        attribute = _WRAPPED_UNDER.get(f"{parent.__module__}.{parent.__qualname__}")
        if attribute is not None:
            return attribute
    return None


def bare(module: nn.Module) -> nn.Module:
    """Return the module inside data-parallel, compilation and checkpointing wrappers.

    Wrappers are recognised by their type, so a network with a child called ``module`` is returned unchanged.

    Parameters
    ----------
    module : torch.nn.Module
        A network, with any number of wrappers.

    Returns
    -------
    torch.nn.Module

    Examples
    --------
    >>> from torch import nn
    >>> linear = nn.Linear(2, 1)
    >>> bare(nn.DataParallel(linear)) is linear
    True
    """
    while (attribute := _wrapped_under(type(module))) is not None:  # type: ignore[arg-type]
        module = getattr(module, attribute)
    return module


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP has sharded a module, by its wrapper or by ``fully_shard``."""
    return any(kind.__name__ in _FSDP and kind.__module__.startswith("torch.") for kind in type(module).__mro__)


def modules_of(net: Net) -> dict[str, nn.Module]:
    """Return the bare modules and criteria of a net that are modules, by name.

    Parameters
    ----------
    net : skorch.NeuralNet

    Returns
    -------
    dict of str to torch.nn.Module

    Examples
    --------
    >>> list(modules_of(iris_net().initialize()))
    ['module', 'criterion']
    """
    parts = {name: getattr(net, f"{name}_", None) for name in (*net._modules, *net._criteria)}
    return {name: bare(part) for name, part in parts.items() if isinstance(part, nn.Module)}


def named_modules(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield every module of a network, without wrappers, with its path.

    Parameters
    ----------
    module : torch.nn.Module
    path : str
        The path of the network itself.

    Yields
    ------
    tuple of (str, torch.nn.Module)
        In the order of ``torch.nn.Module.named_modules``, the network itself first; a shared module under each of its
        paths.

    Examples
    --------
    >>> from torch import nn
    >>> [path for path, _ in named_modules(nn.Sequential(nn.DataParallel(nn.Linear(2, 1)), nn.ReLU()))]
    ['', '0', '1']
    """
    module = bare(module)
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from named_modules(child, f"{path}.{name}" if path else name)


def named_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Map every parameter name of the bare network to its tensor.

    Parameters
    ----------
    module : torch.nn.Module
        A network; wrappers around it or inside it add nothing to the names.

    Returns
    -------
    dict of str to torch.nn.Parameter
        In the order of ``torch.nn.Module.named_parameters``; a tied tensor under each of its names.

    Examples
    --------
    >>> from torch import nn
    >>> list(named_parameters(nn.Sequential(nn.Linear(2, 1))))
    ['0.weight', '0.bias']
    """
    found: dict[str, nn.Parameter] = {}
    _collect(bare(module), "", found)
    return found


def names_by_tensor(module: nn.Module) -> list[list[str]]:
    """Group the parameter names of a network by their tensor.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    list of list of str
        One list per tensor, in the order of the network, with several names for a tied tensor.

    Examples
    --------
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    >>> network[1].weight = network[0].weight
    >>> names_by_tensor(network)
    [['0.weight', '1.weight'], ['0.bias']]
    """
    return grouped_names(named_parameters(module))


def tied_names(tensors: Mapping[str, nn.Parameter]) -> list[list[str]]:
    """Group the names of those tensors that have several.

    Parameters
    ----------
    tensors : mapping of str to torch.nn.Parameter
        What `named_parameters` returns.

    Returns
    -------
    list of list of str
    """
    if len(set(map(id, tensors.values()))) == len(tensors):
        return []
    return [names for names in grouped_names(tensors) if len(names) > 1]


def grouped_names(tensors: Mapping[str, nn.Parameter]) -> list[list[str]]:
    """Group names by the tensor that they are names of."""
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    return list(names.values())


def own_parameters(module: nn.Module) -> Mapping[str, nn.Parameter | None]:
    """Return the parameters of a module without those of its children.

    What a forward pass computes and puts among them, as old weight drop does, is none.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    mapping of str to torch.nn.Parameter or None

    Examples
    --------
    >>> from torch import nn
    >>> linear = nn.Linear(2, 1)
    >>> linear._parameters["weight"] = 2 * linear.weight
    >>> list(own_parameters(linear))
    ['bias']
    """
    parameters = module._parameters
    is_usual = _OF_PARAMETERS.issuperset(map(type, parameters.values()))
    if is_usual or isinstance(module, torch.jit.ScriptModule):  # whose copies have mere tensors for parameters
        return parameters
    return {name: one for name, one in parameters.items() if one is None or isinstance(one, nn.Parameter)}


def _collect(module: nn.Module, prefix: str, found: dict[str, nn.Parameter]) -> None:
    for name, tensor in own_parameters(module).items():
        if tensor is not None:
            found[prefix + name] = tensor
    for name, child in module._modules.items():
        if child is not None:
            _collect(bare(child), f"{prefix}{name}.", found)


@dataclass(frozen=True, slots=True)
class Places:
    """The modules and parameters of a network in their places; equal if nothing was replaced since.

    Examples
    --------
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(2, 1))
    >>> before = Places.of(network)
    >>> network[0].bias = nn.Parameter(network[0].bias.detach())
    >>> before == Places.of(network), before.modules == Places.of(network).modules
    (False, True)
    """

    ids: tuple[int, ...]
    kinds: tuple[type, ...]
    names: tuple[str | int, ...]
    modules: tuple[nn.Module | None, ...] = field(compare=False)  # wrappers included
    tensors: tuple[nn.Parameter | None, ...] = field(compare=False)

    @classmethod
    def of(cls, module: nn.Module) -> Places:
        """Look at a network."""
        modules: list[nn.Module | None] = [module]
        tensors: list[nn.Parameter | None] = []
        names: list[str | int] = []
        for one in modules:
            if one is not None:
                if children := one._modules:
                    modules += children.values()
                    names += children.keys()
                if one._parameters and (parameters := own_parameters(one)):
                    tensors += parameters.values()
                    names += parameters.keys()
                names.append(len(modules))  # which tells whose names these are
        members = (*modules, *tensors)
        ids, kinds = tuple(map(id, members)), tuple(map(type, members))
        return cls(ids, kinds, tuple(names), tuple(modules), tuple(tensors))

    @property
    def trainable(self) -> tuple[bool, ...]:
        """Whether each of the parameters requires a gradient now."""
        return tuple([tensor.requires_grad for tensor in self.tensors if tensor is not None])


@dataclass(frozen=True, slots=True)
class Structure:
    """The modules and parameters of a network, and what is trainable; equal if nothing was replaced or frozen since.

    Examples
    --------
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(2, 1))
    >>> before = Structure.of(network)
    >>> before == Structure.of(network), before == Structure.of(network.requires_grad_(False))
    (True, False)
    """

    places: Places
    trainable: tuple[bool, ...]

    @classmethod
    def of(cls, module: nn.Module) -> Structure:
        """Look at a network."""
        places = Places.of(module)
        return cls(places, places.trainable)


def all_modules(module: nn.Module) -> list[nn.Module]:
    """List every module of a network, wrappers included.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    list of torch.nn.Module
        A shared module once for each of its places. Several times faster than `named_modules` and
        ``torch.nn.Module.modules``, because it builds no names.

    Examples
    --------
    >>> from torch import nn
    >>> all_modules(nn.Sequential(nn.ReLU()))
    [Sequential(
      (0): ReLU()
    ), ReLU()]
    """
    found, level = [], [module]
    while level:
        found += level
        level = [child for one in level for child in one._modules.values() if child is not None]
    return found
