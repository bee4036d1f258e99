"""Modules whose outputs are kept by row: they give what they would give anyway, whatever happens in between."""

import copy
import gc
import io
import pickle
import re
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten

from mlr3torch_py.cache.admission import NEEDS_GRADIENT
from mlr3torch_py.cache.module import Tally
from mlr3torch_py.cache.parts import CachedParts, frozen_parts
from mlr3torch_py.cache.store import Budget, RowCache

ROWS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


def cached(network, *names, **params):
    """The cache of a network, with all that is frozen in it, at the begin of an epoch."""
    parts = CachedParts(network, names or None, **params)
    parts.refresh()
    parts.begin_epoch()
    return parts


def counts(parts):
    tally = parts.end_epoch()
    return tally.hits, tally.misses


def frozen(module):
    return module.requires_grad_(False)


def same(one, other):
    """Whether two outputs are the same to rounding, and of the same form."""
    (ours, form), (theirs, other_form) = tree_flatten(one), tree_flatten(other)
    assert form == other_form
    pairs = [pair for pair in zip(ours, theirs, strict=True) if isinstance(pair[0], torch.Tensor)]
    torch.testing.assert_close(*zip(*pairs, strict=True))
    return True


# ---- what a call may look like


class Part(nn.Module):
    """A frozen part whose forward is given by a function of its linear layer and the arguments."""

    def __init__(self, compute, width=4):
        super().__init__()
        self.linear = nn.Linear(width, 3)
        self.compute = compute

    def forward(self, *args, **kwargs):
        return self.compute(self.linear, *args, **kwargs)


@dataclass
class Pair:
    first: torch.Tensor


MASK = torch.arange(12)[:, None] >= torch.arange(4)
SHARED = torch.randn(4, generator=torch.Generator().manual_seed(1))
CALLS = {
    "a tensor": (lambda f, x: f(x), (ROWS,), {}),
    "two tensors": (lambda f, x, z: f(x) + f(z), (ROWS, ROWS.flip(1)), {}),
    "keywords": (lambda f, x, mask: f(x * mask), (ROWS,), {"mask": MASK}),
    "keywords alone": (lambda f, *, x: f(x), (), {"x": ROWS}),
    "a dict": (lambda f, batch: f(batch["x"] * batch["mask"]), ({"x": ROWS, "mask": MASK},), {}),
    "nested tuples": (lambda f, pair: f(pair[0]) + f(pair[1][0]), ((ROWS, [ROWS.flip(1)]),), {}),
    "what all rows share": (lambda f, x, shared: f(x + shared), (ROWS, SHARED), {}),
    "plain values": (lambda f, x, scale, kind=None: f(x) * (scale if kind else 1), (ROWS, 2.0), {"kind": "mean"}),
    "a number as a tensor": (lambda f, x, scale: f(x) * scale, (ROWS, torch.tensor(2.0)), {}),
    "several outputs": (lambda f, x: (f(x), x.argmax(1)), (ROWS,), {}),
    "a dict as output": (lambda f, x: {"hidden": f(x), "all": [f(x), f(-x)], "kind": "linear"}, (ROWS,), {}),
    "an output with None": (lambda f, x: (f(x), None), (ROWS,), {}),
    "one number per row": (lambda f, x: f(x).sum(1), (ROWS,), {}),
    "float64": (lambda f, x: f(x.float()).double(), (ROWS.double(),), {}),
    "float16": (lambda f, x: f(x.float()).half(), (ROWS.half(),), {}),
    "bfloat16": (lambda f, x: f(x.float()).bfloat16(), (ROWS.bfloat16(),), {}),
    "complex": (lambda f, x: f(x.real), (torch.complex(ROWS, ROWS).conj(),), {}),
    "not contiguous": (lambda f, x: f(x), (ROWS.T.contiguous().T,), {}),
    "images": (lambda f, x: f(x).flatten(1), (torch.randn(12, 2, 3, 4).to(memory_format=torch.channels_last),), {}),
    "no columns": (lambda f, x, z: f(x) + z.sum(1, keepdim=True), (ROWS, torch.empty(12, 0)), {}),
}


def permuted(value, order):
    """The arguments with their rows in another order."""
    if isinstance(value, torch.Tensor):
        return value[order] if value.ndim and len(value) == len(ROWS) else value
    if isinstance(value, dict):
        return {key: permuted(item, order) for key, item in value.items()}
    return type(value)(permuted(item, order) for item in value) if isinstance(value, (tuple, list)) else value


@pytest.mark.parametrize("kind", CALLS)
def test_rows_of_any_call_are_kept(kind):
    compute, args, kwargs = CALLS[kind]
    part = frozen(Part(compute))
    order = torch.randperm(12)
    parts = cached(part)
    assert same(part(*args, **kwargs), compute(part.linear, *args, **kwargs))
    args, kwargs = permuted(args, order), permuted(kwargs, order)
    assert same(part(*args, **kwargs), compute(part.linear, *args, **kwargs))
    assert counts(parts) == (12, 12)


def test_token_ids_with_a_mask_go_through_a_transformer():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 8)
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, ids, padding):
            return self.layers(self.embed(ids), src_key_padding_mask=padding)

    encoder = frozen(Encoder()).eval()
    fresh = copy.deepcopy(encoder)
    parts = cached(encoder)
    ids, padding = torch.randint(20, (12, 5)), torch.arange(5).repeat(12, 1) >= torch.randint(2, 6, (12, 1))
    encoder(ids, padding)
    order = torch.randperm(12)
    torch.testing.assert_close(encoder(ids[order], padding[order]), fresh(ids[order], padding[order]))
    other = padding.roll(1, 0)
    torch.testing.assert_close(encoder(ids, other), fresh(ids, other))
    assert parts.end_epoch().hits >= 12


@pytest.mark.parametrize(
    ("change", "hits"),
    [
        (lambda x, shared: (x, shared + 1), 0),
        (lambda x, shared: (x.double().float(), shared.clone()), 12),
        (lambda x, shared: (-x, shared), 0),
        (lambda x, shared: (torch.cat([x[:6], -x[6:]]), shared), 6),
    ],
)
def test_a_row_is_known_by_all_that_its_output_depends_on(change, hits):
    part = frozen(Part(lambda f, x, shared: f(x) * shared))
    parts = cached(part)
    shared = torch.tensor(2.0)
    part(ROWS, shared)
    x, shared = change(ROWS, shared)
    assert same(part(x, shared), part.linear(x) * shared)
    assert counts(parts) == (hits, 24 - hits)


def test_equal_values_of_other_types_are_other_calls():
    part = frozen(Part(lambda f, x, flag: f(x) + (1 if flag is True else 0)))
    parts = cached(part)
    one, other = part(ROWS, 1), part(ROWS, True)
    assert not torch.equal(one, other)
    assert counts(parts) == (0, 24)


def test_an_output_lies_in_memory_as_it_did():
    part = frozen(Part(lambda f, x: f(x).transpose(1, 2)))
    x = torch.randn(12, 5, 4)
    parts = cached(part)
    fresh, kept = part(x), part(x)
    assert counts(parts) == (12, 12)
    assert kept.stride() == fresh.stride()
    assert kept.transpose(1, 2).view(12, -1).equal(fresh.transpose(1, 2).view(12, -1))


def test_what_is_kept_cannot_be_written_into():
    part = frozen(nn.Linear(4, 3))
    cached(part)
    fresh = copy.deepcopy(part)(ROWS)
    for _ in range(3):
        output = part(ROWS[:6])
        torch.testing.assert_close(output, fresh[:6])
        output.zero_()


def test_modes_and_precision_are_told_apart():
    class Doubling(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2 if self.training else 1)

    part = frozen(Doubling(4, 3))
    parts = cached(part)
    trained, evaluated = part.train()(ROWS), part.eval()(ROWS)
    torch.testing.assert_close(trained, 2 * evaluated)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert part(ROWS).dtype is torch.bfloat16
        assert part(ROWS).dtype is torch.bfloat16
    with torch.inference_mode():
        torch.testing.assert_close(part(ROWS), evaluated)
    nn.Linear(3, 1)(part(ROWS)).sum().backward()
    assert counts(parts) == (24, 48)


def test_rows_kept_in_inference_mode_can_be_trained_on():
    part = frozen(nn.Linear(4, 3))
    parts = cached(part)
    with torch.inference_mode():
        part(ROWS)
        kept = part(ROWS)
    assert counts(parts) == (12, 12)
    assert kept.is_inference()
    head = nn.Linear(3, 1)
    for _ in range(2):
        head(part(ROWS)).sum().backward()
    assert head.weight.grad is not None


def test_batches_that_know_a_part_of_their_rows_compute_the_others():
    part = frozen(nn.Linear(4, 3))
    fresh = copy.deepcopy(part)
    parts = cached(part)
    part(ROWS[:5])
    torch.testing.assert_close(part(ROWS), fresh(ROWS))
    torch.testing.assert_close(part(ROWS[[3, 11, 3]]), fresh(ROWS[[3, 11, 3]]))
    assert counts(parts) == (5 + 3, 5 + 7)


def test_single_rows_are_kept_too():
    part = frozen(nn.Linear(4, 3))
    parts = cached(part)
    part(ROWS[:1]), part(ROWS[:1])
    part(ROWS)
    part(ROWS[5:6])
    assert counts(parts) == (1 + 1 + 1, 1 + 11)


def test_empty_batches_pass():
    part = frozen(nn.Linear(4, 3))
    parts = cached(part)
    assert part(ROWS[:0]).shape == (0, 3)
    assert counts(parts) == (0, 0)


# ---- what is left alone


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


LEFT_ALONE = {
    noisy: "it draws random numbers; set frozen_dropout='eval' if its dropout layers do",
    centred: "its output for a row depends on the rest of the batch, or it does not accept every batch; name other modules in `modules`",
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


@pytest.mark.parametrize("compute", LEFT_ALONE)
def test_a_module_that_is_no_function_of_rows_is_left_alone(compute):
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
    assert re.match(f"frozen_cache: not caching the network: {LEFT_ALONE[compute]}", messages[0])
    assert torch.equal(part.linear.bias, plain.linear.bias)
    assert counts(parts)[0] == 0
    assert "_compiled_call_impl" not in vars(part)


def test_arguments_that_cannot_be_read_are_left_alone():
    part = frozen(Part(lambda f, pair: f(pair.first)))
    cached(part)
    with pytest.warns(UserWarning, match="not caching the network: it is given a Pair, whose content cannot be read"):
        assert same(part(Pair(ROWS)), part.linear(ROWS))
    part = frozen(Part(lambda f, x: f(x.to_dense())))
    cached(part)
    with pytest.warns(UserWarning, match="not caching the network: its input cannot be split into rows: "):
        assert same(part(ROWS.to_sparse()), part.linear(ROWS))


def test_something_trainable_that_a_module_borrows_is_seen():
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
def test_layers_that_are_the_same_in_both_modes_are_kept(layer):
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
def test_hooks_go_on_running(where, register):
    network, seen = frozen(nn.Sequential(nn.Linear(4, 3))), []
    module = network[0] if where else network
    getattr(module, register)(lambda *given: seen.append(len(given[1][0])))
    cached(network)
    with pytest.warns(UserWarning, match="has forward hooks, which would not run for a row from memory"):
        network(ROWS), network(ROWS)
    assert seen == [12, 12]


def test_a_gradient_that_goes_through_keeps_a_module_from_it():
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
    """Gives the first rows of each batch to an expert that takes two alone."""

    def __init__(self):
        super().__init__()
        self.expert = nn.Linear(4, 3)

    def forward(self, x):
        goes = x[:, 0] > 0.8
        return self.expert(x) * (goes & (goes.cumsum(0) <= 2))[:, None]


@pytest.mark.parametrize("n_calls", [0, 1, 2, 3, 7, 15])
def test_rows_that_depend_on_each_other_only_at_times_are_found_out(n_calls):
    part = frozen(Router())
    parts = cached(part)
    for _ in range(n_calls):
        part(torch.rand(12, 4) * 0.7)  # which go nowhere
    with pytest.warns(UserWarning, match="its output for a row depends on the rest of the batch"):
        part(torch.rand(12, 4) + 0.8)
    assert parts.budget.used == 0


def test_something_shared_that_is_as_long_as_a_batch_is_not_taken_for_rows():
    part = frozen(Part(lambda f, x, mask: f(x) + (mask * mask.sum()).sum()))
    parts = cached(part)
    mask = torch.randn(5, 5)
    part(ROWS, mask), part(ROWS, mask)
    for _ in range(2):
        assert same(part(ROWS[:5], mask), part.linear(ROWS[:5]) + (mask * mask.sum()).sum())
    other = mask.clone()
    other[4] += 1
    assert same(part(ROWS[:5], other), part.linear(ROWS[:5]) + (other * other.sum()).sum())
    assert counts(parts) == (12, 12 + 5)  # the first of the short batches, which makes no part of a kind that is kept


@pytest.mark.parametrize(
    ("compute", "one", "other"),
    [
        (lambda f, x: f(x.reshape(len(x), 4, -1).mean(2) * x.shape[1]), torch.ones(12, 4, 2), torch.ones(12, 8, 1)),
        (lambda f, x: f(x.float()), torch.ones(12, 4).view(torch.int32), torch.ones(12, 4)),
        (lambda f, x, s: f(x) * s.shape[0], (ROWS, torch.ones(2, 3)), (ROWS, torch.ones(3, 2))),
        (lambda f, x, s: f(x) * s.sum(), (ROWS, torch.ones(3)), (ROWS, torch.ones(3).view(torch.int32))),
        (lambda f, x, s: f(x) / s, (ROWS, 0.0), (ROWS, -0.0)),
        (lambda f, x: f(x) * (1 if torch.is_grad_enabled() else 2), ROWS, None),
    ],
)
def test_calls_that_only_look_alike_are_told_apart(compute, one, other):
    part = frozen(Part(compute))
    cached(part)
    one = one if isinstance(one, tuple) else (one,)
    for _ in range(2):
        assert same(part(*one), compute(part.linear, *one))
    with torch.set_grad_enabled(other is not None):
        other = one if other is None else other if isinstance(other, tuple) else (other,)
        assert same(part(*other), compute(part.linear, *other))


def test_a_list_with_a_value_for_each_row_is_not_taken_for_something_shared():
    part = frozen(Part(lambda f, x, scales: f(x) * torch.tensor(scales)[:, None]))
    parts = cached(part)
    scales = [float(i) for i in range(12)]
    for rows in (ROWS, ROWS.flip(0)):
        assert same(part(rows, scales), part.linear(rows) * torch.tensor(scales)[:, None])
    assert counts(parts) == (0, 0)


def test_an_inner_layer_in_another_mode_is_another_call():
    class Doubling(nn.ReLU):
        def forward(self, x):
            return super().forward(x) * (2 if self.training else 1)

    part = frozen(nn.Sequential(nn.Linear(4, 3), Doubling()))
    cached(part)
    for training in (True, False, True):
        part[1].train(training)
        assert torch.equal(part(ROWS), copy.deepcopy(part)(ROWS))


@pytest.mark.parametrize(
    "compute",
    [
        lambda f, x: {"few" if len(x) < 6 else "many": f(x)},
        lambda f, x: f(x) if len(x) >= 6 else f(x).double(),
    ],
)
def test_a_part_of_a_batch_with_an_output_of_another_form_is_not_mixed_in(compute):
    part = frozen(Part(lambda f, x: compute(f, x) if is_odd else f(x)))
    parts, is_odd = cached(part), False
    part(ROWS[:9]), part(ROWS[:9])
    is_odd = True
    with pytest.warns(UserWarning, match="the structure of its output changes from batch to batch"):
        assert same(part(ROWS), compute(part.linear, ROWS))
    assert parts.budget.used == 0


def test_an_error_of_the_module_is_its_own():
    def failing(f, x):
        if fails:
            raise ZeroDivisionError
        return f(x)

    part, fails = frozen(Part(failing)), False
    cached(part, check=1)
    part(ROWS)
    fails = True
    with pytest.raises(ZeroDivisionError):
        part(ROWS)


def test_a_table_that_the_first_call_makes_is_no_obstacle():
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


def test_other_ways_to_run_a_module_pass_it_by():
    part = frozen(nn.Linear(4, 3))
    fresh = copy.deepcopy(part)
    cached(part)
    part(ROWS), part(ROWS)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(ROWS, torch.ones_like(ROWS))
        tangents = [forward_ad.unpack_dual(module(dual)).tangent for module in (part, fresh)]
        torch.testing.assert_close(*tangents)
    exported = torch.export.export(nn.Sequential(part), (ROWS,)).module()
    torch.testing.assert_close(exported(ROWS), fresh(ROWS))


def test_what_cannot_be_read_is_left_alone():
    part = frozen(nn.Linear(4, 3))
    part.register_buffer("sparse", ROWS.to_sparse())
    network = nn.Sequential(part, torch.jit.ScriptModule(), nn.Linear(3, 1))
    with pytest.warns(UserWarning, match="not caching '0': its attributes cannot be read"):
        parts = cached(network)
    assert not parts.modules


def test_hooks_on_all_modules_go_on_running():
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


def test_layouts_of_calls_are_not_kept_for_ever():
    part = frozen(Part(lambda f, x, scale: f(x) * scale))
    parts = cached(part)
    for i in range(1100):
        part(ROWS[:2], float(i))
    assert len(parts.modules[""]._layouts) <= 1001
    assert len(parts.modules[""].rows) < 1000


# ---- when rows are forgotten

CHANGES = {
    "in place": torch.no_grad()(lambda part: part[0].weight.add_(1)),
    "loading": lambda part: part.load_state_dict({key: value + 1 for key, value in part.state_dict().items()}),
    "assignment": lambda part: setattr(part[0], "bias", nn.Parameter(torch.ones(3), requires_grad=False)),
    "another layer": lambda part: part.__setitem__(0, frozen(nn.Linear(4, 3))),
    "a buffer": lambda part: part[1].running_mean.add_(1),
    "other data": lambda part: setattr(part[0].weight, "data", part[0].weight.data + 1),
    "another activation": lambda part: part.__setitem__(2, nn.Tanh()),
    "unfrozen by hand": lambda part: part.requires_grad_(True),
}
UNSEEN = {
    "data": lambda part: part[0].weight.data.add_(1),
    "numpy": lambda part: np.add(array := part[0].weight.detach().numpy(), 1, out=array),
    "statistics": lambda part: (part[1].train()._call_impl(torch.randn(5, 3)), part[1].eval()),
    "a setting": lambda part: setattr(part[1], "eps", 10.0),
    "a word": lambda part: setattr(part[2], "approximate", "tanh"),
    "an object": lambda part: setattr(part[2], "forward", torch.tanh),
    "another class": lambda part: setattr(part[2], "__class__", nn.Tanh),
    "an item": lambda part: part[1].table.update(scale=2.0),
    "a plain tensor": lambda part: part[1].table["shift"].add_(1),
    "a new child": lambda part: part.append(nn.Tanh()),
}


def normed():
    return frozen(nn.Sequential(nn.Linear(4, 3), Scaled(3), nn.GELU())).eval()


class Scaled(nn.BatchNorm1d):
    """Has something to compute with that is neither a parameter nor a buffer."""

    def __init__(self, width):
        super().__init__(width)
        self.table = {"scale": 1.0, "shift": torch.zeros(1)}

    def forward(self, x):
        return super().forward(x) * self.table["scale"] + self.table["shift"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_torch_sees_is_never_missed(change):
    part = normed()
    cached(part, check=0)
    part(ROWS)
    CHANGES[change](part)
    assert torch.equal(part(ROWS), copy.deepcopy(part)(ROWS))


@pytest.mark.parametrize("change", {**CHANGES, **UNSEEN})
def test_no_change_outlives_the_epoch(change):
    part = normed()
    parts = cached(part, check=0)
    part(ROWS)
    parts.end_epoch()
    (CHANGES | UNSEEN)[change](part)
    parts.begin_epoch()
    assert torch.equal(part(ROWS), copy.deepcopy(part)(ROWS))


def test_a_call_of_a_new_kind_finds_what_changed_unseen():
    part = normed()
    cached(part, check=0)
    part(ROWS[1:])
    UNSEEN["data"](part)
    part(ROWS[:1])
    torch.testing.assert_close(part(ROWS), copy.deepcopy(part)(ROWS))


def test_another_module_in_its_place_is_another_one():
    network = nn.Sequential(normed(), nn.Linear(3, 1))
    parts = cached(network)
    network(ROWS)
    old, network[0] = network[0], normed()
    parts.refresh(retry_rejected=False)
    assert torch.equal(network(ROWS), copy.deepcopy(network)(ROWS))
    assert "_compiled_call_impl" not in vars(old)


def test_the_same_values_written_again_change_nothing():
    part = normed()
    parts = cached(part)
    part(ROWS)
    part.load_state_dict(part.state_dict())
    part[1].running_mean.copy_(part[1].running_mean.clone())
    part(ROWS)
    assert counts(parts) == (12, 12)


def test_what_changes_unseen_is_found_by_the_check():
    part = normed()
    cached(part, check=1)
    part(ROWS)
    UNSEEN["data"](part)
    with pytest.raises(RuntimeError, match="frozen_cache: the network now gives another output for a row"):
        part(ROWS)


def test_the_check_takes_some_rows_of_each_epoch():
    class Counting(nn.Linear):
        def forward(self, x):
            computed.append(len(x))
            return super().forward(x)

    for check, expected in ((0, []), (1, [1]), (3, [3]), (100, [3])):
        computed = []
        part = frozen(Counting(4, 3))
        parts = cached(part, check=check)
        part(ROWS)
        checked = set()
        for _ in range(20):
            parts.begin_epoch()
            computed.clear()
            for i, rows in enumerate(ROWS.split(3)):
                before = len(computed)
                part(rows)
                checked |= {i} if len(computed) > before else set()
            assert computed == expected
        assert checked == ({0, 1, 2, 3} if check else set())


def test_rounding_is_no_difference():
    """Rows that are computed among others round otherwise; a cache of them must not take it for a change."""
    part = frozen(nn.Sequential(*(nn.Linear(64, 64) for _ in range(20))))
    parts = cached(part, check=1000)
    x = torch.randn(257, 64) * 100
    part(x)
    for n in (1, 2, 7, 100):
        part(x[:n])
    assert parts.end_epoch().hits == 110


# ---- which modules


def test_the_largest_frozen_modules_are_found():
    network = nn.Sequential(
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]),
        nn.ReLU(),
        nn.Linear(2, 2),
    )
    network.append(network[1][0])
    assert list(frozen_parts(network, set())) == [""]
    assert list(frozen_parts(network, {"3.weight"})) == ["0", "1.0", "1.1"]
    assert list(frozen_parts(network, {"0.1.bias"})) == ["0.0", "1.0", "1.1", "3"]
    assert list(frozen_parts(network, {"3.weight"}, among={"0.0", "1.1", "3"})) == ["0.0", "1.1"]
    assert list(frozen_parts(network, {"3.weight"}, containers={"0"})) == ["0.0", "0.1", "1.0", "1.1"]


def test_a_module_that_is_called_by_its_children_alone_makes_way_for_them():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = frozen(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
            self.head = nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.encoder[1](self.encoder[0](x)))

    network = Network()
    parts = cached(network)
    network(ROWS)
    parts.replace_uncalled()
    network(ROWS), network(ROWS)
    assert counts(parts) == (24, 24)
    parts = cached(network, "encoder")
    network(ROWS)
    assert not parts.replace_uncalled()
    parts.close()
    assert parts.never_called == ["encoder"]


def test_modules_whose_rows_never_come_again_are_let_go_of():
    network = nn.Sequential(frozen(nn.Linear(4, 4)), nn.Linear(4, 1))
    for names, bytes_left in (((), 0), (("0",), 1)):
        parts = cached(network, *names)
        for _ in range(2):
            parts.begin_epoch()
            network(torch.randn(12, 4))
            parts.end_epoch()
        assert (parts.budget.used > 0) == bytes_left
        parts.refresh(retry_rejected=False)
        assert ("_compiled_call_impl" in vars(network[0])) == bytes_left
        parts.refresh()
        assert "_compiled_call_impl" in vars(network[0])
        parts.close()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["encodr"], "`modules` has 'encodr', which the network lacks; did you mean 'encoder'"),
        (["encoder.1"], "`modules` has 'encoder.1', which has no parameters and so is never frozen"),
        (["blocks"], "`modules` has 'blocks', a ModuleList, which is never called; name its elements"),
    ],
)
def test_names_must_be_modules_that_can_be_kept(names, message):
    network = nn.ModuleDict(
        {"encoder": nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "blocks": nn.ModuleList([nn.Linear(2, 2)])}
    )
    with pytest.raises(ValueError, match=message):
        CachedParts(network, names)


# ---- memory


def test_the_limit_is_kept_and_a_full_cache_computes():
    part = frozen(nn.Linear(4, 256))
    fresh = copy.deepcopy(part)
    parts = cached(part, max_bytes=5 * 2048 + 100)
    for _ in range(3):
        torch.testing.assert_close(part(ROWS), fresh(ROWS))
        assert parts.budget.used == 5 * 2048
    assert counts(parts) == (10, 12 + 14)


def test_rows_that_nobody_asked_for_in_a_whole_epoch_make_room():
    rows = {key: (torch.full((256,), float(key)),) for key in range(8)}
    budget = Budget(4 * 2048)
    cache = RowCache(budget)
    cache.add(map(bytes, [[0], [1], [2], [3], [4]]), [rows[i] for i in range(5)])
    assert len(cache) == 4
    cache.end_epoch()
    cache.get([bytes([1]), bytes([5])])
    cache.add([bytes([5])], [rows[5]])
    cache.end_epoch()
    assert len(cache) == 1
    assert budget.used == 2048
    cache.add([bytes([5]), bytes([6])], [rows[5], rows[6]])
    assert torch.equal(cache.get([bytes([6])])[0][0], rows[6][0])
    cache.clear()
    assert budget.used == 0


def test_rows_stay_once_there_is_room_again():
    part = frozen(nn.Linear(4, 256))
    parts = cached(part, max_bytes=6 * 2048)
    part(ROWS)
    parts.end_epoch()
    part(ROWS[5:])
    parts.end_epoch()  # the first five make room
    assert parts.budget.used == 2048
    part(ROWS[5:8])
    for _ in range(3):
        parts.end_epoch()
    assert parts.budget.used == 3 * 2048


def test_rows_stay_while_there_is_room():
    cache = RowCache(Budget(10**6))
    cache.add([b"a", b"b"], [(torch.ones(2),), (torch.zeros(2),)])
    for _ in range(3):
        cache.get([b"a"])
        cache.end_epoch()
    assert len(cache) == 2


def n_tensors_of(width):
    gc.collect()
    return sum(type(one) is torch.Tensor and one.shape == (width,) for one in gc.get_objects())


def test_closing_frees_the_memory():
    part = frozen(nn.Linear(4, 1000))
    parts = cached(part)
    part(ROWS)
    size = n_tensors_of(1000)
    parts.close()
    assert (size, n_tensors_of(1000)) == (12, 0)
    assert parts.budget.used == 0
    assert vars(part).keys() == vars(nn.Linear(1, 1)).keys()


class Leaky(nn.Linear):
    """Pickles all its attributes."""

    def __getstate__(self):
        return dict(vars(self))


@pytest.mark.parametrize("cls", [nn.Linear, Leaky])
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), lambda module: saved(module)]
)
def test_copies_know_nothing_of_it(cls, copied):
    part = frozen(cls(4, 3))
    parts = cached(part)
    before = len(pickle.dumps(copy.deepcopy(part)))
    part(ROWS)
    other = copied(part)
    assert vars(other).get("_compiled_call_impl") is None
    other(ROWS)
    assert counts(parts) == (0, 12)
    if cls is nn.Linear:
        assert len(pickle.dumps(part)) == before


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_what_it_did_is_counted():
    part = frozen(nn.Sequential(*(nn.Linear(4, 4) for _ in range(50))))
    parts = cached(part)
    part(ROWS)
    assert parts.end_epoch().saved < 0
    parts.begin_epoch()
    for _ in range(5):
        part(ROWS)
    tally = parts.end_epoch()
    assert (tally.hits, tally.misses) == (60, 0)
    assert isinstance(tally, Tally)


# ---- never a stale row

ACTIONS = {
    "batch": st.tuples(st.just("batch"), st.lists(st.integers(0, 11), min_size=1, max_size=6)),
    "change": st.tuples(
        st.just("change"), st.sampled_from(["in place", "loading", "assignment", "another layer", "a buffer"])
    ),
    "unseen": st.tuples(st.just("unseen"), st.sampled_from(["data", "numpy", "statistics", "a setting"])),
    "flag": st.tuples(st.just("flag"), st.sampled_from(["0", "1", "2.0", "2.1"]), st.booleans()),
    "step": st.tuples(st.just("step"), st.just(None)),
    "event": st.tuples(st.just("event"), st.just(None)),
    "mode": st.tuples(st.just("mode"), st.booleans()),
}


@given(st.lists(st.one_of(*ACTIONS.values()), max_size=25), st.sampled_from([3000, 20_000, 10**6]))
def test_whatever_happens_an_output_is_never_a_stale_one(actions, max_bytes):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), normed().append(nn.Linear(3, 4)), nn.Linear(4, 2))
    network[2][0] = frozen(nn.Linear(3, 3))
    network[0].requires_grad_(False)
    parts = CachedParts(network, max_bytes=max_bytes, check=2)
    parts.refresh()
    parts.begin_epoch()
    for action, *what in actions:
        if action == "batch":
            x, fresh = ROWS[what[0]], copy.deepcopy(network)
            torch.testing.assert_close(network(x), fresh(x))
            assert parts.budget.used <= max_bytes
        elif action == "change" and what[0] != "another layer":
            CHANGES[what[0]](nn.ModuleList([network[0], network[2][1]]))
        elif action == "change":
            network[2][0] = frozen(nn.Linear(3, 3))
        elif action == "unseen":
            parts.end_epoch()
            UNSEEN[what[0]](nn.ModuleList([network[0], network[2][1]]))
            parts.begin_epoch()
        elif action == "flag":
            network.get_submodule(what[0]).requires_grad_(what[1])
        elif action == "step":
            trains = [tensor for tensor in network.parameters() if tensor.requires_grad]
            if trains:
                optimizer = torch.optim.SGD(trains, lr=0.1)
                network.eval()(ROWS).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        elif action == "event":
            parts.refresh()
        elif action == "mode":
            network.train(what[0])
            network[2][1].eval()
    parts.close()
    assert all("_compiled_call_impl" not in vars(module) for module in network.modules())
