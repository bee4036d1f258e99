"""The parameters of a network under their own names, and the only place that writes ``requires_grad``."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

__all__ = [
    "Flags",
    "all_modules",
    "bare",
    "freeze",
    "frozen_by_us",
    "n_trainable",
    "named_modules",
    "named_parameters",
    "network_of",
    "trainable_names",
]

# The attribute under which each wrapper keeps the module it wraps. The wrappers are known by name, so that none of
# them has to be imported: an instance exists only when its module has been imported already.
_WRAPPED_UNDER = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": "_fsdp_wrapped_module",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.CheckpointWrapper": "_checkpoint_wrapped_module",
}

# Plain module attributes survive pickle and deepcopy and stay out of the state dict.
_FROZEN_BY_US = "_frozen_by_mlr3torch_py"


@cache
def _wrapped_under(module_type: type) -> str | None:
    for parent in module_type.__mro__:
        attribute = _WRAPPED_UNDER.get(f"{parent.__module__}.{parent.__qualname__}")
        if attribute is not None:
            return attribute
    return None


def bare(module: nn.Module) -> nn.Module:
    """Return the module that data-parallel, compilation and checkpointing wrappers hold.

    Wrappers are recognised by their type, so a network with a child called ``module`` is left as it is.

    Parameters
    ----------
    module : torch.nn.Module
        A network, wrapped any number of times or not at all.

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


def network_of(module: Any) -> nn.Module:
    """Return the network of a net, or the network itself.

    Parameters
    ----------
    module : torch.nn.Module or skorch.NeuralNet

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    TypeError
        If `module` is neither, or a net that has not been initialized.
    """
    network = module if isinstance(module, nn.Module) else getattr(module, "module_", None)
    if not isinstance(network, nn.Module):
        raise TypeError(f"`module` is {module!r}; it must be a torch.nn.Module or a net after net.initialize()")
    return network


def named_modules(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield every module of a network with its path, wrappers left out; a shared module once for each of its paths.

    Parameters
    ----------
    module : torch.nn.Module
    path : str
        What goes before every path.

    Yields
    ------
    tuple of (str, torch.nn.Module)
        In the order of ``torch.nn.Module.named_modules``; the network itself comes first, with the path ``""``.

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
        A network; wrappers, at the top or inside, add nothing to the names.

    Returns
    -------
    dict of str to torch.nn.Parameter
        In the order of ``torch.nn.Module.named_parameters``. A tied tensor is there under each of its names.

    Examples
    --------
    >>> from torch import nn
    >>> list(named_parameters(nn.Sequential(nn.Linear(2, 1))))
    ['0.weight', '0.bias']
    """
    found: dict[str, nn.Parameter] = {}
    _collect(bare(module), "", found)
    return found


def _collect(module: nn.Module, prefix: str, found: dict[str, nn.Parameter]) -> None:
    for name, tensor in module._parameters.items():
        if tensor is not None:
            found[prefix + name] = tensor
    for name, child in module._modules.items():
        if child is not None:
            _collect(bare(child), f"{prefix}{name}.", found)


def all_modules(module: nn.Module) -> list[nn.Module]:
    """List every module of a network, wrappers included; a shared one once for each of its places.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    list of torch.nn.Module
        Without names it is some times faster than `named_modules` and ``torch.nn.Module.modules``.

    Examples
    --------
    >>> from torch import nn
    >>> all_modules(nn.Sequential(nn.ReLU()))
    [Sequential(
      (0): ReLU()
    ), ReLU()]
    """
    found = [module]
    for one in found:
        found += [child for child in one._modules.values() if child is not None]
    return found


def trainable_names(module: nn.Module) -> list[str]:
    """List the names of the parameters that require a gradient, in the order of the network.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    list of str

    Examples
    --------
    >>> from torch import nn
    >>> trainable_names(nn.Linear(2, 1))
    ['weight', 'bias']
    """
    return [name for name, tensor in named_parameters(module).items() if tensor.requires_grad]


def n_trainable(module: nn.Module) -> int:
    """Count the trainable weights, that is the elements of all tensors that require a gradient.

    Parameters
    ----------
    module : torch.nn.Module

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
    tensors = (tensor for one in all_modules(module) for tensor in one._parameters.values() if tensor is not None)
    trainable = {id(tensor): tensor for tensor in tensors if tensor.requires_grad}
    return sum(tensor.numel() for tensor in trainable.values() if not is_lazy(tensor))


def frozen_by_us(module: nn.Module) -> frozenset[str]:
    """Return what the last call of `freeze` holds frozen.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    frozenset of str
    """
    names: frozenset[str] = getattr(bare(module), _FROZEN_BY_US, frozenset())
    return names


def freeze(module: nn.Module, held: Set[str], *, governed: Set[str] = frozenset()) -> bool:
    """Freeze the parameters in `held`, and free those that the last call froze and this one does not.

    A tensor is frozen when all of its names are held, and then loses its gradient, since an optimizer goes on moving
    what has one. Flags that are neither governed nor held now or before are left as they are, so that what a user
    changed by hand stays. The names are remembered on the network, through pickle and deepcopy.

    Parameters
    ----------
    module : torch.nn.Module
    held : set of str
        Parameter names; names that the network does not have are passed over.
    governed : set of str
        Parameters whose flag is set whatever it was: frozen when held, trainable otherwise.

    Returns
    -------
    bool
        Whether a flag is another one than before.

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
    tensors = named_parameters(module)
    free = {id(tensor) for name, tensor in tensors.items() if name not in held}
    written = [tensors[name] for name in {*(held ^ before), *governed} if name in tensors]
    changed = sum(_set_trainable(tensor, id(tensor) in free) for tensor in written)
    setattr(module, _FROZEN_BY_US, frozenset(held))
    return changed > 0


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags of a network at one time, to go back to.

    Parameters
    ----------
    trainable : frozenset of str
        What required a gradient.
    frozen_by_us : frozenset of str
        What `freeze` had frozen.

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

    @classmethod
    def of(cls, module: nn.Module) -> Flags:
        """Take down the flags of a network."""
        return cls(frozenset(trainable_names(module)), frozen_by_us(module))

    def restore(self, module: nn.Module) -> None:
        """Set the flags of a network back to these."""
        for name, tensor in named_parameters(module).items():
            _set_trainable(tensor, name in self.trainable)
        setattr(bare(module), _FROZEN_BY_US, self.frozen_by_us)


def _set_trainable(tensor: nn.Parameter, trainable: bool) -> bool:
    if not trainable:
        tensor.grad = None
    elif not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    changes = tensor.requires_grad != trainable
    if changes:
        tensor.requires_grad = trainable
    return changes
