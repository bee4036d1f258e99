"""Flow: in which order the modules of a network run on a batch, and which of them read what others have computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from mlr3torch_py.network.randomness import kept_random_states
from mlr3torch_py.network.unwrap import all_modules, named_modules

__all__ = ["Flow", "flow_of"]


class Flow:
    """What one forward pass has shown.

    Parameters
    ----------
    is_complete : bool
        Whether it is known what reads what, and not only the order.

    Attributes
    ----------
    order : dict of str to int
        The paths of the modules that were called, or whose parameters were used without a call of them, and the number
        of their first call or use.
    shapes : dict of str to str
        The shape of the first tensor that each of them returned at first.
    """

    def __init__(self, is_complete: bool) -> None:
        self.is_complete = is_complete
        self.order: dict[str, int] = {}
        self.shapes: dict[str, str] = {}
        self._reads: dict[str, set[str]] = {}  # what a module reads, at first or second hand

    def first_call(self, path: str) -> int | None:
        """Return the number of the first call or use of a module, or of one below it; None without any."""
        return min((number for one, number in self.order.items() if _is_within(one, path)), default=None)

    def knows(self, path: str, other: str) -> bool:
        """Check whether it is known what each of two modules has read."""
        return self.is_complete and self.first_call(path) is not None and self.first_call(other) is not None

    def sources(self, path: str) -> set[str]:
        """Return the paths of what a module, or one below it, reads, at first or second hand."""
        return set().union(*(names for one, names in self._reads.items() if _is_within(one, path)))

    def reads(self, path: str, other: str) -> bool:
        """Check whether a module, or one below it, reads what another module has computed."""
        return any(_is_within(name, other) for name in self.sources(path))

    def reads_inside(self, path: str, other: str) -> bool:
        """Check whether a module reads what another one has computed, but not what that returns."""
        seen = [names for one, names in self._reads.items() if _is_within(one, path)]
        return self.reads(path, other) and not any(other in names for names in seen)

    def are_side_by_side(self, path: str, other: str) -> bool:
        """Check whether two modules were called and neither of them reads what the other has computed."""
        return self.knows(path, other) and not self.reads(path, other) and not self.reads(other, path)

    def _add(self, path: str, sources: set[str]) -> None:
        self.order.setdefault(path, len(self.order))
        self._reads.setdefault(path, set()).update(sources)


def flow_of(network: nn.Module, batch: Any) -> Flow:
    """Run a network on a batch, and watch it.

    Every module's output is replaced by a copy that torch's graph leads back to, so that what a module reads is known
    also where functions, slices and sums lie between. The network runs in the mode that it has, or in eval mode if that
    fails. Buffers and random states are restored.

    Parameters
    ----------
    network : torch.nn.Module
    batch : object
        A mapping of keyword arguments, a tuple of positional ones, or the only argument. Arrays are turned
        into tensors.

    Returns
    -------
    Flow

    Raises
    ------
    ValueError
        If the network fails on the batch.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> flow = flow_of(network, torch.zeros(3, 2))
    >>> list(flow.order), flow.reads("1", "0"), flow.reads("0", "1")
    (['', '0', '1'], True, False)
    """
    errors: list[Exception] = []
    for is_complete in (True, False):  # a network may turn what it has computed into an array
        for keeps_mode in (True, False):
            try:
                return _watched(network, batch, is_complete, keeps_mode)
            except Exception as error:
                errors.append(error)
    raise ValueError(f"`X` is no batch that the network can be called with: {errors[-1]}") from errors[-1]


def _watched(network: nn.Module, batch: Any, is_complete: bool, keeps_mode: bool) -> Flow:
    flow, marks = Flow(is_complete), _Marks()
    paths: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for path, module in named_modules(network):
        paths.setdefault(id(module), []).append(path)
        modules[id(module)] = module

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        sources = marks.sources((args, kwargs)) if is_complete else set()
        for path in paths[id(module)]:
            flow._add(path, sources)

    def after(module: nn.Module, _: Any, output: Any) -> Any:
        for path in paths[id(module)]:
            flow.shapes.setdefault(path, _shape(output))
        return marks.marked(output, paths[id(module)]) if is_complete else None

    handles: list[RemovableHandle] = []
    try:
        for module in modules.values():
            if isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                continue
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after))
        with _kept_state(network), kept_random_states(), torch.set_grad_enabled(is_complete), catch_warnings():
            simplefilter("ignore")  # what it has to say, it says in training
            if not keeps_mode:
                network.eval()
            with _Reads(flow, marks, modules, paths) if is_complete else nullcontext():
                _call(network, batch)
    finally:
        for handle in handles:
            handle.remove()
    return flow


class _Marks:
    """Marked outputs: each is a copy of a leaf of the graph, which says what module it came from."""

    def __init__(self) -> None:
        self._leaves: dict[int, tuple[torch.Tensor, set[str]]] = {}  # the tensors are kept, so that no id is reused

    def marked(self, output: Any, paths: list[str]) -> Any:
        """Return an output with marks."""
        with torch.enable_grad():
            return _mapped(output, lambda tensor: self._mark(tensor, paths))

    def _mark(self, tensor: torch.Tensor, paths: list[str]) -> torch.Tensor:
        leaf = tensor.detach().requires_grad_()
        self._leaves[id(leaf)] = leaf, self.sources(tensor) | set(paths)
        return leaf.clone()

    def sources(self, value: Any) -> set[str]:
        """Return the modules whose outputs a value was computed from."""
        found: set[str] = set()
        nodes = [tensor.grad_fn for tensor in _tensors_in(value) if tensor.grad_fn is not None]
        seen = set(nodes)
        while nodes:
            node: Any = nodes.pop()
            found |= self._leaves.get(id(getattr(node, "variable", None)), (None, set()))[1]
            below = {one for one, _ in node.next_functions if one is not None} - seen
            seen |= below
            nodes += below
        return found


class _Reads(TorchFunctionMode):
    """Sees the parameters of modules that are not called, as those in ``linear(x, self.head.weight)``.

    A parameter is used where it meets what is no parameter, and made of none.
    """

    def __init__(
        self, flow: Flow, marks: _Marks, modules: Mapping[int, nn.Module], paths: Mapping[int, list[str]]
    ) -> None:
        super().__init__()
        self._flow, self._marks = flow, marks
        # The tensors are kept, so that no id is reused.
        self._made: dict[int, tuple[torch.Tensor, set[str]]] = {}
        for key, module in modules.items():
            for tensor in module._parameters.values():
                if tensor is not None:
                    self._made.setdefault(id(tensor), (tensor, set()))[1].update(paths[key])
        self._used: set[str] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        tensors, made = [*_tensors_in((args, kwargs or {}))], [*_tensors_in(output)]
        known = [self._made[id(one)][1] for one in tensors if id(one) in self._made]
        if known and len(known) == len(tensors):
            for one in made:
                self._made.setdefault(id(one), (one, set().union(*known)))
            return output
        used = [path for owners in known if not any(map(self._is_called, owners)) for path in owners]
        if not used or not made:  # such as what tells the device of a parameter
            return output
        self._used.update(used)
        sources = self._marks.sources((args, kwargs))
        for path in used:
            self._flow._add(path, sources)
        return self._marks.marked(output, used)

    def _is_called(self, path: str) -> bool:
        return path in self._flow.order and path not in self._used


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in a value that may be nested."""
    if isinstance(value, torch.Tensor):
        yield value
    parts: Iterable[Any] = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    )
    for part in parts:
        yield from _tensors_in(part)


def _shape(value: Any) -> str:
    """Write the shape of the first tensor in a value that may be nested; an empty string without any."""
    return next((str(tuple(tensor.shape)) for tensor in _tensors_in(value)), "")


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Change the tensors of numbers in a value that may be nested."""
    if isinstance(value, torch.Tensor):
        return change(value) if value.is_floating_point() or value.is_complex() else value
    if isinstance(value, tuple):
        parts = [_mapped(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [_mapped(part, change) for part in value]
    if isinstance(value, Mapping):
        for key, part in list(value.items()):
            with suppress(TypeError):  # a mapping that cannot be written
                value[key] = _mapped(part, change)  # type: ignore[index]
    return value


@contextmanager
def _kept_state(network: nn.Module) -> Iterator[None]:
    """Restore the modes and the buffers of a network."""
    modes = [(module, module.training) for module in all_modules(network) if hasattr(module, "training")]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in all_modules(network)
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_meta
    ]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, name, buffer, before in buffers:
            module._buffers[name] = buffer
            with torch.no_grad():
                buffer.copy_(before)


def _call(network: nn.Module, batch: Any) -> None:
    tensor = next(network.parameters(), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    batch = _on_device(batch, device)
    if isinstance(batch, Mapping):
        network(**batch)
    elif isinstance(batch, tuple):
        network(*batch)
    else:
        network(batch)


def _on_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {name: _on_device(part, device) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_on_device(part, device) for part in value])
    if hasattr(value, "__array__") or isinstance(value, torch.Tensor):
        return torch.as_tensor(value).to(device)
    return value


def _is_within(path: str, around: str) -> bool:
    return path == around or not around or path.startswith(f"{around}.")
