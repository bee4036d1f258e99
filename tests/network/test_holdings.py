import random
from collections import OrderedDict, deque
from contextlib import contextmanager
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedKFold
from sklearn.utils import shuffle
from torch import nn
from torch.utils.data import BatchSampler, Dataset, RandomSampler

from mlr3torch_py.network.holdings import plain_values, walk
from mlr3torch_py.network.randomness import generators, unreadable

RNG = np.random.default_rng(1)


def helper():
    return RNG.normal()


class UsesGlobal:
    def __getitem__(self, i):
        return i + helper()


class OfClass:
    rng = random.Random(1)


class Slotted:
    __slots__ = ("rng",)

    def __init__(self):
        self.rng = np.random.RandomState(1)


def in_closure():
    rng = torch.Generator()

    def transform(x):
        return x + torch.rand(1, generator=rng)

    return transform


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.ReLU())
        self.inner[0].rngs = [{"of": torch.Generator()}]


class BehindLibrary(Dataset, UsesGlobal):
    """Inherits what it uses from behind a class of torch."""


class Config:
    rng = np.random.default_rng(1)


package = ModuleType("package")
package.inner = ModuleType("package.inner")
package.inner.rng = random.Random(1)

PLACES = {
    "deep": BatchSampler(BatchSampler(RandomSampler(range(3), generator=torch.Generator()), 2, False), 2, False),
    "a list": [[torch.Generator()]],
    "a dict": {"a": {"b": np.random.default_rng(1)}},
    "a deque": deque([random.Random(1)]),
    "a partial": partial(print, sep=np.random.RandomState(1)),
    "a bound method": np.random.default_rng(1).normal,
    "a closure": in_closure(),
    "a default": partial(lambda x, rng=RNG: x + rng.normal()).func,
    "a global": UsesGlobal(),
    "a function": helper,
    "a class": OfClass(),
    "a class behind one of a library": BehindLibrary(),
    "a class that a function names": lambda: Config.rng.normal(),
    "a module inside a module": lambda: package.inner.rng.random(),
    "slots": Slotted(),
    "a module": Part(),
    "a wrapped module": nn.DataParallel(Part()),
    "bits": [np.random.PCG64(1)],
}


@pytest.mark.parametrize("place", PLACES)
def test_generators_are_found_wherever_they_are(place):
    found = [path for path in generators(x=PLACES[place]) if path.startswith("x")]
    assert len(found) == 1


def test_the_global_generators_are_not_found_twice():
    assert list(generators(x=[random.random, np.random.rand, torch.default_generator])) == list(generators())


def test_what_is_skipped_is_not_searched():
    inner = [torch.Generator()]
    assert [path for path in generators(inner, x={"a": inner}) if path.startswith("x")] == []


def test_objects_that_hold_each_other_are_searched_once():
    one, other = [], []
    one.append(other)
    other.append(one)
    assert [path for path, _ in walk({"x": one})] == ["x", "x[0]"]


def test_what_nobody_can_read_is_listed():
    with open(__file__) as file:
        held = {"it": iter([1]), "gen": (i for i in range(3)), "rng": random.SystemRandom(), "file": [file]}
        assert unreadable(x=held) == ["x['it']", "x['gen']", "x['rng']"]


def test_plain_values_are_listed_with_their_paths():
    values = plain_values({"x": {"a": [1, "b"], "t": torch.ones(1)}})
    assert (values["x['a'][0]"], values["x['a'][1]"]) == (1, "b")
    assert "x['t']" in values


def test_data_without_objects_is_looked_at_but_not_walked():
    rows = [(i, 0.5) for i in range(1000)]
    assert [path for path, _ in walk({"data": rows})] == ["data"]
    assert plain_values({"data": rows[:2]}) == {"data[0][0]": 0, "data[0][1]": 0.5, "data[1][0]": 1, "data[1][1]": 0.5}


def test_what_an_object_has_of_its_own_hides_what_its_class_has():
    class Parent:
        n, kind = 0, "parent"

    class Child(Parent):
        kind = "child"

    one = Child()
    one.n = 3
    assert plain_values({"one": one}) == {"one.n": 3, "one.kind": "child"}


def shuffled(rows):
    return shuffle(rows)


def test_the_functions_of_dependencies_are_not_searched():
    seeded = StratifiedKFold(shuffle=True, random_state=np.random.RandomState(1))
    found = dict(walk({"function": shuffled, "splitter": seeded}))
    assert not [path for path in found if "shuffle" in path]
    assert "splitter.random_state" in found


class Lazy(OrderedDict):
    """A mapping that makes its values when it is asked for all of them, as those of transformers do."""

    def __init__(self):
        super().__init__(kept=[1.0])
        self.names = {"a": 2.0}

    def items(self):
        raise ValueError("loads what is not installed")


class Endless(list):
    def __iter__(self):
        raise ValueError("loads what is not installed")


def test_containers_that_load_their_values_are_read_without_loading_them():
    found = plain_values({"lazy": Lazy(), "endless": Endless([3.0])})
    assert {"lazy['kept'][0]": 1.0, "lazy.names['a']": 2.0, "endless[0]": 3.0}.items() <= found.items()


@contextmanager
def switched():
    yield


def test_what_decorates_a_function_as_a_context_manager_is_no_generator_that_moves():
    @switched()
    def decorated():
        return helper()

    assert not list(unreadable(function=decorated))
    assert RNG in generators(function=decorated).values()
