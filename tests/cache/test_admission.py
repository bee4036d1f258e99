"""Modules and calls that are not cached: each is rejected with a reason, and computes as before."""

import copy
import re
import warnings

import pytest
import torch
from torch import nn

from mlr3torch_py.cache.admission import NEEDS_GRADIENT
from tests.cache.helpers import ROWS, Pair, Part, cached, counts, frozen


def noisy(f, x):
    return f(x) + torch.rand(1)


def centred(f, x):
    return f(x - x.mean(0))


def summed_up(f, x):
    return f(x.cumsum(0))


def in_place(f, x):
    return f(x.mul_(2))


def remembering(f, x):
    f.seen = x
    return f(x)


def appending(f, x):
    f.all_seen = getattr(f, "all_seen", [])
    f.all_seen.append(len(x))
    return f(x)


def averaging(f, x):
    f.average = getattr(f, "average", torch.zeros(4))
    f.average.mul_(0.9).add_(x.mean(0))
    return f(x)


def squeezing(f, x):
    return f(x[:, None].squeeze()).transpose(0, 1).transpose(0, 1)


def popping(f, x):
    given = {"x": x}
    return f(given.pop("x").mul_(1))


def counting(f, x):
    f.bias.data += 1
    return f(x)


def one_for_all(f, x):
    return f(x).mean()


def strange(f, x):
    return Pair(f(x))


REJECTED = {
    noisy: "it draws random numbers; set frozen_dropout='eval' if its dropout layers do",
    centred: "its output for a row depends on the rest of the batch, or it does not accept every batch; name other ",
    summed_up: "its output for a row depends on the rest of the batch",
    in_place: "it modifies its input in place; use out-of-place operations",
    remembering: "a call changes the 'seen' of its Linear, which would not happen for a row from memory",
    appending: "a call changes the 'all_seen' of its Linear",
    averaging: "a call changes the 'average' of its Linear",
    counting: "a call changes the 'bias' of its Linear",
    squeezing: "its output for a row depends on the rest of the batch, or it does not accept every batch",
    popping: "it modifies its input in place",
    one_for_all: r"its output holds a tensor of shape \(\) for 12 rows",
    strange: "its output holds a Pair, which is not made of rows",
    lambda f, x: f(x) if len(x) == 12 else 1 / 0: "its output for a row depends on the rest of the batch",
    lambda f, x: (f(x), len(x)): "its output for a row depends on the rest of the batch",
    lambda f, x: f(x).to_sparse(): "its output holds a tensor that is not strided",
}


@pytest.mark.parametrize("compute", REJECTED)
def test_a_module_that_is_not_row_wise_is_rejected_once(compute):
    part = frozen(Part(compute))
    plain = copy.deepcopy(part)
    parts, messages = cached(part), []
    for i in range(3):
        one, other = ROWS + i, ROWS + i
        torch.manual_seed(i)
        with warnings.catch_warnings(record=True, action="always") as said:
            ours = part(one)
        messages += [str(one.message) for one in said]
        torch.manual_seed(i)
        assert str(ours) == str(plain(other))
        assert torch.equal(one, other)
    assert len(messages) == 1
    assert re.match(f"frozen_cache: not caching the network: {REJECTED[compute]}", messages[0])
    assert torch.equal(part.linear.bias, plain.linear.bias)
    assert counts(parts)[0] == 0
    assert "_compiled_call_impl" not in vars(part)


def test_a_trainable_tensor_from_outside_is_noticed():
    part, outside = frozen(Part(lambda f, x: f(x) * outside)), nn.Parameter(torch.ones(3))
    cached(part)
    with pytest.warns(UserWarning, match="its output requires a gradient, so it uses something trainable"):
        part(ROWS).sum().backward()
    assert outside.grad is not None


@pytest.mark.parametrize(
    ("layer", "option"),
    [
        (nn.BatchNorm1d(3), "frozen_norm"),
        (nn.BatchNorm1d(3, affine=False), "frozen_norm"),
        (nn.Dropout(0.5), "frozen_dropout"),
        (nn.Sequential(nn.Unflatten(1, (1, 3)), nn.InstanceNorm1d(1, track_running_stats=True)), "frozen_norm"),
    ],
)
def test_norm_layers_and_dropout_in_training_mode_need_an_option(layer, option):
    network = frozen(nn.Sequential(nn.Linear(4, 3), layer))
    parts = cached(network)
    with pytest.warns(UserWarning, match=rf"not caching the network: .* is in training mode.*set {option}='eval'"):
        network(ROWS)
    network.eval()
    parts.refresh()
    network(ROWS), network(ROWS)
    assert counts(parts) == (12, 12)


@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.0), nn.LayerNorm(3), nn.Sequential(nn.Unflatten(1, (1, 3)), nn.InstanceNorm1d(1))]
)
def test_layers_that_are_the_same_in_both_modes_are_cached(layer):
    network = frozen(nn.Sequential(nn.Linear(4, 3), layer))
    parts = cached(network)
    x = torch.randn(12, 4)
    network(x), network(x)
    assert counts(parts)[0] == 12


def test_attention_with_dropout_needs_the_option_too():
    network = frozen(nn.TransformerEncoderLayer(4, 1, 4, dropout=0.0, batch_first=True))
    network.self_attn.dropout = 0.5
    cached(network)
    with pytest.warns(UserWarning, match="its MultiheadAttention is in training mode.*frozen_dropout='eval'"):
        network(torch.randn(3, 2, 4))


@pytest.mark.parametrize("where", [(), (0,)])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_still_run(where, register):
    network, seen = frozen(nn.Sequential(nn.Linear(4, 3))), []
    module = network[0] if where else network
    getattr(module, register)(lambda *given: seen.append(len(given[1][0])))
    cached(network)
    with pytest.warns(UserWarning, match="has forward hooks, which would not run for a row from memory"):
        network(ROWS), network(ROWS)
    assert seen == [12, 12]


def test_global_hooks_still_run():
    part, seen = frozen(nn.Linear(4, 3)), []
    cached(part)
    part(ROWS)
    handle = nn.modules.module.register_module_forward_hook(lambda *given: seen.append(given[0]))
    try:
        with pytest.warns(UserWarning, match="has forward hooks"):
            part(ROWS)
    finally:
        handle.remove()
    assert seen == [part]


def test_a_module_that_a_gradient_flows_through_is_rejected():
    for names, n_warnings in (((), 0), (("1",), 1)):
        network = nn.Sequential(nn.Linear(4, 4), frozen(nn.Linear(4, 3)))
        parts = cached(network, *names)
        with warnings.catch_warnings(record=True, action="always") as warned:
            network(ROWS).sum().backward()
            network(ROWS).sum().backward()
        assert network[0].weight.grad is not None
        assert [str(one.message) for one in warned] == [f"frozen_cache: not caching '1': {NEEDS_GRADIENT}"] * n_warnings
        assert counts(parts) == (0, 0)


class Router(nn.Module):
    """Sends some rows to an expert, which takes the first two of each batch only."""

    def __init__(self):
        super().__init__()
        self.expert = nn.Linear(4, 3)

    def forward(self, x):
        goes = x[:, 0] > 0.8
        return self.expert(x) * (goes & (goes.cumsum(0) <= 2))[:, None]


@pytest.mark.parametrize("n_calls", [0, 1, 2, 3, 7, 15])
def test_trials_find_rows_that_depend_on_each_other_only_at_times(n_calls):
    part = frozen(Router())
    parts = cached(part)
    for _ in range(n_calls):
        part(torch.rand(12, 4) * 0.7)  # none goes to the expert
    with pytest.warns(UserWarning, match="its output for a row depends on the rest of the batch"):
        part(torch.rand(12, 4) + 0.8)
    assert parts.budget.used == 0


def test_a_module_that_is_rejected_late_leaves_no_rows():
    part = frozen(Part(lambda f, x: f(x) + (torch.rand(1) if is_noisy else 0)))
    parts, is_noisy = cached(part), False
    part(ROWS)
    is_noisy = True
    with pytest.warns(UserWarning, match="it draws random numbers"):
        part(-ROWS)
    assert parts.budget.used == 0


def test_the_first_call_may_set_up_a_table():
    class Lazy(nn.Linear):
        def forward(self, x):
            if not hasattr(self, "table"):
                self.table = torch.arange(3.0)
            return super().forward(x) + self.table

    part = frozen(Lazy(4, 3))
    parts = cached(part)
    for _ in range(4):
        part(ROWS)
    assert counts(parts) == (24, 24)
