"""Data-parallel training: reducers of DistributedDataParallel that follow the set of trainable parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mlr3torch_py.network.internals import check_internals
from mlr3torch_py.protocols import AcceleratedNet, Net
from mlr3torch_py.training.processes import sharded_part

__all__ = ["check_wrappers", "reduce_what_trains"]

# The tensors that a reducer was built for, kept on the wrapper itself, since each wrapper has its own.
_REDUCED: Final = "_reduced_by_mlr3torch_py"


def check_wrappers(net: Net) -> None:
    """Check that the wrappers of a net allow freezing and unfreezing.

    Raises
    ------
    ValueError
        If a part of the net is sharded, or its wrapper assumes that the set of trainable parameters never changes.
    """
    if not _is_distributed():  # these wrappers exist only then
        return
    if (sharded := sharded_part(net)) is not None:
        raise ValueError(
            f"`{sharded}_` is sharded by FSDP, which assumes that the set of trainable parameters never changes; "
            "use DistributedDataParallel, which follows the schedule"
        )
    for name, module in _modules(net):
        if isinstance(module, DistributedDataParallel):
            check_internals("torch.nn.parallel.DistributedDataParallel", module)
        if isinstance(module, DistributedDataParallel) and (rigid := _rigid(module)):
            raise ValueError(
                f"`{name}_` is wrapped in DistributedDataParallel with {rigid}, which assumes that the set of "
                "trainable parameters never changes; leave that out"
            )


def reduce_what_trains(net: Net) -> None:
    """Rebuild the reducers of a net for the tensors that are trainable now.

    DistributedDataParallel reads ``requires_grad`` once, at wrapping: parameters unfrozen later are never reduced, and
    it hangs waiting for those frozen later. So its reducer is rebuilt in place and without communication; the wrapper
    stays the one that the net, the optimizer and an accelerator know. Without trainable parameters there is nothing to
    reduce.

    skorch's AccelerateMixin leaves the net unwrapped after training, and without ``initialize()`` does not wrap it
    again for the next one; we re-wrap it here.
    """
    if not _is_distributed():
        return
    if hasattr(net, "accelerator"):
        check_internals("skorch.hf.AccelerateMixin", net)
        _wrap_by_accelerator(cast(AcceleratedNet, net))
    for wrapper in _wrappers(net):
        trainable = [tensor for tensor in wrapper.parameters() if tensor.requires_grad]
        if trainable and list(map(id, trainable)) != list(map(id, getattr(wrapper, _REDUCED, ()))):
            _make_reducer(wrapper)
            setattr(wrapper, _REDUCED, trainable)


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
    """Name the argument that makes a wrapper assume a fixed set of trainable parameters."""
    arguments = {
        "static_graph": wrapper.static_graph,
        "delay_all_reduce_named_params": wrapper._delay_all_reduce_params,
        "mixed_precision": wrapper.mixed_precision,
        "a PowerSGD hook": any(type(state).__name__ == "PowerSGDState" for _, state in wrapper._comm_hooks),
    }
    return next((name for name, value in arguments.items() if value), None)


def _wrap_by_accelerator(net: AcceleratedNet) -> None:
    modules = [getattr(net, f"{name}_") for name in net._modules]
    is_wrapped = any(isinstance(part, DistributedDataParallel) for module in modules for part in module.modules())
    trains = any(tensor.requires_grad for module in modules for tensor in module.parameters())
    if net.accelerator.num_processes > 1 and trains and not is_wrapped:
        net._wrapped_with_accelerator = False  # stays True after a training that raised
        net._initialize_accelerator()


def _make_reducer(wrapper: Any) -> None:
    """Build the reducer as the wrapper itself does on unpickling, but within its own process group."""
    hooks, wrapper._comm_hooks = wrapper._comm_hooks, []
    parameters, is_sparse = wrapper._build_params_for_reducer()
    names = wrapper._build_debug_param_to_name_mapping(parameters)
    wrapper._ddp_init_helper(parameters, is_sparse, names, wrapper.static_graph)
    for hook, state in hooks:
        wrapper.register_comm_hook(state, hook)
