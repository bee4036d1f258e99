"""Outputs that are more than their values, such as views of each other, come from no memory."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from tests.cache.helpers import ROWS, Part, cached, frozen, told

COPIES = "let it return copies or name other modules"
EACH_OTHER = f"it returns tensors that share memory with each other; {COPIES}"
INPUT = f"its output shares memory with its input; {COPIES}"


def with_view(f, x):
    y = f(x)
    return {"all": y, "some": [y[:, :2]]}


def with_input(f, x):
    return f(x), x


SHARING = {
    "a view": (with_view, EACH_OTHER),
    "the input": (lambda _, x: x, INPUT),
    "a view of the input": (lambda _, x: x.view(-1, 2, 2), INPUT),
    "the input beside another": (with_input, INPUT),
}


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("kind", SHARING)
def test_what_is_written_into_an_output_is_seen_in_all_that_share_its_memory(kind, behind):
    compute, reason = SHARING[kind]
    network = frozen(nn.Sequential(nn.Linear(4, 4) if behind else nn.Identity(), Part(compute)))
    plain = copy.deepcopy(network)
    parts = cached(network, "1", *["0"] * behind)
    for _ in range(3):
        results = []
        for module in (network, plain):
            rows = module[0](ROWS.clone())
            outputs = tree_leaves(module[1](rows))
            outputs[-1].add_(1)
            results.append([rows, *outputs])
        torch.testing.assert_close(*results)
    assert f"not caching '1': {reason}" in told(parts)[0]
    assert "1" not in parts.modules


def twice(f, x):
    y = f(x)
    return {"last": y, "all": (y + 1, y)}


@pytest.mark.parametrize("behind", [False, True])
def test_a_tensor_that_is_in_an_output_twice_is_kept_once_and_stays_one(behind):
    network = frozen(nn.Sequential(nn.Linear(4, 4) if behind else nn.Identity(), Part(twice)))
    plain = copy.deepcopy(network)
    parts = cached(network, "1", *["0"] * behind)
    for _ in range(3):
        found, expected = network(ROWS), plain(ROWS)
        assert found["last"] is found["all"][1]
        found["last"].add_(1), expected["last"].add_(1)
        torch.testing.assert_close(tree_leaves(found), tree_leaves(expected))
    assert told(parts) == []
    (layout,) = parts.stages["1"].layouts
    assert len(list(layout.tables)) == 2


class Marked(torch.Tensor):
    pass


def with_attribute(f, x):
    y = f(x)
    y.mark = 2.0
    return y


MORE = {
    "a subclass": (lambda f, x: f(x).as_subclass(Marked), "a Marked, which is more than its values"),
    "a parameter": (lambda f, x: nn.Parameter(f(x), requires_grad=False), "a Parameter, which is more than its values"),
    "an attribute": (with_attribute, "a tensor with an attribute 'mark', which is no part of its values"),
}


@pytest.mark.parametrize("kind", MORE)
def test_what_an_output_is_beside_its_values_stays(kind):
    compute, reason = MORE[kind]
    network = frozen(nn.Sequential(nn.Linear(4, 4), Part(compute)))
    plain = copy.deepcopy(network)
    parts = cached(network, "1")
    for _ in range(3):
        ours, theirs = network(ROWS), plain(ROWS)
        assert (type(ours), vars(ours)) == (type(theirs), vars(theirs))
        assert torch.equal(ours, theirs)
    assert f"not caching '1': its output holds {reason}" in told(parts)[0]
