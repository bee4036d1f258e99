"""network_blocks: the table of blocks, the head that was chosen, and groups of blocks."""

from collections import OrderedDict

import pandas as pd
import pytest
import torch
from torch import nn

from mlr3torch_py import MLP, gradual_unfreezing, network_blocks, select_glob, select_prefix
from tests.helpers import Nested, iris_net


def test_the_table_names_blocks_and_counts_what_they_hold():
    table = network_blocks(Nested(2))
    assert table["name"].tolist() == ["embed", "encoder.0", "encoder.1", "head"]
    assert table["holds"].tolist() == [select_prefix(name) for name in table["name"]]
    assert table["tensors"].tolist() == [2, 6, 6, 2]
    assert table["weights"].sum() == sum(tensor.numel() for tensor in Nested(2).parameters())
    assert repr(table).splitlines()[2] == "encoder.0  select_prefix('encoder.0')        6       48"
    assert type(table[["name"]]) is pd.DataFrame


def test_a_net_is_asked_as_its_network():
    net = iris_net(module=Nested).initialize()
    assert repr(network_blocks(net)) == repr(network_blocks(Nested()))
    assert repr(network_blocks(net, torch.zeros(2, 4))) == repr(network_blocks(Nested()))
    with pytest.raises(TypeError, match="after net.initialize"):
        network_blocks(iris_net(module=Nested))
    with pytest.raises(ValueError, match="`network` has no parameters, and so no blocks"):
        network_blocks(nn.ReLU())


def test_a_block_whose_name_has_braces_is_that_block():
    network = nn.Sequential(OrderedDict({"a{0,1}": nn.Linear(4, 4), "b": nn.Linear(4, 4), "a0": nn.Linear(4, 2)}))
    table = network_blocks(network)
    assert [one.expand(network) for one in table["holds"]] == [
        ["a{0,1}.weight", "a{0,1}.bias"], ["b.weight", "b.bias"], ["a0.weight", "a0.bias"]
    ]  # fmt: skip
    assert repr(table["holds"][0]) == "select_name(['a{0,1}.weight', 'a{0,1}.bias'])"


@pytest.mark.parametrize("head", [["head", "encoder.1"], select_prefix("encoder.1", "head")])
def test_the_head_is_what_is_said(head):
    table = network_blocks(Nested(2), head=head)
    assert table["name"].tolist() == ["embed", "encoder.0", "encoder.1, head"]
    assert gradual_unfreezing(Nested(2), head=head)["starting_weights"] == table["holds"].iloc[-1]


def test_a_head_inside_of_blocks_leaves_the_rest_to_them():
    table = network_blocks(Nested(1), head=select_glob("*.bias"))
    assert table["holds"].iloc[-1].expand(Nested(1)) == select_glob("*.bias").expand(Nested(1))
    assert table["tensors"].sum() == len(list(Nested(1).parameters()))
    with pytest.raises(ValueError, match="`head` has .*glob.* which matches no weight"):
        network_blocks(Nested(1), head=select_glob("*.bais"))


def test_groups_are_neighbours_of_about_equal_weight():
    network = MLP(4, 3, neurons=(8, 8, 8, 8, 64, 8))
    for n in range(1, 8):
        assert len(network_blocks(network, n_groups=n)) == n
    assert len(network_blocks(network, n_groups=50)) == 7
    table = network_blocks(network, n_groups=4)
    assert table["weights"].tolist() == [40 + 3 * 72, 576, 520, 27]
    assert table["name"].iloc[0] == "{0,3,6,9}"
    assert network_blocks(network, n_groups=1)["tensors"].tolist() == [14]
