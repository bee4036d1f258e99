"""Code that takes tensors past Python's functions of torch computes with values, as without the cache."""

import copy
import gc
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mlr3torch_py.cache.passes.placeholder import Placeholder
from tests.cache.helpers import ROWS, cached, counts, frozen


class Between(nn.Module):
    """Lets other code use the output of a frozen part, and a weight that is trained."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second = frozen(nn.Linear(4, 3)), frozen(nn.Linear(3, 3))
        self.weight, self.norm, self.head = nn.Parameter(torch.rand(3)), nn.BatchNorm1d(4), nn.Linear(3, 2)
        self.between = between

    def forward(self, x):
        self.norm(x)
        return self.head(self.between(self.second(self.first(x)), self.weight))


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        assert type(x) is torch.Tensor
        return gradient * weight, (gradient * x).sum(0)


class SavingOnly(Product):
    """Leaves the backward alone to use the input."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return weight.expand(12, 3) * 1


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, _weight):
        ctx.mark_dirty(x.mul_(2))
        return x

    @staticmethod
    def backward(_ctx, gradient):
        return gradient * 2, gradient.sum(0)


class WithSetup(Product):
    @staticmethod
    def forward(x, weight):
        return x * weight

    @staticmethod
    def setup_context(ctx, inputs, _output):
        ctx.save_for_backward(*inputs)


@torch.library.custom_op("mlr3torch_py_tests::scale", mutates_args=())
def scale(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.numpy() * 2)


def add_and_multiply(x, weight):
    x.add_(1)
    return x * weight


with warnings.catch_warnings(action="ignore"):  # of torch, that it is deprecated
    scripted = torch.jit.script(add_and_multiply)
    traced = torch.jit.trace(torch.mul, (torch.ones(2, 3), torch.ones(3)))


def with_hooks(x, weight):
    def pack(tensor):
        assert type(tensor) in {torch.Tensor, nn.Parameter}
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return x * weight + SavingOnly.apply(x, weight)


def in_inference_mode(x, weight):
    with torch.inference_mode():
        mean = x.mean().item()
    return x * weight + mean


def written_in_inference_mode(x, weight):
    with torch.inference_mode():
        x.mul_(2)
    return x * weight


def assigned_to_data(x, weight):
    other, parameter = torch.zeros(1), nn.Parameter(torch.zeros(2))
    other.data = x
    parameter.data = x
    return other * weight + x + parameter.data.sum()


class Marked(torch.Tensor):
    pass


CODE = {
    "data of another tensor": assigned_to_data,
    "a function with a backward": lambda x, weight: Product.apply(x, weight),
    "a function that only saves": lambda x, weight: SavingOnly.apply(x, weight),
    "a function in place": lambda x, weight: InPlace.apply(x, weight),
    "a function with a setup": lambda x, weight: WithSetup.apply(x, weight),
    "a method of a function": InPlace.apply,
    "a custom operation": lambda x, weight: scale(x) * weight,
    "a scripted function": lambda x, weight: scripted(x, weight),
    "a traced function": lambda x, weight: traced(x.sin(), weight),
    "hooks on what is saved": with_hooks,
    "inference mode": in_inference_mode,
    "writing in inference mode": written_in_inference_mode,
    "vmap over rows": lambda x, weight: torch.vmap(lambda row: row * weight)(x),
    "vmap over something else": lambda x, w: torch.vmap(lambda i: (x + i) * w)(torch.arange(2.0)).sum(0),
    "grad": lambda x, weight: torch.func.grad(lambda one: (one**2).sum())(x) * weight,
    "jvp": lambda x, weight: torch.func.jvp(torch.sin, (x,), (torch.ones(12, 3),))[1] * weight,
    "grad of a function that captures it": lambda x, weight: torch.func.grad(lambda w: (x * w).sum())(weight) * x,
    "vjp of one": lambda x, weight: torch.func.vjp(lambda w: x * w, weight)[1](torch.ones(12, 3))[0] * x,
    "jvp of one": lambda x, weight: torch.func.jvp(lambda w: x * w, (weight,), (weight,))[1],
    "functionalize": lambda x, weight: torch.func.functionalize(lambda w: x * w)(weight),
    "a checkpoint": lambda x, weight: checkpoint(torch.mul, x, weight, use_reentrant=False),
}

# What accepts no tensor without memory even then: the network is given values from the start.
MEMORY = {
    "a capsule of dlpack": lambda x, weight: torch.from_dlpack(torch.utils.dlpack.to_dlpack(x)) * weight,
    "another subclass": lambda x, weight: x.as_subclass(Marked).as_subclass(torch.Tensor) * weight,
}

COMPILED = {
    "a function": lambda compiled: compiled(lambda x, weight: torch.sin(x) * weight),
    "a closure": lambda compiled: lambda x, weight: compiled(lambda one: torch.sin(x) * one)(weight),
    "an object": lambda compiled: (
        lambda x, weight: compiled(lambda one: one.x * one.weight)(SimpleNamespace(x=x, weight=weight))
    ),
    "a dict": lambda compiled: lambda x, weight: compiled(lambda one: one["x"][0] * weight)({"x": [x]}),
    "a function with a backward": lambda compiled: compiled(lambda x, weight: WithSetup.apply(x.sin(), weight)),
}


def gradients(network, rows):
    output = network(rows)
    weights = network.weight, network.head.weight
    found = torch.autograd.grad(output.sum(), weights, allow_unused=True)
    return output.detach(), *(torch.zeros(()) if one is None else one for one in found)


def check(code, hits=(24,)):
    """Compare outputs, gradients and statistics, in several epochs, and look for placeholders that are left."""
    network = Between(code)
    fresh = copy.deepcopy(network)
    parts = cached(network)
    for _ in range(3):
        for rows in (ROWS, ROWS.flip(0)):
            torch.testing.assert_close(gradients(network, rows), gradients(fresh, rows))
            torch.testing.assert_close(network.norm.running_mean, fresh.norm.running_mean)
            assert network.norm.num_batches_tracked == fresh.norm.num_batches_tracked
            assert not [one for one in gc.get_objects() if type(one) is Placeholder]
            parts.settle()
        last = counts(parts)
        parts.begin_epoch(), parts.refresh(retry_rejected=False)
    parts.close()
    assert last[0] in hits
    assert last[1] == 0


@pytest.mark.parametrize("code", CODE)
def test_code_below_python_is_given_values(code):
    check(CODE[code])


@pytest.mark.parametrize("code", MEMORY)
def test_code_that_needs_memory_turns_placeholders_off(code):
    check(MEMORY[code], hits=(24, 48))  # the first, where torch gives values of its own accord


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.parametrize("params", [{}, {"fullgraph": True}, {"dynamic": True}, {"backend": "aot_eager"}])
@pytest.mark.parametrize("code", COMPILED)
def test_compiled_functions_are_given_values(code, params):
    torch.compiler.reset()
    check(COMPILED[code](lambda function: torch.compile(function, **{"backend": "eager", **params})))
    torch.compiler.reset()


@pytest.mark.slow
def test_a_network_whose_rows_are_kept_is_compiled_as_one_graph():
    network = Between(lambda x, weight: x * weight).eval()
    parts = cached(network, check=0)
    network(ROWS)
    parts.keep()
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert torch.equal(compiled(ROWS), network(ROWS))
    torch.compiler.reset()


def test_a_network_that_refuses_placeholders_is_given_plain_tensors():
    def checked(x, weight):
        if type(x) is not torch.Tensor:
            raise TypeError(f"a {type(x).__name__} is no tensor")
        return x * weight

    network = Between(checked)
    plain, _ = copy.deepcopy(network), cached(network)
    for _ in range(3):
        torch.testing.assert_close(network(ROWS), plain(ROWS))


def test_an_error_of_the_network_is_raised_as_it_is():
    calls = []

    def failing(x, weight):
        calls.append(type(x))
        raise RuntimeError("of the network")

    network = Between(failing)
    cached(network)
    for n in range(1, 6):
        with pytest.raises(RuntimeError, match="of the network"):
            network(ROWS)
        assert len(calls) == n


def test_an_error_of_torch_that_the_network_says_in_other_words_turns_placeholders_off():
    def translating(x, weight):
        try:
            return x.as_subclass(Marked).as_subclass(torch.Tensor) * weight
        except RuntimeError:
            raise ValueError("other words")  # noqa: B904

    check(translating, hits=(24, 48))


def test_torch_is_as_before_when_the_cache_is_closed():
    gc.collect()
    cached(Between(torch.mul)).close()
    owners = torch._dynamo.eval_frame, torch._functorch.vmap, torch.autograd.Function, torch._C.ScriptFunction
    before = [dict(vars(owner)) for owner in owners]
    network = Between(torch.mul)
    parts = cached(network)
    assert before != [dict(vars(owner)) for owner in owners]
    parts.close()
    gc.collect()
    assert before == [dict(vars(owner)) for owner in owners]
    assert torch.equal(scripted(torch.ones(2), torch.ones(2)), torch.full((2,), 2.0))
