"""Phases, from one row that changes something to the next, and the weights of their best epochs."""

from __future__ import annotations

import logging

from mlr3torch_py.protocols import Net
from mlr3torch_py.schedule.plan import Plan
from mlr3torch_py.schedule.plateau import Plateau, Stagnation
from mlr3torch_py.schedule.steps import Moment
from mlr3torch_py.schedule.table import Unit
from mlr3torch_py.training.clock import moment_of
from mlr3torch_py.training.kept_weights import KeptWeights
from mlr3torch_py.training.processes import from_main_process
from mlr3torch_py.training.scoring import stagnation_of
from mlr3torch_py.warn import warn

__all__ = ["has_best_weights", "restore_best_weights"]

logger: logging.Logger = logging.getLogger("mlr3torch_py")


def has_best_weights(net: Net, rule: Plateau, plan: Plan) -> bool:
    """Whether the epoch that ends is the best one of its phase so far.

    Parameters
    ----------
    net : skorch.NeuralNet
    rule : Plateau
        It has the name of the score, and its direction if that is given.
    plan : Plan
    """
    return _best_since(net, rule, plan.changed_last(moment_of(net.history))).best_epoch == len(net.history)


def restore_best_weights(
    net: Net, rule: Plateau, plan: Plan, moment: Moment, unit: Unit, kept: KeptWeights | None
) -> bool:
    """Restore the weights of the best epoch of the phase that the rows of a moment end.

    Parameters
    ----------
    net : skorch.NeuralNet
    rule : Plateau
    plan : Plan
    moment : Moment
        When rows of `unit` take effect: the beginning of an epoch, or a batch that begins.
    unit : {"epoch", "batch"}
    kept : KeptWeights or None
        The weights that were kept.

    Returns
    -------
    bool
        Whether they were restored.

    Warns
    -----
    UserWarning
        If those of the best epoch were not kept.
    """
    best = _best_of_ended(net, rule, plan, moment, unit)
    if best is None or best.best_epoch is None:
        return False
    where = f"epoch {best.best_epoch} ({rule.monitor} {best.best_score:.6g})"
    if kept is None or not kept.is_of(net, best.best_epoch):
        warn(
            f"`restore_best_between`: the best of the phase that ends is {where}, whose weights were not kept, so "
            "none are restored; load the callback's state too, or a pickle of the net"
        )
        return False
    kept.restore(net)
    logger.info("`unfreeze`: restored the best weights of the phase that ends, those of %s", where)
    return True


def _best_since(net: Net, rule: Plateau, epoch: int) -> Stagnation:
    """Return the best epoch since another one, by its score."""
    return from_main_process(net, stagnation_of(net, rule, since=epoch))


def _best_of_ended(net: Net, rule: Plateau, plan: Plan, moment: Moment, unit: Unit) -> Stagnation | None:
    """Return the best epoch of the phase that ends; None if no batch has been trained since."""
    best = _best_since(net, rule, plan.changed_last(moment, but=unit))
    next_batch = moment.batch + (unit == "epoch")
    if best.best_epoch is not None and moment.first_batch(best.best_epoch + 1) == next_batch:
        return None
    return best
