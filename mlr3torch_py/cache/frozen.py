"""Find the parts of a network that are frozen as a whole, and what links them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mlr3torch_py.names import ancestors, listed, nearest
from mlr3torch_py.network.parameters import has_parameters
from mlr3torch_py.network.unwrap import bare, named_modules, named_parameters

__all__ = ["check_cacheable", "frozen_parts", "has_lazy", "is_callable", "links"]


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


def has_lazy(module: nn.Module) -> bool:
    """Whether the shape of a parameter is not known before the first batch."""
    return any(map(is_lazy, module.parameters()))


def check_cacheable(module: nn.Module, names: Sequence[str]) -> None:
    """Check that calls of some submodules may be answered from memory while they are frozen.

    Raises
    ------
    ValueError
        If the network lacks one of them, or one of them is never frozen or never called.
    """
    known = dict(named_modules(module))
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"`modules` has {listed(map(repr, unknown))}, which the network lacks; "
            f"{nearest(unknown, filter(None, known))}"
        )
    for name in names:
        if not has_parameters(known[name]):
            raise ValueError(f"`modules` has {name!r}, which has no parameters and so is never frozen; leave it out")
        if not is_callable(known[name]):
            raise ValueError(
                f"`modules` has {name!r}, a {type(known[name]).__name__}, which is never called; name its elements"
            )
