"""Modules and calls that are not cached: each is rejected with a reason, and computes as before."""

import copy
import re
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from mlr3torch_py.cache.trials.admission import NEEDS_GRADIENT
from tests.cache.helpers import ROWS, Pair, Part, cached, counts, frozen, told
from tests.helpers import KEEPS_INSTANCE_NORM


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


OTHERS = "name other modules in `modules`"
REJECTED = {
    noisy: f"it draws random numbers; {OTHERS}",
    centred: f"its output for a row depends on the rest of the batch, or it does not accept every batch; {OTHERS}",
    summed_up: "its output for a row depends on the rest of the batch",
    in_place: f"it modifies its input in place; use out-of-place operations or {OTHERS}",
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


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("compute", REJECTED)
def test_a_module_that_is_not_row_wise_is_rejected_once(compute, by_name):
    part = frozen(Part(compute))
    plain = copy.deepcopy(part)
    parts, messages = cached(part, *[""] * by_name), []
    for i in range(3):
        one, other = ROWS + i, ROWS + i
        torch.manual_seed(i)
        ours = part(one)
        messages += told(parts)
        torch.manual_seed(i)
        assert str(ours) == str(plain(other))
        assert torch.equal(one, other)
    assert torch.equal(part.linear.bias, plain.linear.bias)
    assert "" not in parts.modules
    if by_name:  # else the layer in it is cached
        assert len(messages) == 1
        assert re.match(f"frozen_cache: not caching the network: {REJECTED[compute]}", messages[0])
        assert counts(parts)[0] == 0


def test_a_trainable_tensor_from_outside_is_noticed():
    part, outside = frozen(Part(lambda f, x: f(x) * outside)), nn.Parameter(torch.ones(3))
    parts = cached(part, "")
    part(ROWS).sum().backward()
    assert "its output requires a gradient, so it uses something trainable" in told(parts)[0]
    assert outside.grad is not None


class Referring(nn.Linear):
    """Scales by a layer elsewhere, which is no child of it."""

    def __init__(self, others, read):
        super().__init__(4, 4)
        self.others, self.read = others, read

    def forward(self, x):
        with torch.no_grad():
            return super().forward(x) * self.read(self.others[0])


@pytest.mark.parametrize("holds", ["a tuple", "a list"])
@pytest.mark.parametrize("reads", [True, False])
def test_a_module_that_reads_a_trainable_weight_elsewhere_is_rejected(reads, holds):
    head = nn.Linear(4, 1)
    read = (lambda layer: layer.weight.detach().mean()) if reads else (lambda layer: layer.out_features)
    network = nn.Sequential(frozen(Referring((head,) if holds == "a tuple" else [head], read)), head)
    parts = cached(network)
    network(ROWS)
    message = "frozen_cache: not caching '0': it reads weights that are trained elsewhere in the network; give "
    assert [one.startswith(message) for one in told(parts)] == [True] * reads
    network(ROWS)
    assert counts(parts)[0] == (0 if reads else 12)


class Doubling(nn.Module):
    """Asks for the mode in a function, as attention layers do."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.5, self.training)


class StochasticDepth(nn.Module):
    def forward(self, x):
        return x * torch.rand(len(x), 1).round() * 2 if self.training else x


class Codebook(nn.Module):
    """Follows its input, in training mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.mean(0), 0.1)
        return x - self.mean


class ByBatch(nn.Module):
    def forward(self, x):
        return x - x.mean(0) if self.training else x


def diagonal(*values):
    layer = nn.Linear(3, 3)
    layer.weight.data = torch.diag(torch.tensor(values))
    return layer


IN_TRAINING_MODE = {
    "BatchNorm": (nn.BatchNorm1d(3), "a call changes the 'running_mean' of its BatchNorm1d"),
    "BatchNorm without weights": (nn.BatchNorm1d(3, affine=False), "a call changes the 'running_mean'"),
    "InstanceNorm": (
        nn.Sequential(nn.Unflatten(1, (1, 3)), nn.InstanceNorm1d(1, track_running_stats=True)),
        "a call changes the 'running_mean' of its InstanceNorm1d",
    ),
    "dropout": (nn.Dropout(0.5), "it draws random numbers"),
    "dropout by a function": (Doubling(), "it draws random numbers"),
    "RReLU": (nn.RReLU(), "it draws random numbers"),
    "stochastic depth": (StochasticDepth(), "it draws random numbers"),
    "codebook": (Codebook(), "a call changes the 'mean' of its Codebook"),
    "spectral norm": (spectral_norm(diagonal(1.0, 0.9, 0.9)), "a call changes the '_u'"),
    "any other": (ByBatch(), "its output for a row depends on the rest of the batch"),
    "attention": (
        nn.Sequential(nn.Unflatten(1, (1, 3)), nn.TransformerEncoderLayer(3, 1, 4, batch_first=True)),
        "it draws random numbers",
    ),
}


def changes_in_eval_mode(layer):
    layer(torch.randn(12, 3))
    before = copy.deepcopy(layer.state_dict())
    layer.eval()(torch.randn(12, 3))
    return any(not torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("kind", IN_TRAINING_MODE)
def test_what_depends_on_its_mode_needs_eval_mode(kind):
    if kind == "InstanceNorm" and not KEEPS_INSTANCE_NORM:
        pytest.skip("InstanceNorm of this torch changes its statistics in eval mode")
    layer, reason = IN_TRAINING_MODE[kind]
    if kind == "InstanceNorm" and changes_in_eval_mode(copy.deepcopy(layer)):
        pytest.skip("this torch rounds its statistics again at each call")
    network = frozen(nn.Sequential(nn.Linear(4, 3), copy.deepcopy(layer)))
    parts, messages = cached(network), []
    for _ in range(2):
        network(ROWS)
        messages += told(parts)
    (message,) = messages
    assert message.startswith(f"frozen_cache: not caching the network: in training mode {reason}")
    assert message.endswith("; freeze it with frozen_mode='eval'; so nothing is cached")
    network.eval()
    parts.refresh()
    network(ROWS), network(ROWS)
    assert counts(parts)[0] == 12


@pytest.mark.parametrize(
    ("pinned", "remedy"),
    [
        ({}, "freeze it with frozen_mode='eval'"),
        ({"norm_is_pinned": True}, "freeze it with frozen_dropout='eval'"),
        ({"others_are_pinned": True}, "freeze it with frozen_norm='eval'"),
        (
            {"norm_is_pinned": True, "others_are_pinned": True},
            "no callback pins its '1' in eval mode",
        ),
    ],
)
def test_no_remedy_is_recommended_that_is_set(pinned, remedy):
    network = frozen(nn.Sequential(nn.Linear(4, 3), nn.Dropout())).eval()
    network[1].train()
    parts = cached(network, **pinned)
    network(ROWS)
    assert remedy in told(parts)[0]


def test_what_is_random_in_eval_mode_too_is_not_told_to_need_it():
    network = frozen(nn.Sequential(nn.Linear(4, 3), Part(noisy, 3)))
    parts = cached(network, "1")
    network(ROWS)
    assert told(parts) == [f"frozen_cache: not caching '1': it draws random numbers; {OTHERS}; so nothing is cached"]


def test_a_module_that_cannot_be_copied_is_rejected_all_the_same():
    network = frozen(nn.Sequential(nn.Linear(4, 3), nn.Dropout()))
    network.lock = threading.Lock()
    parts = cached(network)
    for _ in range(3):
        network(ROWS)
        parts.settle()
    assert list(parts.modules) == ["0"]


@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.0), nn.LayerNorm(3), nn.Sequential(nn.Unflatten(1, (1, 3)), nn.InstanceNorm1d(1))]
)
def test_layers_that_are_the_same_in_both_modes_are_cached(layer):
    network = frozen(nn.Sequential(nn.Linear(4, 3), layer))
    parts = cached(network)
    x = torch.randn(12, 4)
    network(x), network(x)
    assert counts(parts)[0] == 12


@pytest.mark.parametrize("where", ["", "0", "1.1"])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_still_run_and_what_has_none_is_cached(where, register):
    network = frozen(nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Linear(3, 1)))
    network[2].requires_grad_(True)
    network.add_module("root", nn.Identity())
    seen, module = [], network.get_submodule(where)
    getattr(module, register)(lambda *given: seen.append(len(given[1][0])))
    parts = cached(network)
    network(ROWS), network(ROWS)
    assert seen == [12, 12]
    message = f"frozen_cache: not caching {where!r}: it has forward hooks, which would not run for a row from memory"
    assert [one[: len(message)] for one in told(parts)] == ([message] if where else [])
    assert sorted(parts.modules) == {"": ["0", "1"], "0": ["1"], "1.1": ["0", "1.0"]}[where]
    is_seen_from_outside = where == "" and register == "register_forward_hook"
    assert counts(parts)[0] == (24 if is_seen_from_outside else 12)


def test_global_hooks_still_run():
    part, seen = frozen(nn.Linear(4, 3)), []
    parts = cached(part)
    part(ROWS)
    handle = nn.modules.module.register_module_forward_hook(lambda *given: seen.append(given[0]))
    try:
        part(ROWS)
        assert "has forward hooks" in told(parts)[0]
    finally:
        handle.remove()
    assert seen == [part]


def test_a_module_that_a_gradient_flows_through_is_rejected():
    for names in ((), ("1",)):
        network = nn.Sequential(nn.Linear(4, 4), frozen(nn.Linear(4, 3)))
        parts = cached(network, *names)
        network(ROWS).sum().backward()
        network(ROWS).sum().backward()
        assert network[0].weight.grad is not None
        message = f"frozen_cache: not caching '1': {NEEDS_GRADIENT}; freeze everything that comes before it, too"
        assert told(parts) == [f"{message}; so nothing is cached"] * len(names)
        if not names:
            with pytest.warns(UserWarning, match=message):
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
    parts = cached(part, "")
    for _ in range(n_calls):
        part(torch.rand(12, 4) * 0.7)  # none goes to the expert
    part(torch.rand(12, 4) + 0.8)
    assert "its output for a row depends on the rest of the batch" in told(parts)[0]
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


class Tabled(nn.Module):
    """Remembers something in eval mode until ``train()`` is called, as layers do with a table of position biases."""

    def __init__(self, remember):
        super().__init__()
        self.weight, self.table, self.remember = nn.Parameter(torch.randn(4)), {}, remember

    def train(self, mode=True):
        self.table = {} if mode else self.table
        self.training = False
        return self

    def forward(self, x):
        self.remember(self.table, self.weight, x)
        return x + self.table["weight"]


def set_up(table, weight, x):
    table.setdefault("weight", weight[[3, 2, 1, 0]])


def set_up_anew(table, weight, x):
    table["weight"] = weight * 1


def count_calls(table, weight, x):
    set_up(table, weight, x)
    table["n"] = table.get("n", 0) + 1


def remember_inputs(table, weight, x):
    set_up(table, weight, x)
    table[float(x.sum())] = len(x)


def average_inputs(table, weight, x):
    table["weight"] = 0.9 * table.get("weight", weight) + 0.1 * x.mean(0)


def centre_by_the_first(table, weight, x):
    table.setdefault("weight", weight - x.mean(0))


def step(network, rows):
    """Skorch calls ``train()`` before each step."""
    assert torch.equal(network.train()(rows), network._call_impl(rows))


@pytest.mark.parametrize("remember", [set_up, set_up_anew])
def test_a_table_that_is_cleared_and_set_up_again_does_not_matter(remember):
    network = frozen(nn.Sequential(Tabled(remember), nn.Linear(4, 3)))
    parts, found = cached(network, check=0), []
    for change in (0, 0, 1):
        network[0].weight.data += change
        parts.begin_epoch()
        for i in range(3):
            step(network, ROWS[4 * i : 4 * i + 4])
        parts.settle()
        found.append(counts(parts))
    assert list(parts.modules) == [""]
    assert found == [(0, 12), (8, 4), (0, 12)]


@pytest.mark.parametrize("is_one_batch", [False, True])
@pytest.mark.parametrize("remember", [count_calls, remember_inputs, average_inputs, centre_by_the_first])
def test_what_a_call_remembers_of_its_input_is_an_effect_though_it_is_cleared(remember, is_one_batch):
    network = frozen(nn.Sequential(Tabled(remember), nn.Linear(4, 3)))
    parts = cached(network, "0", check=0)
    for i in range(3):
        network.train()(ROWS if is_one_batch else ROWS + i)
    (message,) = told(parts)
    assert message.startswith("frozen_cache: not caching '0': a call changes the 'table' of its Tabled")
    assert not parts.modules
