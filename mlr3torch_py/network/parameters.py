"""The flags of the parameters of a network; the only place that writes ``requires_grad``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mlr3torch_py.arguments import check_network
from mlr3torch_py.network.unwrap import Places, bare, named_parameters
from mlr3torch_py.protocols import NetOfUser

__all__ = [
    "Flags",
    "can_train",
    "changed_by_hand",
    "freeze",
    "frozen_before_us",
    "frozen_by_us",
    "has_parameters",
    "keep_frozen_before_us",
    "n_trainable",
    "remember_moved",
    "trainable_names",
]

# Plain module attributes survive pickle and deepcopy and stay out of the state dict.
_FROZEN_BY_US = "_frozen_by_mlr3torch_py"
_FROZEN_BEFORE_US = "_frozen_before_mlr3torch_py"


def trainable_names(module: nn.Module | NetOfUser) -> list[str]:
    """List the names of the parameters that require a gradient.

    Parameters
    ----------
    module : torch.nn.Module or skorch.NeuralNet
        A network, or an initialized net.

    Returns
    -------
    list of str

    Raises
    ------
    TypeError
        If `module` is neither.

    Examples
    --------
    >>> from torch import nn
    >>> trainable_names(nn.Linear(2, 1))
    ['weight', 'bias']
    """
    network = check_network("module", module)
    return [name for name, tensor in named_parameters(network).items() if tensor.requires_grad]


def n_trainable(module: nn.Module, tensors: Mapping[str, nn.Parameter] | None = None) -> int:
    """Count the elements of all tensors that require a gradient.

    Parameters
    ----------
    module : torch.nn.Module
    tensors : mapping of str to torch.nn.Parameter, optional
        The result of `named_parameters` for the network, to save the look-up.

    Returns
    -------
    int
        A tied tensor counts once; one that is lazy and has no shape yet does not count.

    Examples
    --------
    >>> from torch import nn
    >>> n_trainable(nn.Linear(2, 1))
    3
    """
    found = Places.of(module).tensors if tensors is None else tensors.values()
    trainable = {id(tensor): tensor for tensor in found if tensor is not None and tensor.requires_grad}
    return sum(tensor.numel() for tensor in trainable.values() if not is_lazy(tensor))


def can_train(tensor: torch.Tensor) -> bool:
    """Whether a tensor may require a gradient, which integers cannot."""
    return tensor.is_floating_point() or tensor.is_complex()


def frozen_before_us(module: nn.Module) -> frozenset[str]:
    """Return the parameters that were frozen before any callback acted.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    frozenset of str
        Also what has been frozen by hand since then, but not what was released by hand while it was held; a tied
        tensor under all of its names.

    Examples
    --------
    >>> from torch import nn
    >>> linear = nn.Linear(2, 1)
    >>> linear.bias.requires_grad = False
    >>> frozen_before_us(linear)
    frozenset({'bias'})
    """
    before: frozenset[str] = getattr(bare(module), _FROZEN_BEFORE_US, frozenset())
    by_us, tensors = frozen_by_us(module), named_parameters(module)
    ours = {id(tensor) for name, tensor in tensors.items() if name in by_us}
    others = {id(tensor) for name, tensor in tensors.items() if name not in by_us}
    frozen = {
        name
        for name, tensor in tensors.items()
        if not tensor.requires_grad and can_train(tensor) and id(tensor) not in ours
    }
    released = {name for name, tensor in tensors.items() if tensor.requires_grad and id(tensor) in ours - others}
    return (before - released) | frozen


def keep_frozen_before_us(module: nn.Module) -> None:
    """Remember, through pickle and deepcopy, what `frozen_before_us` returns now.

    Parameters
    ----------
    module : torch.nn.Module
    """
    setattr(bare(module), _FROZEN_BEFORE_US, frozen_before_us(module))


def frozen_by_us(module: nn.Module) -> frozenset[str]:
    """Return the names that the last call of `freeze` froze.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    frozenset of str
    """
    names: frozenset[str] = getattr(bare(module), _FROZEN_BY_US, frozenset())
    return names


def changed_by_hand(module: nn.Module) -> frozenset[str]:
    """Return the parameters whose flag is not what the last call of `freeze` left.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    frozenset of str
        Also those that were frozen before the first call and were not governed.

    Examples
    --------
    >>> linear = nn.Linear(2, 1)
    >>> _ = freeze(linear, {"weight"})
    >>> changed_by_hand(linear.requires_grad_())
    frozenset({'weight'})
    """
    ours, tensors = frozen_by_us(module), named_parameters(module)
    return frozenset(name for name, tensor in tensors.items() if tensor.requires_grad == (name in ours))


def remember_moved(module: nn.Module, frozen: Iterable[nn.Parameter]) -> None:
    """Remember tensors that `freeze` froze under the names that they have now, too.

    Otherwise one that has got another name since, such as that of a layer that shares it, would stay frozen.

    Parameters
    ----------
    module : torch.nn.Module
    frozen : iterable of torch.nn.Parameter
        The tensors that the last call of `freeze` froze.

    Examples
    --------
    >>> from torch import nn
    >>> layers = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    >>> freeze(layers, {"0.weight"})
    True
    >>> layers[1].weight, layers[0].weight = layers[0].weight, layers[1].weight
    >>> remember_moved(layers, [layers[1].weight])
    >>> sorted(frozen_by_us(layers))
    ['0.weight', '1.weight']
    """
    ours = set(map(id, frozen))
    moved = (name for name, tensor in named_parameters(module).items() if id(tensor) in ours)
    setattr(bare(module), _FROZEN_BY_US, frozen_by_us(module).union(moved))


def freeze(
    module: nn.Module,
    held: Set[str],
    *,
    governed: Set[str] = frozenset(),
    tensors: Mapping[str, nn.Parameter] | None = None,
) -> bool:
    """Freeze the held parameters, and release those of the last call.

    A tensor is frozen when all of its names are held, and then loses its gradient, since optimizers keep moving a
    tensor that has one. Flags that are neither governed nor held, now or in the last call, stay as they are, and so
    what a user changed by hand stays too. The network remembers the names, through pickle and deepcopy.

    Parameters
    ----------
    module : torch.nn.Module
    held : set of str
        Parameter names; names that the network lacks are ignored.
    governed : set of str
        Parameters whose flag is set in any case: frozen when held, trainable otherwise.
    tensors : mapping of str to torch.nn.Parameter, optional
        The result of `named_parameters` for the network, to save the look-up.

    Returns
    -------
    bool
        True if a flag has changed.

    Examples
    --------
    >>> from torch import nn
    >>> linear = nn.Linear(2, 1)
    >>> freeze(linear, {"weight"})
    True
    >>> trainable_names(linear)
    ['bias']
    >>> freeze(linear, {"bias"})
    True
    >>> trainable_names(linear)
    ['weight']
    """
    module = bare(module)
    before = frozen_by_us(module)
    if held == before and not governed:
        return False
    if tensors is None:
        tensors = named_parameters(module)
    free = {id(tensor) for name, tensor in tensors.items() if name not in held}
    written = [tensors[name] for name in governed if name in tensors]
    if changed_names := held ^ before:
        was_free = {id(tensor) for name, tensor in tensors.items() if name not in before}
        # Of a tied tensor some names may have changed without any effect.
        written += [
            t for name in changed_names if (t := tensors.get(name)) is not None and _differs(id(t), free, was_free)
        ]
    changed = sum(_set_trainable(tensor, id(tensor) in free) for tensor in written)
    setattr(module, _FROZEN_BY_US, frozenset(held))
    return changed > 0


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags of a network at one time, to restore them later.

    Parameters
    ----------
    trainable : frozenset of str
        The names of the parameters that required a gradient.
    frozen_by_us : frozenset of str
        The names that `freeze` had frozen.
    frozen_before_us : frozenset of str, optional
        What `keep_frozen_before_us` had remembered; None if nothing, which leaves it as it is.

    Examples
    --------
    >>> from torch import nn
    >>> linear = nn.Linear(2, 1)
    >>> flags = Flags.of(linear)
    >>> freeze(linear, {"weight"})
    True
    >>> flags.restore(linear)
    >>> trainable_names(linear)
    ['weight', 'bias']
    """

    trainable: frozenset[str]
    frozen_by_us: frozenset[str]
    frozen_before_us: frozenset[str] | None = None

    @classmethod
    def of(cls, module: nn.Module) -> Flags:
        """Record the flags of a network."""
        before = getattr(bare(module), _FROZEN_BEFORE_US, None)
        return cls(frozenset(trainable_names(module)), frozen_by_us(module), before)

    def with_new(self, module: nn.Module, known: Set[str]) -> Flags:
        """Add the flags of parameters that are not known yet."""
        new = (name for name in trainable_names(module) if name not in known)
        return replace(self, trainable=self.trainable.union(new))

    def with_ours(self, module: nn.Module) -> Flags:
        """Count changes since callbacks began as ours, so that `frozen_before_us` returns what it returned then."""
        if self.frozen_before_us is None:
            return self
        frozen = named_parameters(module).keys() - self.trainable
        ours = self.frozen_by_us | (frozen - self.frozen_before_us)
        return replace(self, frozen_by_us=ours - (self.frozen_before_us & self.trainable))

    def restore(self, module: nn.Module) -> None:
        """Set the flags of a network to these."""
        for name, tensor in named_parameters(module).items():
            _set_trainable(tensor, name in self.trainable)
        setattr(bare(module), _FROZEN_BY_US, self.frozen_by_us)
        if self.frozen_before_us is not None:
            setattr(bare(module), _FROZEN_BEFORE_US, self.frozen_before_us)

    def restore_by_hand(self, module: nn.Module) -> None:
        """Set the flags of the parameters that `freeze` has frozen, or not, as it had then."""
        decided = self.frozen_by_us ^ frozen_by_us(module)
        for name, tensor in named_parameters(module).items():
            if name not in decided:
                _set_trainable(tensor, name in self.trainable)


def _differs(key: int, one: Set[int], other: Set[int]) -> bool:
    return (key in one) is not (key in other)


def _set_trainable(tensor: nn.Parameter, trainable: bool) -> bool:
    if not trainable:
        tensor.grad = None
    if tensor.requires_grad == trainable or (trainable and not can_train(tensor)):
        return False
    tensor.requires_grad = trainable
    return True


def has_parameters(module: nn.Module) -> bool:
    """Whether there is anything in a module that can be frozen."""
    return next(module.parameters(), None) is not None
