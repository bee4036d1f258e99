"""To the code between cached modules, a placeholder is a tensor in all that can be done with it."""

import copy
import functools
import gc
import io
import pickle
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mlr3torch_py.cache.parts import CachedParts
from mlr3torch_py.cache.passes.placeholder import Placeholder
from tests.cache.helpers import ROWS, cached, counts, frozen


class Between(nn.Module):
    """Does something between two frozen layers."""

    def __init__(self, between=lambda x: x):
        super().__init__()
        self.first, self.second, self.head = frozen(nn.Linear(4, 3)), frozen(nn.Linear(3, 3)), nn.Linear(3, 2)
        self.between = between

    def forward(self, x):
        return self.head(self.second(self.between(self.first(x))))


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx, gradient):  # noqa: ARG004
        return gradient * 2


def saved(x):
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def through_data(x):
    x.data.mul_(2)
    return x


def through_numpy(x):
    x.detach().numpy()[:] *= 2
    return x


def with_attribute(x):
    x.note = "mine"
    y = x + 1
    assert x.note == "mine"
    return y


def with_weak_reference(x):
    reference = weakref.ref(x)
    y = x * 2
    assert reference() is x
    x += 1
    return x + y


def as_keys(x):
    return {x: x + 1}[x]


def views(x):
    y = x[:, :2]
    y.add_(1)
    return x


def resized(x):
    return x.clone().resize_(len(x), 3)


def with_gradient(x):
    y = x.requires_grad_()
    assert x.requires_grad
    return (y * 2).detach()


def swapped(x):
    x.data = x.data * 3
    return x


OPERATIONS = {
    "nothing": lambda x: x,
    "arithmetic": lambda x: 2 * x + 1 - x / 3,
    "comparison": lambda x: (x > 0).float(),
    "matrix product": lambda x: x @ torch.eye(3),
    "a function": lambda x: functional.softmax(x, 1),
    "stacking": lambda x: torch.stack([x, x]).sum(0),
    "in place": lambda x: x.add_(1),
    "augmented assignment": lambda x: x.__iadd__(1),
    "an item": lambda x: x.index_fill_(0, torch.tensor([0]), 1.0),
    "indexing": lambda x: x[torch.arange(len(x)).flip(0)],
    "a slice": views,
    "iterating": lambda x: torch.stack(list(x)),
    "unpacking": lambda x: torch.stack([*x]),
    "printing": lambda x: x * len(f"{x}" + repr(x) + str(x[0])),
    "formatting": lambda x: x + float(f"{x[0, 0].item():.3f}"),
    "numpy": lambda x: torch.from_numpy(x.numpy().copy()),
    "asarray": lambda x: torch.from_numpy(np.asarray(x).copy()),
    "writing through numpy": through_numpy,
    "writing through data": through_data,
    "new data": swapped,
    "lists": lambda x: torch.tensor(x.tolist()),
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "torch.save": saved,
    "copy": copy.copy,
    "deepcopy": lambda x: copy.deepcopy({"x": [x]})["x"][0],
    "dlpack": torch.from_dlpack,
    "the address": lambda x: x + float(x.data_ptr() > 0),
    "the storage": lambda x: x + x.untyped_storage().nbytes(),
    "the version": lambda x: x + float(x._version >= 0),
    "the shape": lambda x: x.view(x.shape[0], *x.size()[1:]) + x.ndim + x.numel() + len(x) + x.stride(0),
    "the dtype": lambda x: x.to(torch.float64 if x.is_floating_point() else x.dtype).float(),
    "isinstance": lambda x: x + float(isinstance(x, torch.Tensor)) + float(torch.is_tensor(x)),
    "the class": lambda x: x + float(issubclass(type(x), torch.Tensor)),
    "an attribute": with_attribute,
    "a weak reference": with_weak_reference,
    "a key": as_keys,
    "identity": lambda x: x + float(any(one is x for one in [x])),
    "truth": lambda x: x if x.sum() > -1e9 else -x,
    "a gradient": with_gradient,
    "detaching": lambda x: x.detach(),
    "resizing": resized,
    "an output argument": lambda x: torch.mul(x, 2, out=torch.empty_like(x)),
    "like it": lambda x: torch.zeros_like(x) + x.new_ones(len(x), 3),
    "a function with gradient": Doubling.apply,
    "vmap": lambda x: torch.vmap(torch.sin)(x),
    "a gradient by a function": lambda x: torch.func.vjp(torch.sin, x)[1](torch.ones_like(x))[0].detach(),
    "type conversion": lambda x: x.double().float().to("cpu").contiguous(),
    "a checkpoint": lambda x: checkpoint(torch.sin, x, use_reentrant=False),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, torch.eye(3)),
    "autocast": lambda x: torch.autocast("cpu", dtype=torch.bfloat16)(lambda: x @ torch.eye(3))().float(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_works_as_on_a_tensor(operation):
    plain = Between(OPERATIONS[operation])
    network = copy.deepcopy(plain)
    cached(network)
    for rows in (slice(None), slice(None), slice(3, 9), slice(2, None)):
        torch.testing.assert_close(network(ROWS[rows]), plain(ROWS[rows]))
    with torch.no_grad():
        torch.testing.assert_close(network(ROWS), plain(ROWS))


WRAPPED = {
    "relu": (functional, lambda x: functional.relu(x)),
    "softmax": (functional, lambda x: functional.softmax(x, dim=-1)),
    "max_pool1d": (functional, lambda x: functional.max_pool1d(x, 1)),
    "l1_loss": (functional, lambda x: functional.l1_loss(x, torch.ones(x.shape), reduction="none")),
    "sigmoid": (torch.Tensor, lambda x: x.sigmoid()),
    "split": (torch.Tensor, lambda x: x + x.split(1, 1)[0]),
}


def around(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        found = function(*args, **kwargs)
        return tuple(one * 2 + 1 for one in found) if isinstance(found, tuple) else found * 2 + 1

    return wrapper


@pytest.mark.parametrize("name", WRAPPED)
def test_a_function_of_torch_that_somebody_has_wrapped_is_applied_once(name, monkeypatch):
    owner, between = WRAPPED[name]
    monkeypatch.setattr(owner, name, around(getattr(owner, name)))
    plain = Between(between)
    network = copy.deepcopy(plain)
    cached(network)
    for _ in range(3):
        torch.testing.assert_close(network(ROWS), plain(ROWS))


def test_between_two_frozen_modules_nothing_is_kept():
    network = Between()
    parts = cached(network)
    for _ in range(3):
        network(ROWS)
    assert {path: one.n_bytes > 0 for path, one in parts.modules.items()} == {"first": False, "second": True}
    assert counts(parts) == (24, 12)


def test_what_is_asked_for_is_a_plain_tensor_from_then_on():
    seen = []

    def look(x):
        seen.append((x, type(x), x.shape, type(x)))
        return x + 1

    network = Between(look)
    cached(network)
    for _ in range(3):
        network(ROWS)
        x, before, shape, after = seen.pop()
        assert issubclass(before, torch.Tensor)
        assert before is after
        assert shape == (12, 3)
        assert type(x) is torch.Tensor


@pytest.mark.parametrize("ends", ["returning", "an error"])
def test_no_placeholder_outlives_the_forward_pass(ends):
    class Keeping(Between):
        def forward(self, x):
            self.first_output = self.first(x)
            self.all = {"outputs": [self.first_output, self.second(self.first_output)]}
            if ends == "an error":
                raise ZeroDivisionError
            return self.all["outputs"]

    network = Keeping()
    cached(network)
    fresh = copy.deepcopy(network)
    for _ in range(3):
        if ends == "returning":
            outputs = network(ROWS)
            assert [type(one) for one in outputs] == [torch.Tensor] * 2
        else:
            with pytest.raises(ZeroDivisionError):
                network(ROWS)
        assert not [one for one in gc.get_objects() if type(one) is Placeholder]
        torch.testing.assert_close(network.first_output, fresh.first(ROWS))
        torch.testing.assert_close(network.all["outputs"][1], fresh.second(fresh.first(ROWS)))


def test_hooks_and_trainable_modules_see_tensors_alone():
    seen = []

    def note(module, args, *output):
        seen.extend(type(one) for one in (*args, *output))

    for path in ("", "0", "0.2", "1"):
        layers = nn.Sequential(frozen(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 3), nn.Tanh())
        network = nn.Sequential(layers, nn.Linear(3, 2))
        network.get_submodule(path).register_forward_hook(note)
        network.get_submodule(path).register_forward_pre_hook(note)
        fresh = copy.deepcopy(network)
        cached(network)
        for _ in range(3):
            torch.testing.assert_close(network(ROWS), fresh(ROWS))
    assert set(seen) == {torch.Tensor}


def test_what_is_held_elsewhere_is_the_same_tensor():
    held = []
    network = Between(lambda x: held.append(x) or x)
    cached(network)
    fresh = copy.deepcopy(network)
    for _ in range(3):
        network(ROWS)
        assert type(held[-1]) is torch.Tensor
        torch.testing.assert_close(held[-1], fresh.first(ROWS))


@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
def test_scripted_modules_are_given_values():
    network = Between(torch.jit.trace(nn.Linear(3, 3), torch.ones(2, 3)))
    fresh = copy.deepcopy(network)
    cached(network)
    for _ in range(3):
        torch.testing.assert_close(network(ROWS), fresh(ROWS))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpoint_computes_again_with_values(use_reentrant):
    class Checkpointed(Between):
        def forward(self, x):
            return checkpoint(self.head, self.second(self.first(x)), use_reentrant=use_reentrant)

    plain = Checkpointed()
    network = copy.deepcopy(plain)
    cached(network)
    for _ in range(3):
        outputs = [one(ROWS) for one in (plain, network)]
        torch.testing.assert_close(*outputs)
        if not use_reentrant:
            weights = plain.head.weight, network.head.weight
            gradients = [torch.autograd.grad(out.sum(), one)[0] for out, one in zip(outputs, weights, strict=True)]
            torch.testing.assert_close(*gradients)


def test_an_input_that_is_modified_after_the_call_changes_nothing():
    class Modifying(Between):
        def forward(self, x):
            y = self.first(x)
            x.mul_(2)
            return self.head(self.second(y))

    network = Modifying()
    fresh = copy.deepcopy(network)
    parts = cached(network)
    for rows in (slice(None), slice(None), slice(4, 8)):
        torch.testing.assert_close(network(ROWS[rows].clone()), fresh(ROWS[rows].clone()))
    assert counts(parts)[0] == 16


def test_memory_of_the_stages_between_is_freed_as_they_are_passed():
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(frozen(nn.Linear(4, 4)) for _ in range(6))
            self.head = nn.Linear(4, 1)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
                gc.collect()
                alive.append(sum(type(one) is Placeholder for one in gc.get_objects()))
            return self.head(x)

    alive = []
    network = Chain()
    parts = CachedParts(network)
    parts.refresh(), parts.begin_epoch()
    network(ROWS)
    parts.settle()
    network(ROWS), network(ROWS)
    assert max(alive) <= 1
