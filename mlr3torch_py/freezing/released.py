"""Released: what was trainable before a step, to find out whether the step has frozen it again."""

from __future__ import annotations

from collections.abc import Mapping, Set

from torch import nn

__all__ = ["Released"]


class Released:
    """The parameters that were released at the last event and have had no gradient since, until the epoch ends.

    Examples
    --------
    >>> linear, released = nn.Linear(2, 1), Released()
    >>> released.watch(1, dict(linear.named_parameters()), held=set())
    >>> linear.weight.requires_grad = False
    >>> released.see_gradients()
    >>> released.frozen_again(), released.frozen_again()
    (['weight'], [])
    """

    def __init__(self) -> None:
        self._event: int | None = None
        self._tensors: dict[str, nn.Parameter] = {}

    def watch(self, event: int, tensors: Mapping[str, nn.Parameter], held: Set[str]) -> None:
        """Remember what is trainable before a step, unless that was done since the last event.

        Parameters
        ----------
        event : int
            The number of the last event.
        tensors : mapping of str to torch.nn.Parameter
            Those that callbacks govern.
        held : set of str
            The names that are frozen.
        """
        if event != self._event:
            self._event = event
            self._tensors = {name: one for name, one in tensors.items() if name not in held and one.requires_grad}

    def see_gradients(self) -> None:
        """Forget what has a gradient, after an update: others may freeze it in turns, as those who train GANs do."""
        if self._tensors:
            self._tensors = {name: one for name, one in self._tensors.items() if one.grad is None}

    def frozen_again(self) -> list[str]:
        """Forget what is watched, and return what of it is frozen."""
        watched, self._tensors = self._tensors, {}
        return [name for name, one in watched.items() if not one.requires_grad]
