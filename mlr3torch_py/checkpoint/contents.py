"""What a checkpoint consists of, and whether what was read can be one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Final, NamedTuple

import torch

from mlr3torch_py.checkpoint.loadable import without_numpy
from mlr3torch_py.checkpoint.portable import from_portable, to_portable

__all__ = ["GRADIENTS", "LARGE", "STATE_TENSORS", "Checkpoint", "check_part", "check_state", "check_types"]

STATE_TENSORS: Final = "callbacks"
GRADIENTS: Final = "gradients"
LARGE: Final = "rows"
# The keys of a state that say of which run, call and settings it is, and how to read its files.
OWNER: Final = frozenset({"run", "call", "settings", "described", "numpy"})


class Checkpoint(NamedTuple):
    """The state of a training at the end of an epoch.

    Parameters
    ----------
    epoch : int
    parts : mapping
        The state dicts of modules, criteria and optimizers by their names in the net, under ``gradients`` those that
        are pending, under ``callbacks`` the tensors of `state`, and under ``rows`` the large states of callbacks. As
        long as these stay the same, they are the same object.
    state : mapping
        Everything else, as JSON; under ``history`` its last row, as ``last``.
    rows : sequence
        Rows of the history before the last; the lines of a file until they are written.
    first : int
        The index of the first of `rows`.
    """

    epoch: int
    parts: Mapping[str, Mapping[str, Any]]
    state: Mapping[str, Any]
    rows: Sequence[Any] = ()
    first: int = 0

    @classmethod
    def of(
        cls,
        epoch: int,
        parts: Mapping[str, Mapping[str, Any]],
        state: Mapping[str, Any],
        rows: Sequence[Any] = (),
        first: int = 0,
    ) -> Checkpoint:
        """Make a checkpoint of state dicts and a state.

        Parameters
        ----------
        epoch : int
        parts : mapping
            State dicts by name; empty ones are left out. What is of numpy in them is listed in the state.
        state : mapping
            Anything that `to_portable` can write; under ``history`` the last row.
        rows : sequence of bytes
        first : int

        Raises
        ------
        TypeError
            If something in `state` fits neither into JSON nor into tensors.
        """
        tensors: dict[str, torch.Tensor] = {}
        written = {key: to_portable(value, key, tensors) for key, value in state.items() if key != "history"}
        if "history" in state:
            written["history"] = {"last": to_portable(state["history"], f"history.{epoch - 1}", tensors)}
        kept = {name: part for name, part in {**parts, STATE_TENSORS: tensors}.items() if part}
        plain = {name: without_numpy(part) for name, part in kept.items() if name != LARGE}
        kept |= {name: part for name, (part, _) in plain.items()}
        if of_numpy := {name: found for name, (_, found) in plain.items() if found}:
            written["numpy"] = of_numpy
        return cls(epoch, kept, written, rows, first)

    def copied(self) -> Checkpoint:
        """Return a copy that does not change when the net does; large states never change."""
        large = self.parts.get(LARGE)
        return deepcopy(self, {id(large): large})

    def contents(self) -> dict[str, Any]:
        """Return the state as it was given, with all rows of the history, but without what says whose it is."""
        tensors = self.parts.get(STATE_TENSORS, {})
        contents = {key: from_portable(value, tensors) for key, value in self.state.items() if key not in OWNER}
        if isinstance(contents.get("history"), dict):
            contents["history"] = [*self.rows, contents["history"]["last"]]
        return contents


def check_types(*expected: tuple[Any, Any]) -> None:
    """Raise an error if a value is not of its type."""
    for value, kind in expected:
        if not isinstance(value, kind):
            raise TypeError(f"{str(value)[:40]!r} is of type {type(value).__name__}")


def check_part(part: Any, *, is_optimizer: bool) -> None:
    """Raise some error if a part cannot be a state dict; one of an optimizer around others may lack torch's keys."""
    check_types((part, dict))
    if is_optimizer and part.keys() & {"state", "param_groups"}:
        check_types((part["state"], dict), (part["param_groups"], list))
        for group in part["param_groups"]:
            check_types((group["params"], list))


def check_state(checkpoint: Checkpoint) -> None:
    """Raise some error if a state lacks something, or holds something else."""
    contents = checkpoint.contents()
    kinds = {"classes": dict, "callbacks": dict, "random": dict, "history": list, "trainable": list | dict}
    if not contents.keys() & kinds.keys():  # it is not one of a net
        return
    check_types(*((contents[key], kind) for key, kind in kinds.items()))
    check_types((contents["random_of_call"], dict | None))
    if len(contents["history"]) != checkpoint.epoch:
        raise ValueError(f"the history has {len(contents['history'])} rows")
    check_types(*((row, dict) for row in contents["history"]))
    for name, kept in contents["callbacks"].items():
        check_types((name, str), (kept["class"], str), (kept, dict))
        kept["state"]
    for name in contents["classes"]:
        checkpoint.parts[name]
