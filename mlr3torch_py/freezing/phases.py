"""Phases, from one row that changes something to the next, and their best epochs."""

from __future__ import annotations

from mlr3torch_py.protocols import Net
from mlr3torch_py.schedule.plan import Plan
from mlr3torch_py.schedule.plateau import Plateau, Stagnation
from mlr3torch_py.schedule.steps import Moment
from mlr3torch_py.schedule.table import Unit
from mlr3torch_py.training.clock import scores_by_epoch
from mlr3torch_py.training.processes import from_main_process
from mlr3torch_py.training.scoring import lower_is_better

__all__ = ["best_of_ended", "best_since"]


def best_since(net: Net, rule: Plateau, epoch: int) -> Stagnation:
    """Return the best epoch since another one, by its score.

    Parameters
    ----------
    net : skorch.NeuralNet
    rule : Plateau
        It has the name of the score, and its direction if that is given.
    epoch : int
        The first epoch that counts.
    """
    rule = rule.directed(lower_is_better(net, rule.monitor))
    scores = scores_by_epoch(net.history, rule.monitor)
    return from_main_process(rule.stagnation((at, score) for at, score in scores if at >= epoch))


def best_of_ended(net: Net, rule: Plateau, plan: Plan, moment: Moment, unit: Unit) -> Stagnation | None:
    """Return the best epoch of the phase that the rows of a moment end.

    Parameters
    ----------
    net : skorch.NeuralNet
    rule : Plateau
    plan : Plan
    moment : Moment
        When rows of `unit` take effect: the beginning of an epoch, or a batch that begins.
    unit : {"epoch", "batch"}

    Returns
    -------
    Stagnation or None
        None if no batch has been trained since.
    """
    before = plan.changed_last(moment, but=unit)
    best = best_since(net, rule, before)
    next_batch = moment.batch + (unit == "epoch")
    if best.best_epoch is not None and moment.first_batch(best.best_epoch + 1) == next_batch:
        return None
    return best
