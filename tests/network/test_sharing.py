"""Names of parameters that share weights."""

import pytest
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from mlr3torch_py import CallbackSetUnfreeze, freeze_plan, gradual_unfreezing, network_blocks, select_prefix, t_clbk
from mlr3torch_py.network.sharing import sharing_names
from tests.helpers import X, iris_net, moved, weights, y


def grouped(**tensors):
    return sharing_names({name: nn.Parameter(tensor) for name, tensor in tensors.items()})


FLAT = torch.zeros(24)
SQUARE = torch.zeros(4, 4)


@pytest.mark.parametrize(
    ("tensors", "groups"),
    [
        ({"a": FLAT, "b": FLAT}, [["a", "b"]]),
        ({"a": FLAT, "b": FLAT[5:9]}, [["a", "b"]]),
        ({"a": FLAT[:8], "b": FLAT[8:]}, []),
        ({"a": FLAT[:9], "b": FLAT[8:]}, [["a", "b"]]),
        ({"a": FLAT[:8], "b": FLAT[8:16], "c": FLAT[4:12], "d": FLAT[16:]}, [["a", "b", "c"]]),
        ({"a": SQUARE[:, :2], "b": SQUARE[:, 2:]}, []),
        ({"a": SQUARE[:, :2], "b": SQUARE[:, 1:]}, [["a", "b"]]),
        ({"a": SQUARE, "b": SQUARE.T, "c": torch.zeros(4, 4)}, [["a", "b"]]),
        ({"a": SQUARE.bfloat16(), "b": SQUARE.bfloat16()}, []),
        ({"a": SQUARE, "b": SQUARE.view(torch.bfloat16)}, [["a", "b"]]),
        ({"a": FLAT[:1].expand(4), "b": FLAT[1:]}, []),
        ({"a": FLAT[:0], "b": FLAT}, []),
        ({"a": torch.zeros(3, device="meta"), "b": torch.zeros(3, device="meta")}, []),
    ],
)
def test_parameters_share_weights_where_their_memory_overlaps(tensors, groups):
    assert grouped(**tensors) == groups


def test_a_tied_tensor_is_one_group_and_a_lazy_one_is_passed_over():
    tied, lazy = nn.Parameter(FLAT), UninitializedParameter()
    assert sharing_names({"a": tied, "b": lazy, "c": tied, "d": nn.Parameter(FLAT[3:])}) == [["a", "c", "d"]]


class Encoder(nn.Module):
    """A decoder that is tied by memory: two parameters, one storage."""

    def __init__(self):
        super().__init__()
        self.embed, self.middle, self.decode = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.decode.weight.data = self.embed.weight.data
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.decode(torch.relu(self.middle(self.embed(x)))))


SHARED = {"embed.weight", "decode.weight"}


def moved_by_epoch(net, n_epochs):
    before, changes = weights(net), []
    for _ in range(n_epochs):
        net.partial_fit(X, y, epochs=1)
        changes.append(set(moved(before, before := weights(net))))
    return changes


def test_weights_are_frozen_only_with_all_that_shares_them():
    table = {"epoch": [2], "weights": [select_prefix("decode")], "action": ["freeze"]}
    net = iris_net(CallbackSetUnfreeze(select_prefix("decode", "head"), table), module=Encoder).initialize()
    plan = freeze_plan(net)
    with pytest.warns(UserWarning, match=r"'decode.weight' and 'embed.weight' share weights"):
        changes = moved_by_epoch(net, 2)
    assert changes == [SHARED | {"head.weight", "head.bias"}, {"head.weight", "head.bias"}]
    assert [phase.trainable for phase in plan.phases] == changes


def test_a_ready_made_schedule_keeps_what_shares_weights_in_one_block():
    net = iris_net(t_clbk("unfreeze", schedule=gradual_unfreezing()), module=Encoder).initialize()
    names = list(weights(net))
    assert [SHARED & set(holds(names)) for holds in network_blocks(net.module_)["holds"]] == [set(), SHARED, set()]
    assert [SHARED & one for one in moved_by_epoch(net, 2)] == [set(), SHARED]
