"""The weights of a net at the end of an epoch, kept to be restored."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final, NamedTuple

from mlr3torch_py.network.parameters import has_parameters
from mlr3torch_py.network.unwrap import modules_of, named_modules
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.belonging import HistoryMark

__all__ = ["KeptWeights"]


_BUFFERS: Final = "buffers that are not persistent"


class KeptWeights(NamedTuple):
    """The weights and buffers of all modules and criteria of a net at the end of an epoch.

    Parameters
    ----------
    parts : mapping
        Their state dicts, by name, and the buffers that these leave out, by place.
    mark : HistoryMark
        The history up to that epoch.
    """

    parts: Mapping[str, Mapping[str, Any]]
    mark: HistoryMark

    @classmethod
    def of(cls, net: Net) -> KeptWeights:
        states = {name: module.state_dict() for name, module in modules_of(net).items()}
        states[_BUFFERS] = {place: module._buffers[name] for place, module, name in _buffers(net)}
        return cls(deepcopy({name: state for name, state in states.items() if state}), HistoryMark.of(net.history))

    @classmethod
    def from_plain(cls, state: Mapping[str, Any] | None) -> KeptWeights | None:
        """Return what `to_plain` was made from; None for None."""
        return None if state is None else cls(state["parts"], HistoryMark(state["epoch"], tuple(state["rows"])))

    def to_plain(self, monitor: str) -> dict[str, Any]:
        """Return the weights with their epoch and its score, but without durations, which differ from run to run."""
        return {"parts": self.parts, "epoch": self.mark.n_rows, "rows": self.rows_with(monitor)}

    def rows_with(self, monitor: str) -> list[dict[str, str]]:
        """Return what marks the last row apart from durations: its score."""
        return [{monitor: row[monitor]} for row in self.mark.last[:1] if monitor in row]

    def is_of(self, net: Net, epoch: int) -> bool:
        """Whether the weights are of an epoch of a net's history, and fit the net."""
        return self.mark.n_rows == epoch and self.mark.is_in(net.history) and not self.differences(net)

    def is_of_last_epoch(self, net: Net) -> bool:
        """Whether the weights were kept at the end of the last epoch of a net's history, in this process."""
        return self.mark.n_rows == len(net.history) and self.mark.shares_rows(net.history)

    def restore(self, net: Net) -> None:
        for name, module in modules_of(net).items():
            if name in self.parts:
                module.load_state_dict(self.parts[name])
        kept = self.parts.get(_BUFFERS, {})
        for place, module, name in _buffers(net):
            if place in kept:  # in the shape that it had then: some grow with the data
                module._buffers[name] = kept[place].to(module._buffers[name].device, copy=True)

    def differences(self, net: Net) -> list[str]:
        """List the tensors that the net lacks, or has in another shape."""
        here = {name: module.state_dict() for name, module in modules_of(net).items()}
        trained = {name for name, module in modules_of(net).items() if has_parameters(module)}
        return [
            f"{part}_.{key}"
            for part in sorted((self.parts.keys() | trained) - {_BUFFERS})
            for key in sorted(self.parts.get(part, {}).keys() | here.get(part, {}).keys())
            if _shape(self.parts.get(part, {}).get(key)) != _shape(here.get(part, {}).get(key))
        ]


def _buffers(net: Net) -> list[tuple[str, Any, str]]:
    """List the buffers that no state dict holds: their places, their modules, and their names in these."""
    return [
        (f"{part}.{path}.{name}", module, name)
        for part, network in modules_of(net).items()
        for path, module in named_modules(network)
        for name in sorted(module._non_persistent_buffers_set)
        if module._buffers.get(name) is not None
    ]


def _shape(value: Any) -> Any:
    """Return the shape of a tensor, or the type of another value."""
    return getattr(value, "shape", type(value))
