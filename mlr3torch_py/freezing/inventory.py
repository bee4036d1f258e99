"""Inventory: the modules, parameters and optimizers that a net holds at one time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from operator import is_
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer

from mlr3torch_py.network.sharing import sharing_names
from mlr3torch_py.network.unwrap import Places, named_parameters
from mlr3torch_py.schedule.plan import Held

__all__ = ["Inventory"]

_VALUES: Final[Callable[..., Iterable[Any]]] = dict.values


class Inventory:
    """What a net holds at one time.

    Parameters
    ----------
    network : torch.nn.Module
    optimizers : iterable of torch.optim.Optimizer
    before : Inventory, optional
        An earlier one, to save looking again at what has not changed since.

    Attributes
    ----------
    places : Places
    tensors : dict of str to torch.nn.Parameter
    sharing : frozenset of frozenset of str
        The names of parameters that share weights, as tied ones do.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> before = Inventory(network, [])
    >>> network[1].bias = nn.Parameter(network[1].bias.detach())
    >>> now = Inventory(network, [])
    >>> now.replaced_since(before), now.has_modules_of(before)
    (frozenset({'1.bias'}), True)
    """

    tensors: dict[str, nn.Parameter]
    sharing: frozenset[frozenset[str]]

    def __init__(self, network: nn.Module, optimizers: Iterable[Optimizer], before: Inventory | None = None) -> None:
        self.places: Places = Places.of(network)
        if before is not None and self.places == before.places:
            self.tensors, self.sharing = before.tensors, before.sharing
        else:
            self.tensors = named_parameters(network)
            self.sharing = frozenset(map(frozenset, sharing_names(self.tensors)))
        self._optimizers = [(one, _n_tensors(one)) for one in optimizers]
        layers = [one for one in self.places.modules if one is not None]
        owners = (owner for one in layers for owner in (one._modules, one._parameters))
        self._owners = [owner for owner in owners if owner and isinstance(owner, dict)]  # TorchScript has others
        self._members = self._held_now()

    @property
    def seems_current(self) -> bool:
        """Whether it still holds, at a glance, which is quick enough for every batch.

        This misses a first child or parameter of a module that had none, and containers that are replaced as a whole.
        """
        now = self._held_now()
        return (
            len(now) == len(self._members)
            and all(map(is_, now, self._members))
            and all(_n_tensors(one) == n for one, n in self._optimizers)
        )

    def _held_now(self) -> list[nn.Module | nn.Parameter | None]:
        return list(chain.from_iterable(map(_VALUES, self._owners)))

    def is_same_as(self, before: Inventory) -> bool:
        """Whether all is the same as before."""
        return self.places == before.places and self.has_optimizers_of(before)

    def replaced_since(self, before: Inventory) -> Held:
        """Return the names that are other tensors than before, or share weights with other names."""
        replaced = {name for name, tensor in self.tensors.items() if before.tensors.get(name) is not tensor}
        return frozenset(replaced.union(*(self.sharing ^ before.sharing)) & self.tensors.keys())

    def has_names_of(self, before: Inventory) -> bool:
        """Whether the parameters have the same names as before."""
        return self.tensors.keys() == before.tensors.keys()

    def renamed_since(self, before: Inventory) -> dict[str, str]:
        """Map the names of parameters that had other names before to one of these, one that is gone if possible."""
        new = self.tensors.keys() - before.tensors.keys()
        if not new:
            return {}
        were = sorted(before.tensors, key=lambda name: name not in self.tensors)
        name_of = {id(before.tensors[name]): name for name in were}
        return {name: name_of[key] for name in new if (key := id(self.tensors[name])) in name_of}

    def has_modules_of(self, before: Inventory) -> bool:
        """Whether all modules are the same as before."""
        some, others = self.places.modules, before.places.modules
        return len(some) == len(others) and all(map(is_, some, others))

    def has_optimizers_of(self, before: Inventory) -> bool:
        """Whether all optimizers are the same as before, and hold as many parameters."""
        return self._optimizers == before._optimizers


def _n_tensors(optimizer: Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)
