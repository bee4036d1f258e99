"""What code finds by a text, in a module of its own or beside what cannot be read counts when it is replaced."""

import importlib
import logging
import operator
import sys
from types import FunctionType, ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional

from mlr3torch_py.cache.identity.code import Code
from tests.cache.helpers import ROWS, cached, frozen

own = ModuleType("a_module_without_a_version")
own.inner = ModuleType("another_module_without_a_version")


class Config:
    gain = 1.0


class Part(nn.Module):
    """Does something to what a layer gives."""

    pieces: ClassVar = ["first"]
    nested = SimpleNamespace(gain=1.0)
    config = Config()
    kind = "first"

    def __init__(self):
        super().__init__()
        self.linear, self.chosen = frozen(nn.Linear(4, 3)), "first"

    def forward(self, x):
        return self.compute(self.linear(x))

    def first(self, x):
        return x + 0


class Mixed:
    def mixed(self, x):
        return x + 0


class Other:
    def mixed(self, x):
        return x * 2


def scaled(x):
    return x * scaled.gain


def helper(x):
    return x + 0


def twice(*args):
    return args[-1] * 2


def by_a_loop(self, x):
    for name in ("first", "numel"):
        x = getattr(self, name, lambda x: x)(x)
    return x


def by_a_pattern(self, x):
    match self.config:
        case Config(gain=gain):
            return x * gain


def by_an_import(self, x):
    import a_module_without_a_version as own

    return own.act(x)


def by_globals(_, x):
    return globals()["_".join(["a", "helper"])](x)


SCOPE = {"__name__": "a_file", "a_helper": helper}
by_globals = FunctionType(by_globals.__code__, SCOPE)
linear_of_torch = functional.linear


def replaces(owner, name, value=twice):
    return lambda patch, _: patch.setattr(owner, name, value)


def of_the_class(name, value=twice):
    return lambda patch, part: patch.setattr(type(part), name, value)


CASES = {
    "a text that is put together": (lambda self, x: getattr(self, f"fir{'st'}")(x), of_the_class("first")),
    "texts in a tuple": (by_a_loop, of_the_class("first")),
    "texts in a list": (lambda self, x: getattr(self, self.pieces[0])(x), of_the_class("first")),
    "a text in an attribute": (lambda self, x: getattr(self, self.chosen)(x), of_the_class("first")),
    "dots": (lambda self, x: x * operator.attrgetter("nested.gain")(self), replaces(Part.nested, "gain", 2.0)),
    "a pattern": (by_a_pattern, replaces(Config, "gain", 2.0)),
    "an attribute of a function": (lambda _, x: scaled(x), replaces(scaled, "gain", 2.0)),
    "globals": (by_globals, lambda patch, _: patch.setitem(SCOPE, "a_helper", twice)),
    "a module of one's own": (lambda _, x: own.act(x), replaces(own, "act")),
    "a constant of it": (lambda _, x: own.act(x), replaces(own, "GAIN", 2.0)),
    "a module within it": (lambda _, x: own.inner.act(x), replaces(own.inner, "act")),
    "a module that is imported late": (by_an_import, replaces(own, "act")),
    "below a layer of torch": (
        lambda _, x: x,
        replaces(functional, "linear", lambda *args: linear_of_torch(*args) * 2),
    ),
    "what it derives from": (
        lambda self, x: self.mixed(x),
        lambda _, part: setattr(type(part), "__bases__", (Other, Part)),
    ),
}


@pytest.fixture(autouse=True)
def own_modules(monkeypatch):
    monkeypatch.setattr(scaled, "gain", 1.0, raising=False)
    monkeypatch.setitem(sys.modules, own.__name__, own)
    for module in (own, own.inner):
        monkeypatch.setattr(module, "GAIN", 1.0, raising=False)
        act = FunctionType((lambda x: x * GAIN).__code__, vars(module))  # noqa: F821
        monkeypatch.setattr(module, "act", act, raising=False)


def part_that_computes(compute, **attributes):
    return type("Made", (Mixed, Part), {"compute": compute, **attributes})()


def counts_at_an_epoch(part, change):
    """Whether a change counts when the next epoch begins."""
    return counts_when_kept(part, change, is_kept=False)


def counts_when_kept(part, change, *, is_kept=True):
    """Whether a change after training counts."""
    network = nn.Sequential(part, nn.Linear(3, 2))
    parts = cached(network)
    for _ in range(3):
        network(ROWS)
        parts.settle()
    assert "0" in parts.modules
    if is_kept:
        parts.keep()
    before = network(ROWS)
    change()
    if not is_kept:
        parts.begin_epoch()
    found, expected = network(ROWS), network[1](part._call_impl(ROWS))
    parts.close()
    assert not torch.allclose(before, expected)
    return torch.allclose(found, expected)


@pytest.mark.parametrize("counts", [counts_when_kept, counts_at_an_epoch])
@pytest.mark.parametrize("kind", CASES)
def test_code_that_is_found_in_any_way_counts_when_it_is_replaced(kind, counts, monkeypatch):
    compute, change = CASES[kind]
    part = part_that_computes(compute)
    assert counts(part, lambda: change(monkeypatch, part))


@pytest.mark.parametrize("kind", CASES)
def test_the_store_tells_it_apart_too(kind, monkeypatch):
    compute, change = CASES[kind]
    part = part_that_computes(compute)
    before = Code.of(part).digest
    assert Code.of(part_that_computes(compute)).digest == before
    change(monkeypatch, part)
    assert Code.of(part).digest != before


class Refuses:
    def __reduce__(self):
        raise TypeError("not this")


UNREADABLE = {
    "a generator": lambda _: (one for one in range(3)),
    "an object within others": lambda _: SimpleNamespace(held=[Refuses()]),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_can_be_read_counts_beside_what_cannot_which_is_said(kind, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "mlr3torch_py")
    part = part_that_computes(lambda _, x: own.act(x))
    part.held = UNREADABLE[kind](part)
    assert counts_when_kept(part, lambda: monkeypatch.setattr(own, "act", twice))
    assert "frozen_cache: of '0', changes are not followed in the 'held' of its Made" in caplog.text


@pytest.mark.parametrize("counts", [counts_when_kept, counts_at_an_epoch])
def test_a_variable_of_a_function_that_a_layer_holds_counts(counts):
    factor = 1.0
    part = part_that_computes(lambda self, x: self.act(x))
    part.act = lambda x: x * factor

    def change():
        nonlocal factor
        factor = 2.0

    assert counts(part, change)


@pytest.mark.parametrize("counts", [counts_when_kept, counts_at_an_epoch])
def test_a_module_that_is_found_by_a_text_counts(counts, monkeypatch):
    part = part_that_computes(lambda _, x: importlib.import_module("a_module_without_a_version").act(x))
    assert counts(part, lambda: monkeypatch.setattr(own, "act", twice))


def test_a_layer_that_is_not_registered_counts():
    part = part_that_computes(lambda self, x: self.outside(x))
    vars(part)["outside"] = frozen(nn.Linear(3, 3))
    assert counts_when_kept(part, lambda: part.outside.weight.data.mul_(2))


def test_members_that_no_code_names_do_not_hinder():
    part = part_that_computes(lambda self, x: getattr(self, self.chosen)(x), unused=(one for one in range(3)))
    assert Code.of(part).lacks == ()


IN_A_NOTEBOOK = """
import torch.distributed
from mlr3torch_py import *
from torch import nn

def act_up(x):
    return x + 1

class Net(nn.Module):
    kind = "up"

    def forward(self, x):
        return globals()["act_" + self.kind](x)

    def load(self, path):
        self.load_state_dict(torch.load(path))
"""


def test_what_stands_beside_a_part_in_a_notebook_is_not_read_with_it():
    scope = {"__name__": "a_notebook"}
    exec(IN_A_NOTEBOOK, scope)
    code = Code.of(scope["Net"]())  # without a warning of torch about what is deprecated
    assert code.snapshot.n_functions < 100
    scope["act_up"] = twice
    assert Code.of(scope["Net"]()) != code
