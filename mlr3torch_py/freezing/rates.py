"""Learning rates of single parameters: factors on the rate of the optimizer's own groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from torch.optim import LBFGS, Optimizer

__all__ = ["RateFactors"]

# The key under which a part keeps its name and the group that it is of.
_PART: Final = "_part_by_mlr3torch_py"
_NOT_SHARED: Final = ("params", "param_names", "lr", _PART)


class RateFactors:
    """Factors on the learning rates of single parameters of an optimizer.

    While the optimizer moves the weights, and only then, each of its groups stands apart in one group for each factor,
    with the rate times the factor. So at all other times everybody sees the user's own groups and rates: schedulers of
    any kind, ``set_params(lr=...)``, and whatever saves and loads the optimizer. Its state belongs to the parameters
    and stays.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    factor_of : mapping of int to float
        The factors by the ``id`` of the parameter; 1 where it lacks one.
    record : callable
        Takes, after every step, the name of each group and its rate. The names are ``lr_0``, ``lr_1`` and so on for the
        user's groups, and ``lr_0_x0.1`` for the part of the first one that has the factor 0.1.
    name : str
        What the names of the groups begin with.

    Raises
    ------
    ValueError
        If the optimizer is LBFGS, which knows one group only.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    >>> rates = {}
    >>> factors = RateFactors(optimizer, {id(layer.bias): 0.1}, rates.__setitem__)
    >>> layer(torch.ones(2)).backward()
    >>> before = layer.bias.item()
    >>> optimizer.step()
    >>> round(before - layer.bias.item(), 6), rates, len(optimizer.param_groups)
    (0.1, {'lr_0': 1.0, 'lr_0_x0.1': 0.1}, 1)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor_of: Mapping[int, float],
        record: Callable[[str, float], None],
        name: str = "lr",
    ) -> None:
        if isinstance(optimizer, LBFGS):
            raise ValueError(
                "`unfreeze` has a column `lr_mult`, but LBFGS has one learning rate for all; leave the column out, or "
                "use another optimizer"
            )
        self.optimizer = optimizer
        self.factor_of = factor_of
        self.record = record
        self.name = name
        self._own: list[dict[str, Any]] = []
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def remove(self) -> None:
        """Give the optimizer back as it was."""
        self._restore()
        for hook in self._hooks:
            hook.remove()

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        self._restore()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._split()
            return None
        # The closure is the forward and backward pass, in which callbacks may look at the groups.
        rest = {key: value for key, value in kwargs.items() if key != "closure"}
        return (optimizer, self._splitting_after(closure), *args[2:]), rest

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        rates = {part[_PART][0]: float(part["lr"]) for part in optimizer.param_groups if self._own}
        self._restore()
        for name, rate in rates.items():
            self.record(name, rate)

    def _splitting_after(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def computed() -> Any:
            self._restore()
            loss = closure()
            self._split()
            return loss

        return computed

    def _split(self) -> None:
        if self._own:  # by the step of a parent class, within this one
            return
        self._own = list(self.optimizer.param_groups)
        parts = [part for i, group in enumerate(self._own) for part in self._parts(i, group)]
        self.optimizer.param_groups[:] = parts

    def _restore(self) -> None:
        if self._own:
            for part in self.optimizer.param_groups:
                # Some optimizers keep a count in their groups.
                _, group = part[_PART]
                group.update({key: value for key, value in part.items() if key not in _NOT_SHARED})
            self.optimizer.param_groups[:] = self._own
            self._own = []

    def _parts(self, i: int, group: dict[str, Any]) -> list[dict[str, Any]]:
        members: dict[float, list[Any]] = {}
        for tensor in group["params"]:
            members.setdefault(self.factor_of.get(id(tensor), 1.0), []).append(tensor)
        return [
            {
                **group,
                "params": tensors,
                "lr": group["lr"] * factor,
                _PART: (f"{self.name}_{i}" + ("" if factor == 1 else f"_x{factor:g}"), group),
            }
            for factor, tensors in members.items()
        ]
