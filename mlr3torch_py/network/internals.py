"""Every private name of torch and skorch that this package uses, with what it is for.

Private names may change in any release. So they are listed here, looked up here, and their absence is an error that
names the release which lacks them. A test holds the list to what the code uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from torch import nn

if TYPE_CHECKING:  # so that type checkers see what these are
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import (
        TreeSpec,
        tree_flatten,
        tree_leaves,
        tree_map,
        tree_unflatten,
        treespec_dumps,
        treespec_loads,
    )

__all__ = [
    "INTERNALS",
    "TorchDispatchMode",
    "TreeSpec",
    "check_internals",
    "internal",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_unflatten",
    "treespec_dumps",
    "treespec_loads",
]

# By owner: a module, or a class whose instances have the names.
INTERNALS: Final[Mapping[str, Mapping[str, str]]] = {
    "torch.utils._pytree": dict.fromkeys(
        ("TreeSpec", "tree_flatten", "tree_leaves", "tree_map", "tree_unflatten", "treespec_dumps", "treespec_loads"),
        "find the tensors in nested arguments and outputs",
    ),
    "torch._C": {
        "DisableTorchFunctionSubclass": "read the metadata of a placeholder",
        "_set_throw_on_mutable_data_ptr": "keep C code from reading a placeholder",
        "_len_torch_dispatch_stack": "notice a mode that may change what operations give",
        "_len_torch_function_stack": "notice a mode that may change what functions give",
        "_get_function_stack_at": "tell such a mode from a default device",
    },
    "torch._dynamo.eval_frame": {
        "OptimizedModule": "see whether a network is compiled",
        "_callback_from_stance": "notice that a compiled function is called",
    },
    "torch._functorch.utils": {"unwrap_dead_wrappers": "notice that a function with a backward of its own is called"},
    "torch._C._functorch": {"peek_interpreter_stack": "notice a transform of torch.func"},
    "torch._functorch.pyfunctorch": {
        "temporarily_clear_interpreter_stack": "give a tensor its values outside of such a transform"
    },
    "torch._functorch.vmap": {"_vmap_increment_nesting": "notice that vmap is called"},
    "torch.utils._device": {"DeviceContext": "tell a mode that changes what functions give from a default device"},
    "torch.utils._python_dispatch": {
        "TorchDispatchMode": "notice which operations draw random numbers, and what memory tensors take",
        "_disable_current_modes": "look up an output as it was before a mode began",
    },
    "torch._dynamo": {"config": "know after how many compilations torch stops"},
    "torch._dynamo.eval_frame.OptimizedModule": {"_orig_mod": "see through a compiled network"},
    "torch.autograd.forward_ad": {"_current_level": "see whether a call is differentiated in forward mode"},
    "torch.nn.modules.batchnorm": {"_NormBase": "tell normalisation layers that keep statistics"},
    "torch.nn.modules.module": dict.fromkeys(
        (
            "_global_forward_hooks",
            "_global_forward_pre_hooks",
            "_global_backward_hooks",
            "_global_backward_pre_hooks",
        ),
        "notice hooks that would not run for a cached row",
    ),
    "torch.nn.Module": {
        "_parameters": "list parameters in places, quickly",
        "_buffers": "list buffers in places, quickly",
        "_non_persistent_buffers_set": "keep the buffers that a state dict leaves out",
        "_modules": "list children in places, quickly",
        "_forward_hooks": "notice hooks that would not run for a cached row",
        "_forward_pre_hooks": "notice hooks that would not run for a cached row",
        "_backward_pre_hooks": "notice hooks that must see real tensors",
        "_call_impl": "compute a call that is not answered from memory",
        "_compiled_call_impl": "answer a call from memory, and see whether a module is compiled",
    },
    "torch.Tensor": {
        "_version": "notice that a tensor was written into",
        "_backward_hooks": "notice hooks on gradients",
        "_make_wrapper_subclass": "make placeholders for outputs that are looked up later",
        "_values": "read sparse gradients",
    },
    "torch.UntypedStorage": {"_cdata": "see whether two tensors share memory"},
    "torch.nn.parallel.DistributedDataParallel": {
        "_build_params_for_reducer": "rebuild its reducer when the trainable parameters change",
        "_build_debug_param_to_name_mapping": "rebuild its reducer when the trainable parameters change",
        "_ddp_init_helper": "rebuild its reducer when the trainable parameters change",
        "_comm_hooks": "keep its communication hooks",
        "_delay_all_reduce_params": "refuse parameters that are reduced later",
    },
    "torch.distributed.fsdp.FullyShardedDataParallel": {"_fsdp_wrapped_module": "see through a sharded network"},
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.CheckpointWrapper": {
        "_checkpoint_wrapped_module": "see through activation checkpointing"
    },
    "torch.optim.lr_scheduler.LRScheduler": {"_step_count": "resume a scheduler without a warning of torch"},
    "skorch.NeuralNet": {
        "_modules": "find the modules of a net",
        "_criteria": "find the criteria of a net",
        "_optimizers": "find the optimizers of a net",
        "_uniquely_named_callbacks": "name the callbacks of a net before it is initialized",
        "_current_init_context": "initialize a part of a net",
    },
    "skorch.hf.AccelerateMixin": {
        "_initialize_accelerator": "wrap a net again that is trained on",
        "_wrapped_with_accelerator": "wrap a net again that is trained on",
    },
}


def internal(owner: str, name: str) -> Any:
    """Look up a private name in a module.

    Parameters
    ----------
    owner : str
        The module, as listed in `INTERNALS`.
    name : str

    Returns
    -------
    object

    Raises
    ------
    ImportError
        If this release lacks it.

    Examples
    --------
    >>> internal("torch.utils._pytree", "tree_leaves")([1, (2, 3)])
    [1, 2, 3]
    """
    purpose = INTERNALS[owner][name]
    try:
        return getattr(import_module(owner), name)
    except (AttributeError, ImportError) as error:
        raise ImportError(_absence(owner, name, purpose)) from error


def check_internals(owner: str, instance: object) -> None:
    """Check that an object has all the private names that it is listed with.

    Parameters
    ----------
    owner : str
        The module or class, as listed in `INTERNALS`.
    instance : object
        The module, or an instance of the class.

    Raises
    ------
    ImportError
        If this release lacks one.
    """
    for name, purpose in INTERNALS[owner].items():
        if not hasattr(instance, name):
            raise ImportError(_absence(owner, name, purpose))


def _absence(owner: str, name: str, purpose: str) -> str:
    package = owner.partition(".")[0]
    return (
        f"{package} {version(package)} lacks {owner}.{name}, which mlr3torch_py needs to {purpose}; "
        f"install another release of {package}, such as the one in constraints.txt"
    )


check_internals("torch.nn.Module", nn.Module())

if not TYPE_CHECKING:
    TorchDispatchMode = internal("torch.utils._python_dispatch", "TorchDispatchMode")
    TreeSpec = internal("torch.utils._pytree", "TreeSpec")
    tree_flatten = internal("torch.utils._pytree", "tree_flatten")
    tree_leaves = internal("torch.utils._pytree", "tree_leaves")
    tree_map = internal("torch.utils._pytree", "tree_map")
    tree_unflatten = internal("torch.utils._pytree", "tree_unflatten")
    treespec_dumps = internal("torch.utils._pytree", "treespec_dumps")
    treespec_loads = internal("torch.utils._pytree", "treespec_loads")
