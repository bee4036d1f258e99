"""The random states that a training depends on, as JSON."""

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


def generators(**roots: Any) -> dict[str, Any]:
    """Find the random generators: those of torch, numpy and Python, and those that objects hold.

    Parameters
    ----------
    **roots
        Objects to look into, such as samplers, which hold a sampler that holds a generator.

    Returns
    -------
    dict
        Generators of torch, numpy and Python by where they were found.

    Examples
    --------
    >>> from torch.utils.data import RandomSampler
    >>> list(generators(sampler=RandomSampler([1, 2], generator=torch.Generator())))
    ['torch', 'numpy', 'python', 'sampler.generator']
    """
    found = {"torch": torch.default_generator, "numpy": check_random_state(None), "python": random}
    if torch.cuda.is_available():
        found |= {f"cuda{i}": generator for i, generator in enumerate(torch.cuda.default_generators)}
    return found | {path: one for name, root in roots.items() for path, one in _within(root, name, _DEPTH)}


def random_states(of: Mapping[str, Any]) -> dict[str, Any]:
    """Read the states of generators.

    Parameters
    ----------
    of : mapping
        What `generators` found.

    Returns
    -------
    dict
        The states by the same names, as JSON has them.
    """
    return {name: _state(generator) for name, generator in of.items()}


def set_random_states(of: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Set the states of those generators that have one.

    Parameters
    ----------
    of : mapping
        What `generators` found.
    states : mapping
        What `random_states` returned.

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
def kept_random_states(**roots: Any) -> Iterator[None]:
    """Set the states of all random generators back at the end.

    Parameters
    ----------
    **roots
        Objects to look into, as in `generators`.

    Examples
    --------
    >>> with kept_random_states():
    ...     drawn = torch.rand(1)
    >>> torch.equal(torch.rand(1), drawn)
    True
    """
    found = generators(**roots)
    states = random_states(found)
    try:
        yield
    finally:
        set_random_states(found, states)


def _within(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, torch.Generator | np.random.Generator | np.random.RandomState | random.Random):
        yield path, value
    elif depth and hasattr(value, "__dict__") and not isinstance(value, type | ModuleType):
        for name, inner in vars(value).items():
            yield from _within(inner, f"{path}.{name}", depth - 1)


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state().numpy().tobytes().hex()
    if isinstance(generator, np.random.Generator):
        return _listed(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return _listed(generator.get_state(legacy=False))
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


def _listed(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _listed(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray) else state
