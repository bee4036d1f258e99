"""Flow: what a batch shows of modules that are used without a call."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from mlr3torch_py.network.blocks import find_blocks
from mlr3torch_py.network.flow import flow_of


class Parts(nn.Module):
    """Holds its modules in another order than the one in which they run."""

    def __init__(self):
        super().__init__()
        self.head, self.body, self.embed = nn.Linear(8, 2), nn.Linear(8, 8), nn.Embedding(9, 8)


class ByWeight(Parts):
    def forward(self, x):
        weight = functional.normalize(self.head.weight.to(self.body.weight.dtype))
        return functional.linear(self.body(functional.embedding(x, self.embed.weight)), weight, self.head.bias)


class ByMethod(Parts):
    def forward(self, x):
        return self.head.forward(self.body.forward(self.embed.forward(x)))


class ByItem(Parts):
    def __init__(self):
        super().__init__()
        self.head = nn.ParameterDict({"weight": nn.Parameter(torch.randn(8, 2)), "bias": nn.Parameter(torch.zeros(2))})

    def forward(self, x):
        return self.body(self.embed(x)) @ self.head["weight"] + self.head["bias"]


@pytest.mark.parametrize("batch", [None, torch.zeros(2, 3, dtype=torch.long)])
@pytest.mark.parametrize("cls", [ByWeight, ByMethod, ByItem])
def test_what_is_used_without_a_call_has_its_place(cls, batch):
    network = cls()
    blocks = find_blocks(network, None if batch is None else flow_of(network, batch))
    assert [{name.partition(".")[0] for name in block.names} for block in blocks] == [{"embed"}, {"body"}, {"head"}]


def test_what_a_weight_meets_is_read_by_its_module():
    flow = flow_of(ByWeight(), torch.zeros(2, 3, dtype=torch.long))
    assert [path for path in flow.order if path] == ["embed", "body", "head"]
    assert flow.reads("head", "body")
    assert flow.reads("body", "embed")
    assert not flow.reads("body", "head")


def test_a_tied_weight_is_used_by_the_module_that_is_called():
    class Tied(Parts):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.body(self.embed(x)))

    assert [path for path in flow_of(Tied(), torch.zeros(2, 3, dtype=torch.long)).order if path] == [
        *("embed", "body", "head")
    ]


def test_what_a_batch_does_not_reach_stays_where_the_code_has_it():
    class Shortcut(Parts):
        def forward(self, x, is_short=True):
            x = self.embed(x)
            return self.head(x if is_short else self.body(x))

    network = Shortcut()
    blocks = find_blocks(network, flow_of(network, torch.zeros(2, 3, dtype=torch.long)))
    assert [{name.partition(".")[0] for name in block.names} for block in blocks] == [{"embed"}, {"body"}, {"head"}]
