"""Code loops: lists of modules that the code runs side by side, or from the last to the first."""

import ast

import pytest
import torch
from torch import nn

from mlr3torch_py.network.blocks import find_blocks
from mlr3torch_py.network.code_loops import loops_in


@pytest.mark.parametrize(
    ("code", "is_parallel"),
    [
        ("[one(x) for one in self.list]", True),
        ("{name: one(x, mask) for name, one in self.list.items()}", True),
        ("torch.cat(list(one(part) for part, one in zip(parts, self.list)))", True),
        ("for one in self.list: outputs.append(one(x))", True),
        ("for i, one in enumerate(self.list): total = total + one(x)", True),
        ("for one in self.list: x = one(x)", False),
        ("for one in self.list:\n  y = one(x)\n  x = x + y[0]", False),
        ("for one in self.list: outputs.append(one(outputs[-1]))", False),
        ("for i, one in enumerate(self.list): x[i + 1] = one(x[i])", False),
        ("for one in self.list: graph.nodes['h'] = one(graph, graph.nodes['h'])", False),
        ("for one in self.list: one(state)", False),
        ("for one in self.list: found = [one(x) for x in found]", False),
        ("[x := one(x) for one in self.list]", False),
    ],
)
def test_a_loop_is_parallel_if_no_call_reads_what_another_one_has_changed(code, is_parallel):
    (loop,) = (loop for node in ast.walk(ast.parse(code)) for loop in loops_in(node) if "list" in ast.dump(loop.over))
    assert ast.unparse(loop.over) == "self.list"
    assert loop.is_parallel is is_parallel


class Lists(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.list = nn.ModuleList([nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, width)) for _ in range(3)])
        self.head = nn.Linear(3 * width if width > 4 else width, 2)


class Branches(Lists):
    def forward(self, x):
        return self.head(torch.cat([branch(x) for branch in self.list], 1))


class Decoder(Lists):
    def forward(self, x):
        for layer in reversed(self.list):
            x = layer(x)
        return self.head(x)


class OfAnother(nn.Module):
    def __init__(self):
        super().__init__()
        self.lists = Lists()

    def forward(self, x):
        for _, layer in enumerate(reversed(self.lists.list)):
            x = layer(x)
        return self.lists.head(x)


def test_branches_in_a_list_are_one_block():
    body, head = find_blocks(Branches(8))
    assert {name.split(".")[0] for name in body.names} == {"list"}
    assert head.names == {"head.weight", "head.bias"}


@pytest.mark.parametrize("network", [Decoder(), OfAnother()])
def test_a_list_that_the_code_reverses_runs_from_its_last_module(network):
    blocks = [sorted(block.names)[0].removeprefix("lists.") for block in find_blocks(network)]
    assert blocks == ["list.2.0.bias", "list.1.0.bias", "list.0.0.bias", "head.bias"]
