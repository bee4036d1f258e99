import copy
import pickle
from functools import reduce
from operator import and_, or_, sub, xor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import mlr3torch_py
from mlr3torch_py import (
    Select,
    select_all,
    select_first,
    select_glob,
    select_grep,
    select_invert,
    select_last,
    select_name,
    select_none,
    select_prefix,
    select_type,
)
from tests.helpers import Block, Nested, X, iris_net, y

NAMES = [
    f"{part}.{i}.{kind}" for part in ("embed", "layer1", "layer10") for i in range(3) for kind in ("weight", "bias")
]

leaves = st.one_of(
    st.just(select_all()),
    st.just(select_none()),
    st.lists(st.sampled_from(NAMES)).map(select_name),
    st.lists(st.sampled_from([*NAMES, "absent"])).map(lambda names: select_name(names, assert_present=False)),
    st.sampled_from([r"^layer1\.", "bias$", "[[:digit:]]", "(?!x)e"]).map(select_grep),
    st.sampled_from(["LAYER", "Bias"]).map(lambda pattern: select_grep(pattern, ignore_case=True)),
    st.sampled_from([".", "1.w"]).map(lambda pattern: select_grep(pattern, fixed=True)),
    st.sampled_from(["*.bias", "layer?.*", "*[02]*"]).map(select_glob),
    st.sampled_from(["layer1", "embed.0", "layer10.2.bias"]).map(select_prefix),
)
selects = st.recursive(
    leaves,
    lambda inner: st.one_of(
        inner.map(select_invert),
        st.tuples(st.sampled_from([and_, or_, sub, xor]), inner, inner).map(lambda parts: parts[0](*parts[1:])),
    ),
    max_leaves=6,
)
name_lists = st.permutations(NAMES)


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


def test_a_missing_name_is_named_with_the_nearest_ones():
    with pytest.raises(
        ValueError, match=r"`param_names` names '0.wieght', which the network lacks; did you mean '0.weight'"
    ):
        select_name(["0.bias", "0.wieght"])(["0.weight", "0.bias"])
    with pytest.raises(ValueError, match="choose from '0.weight', '0.bias'."):
        select_name("x")(["0.weight", "0.bias"])


def test_a_missing_name_inside_a_combination_is_an_error_too():
    with pytest.raises(ValueError, match="'absent'"):
        (select_all() - select_name("absent"))(NAMES)


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


def test_patterns_have_the_word_boundaries_of_r():
    assert select_grep(r"\<fc\>")(["a.fc.weight", "a.fc1.weight", "fc"]) == ["a.fc.weight", "fc"]
    assert select_grep(r"a\\<")([r"a\<", "a<"]) == [r"a\<"]


def test_a_prefix_matches_whole_components():
    assert select_prefix("layer1")(["layer1.0.weight", "layer10.weight", "layer1"]) == ["layer1.0.weight", "layer1"]
    assert select_prefix("a.b", "c.")(["a.b.weight", "a.bc.weight", "c.bias"]) == ["a.b.weight", "c.bias"]


def test_a_type_selects_what_lies_inside_such_modules():
    network = Nested(blocks=2)
    assert select_type(Block).expand(network) == select_prefix("encoder").expand(network)
    assert select_type(nn.LayerNorm).expand(network) == select_glob("*.norm.*").expand(network)
    assert select_type(nn.LayerNorm, nn.Embedding).expand(network) == select_type(nn.LayerNorm).expand(network)
    assert select_type(Nested).expand(network) == select_all().expand(network)
    assert repr(select_type(nn.LayerNorm)) == "select_type(torch.nn.LayerNorm)"
    assert eval(repr(select_type(nn.LayerNorm)), vars(mlr3torch_py) | {"torch": torch}) == select_type(nn.LayerNorm)
    assert repr(select_type(Block)) == "select_type(tests.helpers.Block)"


def test_first_and_last_count_direct_blocks_with_parameters():
    network = Nested(blocks=2)
    assert select_first(1).expand(network) == select_prefix("embed").expand(network)
    assert select_last(2).expand(network) == select_prefix("encoder", "head").expand(network)
    assert select_last(9).expand(network) == select_all().expand(network)
    with_own = nn.Sequential(nn.ReLU(), nn.Linear(2, 2), nn.Dropout())
    with_own.scale = nn.Parameter(torch.ones(1))
    assert select_first(1).expand(with_own) == select_last(1).expand(with_own) == ["1.weight", "1.bias"]
    with pytest.raises(ValueError, match="no direct blocks"):
        select_last(1).expand(nn.Linear(2, 2))


@pytest.mark.parametrize("select", [select_type(nn.Linear), select_first(1), select_last(1), ~select_last(1)])
def test_selectors_of_places_need_a_network(select):
    with pytest.raises(ValueError, match="needs a network.*expand"):
        select(NAMES)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_wrapped_network_expands_as_the_bare_one(wrap):
    assert select_last(1).expand(wrap(Nested())) == ["head.weight", "head.bias"]


def test_a_shared_module_is_selected_under_all_its_names():
    linear = nn.Linear(2, 2)
    network = nn.Sequential(linear, nn.ReLU(), linear, nn.LayerNorm(2))
    assert (~select_type(nn.Linear)).expand(network) == ["3.weight", "3.bias"]
    assert select_last(2).expand(network) == ["2.weight", "2.bias", "3.weight", "3.bias"]


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


def test_numpy_names_and_numbers_are_taken():
    assert repr(select_name(np.array(["a", "b"]))) == "select_name(['a', 'b'])"
    assert select_last(np.int64(1)) == select_last(1)


def test_names_are_strings():
    with pytest.raises(TypeError, match=r"`names` is .*use select_all\(\).expand\(module\)"):
        select_all()(nn.Sequential(nn.ReLU()))


def test_a_net_expands_as_its_module_does():
    net = iris_net().initialize()
    assert select_last(1).expand(net) == ["6.weight", "6.bias"]
    assert select_last(1).expand(net.fit(X, y)) == ["6.weight", "6.bias"]
    with pytest.raises(TypeError, match=r"(?s)`module`.*after net\.initialize"):
        select_all().expand(iris_net())
    with pytest.raises(TypeError, match="`module` is 3"):
        select_all().expand(3)


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


def test_select_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Select()
