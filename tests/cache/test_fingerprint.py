"""Rows are forgotten when anything in their module changes, and only then."""

import array
import collections
import copy
import io
import itertools
import logging
import threading
import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mlr3torch_py.cache.identity.fingerprint import Fingerprint
from mlr3torch_py.network.bits import content_hash
from tests.cache.helpers import CHANGES, ROWS, UNSEEN, Part, cached, counts, frozen, normed, told
from tests.helpers import X, iris_net, y


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_torch_sees_is_never_missed(change):
    part = normed()
    cached(part, check=0)
    part(ROWS)
    CHANGES[change](part)
    assert torch.equal(part(ROWS), copy.deepcopy(part)(ROWS))


@pytest.mark.parametrize("change", {**CHANGES, **UNSEEN})
def test_no_change_outlives_the_epoch(change):
    part = normed()
    parts = cached(part, check=0)
    part(ROWS)
    parts.end_epoch()
    (CHANGES | UNSEEN)[change](part)
    parts.begin_epoch()
    assert torch.equal(part(ROWS), copy.deepcopy(part)(ROWS))


def test_a_trial_notices_an_unseen_change():
    part = normed()
    cached(part, check=0)
    part(ROWS[1:])
    UNSEEN["data"](part)
    part(ROWS[:1])
    torch.testing.assert_close(part(ROWS), copy.deepcopy(part)(ROWS))


def test_what_makes_rows_be_forgotten_is_logged(caplog):
    caplog.set_level(logging.INFO, "mlr3torch_py")
    part = normed()
    parts = cached(part)
    part(ROWS)
    parts.end_epoch()
    UNSEEN["a configuration"](part)
    parts.begin_epoch()
    assert caplog.messages[-1].endswith("are forgotten, since the 'config' of its Scaled has changed")


class Odd:
    """Its `__dict__` is a property that raises."""

    @property
    def __dict__(self):
        raise KeyError("no")


def test_an_object_that_cannot_be_looked_into_is_told_by_identity():
    part = normed()
    part[1].odd = Odd()
    parts = cached(part)
    assert torch.equal(part(ROWS), part(ROWS))
    assert counts(parts) == (12, 12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_beside_torchscript_the_rest_of_a_frozen_part_is_cached():
    body = frozen(nn.Sequential(torch.jit.script(nn.Linear(4, 4)), nn.Linear(4, 3)))
    network = nn.Sequential(body, nn.Linear(3, 1))
    parts = cached(network)
    expected = copy.deepcopy(network)(ROWS)
    for _ in range(3):
        assert torch.equal(network(ROWS), expected)
        told(parts)
    assert set(parts.modules) == {"0.1"}


def test_a_replaced_module_is_released():
    network = nn.Sequential(normed(), nn.Linear(3, 1))
    parts = cached(network)
    network(ROWS)
    old, network[0] = network[0], normed()
    parts.refresh(retry_rejected=False)
    assert torch.equal(network(ROWS), copy.deepcopy(network)(ROWS))
    assert "_compiled_call_impl" not in vars(old)


def test_the_same_values_written_again_change_nothing():
    part = normed()
    parts = cached(part)
    part(ROWS)
    part.load_state_dict(part.state_dict())
    part[1].running_mean.copy_(part[1].running_mean.clone())
    part(ROWS)
    assert counts(parts) == (12, 12)


def test_a_module_that_cannot_be_read_is_rejected():
    part = frozen(nn.Linear(4, 3))
    part.register_buffer("sparse", ROWS.to_sparse())
    network = nn.Sequential(part, torch.jit.ScriptModule(), nn.Linear(3, 1))
    parts = cached(network)
    assert "not caching '0': its attributes cannot be read" in told(parts)[0]
    assert not parts.modules


def test_another_shape_of_the_same_values_is_a_change():
    part = frozen(nn.PReLU(6))
    parts = cached(part)
    rows = torch.randn(5, 6)
    part(rows)
    parts.end_epoch()
    part.weight.data = part.weight.data[None]
    assert parts.stages[""].follow_changes()


def test_another_dtype_of_the_same_bytes_is_a_change():
    part = frozen(Part(lambda f, x: f(x).to(f.zeros.dtype)))
    part.linear.register_buffer("zeros", torch.zeros(2))
    parts = cached(part)
    part(ROWS)
    part.linear.zeros.data = part.linear.zeros.data.int()
    assert part(ROWS).dtype is torch.int32
    assert counts(parts) == (0, 24)


@pytest.mark.filterwarnings("ignore:torch.quantize_per")
@pytest.mark.parametrize("per_channel", [False, True])
def test_another_scale_of_the_same_whole_numbers_is_a_change(per_channel):
    def quantized(scale):
        if per_channel:
            scales = torch.full((3,), scale, dtype=torch.float64)
            return torch.quantize_per_channel(torch.ones(3, 4) * scale, scales, torch.zeros(3), 0, torch.qint8)
        return torch.quantize_per_tensor(torch.ones(3, 4) * scale, scale, 0, torch.qint8)

    one, again, other = map(content_hash, map(quantized, (0.5, 0.5, 0.05)))
    assert one == again != other


class AttrDict(dict):
    __getattr__ = dict.__getitem__


class Numbers(list):
    pass


class Slots:
    __slots__ = ("scale",)

    def __init__(self):
        self.scale = 1.0

    def get(self):
        return self.scale


class PrivateSlots:
    __slots__ = ("__scale",)

    def __init__(self):
        self.set(1.0)

    def set(self, scale):
        self.__scale = scale

    def get(self):
        return self.__scale


class ReadOnly:
    """A view that cannot be written, of an array that can."""

    def __init__(self):
        self.base = np.ones(2)
        self.view = self.base.view()
        self.view.flags.writeable = False


class Rates(np.ndarray):
    scale = 1.0


# What a part holds, how it reads a number from it, and a change in place.
HELD = {
    "an array": (lambda: np.ones(2), lambda held: held[0], lambda held: held.__setitem__(0, 2)),
    "a method of a list": (
        lambda: [1.0, 2.0].count,
        lambda held: 1 + held(2.0),
        lambda held: held.__self__.append(2.0),
    ),
    "an attribute of an array": (
        lambda: np.ones(2).view(Rates),
        lambda held: held.scale,
        lambda held: setattr(held, "scale", 2.0),
    ),
    "an attribute of a tensor": (
        lambda: torch.ones(2),
        lambda held: getattr(held, "scale", 1.0),
        lambda held: setattr(held, "scale", 2.0),
    ),
    "a mask": (
        lambda: np.ma.array([1.0, 2.0], mask=[False, True]),
        lambda held: held.sum(),
        lambda held: held.mask.__setitem__(0, True) or held.__setitem__(1, 2.0),
    ),
    "an order": (
        lambda: collections.OrderedDict(a=1, b=2),
        lambda held: next(iter(held.values())),
        lambda held: held.move_to_end("a"),
    ),
    "a view of an array": (lambda: np.ones(9)[::3], lambda held: held[2], lambda held: held.__setitem__(2, 2)),
    "an array of Python": (lambda: array.array("d", [1]), lambda held: held[0], lambda held: held.__setitem__(0, 2)),
    "bytes": (lambda: bytearray(b"a"), lambda held: held[0], lambda held: held.__setitem__(0, 2)),
    "a file in memory": (
        lambda: io.BytesIO(b"1"),
        lambda held: float(held.getvalue()),
        lambda held: held.getbuffer().__setitem__(0, ord("2")),
    ),
    "text in memory": (
        lambda: io.StringIO("1"),
        lambda held: float(held.getvalue()),
        lambda held: held.seek(0) or held.write("2"),
    ),
    "a subclass of dict": (lambda: AttrDict(a=1), lambda held: held.a, lambda held: held.update(a=2)),
    "a counter": (lambda: collections.Counter("a"), lambda held: held["a"], lambda held: held.update("a")),
    "a dict in an object": (lambda: collections.UserDict(a=1), lambda held: held["a"], lambda held: held.update(a=2)),
    "a subclass of list": (lambda: Numbers([1]), lambda held: held[0], lambda held: held.__setitem__(0, 2)),
    "its attribute": (lambda: Numbers([1]), lambda held: getattr(held, "n", 1), lambda held: setattr(held, "n", 2)),
    "a queue": (lambda: collections.deque([1]), lambda held: held[0], lambda held: held.__setitem__(0, 2)),
    "a set in a list": (lambda: [{1}], lambda held: len(held[0]), lambda held: held[0].add(2)),
    "a slot": (Slots, lambda held: held.scale, lambda held: setattr(held, "scale", 2.0)),
    "a private slot": (PrivateSlots, PrivateSlots.get, lambda held: held.set(2.0)),
    "a view that cannot be written": (
        lambda: [ReadOnly().view],
        lambda held: held[0][0],
        lambda held: held[0].base.__setitem__(0, 2),
    ),
    "a method": (lambda: Slots().get, lambda held: held(), lambda held: setattr(held.__self__, "scale", 2.0)),
    "an argument": (lambda: partial(sum, [1]), lambda held: held(), lambda held: held.args[0].append(2)),
    "a tensor in an object": (
        lambda: SimpleNamespace(t=torch.ones(1)),
        lambda held: held.t,
        lambda held: held.t.data.add_(1),
    ),
    "an object in an object": (
        lambda: SimpleNamespace(sub=[SimpleNamespace(scale=1)]),
        lambda held: held.sub[0].scale,
        lambda held: setattr(held.sub[0], "scale", 2),
    ),
}


class Holding(Part):
    def forward(self, x):
        return self.linear(x) * self.compute(self.held)


@pytest.mark.parametrize("kind", HELD)
def test_what_a_part_holds_is_compared_by_content(kind):
    make, read, change = HELD[kind]
    part = frozen(Holding(read))
    part.held = make()
    parts, elsewhere = cached(part, check=0), Fingerprint(part)
    elsewhere_too = Fingerprint(part)
    for hits in (0, 12):
        part(ROWS)
        assert counts(parts)[0] == hits
        parts.begin_epoch()
    change(part.held)
    parts.begin_epoch()
    assert torch.equal(part(ROWS), part._call_impl(ROWS))
    assert counts(parts) == (0, 12)
    assert elsewhere.difference(elsewhere_too) is None
    assert elsewhere.difference(Fingerprint(part)) == "the 'held' of its Holding"


@pytest.mark.parametrize("kind", HELD)
def test_another_content_has_another_digest(kind):
    make, _, change = HELD[kind]
    part, held = nn.Linear(4, 3), make()
    part.held = held
    before = Fingerprint(part).digest
    part.held = make()
    assert Fingerprint(part).digest == before
    change(part.held)
    assert Fingerprint(part).digest != before


@pytest.mark.parametrize("make", [threading.Lock, threading.local, torch.Generator, object, lambda: itertools.count(3)])
def test_an_object_made_in_c_is_the_same_as_long_as_it_shows_nothing_else(make):
    part = frozen(Holding(bool))
    part.held = make()
    assert Fingerprint(part).difference(Fingerprint(part)) is None


@pytest.mark.parametrize("name", ["weight", "offset"])
def test_an_attribute_of_a_weight_or_a_buffer_is_compared(name):
    part = frozen(Part(lambda f, x: f(x) * getattr(f, name).scale))
    part.linear.register_buffer("offset", torch.zeros(1))
    tensor = getattr(part.linear, name)
    tensor.scale = 1.0
    before, digest = Fingerprint(part), Fingerprint(part.linear).digest
    parts = cached(part, check=0)
    part(ROWS)
    tensor.scale = 2.0
    parts.begin_epoch()
    assert torch.equal(part(ROWS), part._call_impl(ROWS))
    assert before.difference(Fingerprint(part)) == f"the '{name}.scale' of its Linear"
    assert Fingerprint(part.linear).digest != digest


@pytest.mark.parametrize("note", ["_is_hf_initialized", "_dynamo_static_input_type", "_kept_by_mlr3torch_py"])
def test_what_libraries_note_on_a_weight_changes_nothing(note):
    part = frozen(nn.Linear(4, 3))
    before = Fingerprint(part)
    setattr(part.weight, note, object())
    now = Fingerprint(part)
    assert before.difference(now) is None
    assert before.digest == now.digest


def test_a_net_that_a_part_refers_to_is_not_part_of_it():
    net = iris_net(max_epochs=1).fit(X, y)
    part = frozen(nn.Linear(4, 3))
    part.owner = SimpleNamespace(net=net, history=net.history)
    before = Fingerprint(part)
    net.partial_fit(X, y)
    assert before.difference(Fingerprint(part)) is None


def test_what_is_held_in_many_places_is_read_once():
    shared = last = [1]
    for _ in range(40):
        shared = [shared, shared]
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].table = network[1].table = shared
    before = Fingerprint(network)
    assert before.difference(Fingerprint(network)) is None
    last.append(2)
    assert before.difference(Fingerprint(network)) == "the 'table' of its Linear"


def test_objects_that_hold_each_other_are_compared():
    part = frozen(nn.Linear(4, 3))
    part.many = [SimpleNamespace(scale=1) for _ in range(30)]
    for one in part.many:
        one.others = part.many
    parts = cached(part)
    part(ROWS)
    counts(parts)
    part.many[20].scale = 2
    assert parts.stages[""].follow_changes() == "the 'many' of its Linear"


REFERENCES = {
    "a list": lambda part, owner: setattr(part, "owner", [owner]),
    "a weak reference": lambda part, owner: setattr(part, "owner", weakref.ref(owner)),
    "a method": lambda part, owner: setattr(part, "scaled", owner.forward),
}


@pytest.mark.parametrize("refer", REFERENCES)
def test_an_attribute_of_a_module_that_a_part_refers_to_counts_and_its_weights_do_not(refer):
    owner = nn.Sequential(part := frozen(nn.Linear(4, 3)), nn.Linear(3, 2))
    owner.temperature = 1.0
    REFERENCES[refer](part, owner)
    before = Fingerprint(part)
    nn.init.zeros_(owner[1].weight)
    assert before.difference(Fingerprint(part)) is None
    owner.temperature = 2.0
    assert before.difference(Fingerprint(part)) is not None


def untied(part):
    part.again = part.other


def renamed(part):
    one, other = part.shift, part.scale
    del part.shift, part.scale
    part.scale, part.shift = one, other


def moved(part):
    part.other.weight, part.first.weight = part.first.weight, part.other.weight


def exchanged(part):
    one, other = part.table.pop("one"), part.table.pop("other")
    part.table["other"], part.table["one"] = one, other


class Places(nn.Module):
    """Uses its tensors and children by their names."""

    def __init__(self):
        super().__init__()
        self.first, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.again, self.table = self.first, nn.ModuleDict({"one": nn.Linear(4, 4), "other": nn.Linear(4, 4)})
        self.shift, self.scale = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.full((4,), 2.0))

    def forward(self, x):
        x = self.other(self.again(x).relu()).relu() * self.scale + self.shift
        return self.table["other"](self.table["one"](x).relu())


@pytest.mark.parametrize("change", [untied, renamed, moved, exchanged])
def test_what_is_in_another_place_is_a_change(change):
    part = frozen(Places())
    parts, before = cached(part, check=0), Fingerprint(part)
    for _ in range(3):
        part(ROWS)
        parts.end_epoch(), parts.begin_epoch()
    assert before.is_current
    change(part)
    parts.begin_epoch()
    assert torch.equal(part(ROWS), part._call_impl(ROWS))
    assert not before.is_current
    assert before.difference(Fingerprint(part))


class Proxy:
    """Passes for the function that it wraps."""

    __class__ = property(lambda self: type(vars(self)["function"]))

    def __init__(self, function, scale):
        self.function, self.scale = function, scale

    def __getattr__(self, name):
        return getattr(vars(self)["function"], name)

    def __call__(self, x):
        return self.function(x) * self.scale


def test_an_object_that_passes_for_a_function_is_looked_into():
    part = frozen(Part(lambda f, x: f.act(f(x))))
    part.linear.act = Proxy(lambda x: x, 1.0)
    parts = cached(part, check=0)
    for _ in range(3):
        part(ROWS)
        parts.end_epoch(), parts.begin_epoch()
    part.linear.act.scale = 3.0
    parts.begin_epoch()
    assert torch.equal(part(ROWS), part._call_impl(ROWS))
