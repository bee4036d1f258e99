import copy
import json
import pickle
import re
from dataclasses import KW_ONLY
from functools import reduce
from operator import and_, or_, sub, xor

import pytest
import torch
from hypothesis import given
from torch import nn

import mlr3torch_py
from mlr3torch_py import (
    CallbackSetUnfreeze,
    Select,
    from_dict,
    select_all,
    select_first,
    select_glob,
    select_grep,
    select_invert,
    select_last,
    select_name,
    select_none,
    to_dict,
)
from mlr3torch_py.select import selector
from tests.helpers import Nested, X, iris_net, y
from tests.select.strategies import NAMES, name_lists, selects


@given(selects, selects, name_lists)
def test_the_operators_are_those_of_sets_and_keep_the_order_of_the_names(a, b, names):
    left, right = set(a(names)), set(b(names))
    for select, expected in [
        (a | b, left | right),
        (a & b, left & right),
        (a - b, left - right),
        (a ^ b, left ^ right),
        (~a, set(names) - left),
        (select_invert(a), set(names) - left),
    ]:
        assert select(names) == [name for name in names if name in expected]


@given(selects, selects, name_lists)
def test_de_morgan_and_difference_hold(a, b, names):
    assert (~(a | b))(names) == (~a & ~b)(names)
    assert (~(a & b))(names) == (~a | ~b)(names)
    assert (a - b)(names) == (a & ~b)(names)
    assert (~~a)(names) == a(names)


@given(selects)
def test_a_selector_prints_as_the_code_that_makes_it(select):
    again = eval(repr(select), vars(mlr3torch_py))
    assert again == select
    assert hash(again) == hash(select)


@given(selects)
def test_a_selector_survives_pickle_and_deepcopy(select):
    assert pickle.loads(pickle.dumps(select)) == select
    assert copy.deepcopy(select) == select


def test_selectors_are_equal_when_they_are_made_alike():
    assert select_name("a") == select_name(["a"])
    assert select_name("a") != select_name("a", assert_present=False)
    assert select_grep("a") != select_glob("a")
    assert select_first(2) != select_last(2)
    assert len({select_all(), select_all(), select_none()}) == 2
    assert select_all() != "select_all()"


def test_a_selector_cannot_be_changed():
    with pytest.raises(AttributeError):
        select_name("a").param_names = ("b",)


def test_a_selector_has_no_truth_value():
    with pytest.raises(TypeError, match="`&`, `\\|` and `~`"):
        bool(select_all())
    with pytest.raises(TypeError, match="neither true nor false"):
        select_all() and select_none()


def test_a_selector_combines_only_with_selectors():
    with pytest.raises(TypeError, match=r"`select_all\(\) - '0.weight'`"):
        select_all() - "0.weight"


def test_names_are_kept_in_the_order_and_number_in_which_they_come():
    assert select_name(["b", "a"])(iter(["a", "b", "a"])) == ["a", "b", "a"]


def test_names_come_as_a_list():
    with pytest.raises(TypeError, match="`names` is the single string"):
        select_all()("0.weight")


def test_names_are_strings():
    with pytest.raises(TypeError, match=r"`names` is .*use select_all\(\).expand\(module\)"):
        select_all()(nn.Sequential(nn.ReLU()))


def test_a_missing_name_inside_a_combination_is_an_error_too():
    with pytest.raises(ValueError, match="'absent'"):
        (select_all() - select_name("absent"))(NAMES)


def test_many_selectors_combine():
    names = [f"l{i}.weight" for i in range(2000)]
    union = reduce(or_, map(select_name, names))
    assert union(names) == names
    assert copy.deepcopy(union) == pickle.loads(pickle.dumps(union)) == union
    assert repr(union).count("|") == 1999


@pytest.mark.parametrize(
    "select", [select_all() | select_glob("nope.*"), ~select_glob("nope.*"), select_glob("nope.*")]
)
def test_what_matches_nothing_is_found_in_a_combination(select):
    assert select.unmatched(set(NAMES)) == [select_glob("nope.*")]


def test_a_net_expands_as_its_module_does():
    net = iris_net().initialize()
    assert select_last(1).expand(net) == ["6.weight", "6.bias"]
    assert select_last(1).expand(net.fit(X, y)) == ["6.weight", "6.bias"]
    with pytest.raises(TypeError, match=r"(?s)`module`.*after net\.initialize"):
        select_all().expand(iris_net())
    with pytest.raises(TypeError, match="`module` is 3"):
        select_all().expand(3)


@pytest.mark.parametrize("wrap", [nn.DataParallel, pytest.param(torch.compile, marks=pytest.mark.slow)])
def test_a_wrapped_network_expands_as_the_bare_one(wrap):
    assert select_last(1).expand(wrap(Nested())) == ["head.weight", "head.bias"]


def test_select_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Select()


@selector
class Below(Select):
    """Parameters below more than some number of modules."""

    levels: int = 1

    def matches(self, names, module=None):
        return {name for name in names if name.count(".") > self.levels}


@selector
class Larger(Select):
    """Parameters with more than `n` numbers, or of given shapes."""

    fn = "select_larger"
    n: int
    _: KW_ONLY
    shapes: tuple[tuple[int, ...], ...] = ()
    unless: Select = select_none()

    def matches(self, names, module=None):
        tensors = {name: module.get_parameter(name) for name in names - self.unless.matches(names, module)}
        return {name for name, one in tensors.items() if one.numel() > self.n or tuple(one.shape) in self.shapes}


def select_larger(n, **options):
    return Larger(n, **options)


@selector
class Whole(Select):
    """Parameters whose whole name a compiled pattern matches."""

    pattern: re.Pattern

    def matches(self, names, module=None):
        return set(filter(self.pattern.fullmatch, names))


@selector
class PlainWhole(Select):
    """The same, with its own form in plain data."""

    pattern: re.Pattern

    def matches(self, names, module=None):
        return Whole(self.pattern).matches(names)

    def to_plain(self):
        return super().to_plain() | {"pattern": self.pattern.pattern}

    @classmethod
    def from_plain(cls, fields):
        return super().from_plain({"pattern": re.compile(fields["pattern"])})


class Undecorated(Select):
    def __init__(self, word):
        self.word = word

    def matches(self, names, module=None):
        return {name for name in names if self.word in name}


OWN = [
    Below(),
    Below(2),
    ~Below(levels=2) & select_glob("*.bias"),
    Larger(7),
    Larger(16, shapes=((4, 3), (3,)), unless=select_last(1) | Below(3)),
    PlainWhole(re.compile("a.*")),
]


@pytest.mark.slow
@given(selects, name_lists)
def test_a_selector_of_ones_own_combines_as_all_others(other, names):
    own = Below(1)
    expected = [name for name in names if name.count(".") > 1]
    assert own(names) == expected
    assert (~own)(names) == [name for name in names if name not in expected]
    for operator in (and_, or_, sub, xor):
        assert operator(own, other)(names) == [
            name for name in names if name in operator(set(expected), set(other(names)))
        ]
        assert operator(other, own)(names) == [
            name for name in names if name in operator(set(other(names)), set(expected))
        ]


@pytest.mark.parametrize("select", OWN)
def test_a_selector_of_ones_own_is_a_value_that_prints_as_code_and_is_written(select):
    for again in (
        eval(repr(select), vars(mlr3torch_py) | globals()),
        pickle.loads(pickle.dumps(select)),
        copy.deepcopy(select),
        from_dict(json.loads(json.dumps(to_dict(select)))),
    ):
        assert again == select
        assert hash(again) == hash(select)
    with pytest.raises(AttributeError):
        select.levels = 3


def test_a_selector_of_ones_own_prints_only_what_differs_from_its_defaults():
    assert repr(Below()) == "Below(1)"
    assert repr(Larger(7)) == "select_larger(7)"
    assert repr(Larger(7, shapes=((3,),))) == "select_larger(7, shapes=((3,),))"
    assert to_dict(Larger(7))["fn"] == "larger"


def test_a_selector_of_ones_own_sees_the_network_and_serves_in_a_training():
    select = Larger(8, shapes=((3,),))
    assert select.expand(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))) == ["0.weight", "0.bias"]
    net = iris_net(CallbackSetUnfreeze(select_last(1), {"epoch": [2], "weights": [Larger(8)]}), max_epochs=2)
    first, second = net.fit(X, y).history[:, "n_trainable"]
    assert first < second
    assert pickle.loads(pickle.dumps(net)).callbacks[0].unfreeze["weights"] == [Larger(8)]


def test_a_field_that_is_no_plain_data_is_refused_where_it_is_written():
    with pytest.raises(TypeError, match=r"`pattern` is re.compile\('a'\); define to_plain and from_plain in Whole"):
        to_dict(select_all() - Whole(re.compile("a")))


def test_a_class_without_the_decorator_selects_but_is_not_written():
    assert (Undecorated("a") | select_name("b"))(["a", "b", "c"]) == ["a", "b"]
    assert pickle.loads(pickle.dumps(Undecorated("a"))).word == "a"
    with pytest.raises(
        TypeError, match="cannot be written as plain data, since its class is not decorated; decorate it with"
    ):
        to_dict(Undecorated("a"))


def test_a_class_may_be_defined_again_but_may_not_take_a_name_of_ours():
    def defined(name):
        class Same(Select):
            fn = name

            def matches(self, names, module=None):
                return names

        return selector(Same)

    first, second = (defined("select_same") for _ in range(2))
    assert from_dict({"fn": "same"}) == second() != first()
    with pytest.raises(TypeError, match=r"since .*Same has the same `fn`, 'select_same'; give its class another one"):
        to_dict(first())
    for name in ("select_name", "grep", "|"):
        with pytest.raises(ValueError, match=rf"`fn` of .*Same is '{re.escape(name)}', which is taken; give"):
            defined(name)
    assert from_dict({"fn": "grep", "pattern": "a"}) == select_grep("a")
