"""Which modules are pinned in eval mode, and whether they stay in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from mlr3torch_py.freezing.roles import Holder
from mlr3torch_py.names import listed
from mlr3torch_py.network.evaluation import frozen_modules, overruled_pins, traced_in_training
from mlr3torch_py.network.normalisation import is_normalisation
from mlr3torch_py.schedule.plan import Held

__all__ = ["check_pins", "modules_to_pin"]


def modules_to_pin(network: nn.Module, held_by: Iterable[tuple[Holder, Held]]) -> Iterator[nn.Module]:
    """Yield the modules to be pinned in eval mode, given what each holder holds frozen."""
    for holder, held in held_by:
        if "eval" in holder.modes:
            for module in frozen_modules(network, held).values():
                if holder.modes[not is_normalisation(module)] == "eval":
                    yield module


def check_pins(network: nn.Module) -> None:
    """Check that the modules of a network that are pinned stay in eval mode.

    Raises
    ------
    ValueError
        If a ``train`` method overrules a pin, or a traced module is in training mode whatever its pin says.
    """
    if overruled := overruled_pins(network):
        raise ValueError(
            f"{listed(map(repr, overruled))} cannot be kept in eval mode, since the `train` method of a module around "
            "sets `training` of modules below it directly; let it call their `train`, or freeze with "
            "frozen_mode='train'"
        )
    if traced := traced_in_training(network):
        raise ValueError(
            f"{listed(map(repr, traced))} cannot be kept in eval mode, since torch.jit.trace has fixed the training "
            "mode of its normalisation; trace it in eval mode, use torch.jit.script, or freeze with frozen_mode='train'"
        )
