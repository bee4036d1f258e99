"""Learning rates of single parameters, as factors on the rates of the param groups of a net."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch.optim import Optimizer

from mlr3torch_py.freezing.rate_factors import RateFactors, sample
from mlr3torch_py.names import listed
from mlr3torch_py.schedule.rates import Factor

__all__ = ["Rates"]


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
        self._proven: dict[int, float] = {}
        self._unproven: set[int] = set()
        self._watched: list[_Watched] = []
        self._has_stepped = False

    @property
    def are_watched(self) -> bool:
        """Whether there are factors on trainable tensors of which no step is known to use them."""
        return bool(self._watched)

    @property
    def in_use(self) -> set[str]:
        """The names under which the rates of trainable parameters are recorded; empty if none is scaled."""
        return {name for factors in self._scaled.values() for name in factors.in_use()}

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
        if named.keys() != self._scaled.keys():
            self._proven.clear()
        self.remove()
        self._factor_of, self._column = factor_of, column
        for key, (name, optimizer) in named.items():
            self._scaled[key] = RateFactors(
                optimizer, factor_of, self._used, name, batch=self._batch, column=column, proven=self._proven
            )
        held = {key for _, optimizer in named.values() for key in _held_by(optimizer)}
        scaled = {key for key, factor in factor_of.items() if factor.at(self._batch()) != 1}
        self._unproven = (scaled & held if named else scaled) - self._proven.keys()

    def watch(self, tensors: Iterable[torch.Tensor]) -> None:
        """Watch, in the next batch, for updates of scaled tensors that no step is known to scale.

        Parameters
        ----------
        tensors : iterable of torch.Tensor
            Those that the next update may move.
        """
        self._unwatch()
        self._has_stepped = False
        self._unproven -= self._proven.keys()
        if self._unproven:
            self._watched = [_Watched(tensor) for tensor in tensors if id(tensor) in self._unproven]

    def check(self, main: object) -> None:
        """Check that no watched tensor was updated without its factor, after the update and before anything else.

        Parameters
        ----------
        main : object
            The main optimizer of the net, for the message; it may be none of torch.

        Raises
        ------
        ValueError
            If one was.
        """
        watched = self._unwatch()
        if not watched or any(factors.is_in_use for factors in self._scaled.values()):
            return
        if moved := {id(one.tensor) for one in watched if id(one.tensor) not in self._proven and one.has_moved}:
            optimizers = [factors.optimizer for factors in self._scaled.values()]
            kinds = {type(one).__name__ for one in optimizers if not moved.isdisjoint(_held_by(one))}
            kinds = kinds or {type(main).__name__}
            raise ValueError(
                f"`unfreeze` has a column `{self._column}`, which has no effect: {listed(sorted(kinds))} updates the "
                "weights otherwise than by the step() of a torch.optim.Optimizer; leave the column out, give the rates "
                "by groups of the optimizer, or use an optimizer that updates in step()"
            )
        if self._has_stepped:  # what gets no gradient is not updated
            self._unproven.difference_update(id(one.tensor) for one in watched if not one.has_gradient)

    def remove(self) -> None:
        """Restore the optimizers."""
        self._unwatch()
        for factors in self._scaled.values():
            factors.remove()
        self._factor_of, self._scaled, self._unproven = {}, {}, set()

    def _unwatch(self) -> list[_Watched]:
        watched, self._watched = self._watched, []
        for one in watched:
            one.end()
        return watched

    def _used(self, name: str, rate: float) -> None:
        self._has_stepped = True
        self._record(name, rate)


class _Watched:
    """A tensor whose values are recorded when its gradient has been computed, until it ends."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self._before: torch.Tensor | None = None
        self._hook = tensor.register_hook(self._gradient)  # type: ignore[no-untyped-call]

    @property
    def has_gradient(self) -> bool:
        return self._before is not None

    @property
    def has_moved(self) -> bool:
        return self._before is not None and not torch.equal(sample(self.tensor), self._before)

    def end(self) -> None:
        self._hook.remove()

    def _gradient(self, gradient: torch.Tensor) -> None:
        self._before = sample(self.tensor)


def _held_by(optimizer: Optimizer) -> Iterator[int]:
    return (id(tensor) for group in optimizer.param_groups for tensor in group["params"])
