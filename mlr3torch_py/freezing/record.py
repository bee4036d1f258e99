"""Record: what an engine says, in the log and to its host, about what is trainable when."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any, cast

from torch import nn

from mlr3torch_py.freezing.roles import Host
from mlr3torch_py.names import listed
from mlr3torch_py.network.unwrap import tied_names
from mlr3torch_py.patterns import summarized
from mlr3torch_py.schedule.plan import Held
from mlr3torch_py.training.trained import EVENT, TRAINABLE, change, packed, unpacked

__all__ = ["Record"]

logger: logging.Logger = logging.getLogger("mlr3torch_py")


class Record:
    """The log of one engine, and what the host keeps of it.

    Parameters
    ----------
    host : Host
    prefix : str
        What entries of the log begin with.
    """

    def __init__(self, host: Host, prefix: str) -> None:
        self._host = host
        self._prefix = prefix
        self._changes: list[str] = []  # of the epoch
        self._last: tuple[list[str], list[bool]] | None = None

    def changed(self, when: str, before: Held, held: Held, replaced: Held, tensors: Mapping[str, nn.Parameter]) -> None:
        """Log a change, and record it in the epoch.

        Parameters
        ----------
        when : str
        before, held : set of str
            The frozen names before and after.
        replaced : set of str
            The names whose tensors were replaced.
        tensors : mapping of str to torch.nn.Parameter
            All parameters of the network.
        """
        unfrozen, frozen = before - held, held - before
        if logger.isEnabledFor(logging.INFO):
            self._log("unfreezing at", when, unfrozen, tensors)
            self._log("freezing at", when, frozen, tensors)
            self._log("freezing what was replaced at", when, replaced & before & held, tensors)
        so_far = self._host.recorded(EVENT)
        if not so_far or not self._changes:
            self._changes = [so_far] if so_far else []
        has_changed = bool(unfrozen or frozen)
        if has_changed and (text := _told(unfrozen, frozen, tensors)):
            self._changes.append(f"{text} at {when}" if when.startswith("batch") else text)
        self._host.record("event_unfreeze", has_changed or bool(self._host.recorded("event_unfreeze")))
        self._host.record(EVENT, listed(self._changes, most=3) or None)

    def batch(self, n_finished: int, tensors: Mapping[str, nn.Parameter]) -> None:
        """Record what is trainable before a batch, if that is other than before.

        Parameters
        ----------
        n_finished : int
            The training batches of the epoch before it.
        tensors : mapping of str to torch.nn.Parameter
            All parameters of the network.
        """
        names, trainable = list(tensors), [tensor.requires_grad for tensor in tensors.values()]
        if (names, trainable) == self._last:
            return
        are_known = self._last is not None and self._last[0] == names
        entry = packed(trainable, n_finished, None if are_known else names)
        if not are_known and entry["names"] == self._host.last_recorded(TRAINABLE, "names"):
            del entry["names"]
        if "names" in entry or entry["trainable"] != self._host.last_recorded(TRAINABLE, "trainable"):
            self._host.record(TRAINABLE, [*(self._host.recorded(TRAINABLE) or ()), entry])
        self._last = names, trainable

    def correct(self, tensors: Mapping[str, nn.Parameter]) -> None:
        """Record that in the last batch was trainable what is so now, since the step itself has frozen something.

        Parameters
        ----------
        tensors : mapping of str to torch.nn.Parameter
            All parameters of the network.
        """
        trainable = [tensor.requires_grad for tensor in tensors.values()]
        if entries := self._host.recorded(TRAINABLE):
            *others, last = entries
            self._host.record(TRAINABLE, [*others, last | {"trainable": packed(trainable, 0)["trainable"]}])
            self._last = list(tensors), trainable

    def trained_last(self, names: Collection[str]) -> frozenset[str] | None:
        """Return what was trainable in the last batch; None if that was not recorded, or of other parameters."""
        written, trainable = (self._host.last_recorded(TRAINABLE, part) for part in ("names", "trainable"))
        known = unpacked(cast(Any, written), cast(Any, trainable)) if written and trainable is not None else None
        return known[1] if known is not None and set(known[0]) == set(names) else None

    def _log(self, doing: str, when: str, names: Held, tensors: Mapping[str, nn.Parameter]) -> None:
        if names:
            logger.info("%s%s %s: %s", self._prefix, doing, when, summarized(names, tensors, most=10))


def _told(unfrozen: Held, frozen: Held, tensors: Mapping[str, nn.Parameter]) -> str:
    """Describe a change of what the network still has, with one name for each tensor."""
    further = {name for names in tied_names(tensors) for name in names[1:]}
    known = [name for name in tensors if name not in further] if further else list(tensors)
    here = tensors.keys() - further
    return change(unfrozen & here, frozen & here, known)
