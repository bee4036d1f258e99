"""Private names of torch and skorch: all that are used are listed, and one that is missing is named."""

import ast
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import mlr3torch_py
from mlr3torch_py.network import internals
from mlr3torch_py.network.internals import INTERNALS, check_internals, internal

PACKAGE = Path(mlr3torch_py.__file__).parent
LISTED = {name for names in INTERNALS.values() for name in names}
PATHS = {part for owner in INTERNALS for part in owner.split(".") if part.startswith("_")}
OTHERS = {"_asdict", "_replace", "_getframe", "_exit"}  # documented by Python


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


def own(tree):
    """The private names that a module of the package defines itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.AnnAssign | ast.arg):
            yield node.target.id if isinstance(getattr(node, "target", None), ast.Name) else getattr(node, "arg", "")


def used(tree):
    """The private attributes that a module of the package reads, and the private names that it imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not node.module.startswith("mlr3torch_py"):
            yield from [*node.module.split("."), *(one.name for one in node.names)]


@pytest.mark.slow
def test_every_private_name_that_is_used_is_listed_with_its_purpose():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    ours = {name for tree in trees for name in own(tree)} - LISTED
    names = {name for tree in trees for name in used(tree) if is_private(name)} - ours
    assert names - LISTED - PATHS <= OTHERS
    assert all(purpose for names in INTERNALS.values() for purpose in names.values())


@pytest.mark.parametrize("owner", [owner for owner in INTERNALS if owner in sys.modules])
def test_the_names_of_modules_are_there(owner):
    assert all(hasattr(sys.modules[owner], name) for name in INTERNALS[owner])


def test_a_missing_name_is_an_error_that_names_the_release(monkeypatch):
    empty = ModuleType("torch.utils._pytree")
    monkeypatch.setitem(sys.modules, "torch.utils._pytree", empty)
    message = (
        f"torch {version('torch')} lacks torch.utils._pytree.tree_map, which mlr3torch_py needs to find the tensors"
    )
    with pytest.raises(ImportError) as error:
        internal("torch.utils._pytree", "tree_map")
    assert str(error.value).startswith(message)
    assert "install another release of torch" in str(error.value)


def test_a_missing_attribute_of_an_instance_is_an_error_too():
    with pytest.raises(
        ImportError, match=r"skorch [\d.]+ lacks skorch.NeuralNet._modules, which .* to find the modules"
    ):
        check_internals("skorch.NeuralNet", SimpleNamespace())


def test_it_gives_what_torch_has():
    assert internals.tree_map(len, {"a": "bc"}) == {"a": 2}
