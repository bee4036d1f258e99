"""Find random generators, and read, set and keep their states."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

__all__ = ["generators", "kept_random_states", "random_states", "set_random_states"]

_DEPTH = 3


def generators(**roots: object) -> dict[str, Any]:
    """Find the global generators and those inside objects.

    The global generators are those of torch, of each CUDA device once CUDA is in use, of numpy and of Python. Those of
    other devices, such as MPS and XPU, are left out: nobody has run this package there.

    Parameters
    ----------
    **roots
        Objects to search, three levels deep: a loader, its sampler, the generator of the sampler.

    Returns
    -------
    dict
        The generators by the path at which they were found.

    Examples
    --------
    >>> from torch.utils.data import RandomSampler
    >>> list(generators(sampler=RandomSampler([1, 2], generator=torch.Generator())))
    ['torch', 'numpy', 'python', 'sampler.generator']
    """
    found = {"torch": torch.default_generator, "numpy": check_random_state(None), "python": random}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found |= {f"cuda{i}": generator for i, generator in enumerate(torch.cuda.default_generators)}
    return found | {path: generator for name, root in roots.items() for path, generator in _inside(root, name, _DEPTH)}


def random_states(of: Mapping[str, Any]) -> dict[str, Any]:
    """Read the states of generators.

    Parameters
    ----------
    of : mapping
        Generators by name, as `generators` returns them.

    Returns
    -------
    dict
        The states under the same names, ready for JSON.
    """
    return {name: _state(generator) for name, generator in of.items()}


def set_random_states(of: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Set the states of generators; skip those without one.

    Parameters
    ----------
    of : mapping
        Generators by name, as `generators` returns them.
    states : mapping
        States by name, as `random_states` returns them.

    Examples
    --------
    >>> before = random_states(generators())
    >>> drawn = torch.rand(1)
    >>> set_random_states(generators(), before)
    >>> torch.equal(torch.rand(1), drawn)
    True
    """
    for name, generator in of.items():
        if name in states:
            _set_state(generator, states[name])


@contextmanager
def kept_random_states(**roots: object) -> Iterator[None]:
    """Restore the states of all generators on exit.

    It does not initialize CUDA. If the code inside does, the generators of the CUDA devices are reset to their seed.

    Parameters
    ----------
    **roots
        Objects to search, as in `generators`.

    Examples
    --------
    >>> with kept_random_states():
    ...     drawn = torch.rand(1)
    >>> torch.equal(torch.rand(1), drawn)
    True
    """
    before = generators(**roots)
    states = random_states(before)
    try:
        yield
    finally:
        set_random_states(before, states)
        for name, generator in generators().items():
            if name not in before:
                generator.manual_seed(generator.initial_seed())


def _inside(value: object, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, torch.Generator | np.random.Generator | np.random.RandomState | random.Random):
        yield path, value
    elif depth and hasattr(value, "__dict__") and not isinstance(value, type | ModuleType):
        for name, inner in vars(value).items():
            yield from _inside(inner, f"{path}.{name}", depth - 1)


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state().numpy().tobytes().hex()
    if isinstance(generator, np.random.Generator):
        return _as_json(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return _as_json(generator.get_state(legacy=False))
    version, words, gauss = generator.getstate()
    return [version, list(words), gauss]


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8))
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        version, words, gauss = state
        generator.setstate((version, tuple(words), gauss))


def _as_json(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _as_json(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray) else state
