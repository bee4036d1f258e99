"""Find random generators, and read, set and keep their states."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from mlr3torch_py.network.holdings import GLOBALS, walk

__all__ = ["generators", "is_generator", "kept_random_states", "random_states", "set_random_states", "unreadable"]

_KINDS = (torch.Generator, np.random.Generator, np.random.BitGenerator, np.random.RandomState, random.Random)


def generators(*skip: object, **roots: object) -> dict[str, Any]:
    """Find the global generators and those inside objects.

    The global generators are those of torch, of each CUDA device once CUDA is in use, of numpy and of Python. Those of
    other devices, such as MPS and XPU, are left out: nobody has run this package there.

    Parameters
    ----------
    *skip
        Objects not to search.
    **roots
        Objects to search, at any depth: attributes, containers, partials, and what functions and methods refer to.

    Returns
    -------
    dict
        The generators by the path at which they were found. Those whose state cannot be read are left out.

    Examples
    --------
    >>> from torch.utils.data import RandomSampler
    >>> list(generators(sampler=RandomSampler([1, 2], generator=torch.Generator())))
    ['torch', 'numpy', 'python', 'sampler.generator']
    """
    found = {"torch": torch.default_generator, "numpy": check_random_state(None), "python": random}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found |= {f"cuda{i}": generator for i, generator in enumerate(torch.cuda.default_generators)}
    known = [*found.values(), vars(random)["_inst"]]
    return found | {
        path: one for path, one in walk(roots, [*known, *skip]) if isinstance(one, _KINDS) and _has_state(one)
    }


def unreadable(*skip: object, **roots: object) -> list[str]:
    """List where objects hold something whose state nobody can read: iterators, and the generator of the system.

    Parameters
    ----------
    *skip
        Objects not to search.
    **roots
        Objects to search, as in `generators`.

    Returns
    -------
    list of str

    Examples
    --------
    >>> unreadable(dataset={"order": iter([3, 1, 2]), "rng": random.SystemRandom()})
    ["dataset['order']", "dataset['rng']"]
    """
    return [path for path, one in walk(roots, skip) if GLOBALS not in path and _is_unreadable(one)]


def is_generator(value: object) -> bool:
    """Whether an object is a random generator of torch, numpy or Python."""
    return isinstance(value, _KINDS)


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


def _has_state(generator: Any) -> bool:
    return not isinstance(generator, random.SystemRandom)


def _is_unreadable(value: object) -> bool:
    if isinstance(value, random.SystemRandom):
        return True
    return isinstance(value, Iterator) and not isinstance(value, io.IOBase) and not hasattr(value, "state_dict")


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state().numpy().tobytes().hex()
    if isinstance(generator, np.random.Generator):
        return _as_json(generator.bit_generator.state)
    if isinstance(generator, np.random.BitGenerator):
        return _as_json(generator.state)
    if isinstance(generator, np.random.RandomState):
        return _as_json(generator.get_state(legacy=False))
    version, words, gauss = generator.getstate()
    return [version, list(words), gauss]


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8))
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.BitGenerator):
        generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        version, words, gauss = state
        generator.setstate((version, tuple(words), gauss))


def _as_json(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _as_json(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray) else state
