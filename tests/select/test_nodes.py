import copy

import pytest
import torch
from torch import nn

import mlr3torch_py
from mlr3torch_py import (
    from_dict,
    select_all,
    select_first,
    select_glob,
    select_grep,
    select_last,
    select_name,
    select_prefix,
    select_trainable,
    select_type,
    t_clbk,
    to_dict,
    trainable_names,
)
from tests.helpers import Block, Nested, X, iris_net, y
from tests.select.strategies import NAMES


def test_a_missing_name_is_named_with_the_nearest_ones():
    with pytest.raises(
        ValueError, match=r"`param_names` names '0.wieght', which the network lacks; did you mean '0.weight'"
    ):
        select_name(["0.bias", "0.wieght"])(["0.weight", "0.bias"])
    with pytest.raises(ValueError, match="choose from '0.weight', '0.bias'."):
        select_name("x")(["0.weight", "0.bias"])


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


def test_first_and_last_count_the_blocks_of_schedules():
    network = Nested(blocks=2)
    assert select_first(1).expand(network) == select_prefix("embed").expand(network)
    assert select_last(2).expand(network) == select_prefix("encoder.1", "head").expand(network)
    assert select_last(9).expand(network) == select_all().expand(network)
    with_own = nn.Sequential(nn.ReLU(), nn.Linear(2, 2), nn.Dropout())
    with_own.scale = nn.Parameter(torch.ones(1))
    assert select_first(1).expand(with_own) == select_last(1).expand(with_own) == ["scale", "1.weight", "1.bias"]
    assert select_last(1).expand(nn.Linear(2, 2)) == ["weight", "bias"]
    with pytest.raises(ValueError, match="no parameters, and so no blocks"):
        select_last(1).expand(nn.ReLU())


@pytest.mark.parametrize("select", [select_type(nn.Linear), select_first(1), select_last(1), ~select_last(1)])
def test_selectors_of_places_need_a_network(select):
    with pytest.raises(ValueError, match="needs a network.*expand"):
        select(NAMES)


def test_a_shared_module_is_selected_under_all_its_names():
    linear = nn.Linear(2, 2)
    network = nn.Sequential(linear, nn.ReLU(), linear, nn.LayerNorm(2))
    assert (~select_type(nn.Linear)).expand(network) == ["3.weight", "3.bias"]
    assert select_last(1).expand(network) == ["0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias"]


def test_trainable_is_what_required_a_gradient_before_any_callback_acted_also_at_a_second_fit():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    network[0].bias.requires_grad = False
    expected = ["0.weight", "1.weight", "1.bias"]
    assert select_trainable().expand(network) == expected
    net = iris_net(t_clbk("unfreeze", starting_weights=select_trainable() & select_prefix("1")), module=network)
    for _ in range(2):
        net.fit(X, y)
        assert select_trainable().expand(net) == expected
    assert trainable_names(network) == expected[1:]
    network[1].bias.requires_grad = False
    assert select_trainable().expand(network) == ["0.weight", "1.weight"]
    assert select_trainable().expand(copy.deepcopy(network)) == ["0.weight", "1.weight"]


def test_trainable_needs_a_network_and_goes_through_plain_data():
    with pytest.raises(ValueError, match=r"select_trainable\(\) needs a network"):
        select_trainable()(["0.weight"])
    assert from_dict(to_dict(~select_trainable())) == ~select_trainable()
