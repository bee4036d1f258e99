"""The compilations that a schedule needs under torch.compile: one per set of trainable weights and mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn

from mlr3torch_py.names import listed
from mlr3torch_py.network.compiled import is_compiled
from mlr3torch_py.network.internals import internal
from mlr3torch_py.network.unwrap import all_modules, modules_of
from mlr3torch_py.protocols import Net
from mlr3torch_py.schedule.plan import Plan
from mlr3torch_py.schedule.timeline import UNKNOWN_LENGTH, timeline
from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.training.clock import moment_of
from mlr3torch_py.warn import warn

__all__ = ["warn_of_recompilation"]

# Before it, torch compiled a network for the parameters that were trainable at first, and never again.
_FIRST_TO_FOLLOW: Final = "2.12"


def warn_of_recompilation(
    net: Net, plans_of: Mapping[str, Sequence[Plan]], module: str, dataset_train: Any, dataset_valid: Any
) -> None:
    """Warn if a schedule needs more compilations than torch allows; raise if torch does not follow schedules.

    Beyond its limit torch runs the network uncompiled. Training and validation count for each set of trainable weights,
    and a last batch that is shorter counts once. Torch counts together what runs the same ``forward``: the modules of a
    class, and all those whose ``forward`` is torch's own, such as ``nn.Sequential`` and the criterion.

    Parameters
    ----------
    net : skorch.NeuralNet
    plans_of : mapping of str to sequence of Plan
        For each governed module of the net.
    module : str
        The one whose callbacks ask.
    dataset_train, dataset_valid : torch.utils.data.Dataset
    """
    modules = modules_of(net)
    network = getattr(net, f"{module}_")
    if not any(map(is_compiled, all_modules(network))):
        return
    limit = internal("torch._dynamo", "config").recompile_limit
    loaders = [
        net.get_iterator(dataset, training=dataset is dataset_train)
        for dataset in (dataset_train, dataset_valid)
        if dataset is not None
    ]
    counts = {name: _n_patterns(net, plans_of.get(name, ()), _length(loaders[0])) for name in modules}
    counts |= {"criterion": counts.get("criterion", 1)}
    alike = [name for name in counts if _forward(modules.get(name)) == _forward(modules[module])]
    governed = [name for name in plans_of if name in alike]
    patterns = sum(counts[name] for name in governed)
    if counts[module] > 1 and torch.__version__ < _FIRST_TO_FOLLOW:
        raise ValueError(
            f"torch {torch.__version__} never trains what is unfrozen after it has compiled the network; install torch "
            f"{_FIRST_TO_FOLLOW} or later, or leave out compile=True"
        )
    n_short = int(any(_has_short_batch(loader) for loader in loaders)) * len(alike)
    needed = len(loaders) * sum(counts[name] for name in alike) + n_short
    if needed > limit and governed[0] == module:  # one warning for all of them
        modes = ["training", "validation", "a short last batch"]
        modes = [mode for mode, there in zip(modes, (True, len(loaders) > 1, n_short), strict=True) if there]
        warn(
            f"torch.compile: {patterns} sets of trainable weights in {listed(modes)} need {needed} compilations, "
            f"but torch stops compiling after {limit}; set torch._dynamo.config.recompile_limit = {needed}, "
            "or unfreeze in fewer steps"
        )


def _forward(network: nn.Module | None) -> object:
    """Return what modules have in common that torch counts together."""
    forward = None if network is None else type(network).forward
    return "torch" if forward is None or forward.__module__.startswith("torch.") else forward


def _n_patterns(net: Net, plans: Sequence[Plan], per_epoch: int) -> int:
    now, ctx = moment_of(net.history), next(cb.ctx for _, cb in net.callbacks_ if isinstance(cb, CallbackSet))
    last_epoch = now.epoch + net.max_epochs - 1 if ctx is None else ctx.total_epochs
    stretches = timeline(plans, per_epoch, since=now, last_epoch=last_epoch)
    return len({stretch.held for stretch in stretches}) + sum(len(plan.conditions) for plan in plans)


def _length(loader: Any) -> int:
    try:
        return max(1, len(loader))
    except TypeError:
        return UNKNOWN_LENGTH


def _has_short_batch(loader: Any) -> bool:
    try:
        n_rows, size = len(loader.dataset), loader.batch_size
    except (AttributeError, TypeError):
        return False
    return bool(size and n_rows % size and not loader.drop_last)
