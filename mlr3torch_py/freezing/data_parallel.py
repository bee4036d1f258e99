"""Data-parallel training: DistributedDataParallel reduces the gradients of what trains, also after that has changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mlr3torch_py.protocols import AcceleratedNet, Net

__all__ = ["check_wrappers", "reduce_what_trains"]

_FSDP: Final = frozenset({"FullyShardedDataParallel", "FSDPModule"})

# What the reducer of a wrapper was made for, kept on the wrapper itself, since another one knows nothing of it.
_REDUCED: Final = "_reduced_by_mlr3torch_py"


def check_wrappers(net: Net) -> None:
    """Check that what trains may change under the wrappers of a net.

    Raises
    ------
    ValueError
        If a part of the net is sharded, or wrapped with an argument that takes what trains for granted.
    """
    if not _is_distributed():  # none of these wrappers is made without
        return
    for name, module in _modules(net):
        if any(parent.__name__ in _FSDP and parent.__module__.startswith("torch.") for parent in type(module).__mro__):
            raise ValueError(
                f"`{name}_` is sharded by FSDP, which takes what trains for granted when it shards; "
                "use DistributedDataParallel, which follows the schedule"
            )
        if isinstance(module, DistributedDataParallel) and (rigid := _rigid(module)):
            raise ValueError(
                f"`{name}_` is wrapped in DistributedDataParallel with {rigid}, which takes for granted that what "
                "trains never changes; leave that out"
            )


def reduce_what_trains(net: Net) -> None:
    """Let every DistributedDataParallel of a net reduce the gradients of what trains now, and of nothing else.

    A wrapper looks at the flags once, when it wraps: what is unfrozen later is never reduced, and for what is frozen
    later it waits. So its reducer is made anew for the flags of now, in place and without communication: the wrapper
    stays the one that the net, the optimizer and an accelerator know. Where nothing trains there is nothing to reduce.

    skorch's AccelerateMixin leaves the net unwrapped when a training ends, and does not wrap it again for the next one
    without ``initialize()``; that is made up for.
    """
    if not _is_distributed():
        return
    if hasattr(net, "_initialize_accelerator"):
        _wrap_by_accelerator(cast(AcceleratedNet, net))
    for wrapper in _wrappers(net):
        flags = [tensor.requires_grad for tensor in wrapper.parameters()]
        if any(flags) and flags != getattr(wrapper, _REDUCED, None):
            _make_reducer(wrapper)
            setattr(wrapper, _REDUCED, flags)


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _modules(net: Net) -> Iterator[tuple[str, nn.Module]]:
    for name in (*net._modules, *net._criteria):
        part = getattr(net, f"{name}_")
        if isinstance(part, nn.Module):
            yield from ((name, module) for module in part.modules())


def _wrappers(net: Net) -> list[Any]:
    return [module for _, module in _modules(net) if isinstance(module, DistributedDataParallel)]


def _rigid(wrapper: Any) -> str | None:
    """Name the argument of a wrapper that rests on what trains."""
    arguments = {
        "static_graph": wrapper.static_graph,
        "delay_all_reduce_named_params": wrapper._delay_all_reduce_params,
        "mixed_precision": wrapper.mixed_precision,
        "a PowerSGD hook": any(
            type(state).__name__ == "PowerSGDState" for _, state in getattr(wrapper, "_comm_hooks", ())
        ),
    }
    return next((name for name, value in arguments.items() if value), None)


def _wrap_by_accelerator(net: AcceleratedNet) -> None:
    is_wrapped = any(isinstance(module, DistributedDataParallel) for module in net.module_.modules())
    trains = any(tensor.requires_grad for tensor in net.module_.parameters())
    if net.accelerator.num_processes > 1 and trains and not is_wrapped:
        net._wrapped_with_accelerator = False  # stays True after a training that raised
        net._initialize_accelerator()


def _make_reducer(wrapper: Any) -> None:
    """Do what the wrapper itself does when it is unpickled, but within its own process group."""
    hooks, wrapper._comm_hooks = wrapper._comm_hooks, []
    parameters, is_sparse = wrapper._build_params_for_reducer()
    names = wrapper._build_debug_param_to_name_mapping(parameters)
    wrapper._ddp_init_helper(parameters, is_sparse, names, wrapper.static_graph)
    for hook, state in hooks:
        wrapper.register_comm_hook(state, hook)
