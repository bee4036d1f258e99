"""Parts that write outside of themselves compute each row, and trials leave no trace there."""

import array
import copy
import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.cache.helpers import ROWS, cached, counts, frozen, told

SHARED = {}


class Tap(nn.Module):
    """Writes what it computes where the network around it finds it."""

    def __init__(self, write, context):
        super().__init__()
        self.linear, self.write = nn.Linear(4, 3), write
        self.__dict__["context"] = context

    def forward(self, x):
        y = torch.tanh(self.linear(x))
        self.write(self, y)
        return y


class Network(nn.Module):
    def __init__(self, write, context=None):
        super().__init__()
        self.part, self.head = frozen(Tap(write, self if context is None else context)), nn.Linear(3, 2)


def into_object(part, y):
    part.context.features = y * 2


def into_array(part, y):
    part.context.array[0] = float(y.mean())


def into_global(part, y):
    keep(y.mean())


def keep(value):
    SHARED["mean"] = value


def into_tensor(part, y):
    part.context.tensor.copy_(y.mean())


def onto_tensor(part, y):
    part.context.tensor.features = y * 2


def into_list(part, y):
    part.context.lengths.append(len(y))


def how_many(part, y):
    part.context.n = len(y)


def context():
    return SimpleNamespace(array=np.zeros(1), tensor=torch.zeros(()), lengths=[], n=0, features=None)


WRITES = {
    "an attribute": (into_object, context, lambda network: network.part.context.features),
    "an attribute of the parent": (into_object, lambda: None, lambda network: network.features),
    "a global": (into_global, lambda: None, lambda _: SHARED["mean"]),
    "a tensor": (into_tensor, context, lambda network: network.part.context.tensor),
    "an attribute of a tensor": (onto_tensor, context, lambda network: network.part.context.tensor.features),
    "an array": (into_array, context, lambda network: network.part.context.array),
    "a list": (into_list, context, lambda network: network.part.context.lengths),
    "a number": (how_many, context, lambda network: network.part.context.n),
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", WRITES)
def test_what_a_part_writes_elsewhere_is_as_without_the_cache(kind, named):
    write, made, read = WRITES[kind]
    network, messages = Network(write, made()), []
    plain = copy.deepcopy(network)
    parts = cached(network, *["part"] * named)
    for i in range(5):
        rows = ROWS[: 12 - 2 * i]
        ours, written = network.part(rows), copy.deepcopy(read(network))
        assert str(ours) == str(plain.part(rows))
        assert str(written) == str(read(plain))
        messages += told(parts)
    assert list(parts.modules) == ([] if named else ["part.linear"])
    assert [one for one in messages if "which would not happen for a row from memory" in one] == messages
    assert len(messages) == named


def test_what_a_part_writes_is_named():
    network = Network(into_object, context())
    parts = cached(network, "part")
    network.part(ROWS), network.part(ROWS)
    (message,) = told(parts)
    assert "a call changes the 'context.features' that its Tap refers to, which would not happen" in message
    assert "let it return what others need or name other modules" in message


@pytest.mark.parametrize("n", [0, 12])
def test_a_number_that_only_a_trial_would_change_is_that_of_the_batch(n):
    network = Network(how_many, SimpleNamespace(n=n))
    parts = cached(network, "part")
    for _ in range(3):
        network.part(ROWS)
        assert network.part.context.n == 12
    assert "which would not happen for a row from memory" in told(parts)[0]


def table_of(part, y):
    part.context.table = part.context.table or {"scale": 1.0}


def test_the_first_call_may_set_up_a_table_elsewhere():
    network = Network(table_of, SimpleNamespace(table=None))
    parts = cached(network, "part")
    for _ in range(3):
        network.part(ROWS)
    assert counts(parts) == (12, 24)
    assert not told(parts)


@pytest.mark.parametrize("value", [np.arange(3), array.array("d", [1.0]), torch.ones(2), {1, 2}, [float("nan")], print])
def test_what_a_part_only_reads_is_no_effect(value):
    network = Network(lambda part, _: part.context.value, SimpleNamespace(value=value))
    parts = cached(network, "part")
    network.part(ROWS), network.part(ROWS)
    assert counts(parts) == (12, 12)
    assert not told(parts)


class Unreadable:
    def __repr__(self):
        raise RuntimeError("no repr")


def test_what_cannot_be_read_is_told_and_ends_no_training():
    network = Network(lambda part, _: part.context.table, SimpleNamespace(table={Unreadable(): 2}))
    parts = cached(network, "part")
    for _ in range(3):
        network.part(ROWS)
    assert "what it refers to cannot be read: no repr" in told(parts)[0]


def test_a_look_keeps_nothing_alive():
    shared = SimpleNamespace(features=torch.ones(3))
    network = Network(lambda part, _: part.context.features, shared)
    parts = cached(network, "part")
    network.part(ROWS)
    features = weakref.ref(shared.features)
    shared.features = None
    gc.collect()
    assert features() is None
    assert not told(parts)
