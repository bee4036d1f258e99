"""The modules of a network with their sizes, and what of them is trainable: rows of a picture or a summary."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import is_lazy

from mlr3torch_py.network.unwrap import named_modules, named_parameters

__all__ = ["ModuleRow", "module_rows"]


@dataclass(frozen=True, slots=True)
class ModuleRow:
    """A module of a network.

    Parameters
    ----------
    path, kind : str
        Its path, and its class.
    module : torch.nn.Module
    names : tuple of str
        Its parameters, under all of their names.
    n_weights, n_trainable : int
        The number of its weights, and of those that are trainable; a tied tensor counts once.
    """

    path: str
    kind: str
    module: nn.Module
    names: tuple[str, ...]
    n_weights: int
    n_trainable: int

    @property
    def depth(self) -> int:
        """How many modules it lies in."""
        return self.path.count(".") + 1 if self.path else 0

    @property
    def label(self) -> str:
        """Its own name and its class."""
        name = self.path.rpartition(".")[2]
        return f"{name}: {self.kind}" if name else self.kind


def module_rows(module: nn.Module, trainable: Set[str]) -> Iterator[ModuleRow]:
    """Yield the modules of a network, itself first; `trainable` are the names of the trainable parameters."""
    tensors = named_parameters(module)
    free = {id(tensors[name]) for name in trainable}
    for path, one in named_modules(module):
        names = tuple(name for name in tensors if not path or name.startswith(f"{path}."))
        own = {id(tensors[name]): tensors[name] for name in names}
        sizes = {key: 0 if is_lazy(tensor) else tensor.numel() for key, tensor in own.items()}
        n_trainable = sum(sizes[key] for key in free & own.keys())
        yield ModuleRow(path, type(one).__name__, one, names, sum(sizes.values()), n_trainable)
