"""Learning rates of single parameters, as factors on the rates of the own groups of all optimizers of a net."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Final

import torch
from torch.optim import Optimizer

from mlr3torch_py.freezing.rate_factors import RateFactors
from mlr3torch_py.names import listed
from mlr3torch_py.schedule.rates import Factor

__all__ = ["Rates"]

# How many values of a tensor are compared to see whether it has been updated.
_SAMPLE: Final = 256


class Rates:
    """The factors on the learning rates of all optimizers of a net.

    Parameters
    ----------
    record : callable
        Takes, after every step, the name of each group and its rate.
    batch : callable
        Returns the current training batch.
    """

    def __init__(self, record: Callable[[str, float], None], batch: Callable[[], int]) -> None:
        self._record = record
        self._batch = batch
        self._column = "lr_mult"
        self._factor_of: Mapping[int, Factor] = {}
        self._scaled: dict[int, RateFactors] = {}
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._unproven: set[int] = set()

    @property
    def are_unproven(self) -> bool:
        """Whether there are factors that no step of their optimizer has used yet."""
        return bool(self._unproven)

    def scale(
        self, factor_of: Mapping[int, Factor], optimizers: Iterable[tuple[str, Optimizer]], column: str = "lr_mult"
    ) -> None:
        """Scale the rates of optimizers, in place of the last call.

        Parameters
        ----------
        factor_of : mapping of int to Factor
            The factors by the ``id`` of the parameter.
        optimizers : iterable of (str, torch.optim.Optimizer)
            With the names under which rates are recorded.
        column : str
            The column of the table that the factors are from, for messages.

        Raises
        ------
        ValueError
            If one of them is LBFGS.
        """
        if not factor_of and not self._scaled:
            return
        named = {id(optimizer): (name, optimizer) for name, optimizer in optimizers} if factor_of else {}
        if factor_of == self._factor_of and named.keys() == self._scaled.keys():
            return
        self.remove()
        self._factor_of, self._column = factor_of, column
        self._unproven = {key for key, factor in factor_of.items() if factor.at(self._batch()) != 1}
        for key, (name, optimizer) in named.items():
            used = partial(self._used, optimizer)
            self._scaled[key] = RateFactors(optimizer, factor_of, used, name, batch=self._batch, column=column)
        if named:
            self._unproven &= {key for _, optimizer in named.values() for key in _held_by(optimizer)}

    def watch(self, tensors: Iterable[torch.Tensor]) -> None:
        """Record values of scaled tensors until a step uses the factors.

        Parameters
        ----------
        tensors : iterable of torch.Tensor
            Those that the next update may move.
        """
        if self._unproven:
            self._before = [(tensor, _sample(tensor).clone()) for tensor in tensors if id(tensor) in self._unproven]

    def check(self, main: object) -> None:
        """Check that no watched tensor was updated without its factor.

        Parameters
        ----------
        main : object
            The main optimizer of the net, for the message; it may be none of torch.

        Raises
        ------
        ValueError
            If one was.
        """
        if not self._unproven or any(factors.is_in_use for factors in self._scaled.values()):
            return
        watched = [(tensor, before) for tensor, before in self._before if id(tensor) in self._unproven]
        if moved := {id(tensor) for tensor, before in watched if not torch.equal(_sample(tensor), before)}:
            optimizers = [factors.optimizer for factors in self._scaled.values()]
            kinds = {type(one).__name__ for one in optimizers if not moved.isdisjoint(_held_by(one))}
            kinds = kinds or {type(main).__name__}
            raise ValueError(
                f"`unfreeze` has a column `{self._column}`, which has no effect: {listed(sorted(kinds))} updates the "
                "weights otherwise than by the step() of a torch.optim.Optimizer; leave the column out, give the rates "
                "by groups of the optimizer, or use an optimizer that updates in step()"
            )

    def remove(self) -> None:
        """Restore the optimizers."""
        for factors in self._scaled.values():
            factors.remove()
        self._factor_of, self._scaled, self._before, self._unproven = {}, {}, [], set()

    def _used(self, optimizer: Optimizer, name: str, rate: float) -> None:
        if self._unproven:
            self._unproven.difference_update(_held_by(optimizer))
        self._record(name, rate)


def _held_by(optimizer: Optimizer) -> Iterator[int]:
    return (id(tensor) for group in optimizer.param_groups for tensor in group["params"])


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    values = tensor.detach().reshape(-1)
    return values[:: max(1, len(values) // _SAMPLE)]
