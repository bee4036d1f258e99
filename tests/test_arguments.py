"""Checks of arguments: plain values come out, and a message names argument, value and remedy."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from mlr3torch_py import MLP, t_clbk
from mlr3torch_py.arguments import (
    check_callable,
    check_choice,
    check_flag,
    check_mapping,
    check_names,
    check_network,
    check_number,
    check_path,
    check_text,
    check_whole,
)
from tests.helpers import iris_net


@pytest.mark.parametrize("number", [np.uint8(3), np.array(3), np.int64(3), 3])
def test_a_whole_number_of_numpy_becomes_an_int(number):
    checked = check_whole("n", number, "epochs")
    assert type(checked) is int
    assert checked + 254 == 257


@pytest.mark.parametrize("number", [np.float32(0.5), np.array(0.5), Fraction(1, 2), 0.5])
def test_a_number_becomes_a_float(number):
    assert type(check_number("x", number)) is float
    assert check_number("x", number) == 0.5


def test_a_flag_of_numpy_becomes_a_bool():
    assert check_flag("f", np.True_) is True
    assert check_flag("f", np.array(False)) is False


def test_infinity_is_a_number_where_it_may_be_one():
    assert check_number("weight", math.inf, finite=False) == math.inf
    for wrong in (math.nan, 10**400):
        with pytest.raises(ValueError, match="`weight` is"):
            check_number("weight", wrong, finite=False)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_whole("n", True, "epochs"), "`n` is True; give a whole number of epochs, at least 1"),
        (lambda: check_whole("n", 2.0, "epochs"), "`n` is 2.0; give a whole"),
        (lambda: check_whole("n", 10**400, "epochs"), r"`n` is 1000.* at least 1 and at most 2\*\*63 - 1"),
        (lambda: check_whole("n", np.ones(2), "epochs"), "`n` is array.*; give a whole"),
        (lambda: check_whole("n", torch.ones(100), "epochs"), "`n` is <torch.Tensor>; give a whole"),
        (lambda: check_number("p", 2, "a share up to 1", most=1), "`p` is 2; give a share up to 1"),
        (lambda: check_number("p", 0, "a number above 0", above=0), "`p` is 0; give a number above 0"),
        (lambda: check_number("p", np.True_), r"`p` is (np\.True_|True); give a finite number"),
        (lambda: check_number("p", math.inf), "`p` is inf; give a finite number"),
        (lambda: check_flag("f", 1), "`f` is 1; give True or False"),
        (lambda: check_choice("unit", 3, ("epoch", "batch")), "`unit` is 3; give 'epoch' or 'batch'"),
        (lambda: check_choice("unit", np.ones(2), ("epoch",)), "`unit` is array.*; give 'epoch'"),
        (lambda: check_text("monitor", None, "a key"), "`monitor` is None; give a key"),
        (lambda: check_mapping("public", {1: 2}, "names to values"), "`public` is {1: 2}; give a mapping of names"),
        (lambda: check_callable("f", print, "a", "b", "c", "d"), None),
        (lambda: check_callable("f", lambda x: x), "`f` must be a function that takes no arguments"),
        (lambda: check_callable("f", 3, "a net"), "`f` is 3; give a function that takes a net"),
        (lambda: check_network("net", nn.Linear), "`net` is <class .*; give a torch.nn.Module"),
        (lambda: check_network("net", iris_net()), r"`net` is .*after net\.initialize"),
    ],
)
def test_a_message_says_what_to_give(check, message):
    if message is None:
        check()
        return
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["", " ", "a\0b", "x" * 300, "~nobody_of_this_name/x", 3, b"bytes", None])
def test_what_cannot_be_a_path_is_refused(path):
    with pytest.raises((TypeError, ValueError), match="^`path` is .*; give a folder$"):
        check_path("path", path)


def test_a_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_path("path", "new/folder") == tmp_path.resolve() / "new" / "folder"
    assert check_path("path", tmp_path) == tmp_path.resolve()


def test_names_are_one_name_or_a_list():
    assert check_names("names", "a") == ("a",)
    assert check_names("names", iter("ab")) == ("a", "b")
    for wrong in (3, {"a"}, {"a": 1}, ["a", 3], np.array(3)):
        with pytest.raises(TypeError, match="`names` is .*; give a name or a list of names"):
            check_names("names", wrong)


@pytest.mark.parametrize(
    ("argument", "make"),
    [
        ("names", lambda once: t_clbk("freezer", names=once)),
        ("except_names", lambda once: t_clbk("freezer", name_starts_with="0", except_names=once)),
        ("name_starts_with", lambda once: t_clbk("freezer", name_starts_with=once)),
        ("name_starts_with", lambda once: t_clbk("freezer", name_starts_with=[once])),
        ("modules", lambda once: t_clbk("frozen_cache", modules=once)),
        ("neurons", lambda once: MLP(4, 3, once)),
    ],
)
def test_what_is_read_again_may_not_be_an_iterator(argument, make):
    with pytest.raises(TypeError, match=f"`{argument}` is .*, which can be read only once; give a list: list"):
        make(name for name in ("0.bias", "3.bias"))
