"""What of the code of a forward pass tells it from others, in this process and in the next."""

import functools
import importlib
import inspect
import operator
import os
import pathlib
import re
import subprocess
import sys
import textwrap
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy import load as load_numbers
from torch import nn

from mlr3torch_py.cache.identity import state
from mlr3torch_py.cache.identity.code import Code
from mlr3torch_py.cache.identity.code_objects import is_known
from mlr3torch_py.cache.identity.portable import NotPortableError

PARTS = {
    "scale": "2.0",
    "helper": "x + 1",
    "method": "helper(x) * SCALE",
    "constant": "3",
    "closure": "x - 1",
    "default": "5",
    "static": "x.abs()",
    "property": "4",
    "cached": "x * 7",
    "inner": "x / 9",
    "metaclass": "6",
}
SOURCE = """
import functools
import torch
from torch import nn

SCALE = {scale}

def helper(x):
    return inner(x) + {helper}

def inner(x):
    return {inner}

def shifted():
    def shift(x):
        return {closure}
    return shift

def with_shift(function):
    shift = shifted()
    @functools.wraps(function)
    def wrapper(self, x):
        return shift(function(self, x))
    return wrapper

@functools.lru_cache
def looked_up(x):
    return {cached}

class Units(type):
    @property
    def unit(cls):
        return {metaclass}

class Config(metaclass=Units):
    pass

class Net(nn.Module):
    constant = {constant}

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    @with_shift
    def forward(self, x, more={default}):
        return self.method(self.linear(x)) * self.constant * self.twice + self.absolute(x) + looked_up(more)

    def method(self, x):
        return {method}

    @staticmethod
    def absolute(x):
        return {static}

    @property
    def twice(self):
        return {property} * Config.unit

    def never_called(self):
        return 1
"""


def net_of(**parts):
    scope = {"__name__": "a_file"}
    exec(SOURCE.format(**(PARTS | parts)), scope)
    return scope["Net"]()


def test_the_same_code_has_the_same_digest_wherever_it_is_written():
    assert Code.of(net_of()) == Code.of(net_of())


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_the_code_that_a_forward_pass_reaches_counts(part):
    assert Code.of(net_of(**{part: PARTS[part] + " * 2"})).digest != Code.of(net_of()).digest


@pytest.mark.parametrize("name", ["forward", "method", "constant", "twice", "absolute"])
def test_what_is_replaced_in_a_class_counts_at_once(name):
    net = net_of()
    before = Code.of(net)
    setattr(type(net), name, torch.relu if name in {"forward", "method"} else 9)
    assert Code.of(net).digest != before.digest


def test_a_global_that_is_replaced_counts_at_once():
    net = net_of()
    before = Code.of(net)
    scope = type(net).method.__globals__
    scope["SCALE"] = 8.0
    changed = Code.of(net)
    scope["helper"] = torch.relu
    assert len({before.digest, changed.digest, Code.of(net).digest}) == 3


@pytest.mark.parametrize("most", [0, 500])
def test_of_very_much_code_only_what_is_inside_of_globals_does_not_count(most, monkeypatch):
    monkeypatch.setattr(state, "_MANY_FUNCTIONS", most)
    scales = [2.0]
    net = net_of()
    scope = type(net).method.__globals__
    scope["SCALE"] = scales
    known = state.ModuleState(net)
    known.note_code()
    assert not known.has_other_code()
    scales[0] = 3.0
    assert known.has_other_code() is (most > 0)
    scope["helper"] = torch.relu
    assert known.has_other_code()


def test_code_of_torch_that_somebody_replaces_counts(monkeypatch):
    before = Code.of(nn.Sequential(nn.Linear(2, 2)))
    monkeypatch.setattr(nn.Linear, "forward", nn.Identity.forward)
    assert Code.of(nn.Sequential(nn.Linear(2, 2))).digest != before.digest
    monkeypatch.undo()
    assert Code.of(nn.Sequential(nn.Linear(2, 2))) == before


def test_a_function_that_one_layer_holds_counts():
    one, other = net_of(), net_of()
    one.act, other.act = (lambda x: x + 1), (lambda x: x + 2)
    assert Code.of(one).digest != Code.of(other).digest


def test_modes_count_of_layers_that_look_at_them():
    assert Code.of(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU())).moded == (2,)

    class Looks(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if self[0].training else x

    assert Code.of(Looks(nn.ReLU())).moded == (0, 1)


def test_the_gradient_mode_counts_for_code_that_looks_at_it():
    class Looks(nn.Module):
        def forward(self, x):
            return x if torch.is_grad_enabled() else -x

    assert Code.of(Looks()).sees_grad_mode
    assert not Code.of(nn.Linear(1, 1)).sees_grad_mode


def test_what_cannot_be_read_is_named():
    net = net_of()
    net.open = (one for one in range(3))
    with pytest.raises(NotPortableError, match="the 'open' of its Net"):
        Code.of(net)


def by_a_name_of_its_own(self, x):
    return x + load_numbers("file").sum()


def by_an_import_of_its_own(self, x):
    from os import getenv

    return x * float(getenv("GAIN"))


OUTSIDE = {
    "importlib.import_module": lambda _, x: importlib.import_module("operator").pos(x),
    "__import__": lambda _, x: __import__("operator").pos(x),
    "sys.modules": lambda _, x: sys.modules["operator"].pos(x),
    "inspect.getmodule": lambda _, x: inspect.getmodule(operator.pos).pos(x),
    "torch.ops": lambda _, x: torch.ops.of_somebody.double(x),
    "open": lambda _, x: x * len([*open("gain")]),  # noqa: SIM115
    "pathlib.Path": lambda _, x: x + len(pathlib.Path("gain").parts),
    "read_text": lambda self, x: x * float(self.path.read_text()),
    "np.load": lambda _, x: x + np.load("gain.npy").item(),
    "torch.load": lambda _, x: x + torch.load("gain.pt"),
    "os.environ": lambda _, x: x * float(os.environ.get("GAIN", "1")),
    "load_numbers": by_a_name_of_its_own,
    "os.getenv": by_an_import_of_its_own,
}


@pytest.mark.parametrize("source", OUTSIDE)
def test_what_comes_from_outside_cannot_be_read(source):
    forward = OUTSIDE[source]
    message = re.escape(f"what {forward.__qualname__}() gets by {source}")
    with pytest.raises(NotPortableError, match=f"^{message}$"):
        Code.of(type("Takes", (nn.Module,), {"forward": forward})())


def test_what_is_imported_only_by_a_call_is_to_be_imported_before(tmp_path, monkeypatch):
    (tmp_path / "imported_by_a_call.py").write_text("GAIN = 2.0")
    monkeypatch.syspath_prepend(tmp_path)

    def forward(_self, x):
        from imported_by_a_call import GAIN

        return x * GAIN

    part = type("Imports", (nn.Module,), {"forward": forward})()
    with pytest.raises(NotPortableError, match="uses imported_by_a_call before it is imported: import it at the top"):
        Code.of(part)
    imported = ModuleType("imported_by_a_call")
    imported.GAIN = 2.0
    monkeypatch.setitem(sys.modules, imported.__name__, imported)
    before = Code.of(part)
    imported.GAIN = 3.0
    assert Code.of(part) != before


class Config:
    """Reads a file, though only when it is made."""

    def __init__(self, path):
        self.scale = self.load(path)

    def load(self, path):
        with open(path) as file:
            return float(file.read())


class Loaded(nn.Module):
    """Names what others call what comes from outside."""

    def __init__(self, path):
        super().__init__()
        self.config, self.ops = Config(path), nn.ModuleList([nn.Linear(2, 2)])

    def forward(self, x):
        for one in self.modules():
            x = x * one.training * np.sqrt(sys.float_info.max) * self.config.scale
        return self.ops[0](torch.ops.aten.relu(x)) * len(os.path.join("a", "b"))

    def load_weights(self, path):
        self.load_state_dict(torch.load(path))


def test_names_of_what_comes_from_outside_mean_nothing_elsewhere(tmp_path):
    (tmp_path / "scale").write_text("2")
    assert Code.of(Loaded(tmp_path / "scale"))


class Settings(dict):
    """Answers for its attributes by its items."""

    __getattr__ = dict.__getitem__


class Given(nn.Module):
    def forward(self, x):
        try:
            import blocked_for_tests  # noqa: F401
        except ImportError:
            return x * GIVEN.gain  # noqa: F821
        return x


def test_objects_that_answer_by_errors_and_imports_that_are_prevented_are_no_errors(monkeypatch):
    monkeypatch.setitem(sys.modules, "blocked_for_tests", None)
    monkeypatch.setitem(globals(), "GIVEN", Settings(gain=2.0))
    assert Code.as_far_as_known(Given()).digest


@pytest.mark.slow
def test_the_next_process_finds_the_same_code(tmp_path):
    (tmp_path / "a_file.py").write_text(SOURCE.format(**PARTS))
    program = textwrap.dedent("""
        import sys; sys.path.insert(0, sys.argv[1])
        from a_file import Net
        from mlr3torch_py.cache.identity.code import Code
        print(Code.of(Net()).digest)
    """)
    run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
    digests = {
        run(
            [sys.executable, "-c", program, str(tmp_path)],
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("file", "record", "expected"),
    [
        ("a_library/__init__.py", "a_library/__init__.py,,", True),
        ("a_library.py", "another.py,,\na_library.py,,", True),
        ("a_library.py", "another_a_library.py,,", False),
        ("a_library/__init__.py", None, False),
    ],
)
def test_a_library_is_known_by_its_version_wherever_an_installer_puts_it(file, record, expected, tmp_path, monkeypatch):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("__version__ = '1.2'")
    if record is not None:
        (tmp_path / "a_library-1.2.dist-info").mkdir()
        (tmp_path / "a_library-1.2.dist-info" / "RECORD").write_text(record)
    spec = spec_from_file_location("a_library", tmp_path / file)
    library = module_from_spec(spec)
    spec.loader.exec_module(library)
    monkeypatch.setitem(sys.modules, "a_library", library)
    assert is_known("a_library") is expected
