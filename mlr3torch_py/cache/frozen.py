"""Find the parts of a network that are frozen as a whole, and what links them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mlr3torch_py.names import ancestors
from mlr3torch_py.network.unwrap import bare, named_modules, named_parameters

__all__ = ["frozen_parts", "is_callable", "links"]


def frozen_parts(
    module: nn.Module, trainable: Set[str], *, among: Set[str] | None = None, containers: Set[str] = frozenset()
) -> dict[str, nn.Module]:
    """Find the largest submodules that are frozen as a whole.

    Parameters
    ----------
    module : torch.nn.Module
    trainable : set of str
        The names of the trainable parameters.
    among : set of str, optional
        The paths to consider; all if missing.
    containers : set of str
        Paths of modules to descend into, such as a container that is never called itself.

    Returns
    -------
    dict of str to torch.nn.Module
        By path, in the order of the network; a shared module once.

    Examples
    --------
    >>> network = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2), nn.Linear(2, 1))
    >>> list(frozen_parts(network, {"2.weight", "2.bias"}))
    ['0', '1']
    >>> list(frozen_parts(network, {"2.weight", "2.bias"}, containers={"0"}))
    ['0.0', '1']
    """
    with_frozen, with_trainable = set[str](), set[str]()
    for name, tensor in named_parameters(module).items():
        (with_trainable if name in trainable or is_lazy(tensor) else with_frozen).update(ancestors(name))
    wanted = with_frozen - with_trainable - containers
    if among is not None:
        wanted &= among
    first_path: dict[int, str] = {}
    outermost = _outermost(bare(module), "", wanted)
    return {path: part for path, part in outermost if first_path.setdefault(id(part), path) == path}


def links(module: nn.Module, parts: Iterable[nn.Module], *, containers: Set[str] = frozenset()) -> dict[str, nn.Module]:
    """Find the largest modules without parameters outside of some parts.

    Parameters
    ----------
    module : torch.nn.Module
    parts : iterable of torch.nn.Module
    containers : set of str
        See `frozen_parts`.

    Returns
    -------
    dict of str to torch.nn.Module
        By path, in the order of the network; a shared module once.

    Examples
    --------
    >>> network = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.ReLU(), nn.Linear(2, 1))
    >>> list(links(network, [network[0]]))
    ['1']
    """
    inside = {id(one) for part in parts for one in part.modules()}
    with_parameters = {around for name in named_parameters(module) for around in ancestors(name)}
    paths = (
        {path for path, one in named_modules(module) if path and id(one) not in inside} - with_parameters - containers
    )
    first_path: dict[int, str] = {}
    outermost = _outermost(bare(module), "", paths)
    return {path: part for path, part in outermost if first_path.setdefault(id(part), path) == path}


def _outermost(module: nn.Module, path: str, wanted: Set[str]) -> Iterator[tuple[str, nn.Module]]:
    if path in wanted and is_callable(module):
        yield path, module
        return
    for name, child in module._modules.items():
        if child is not None:
            yield from _outermost(bare(child), f"{path}.{name}" if path else name, wanted)


def is_callable(module: nn.Module) -> bool:
    """Whether calls of a module can be answered from memory: not those of containers and of TorchScript."""
    return not isinstance(module, torch.jit.ScriptModule) and type(module).forward is not nn.Module.forward
