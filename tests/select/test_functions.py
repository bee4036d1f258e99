import numpy as np
import pytest
from torch import nn

import mlr3torch_py
import mlr3torch_py.select
from mlr3torch_py import (
    select_first,
    select_glob,
    select_grep,
    select_invert,
    select_last,
    select_name,
    select_prefix,
    select_type,
)
from mlr3torch_py.select.base import SELECTORS


@pytest.mark.parametrize("pattern", ["[", "(", "*a", "[[:nope:]]"])
def test_a_pattern_that_does_not_compile_is_refused_at_once(pattern):
    with pytest.raises(ValueError, match="`pattern` is .* does not compile"):
        select_grep(pattern)
    assert select_grep(pattern, fixed=True)([pattern, "b"]) == [pattern]


def test_case_is_ignored_on_request_but_not_for_fixed_text():
    assert select_grep("WEIGHT", ignore_case=True)(["0.weight"]) == ["0.weight"]
    with pytest.warns(UserWarning, match="`ignore_case=True` is ignored"):
        fixed = select_grep("WEIGHT", ignore_case=True, fixed=True)
    assert fixed(["0.weight"]) == []
    assert eval(repr(fixed), vars(mlr3torch_py)) == fixed


def test_numpy_names_and_numbers_are_taken():
    assert repr(select_name(np.array(["a", "b"]))) == "select_name(['a', 'b'])"
    assert select_last(np.int64(1)) == select_last(1)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: select_name(3), "param_names"),
        (lambda: select_name({"a", "b"}), "param_names"),
        (lambda: select_name("a", "b"), "assert_present"),
        (lambda: select_grep("a", "b"), "ignore_case"),
        (lambda: select_prefix("a", "."), "prefixes"),
        (lambda: select_name(["a", 3]), "param_names"),
        (lambda: select_grep(3), "pattern"),
        (lambda: select_glob(None), "pattern"),
        (lambda: select_prefix(), "prefixes"),
        (lambda: select_prefix(["a"]), "prefixes"),
        (lambda: select_type(), "module_types"),
        (lambda: select_type(nn.Linear(1, 1)), "module_types"),
        (lambda: select_type(str), "module_types"),
        (lambda: select_first(1.0), "n"),
        (lambda: select_last(True), "n"),
        (lambda: select_last(0), "n"),
        (lambda: select_invert("a"), "select"),
    ],
)
def test_a_wrong_argument_is_named(make, argument):
    with pytest.raises((TypeError, ValueError), match=f"`{argument}`"):
        make()


def test_a_flag_and_a_list_of_names_have_their_own_messages():
    with pytest.raises(TypeError, match="`ignore_case` is 1; give True or False$"):
        select_grep("x", ignore_case=1)
    with pytest.raises(TypeError, match="`assert_present` is '0.bias'; pass several names as one list"):
        select_name("0.weight", "0.bias")


def test_a_count_may_be_any_whole_number_from_one():
    with pytest.raises(ValueError, match="`n` is 0; give a whole number of blocks, at least 1"):
        select_first(0)


def test_every_function_has_a_class_that_knows_its_name():
    ours = {kind.fn for kind in SELECTORS.values() if kind.__module__.startswith("mlr3torch_py.")}
    functions = {name for name in mlr3torch_py.__all__ if name.startswith("select_")}
    assert functions == {fn for fn in ours if fn.startswith("select_")}
    assert functions == {name for name in mlr3torch_py.select.__all__ if name.startswith("select_")}
