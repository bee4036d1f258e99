"""Frozen modules that follow each other are one: whatever the network, it trains as without the cache."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from mlr3torch_py.cache.parts import CachedParts
from mlr3torch_py.cache.passes.placeholder import Placeholder
from tests.cache.helpers import ROWS, cached, counts, frozen, same

WIDTH, N = 4, 24
DATA = torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randn(N, 2, generator=torch.Generator().manual_seed(1))


class Pair(nn.Module):
    """Gives a dict and a tuple in it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        y = self.linear(x)
        return {"hidden": y, "more": (y.tanh(), 3)}


class Sum(nn.Module):
    """Takes two tensors, one of them by keyword."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, other=None):
        return self.linear(x) if other is None else self.linear(x) + other


class Mixture(nn.Module):
    """Takes three tensors, some of which may be the same."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, *tensors):
        return self.linear(torch.cat(tensors, 1))


MODULES = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "block": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)),
    "norm": lambda: nn.BatchNorm1d(WIDTH).eval(),
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "hardswish in place": lambda: nn.Hardswish(inplace=True),
    "dropout": lambda: nn.Dropout(0.5).eval(),
    "flatten": nn.Flatten,
    "identity": nn.Identity,
    "links": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Flatten()),
    "pair": Pair,
    "sum": Sum,
    "mixture": Mixture,
}
PATTERNS = [(0, 0, 1), (0, 1, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)]


def write_into(x, _):
    x.mul_(0.5)
    return x


def set_item(x, other):
    x[:, 0] = other[:, 1]
    return x


# What a forward does between its modules.
FUNCTIONS = {
    "add": lambda x, y: x + y,
    "add in place": lambda x, y: x.add_(y),
    "concatenate": lambda x, y: torch.cat([x, y], 1)[:, 2:6],
    "concatenate three": lambda x, y: torch.cat([x, x, y], 1)[:, 2:10:2],
    "concatenate other three": lambda x, y: torch.cat([x, y, y], 1)[:, 2:10:2],
    "write": write_into,
    "set": set_item,
    "relu in place": lambda x, _: functional.relu(x, inplace=True),
    "view": lambda x, _: x.view(-1, WIDTH),
    "mean": lambda x, y: x - y.mean(1, keepdim=True),
    "shape": lambda x, _: x.reshape(x.shape[0], x.size(1)),
    "matrix": lambda x, y: torch.bmm(x[:, None], torch.eye(WIDTH).expand(len(y), -1, -1))[:, 0],
    "numpy": lambda x, _: x + float(x.detach().numpy().sum() * 0),
    "out": lambda x, y: torch.add(x.detach(), y.detach(), out=torch.empty(len(x), WIDTH)),
    "stay": lambda x, _: x,
}


class Network(nn.Module):
    """Runs a program over a list of values."""

    def __init__(self, kinds, program):
        super().__init__()
        self.parts = nn.ModuleList(MODULES[kind]() for kind in kinds)
        self.head = nn.Linear(WIDTH, 2)
        self.program = program
        self.seen = []
        for part in self.parts:
            frozen(part)

    def forward(self, x):
        self.seen.clear()
        values = [x.clone(), x.flip(1)]
        for what, number, first, second in self.program:
            one, other = values[first % len(values)], values[second % len(values)]
            if what == "module" and len(self.parts):
                values.append(self.call(self.parts[number % len(self.parts)], one, other, PATTERNS[number % 5]))
            else:
                values.append(list(FUNCTIONS.values())[number % len(FUNCTIONS)](one, other))
        self.seen.extend(values)
        return {"output": self.head(values[-1]), "values": values}

    def call(self, part, one, other, pattern):
        if isinstance(part, Mixture):
            return part(*[(one, other)[i] for i in pattern])
        if isinstance(part, Pair):
            output = part(one)
            return output["more"][0] if output["more"][1] == 3 else output["hidden"]
        return part(one, other=other) if isinstance(part, Sum) else part(one)


STEPS = st.tuples(st.sampled_from(["module", "module", "function"]), *[st.integers(0, 30)] * 3)
STRAIGHT = st.tuples(st.just("module"), st.integers(0, 30), st.just(-1), st.just(-2))
EVENTS = st.sampled_from(
    ["batch", "batch", "batch", "batch", "validate", "epoch", "epoch", "write", "flag", "unseen", "inference"]
)


def step(network, rows):
    """One step of training; the output."""
    output = network(DATA[rows])["output"]
    assert type(output) is torch.Tensor
    loss = functional.mse_loss(output, TARGETS[rows])
    trainable = [tensor for tensor in network.parameters() if tensor.requires_grad]
    gradients = torch.autograd.grad(loss, trainable, allow_unused=True)
    with torch.no_grad():
        for tensor, gradient in zip(trainable, gradients, strict=True):
            if gradient is not None:
                tensor.sub_(gradient.clamp(-1, 1), alpha=0.1)
    return output.detach()


def check_real(module, args, kwargs, output=None):
    leaves = [*args, *kwargs.values()]
    assert all(type(leaf) is torch.Tensor for leaf in leaves if isinstance(leaf, torch.Tensor))


def failing(call):
    """The output, or the type of the error."""
    try:
        return call()
    except (RuntimeError, ValueError) as error:
        return "frozen_cache" if "frozen_cache" in str(error) else type(error)


def apply_event(event, network, parts, data):
    if event == "epoch" and parts is not None:
        parts.settle()
        parts.end_epoch()
        parts.begin_epoch()
        parts.refresh()
    elif event in {"write", "unseen", "flag"} and len(network.parts):
        part = network.parts[data % len(network.parts)]
        if event == "flag":
            part.requires_grad_(not any(tensor.requires_grad for tensor in part.parameters()))
            if parts is not None and data % 2:
                parts.refresh()
            return
        if event == "unseen" and parts is not None:
            parts.end_epoch()
        for tensor in part.parameters():
            with torch.no_grad():
                (tensor if event == "write" else tensor.data).mul_(0.9)
        if event == "unseen" and parts is not None:
            parts.begin_epoch()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:frozen_cache")
@given(
    st.lists(st.sampled_from(sorted(MODULES)), min_size=1, max_size=5),
    st.one_of(
        st.lists(STEPS, max_size=8), st.lists(STRAIGHT, max_size=8), st.lists(st.one_of(STEPS, STRAIGHT), max_size=8)
    ),
    st.lists(st.tuples(EVENTS, st.lists(st.integers(0, N - 1), min_size=1, max_size=6)), max_size=20),
    st.sampled_from([4000, 10**6]),
)
def test_any_network_trains_as_without_the_cache(kinds, program, events, max_bytes):
    torch.manual_seed(0)
    plain = Network(kinds, program)
    network = copy.deepcopy(plain)
    network.head.register_forward_hook(check_real, with_kwargs=True)
    network.head.register_forward_pre_hook(check_real, with_kwargs=True)
    parts = CachedParts(network, max_bytes=max_bytes, check=2)
    parts.refresh()
    parts.begin_epoch()
    for event, rows in events:
        for one, cache in ((plain, None), (network, parts)):
            apply_event(event, one, cache, rows[0])
        if event == "batch":
            outputs = [failing(partial(step, one, rows)) for one in (plain, network)]
        elif event in {"validate", "inference"}:
            with torch.inference_mode(event == "inference"), torch.no_grad():
                outputs = [failing(partial(one, DATA[rows])) for one in (plain, network)]
        else:
            continue
        if isinstance(outputs[0], type):
            assert outputs[0] is outputs[1]
            continue
        same(*outputs)
        assert [type(value) for value in network.seen] == [torch.Tensor] * len(network.seen)
        for ours, theirs in zip(network.seen, plain.seen, strict=True):
            torch.testing.assert_close(ours, theirs)
        assert parts.budget.used <= max_bytes
    parts.close()
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert all("_compiled_call_impl" not in vars(module) for module in network.modules())


class Many(nn.Module):
    """Layers in a row, each of which is also given what the one before it was given."""

    def __init__(self, n, is_residual):
        super().__init__()
        self.layers = nn.ModuleList(frozen(Sum()) for _ in range(n))
        self.head = nn.Linear(WIDTH, 2)
        self.is_residual = is_residual

    def forward(self, x):
        before = None
        for layer in self.layers:
            before, x = x, layer(x, before) if self.is_residual else layer(x)
        return self.head(x)


@pytest.mark.parametrize(("n", "is_residual"), [(400, False), (40, True)])
def test_a_chain_may_be_long_and_branch_at_every_step(n, is_residual):
    network = Many(n, is_residual)
    fresh = copy.deepcopy(network)
    parts = cached(network, check=1)
    for _ in range(3):
        torch.testing.assert_close(network(DATA), fresh(DATA))
        parts.settle(), parts.end_epoch(), parts.begin_epoch(), parts.refresh()
    assert sum(one.n_bytes > 0 for one in parts.modules.values()) == 1


class Told(nn.Module):
    """Keeps of what class the output of its frozen layer is when it is given away."""

    def __init__(self, give=lambda x: x):
        super().__init__()
        self.first, self.second, self.head = frozen(nn.Linear(4, 3)), nn.Linear(3, 3), nn.Linear(3, 2)
        self.give, self.classes = give, []

    def forward(self, x):
        x = self.first(x)
        self.classes.append(type(x))
        return self.head(self.second(self.give(x)))


def epochs(network, parts, n):
    """The hits and misses of some epochs."""
    for _ in range(n):
        network(ROWS)
        parts.settle()
        yield counts(parts)
        parts.begin_epoch(), parts.refresh(retry_rejected=False)


def test_an_output_that_a_trainable_module_asks_for_is_a_plain_tensor_from_the_second_epoch_on():
    network = Told()
    plain = copy.deepcopy(network)
    *_, last = epochs(network, cached(network), 4)
    assert last == (12, 0)
    torch.testing.assert_close(network(ROWS), plain(ROWS))
    assert network.classes == [Placeholder, *[torch.Tensor] * 4]


def test_an_output_that_an_operation_takes_stays_a_placeholder():
    network = Told(lambda x: torch.flatten(x, 1) + 1)
    *_, last = epochs(network, cached(network), 4)
    assert last == (12, 0)
    assert network.classes == [Placeholder] * 4


def test_what_is_frozen_later_makes_one_chain_with_what_was_asked_for_before():
    network = Told()
    parts = cached(network)
    assert [*epochs(network, parts, 3)][-1] == (12, 0)
    network.second.requires_grad_(False)
    parts.refresh()
    assert [*epochs(network, parts, 3)][-1] == (12, 0)
    assert list(parts.modules) == ["first", "second"]
    assert network.classes[3:] == [Placeholder] * 3
