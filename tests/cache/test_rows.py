"""Any call can be cached: rows are identified by everything that their output depends on."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from tests.cache.helpers import ROWS, Pair, Part, cached, counts, frozen, same, told

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


@pytest.mark.parametrize("name", CALLS)
def test_rows_of_any_call_are_cached(name):
    compute, args, kwargs = CALLS[name]
    part = frozen(Part(compute))
    order = torch.randperm(12)
    parts = cached(part)
    assert same(part(*args, **kwargs), compute(part.linear, *args, **kwargs))
    args, kwargs = permuted(args, order), permuted(kwargs, order)
    assert same(part(*args, **kwargs), compute(part.linear, *args, **kwargs))
    assert counts(parts) == (12, 12)


class Around(nn.Module):
    """Calls a frozen part, and trains something else."""

    def __init__(self, part, prepare=lambda x: x):
        super().__init__()
        self.part, self.offset, self.prepare = part, nn.Parameter(torch.zeros(1)), prepare

    def forward(self, *args, **kwargs):
        return self.part(*map(self.prepare, args), **kwargs)


@pytest.mark.parametrize("name", CALLS)
def test_calls_like_earlier_ones_are_answered_as_these(name):
    compute, args, kwargs = CALLS[name]
    part = frozen(Part(compute))
    network = Around(part)
    parts = cached(network)
    for epoch in range(5):
        order = torch.randperm(12)
        args, kwargs = permuted(args, order), permuted(kwargs, order)
        for _ in range(2):
            assert same(network(*args, **kwargs), compute(part.linear, *args, **kwargs))
        parts.settle()
        assert counts(parts) == (24, 0) or epoch < 2
        parts.begin_epoch(), parts.refresh(retry_rejected=False)


def with_tangents(f):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(ROWS, torch.ones_like(ROWS)))).tangent


@pytest.mark.parametrize(
    "call",
    [
        with_tangents,
        lambda f: torch.func.jvp(f, (ROWS,), (torch.ones_like(ROWS),))[1],
        lambda f: torch.func.vmap(f)(ROWS[:, None]),
        lambda f: torch.func.grad(lambda scale: (f(ROWS) * scale).sum())(torch.tensor(2.0)),
        lambda f: f(ROWS.to_sparse()),
    ],
    ids=["dual", "jvp", "vmap", "grad", "sparse"],
)
def test_a_transformed_call_like_an_earlier_one_is_computed(call):
    network = Around(frozen(nn.Linear(4, 3)))
    plain, parts = copy.deepcopy(network), cached(network)
    for _ in range(4):
        assert same(network(ROWS), plain(ROWS))
        parts.settle(), parts.end_epoch(), parts.begin_epoch()
    assert same(call(network), call(plain))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_part_that_is_given_nested_tensors_is_computed(layout):
    network = Around(frozen(nn.Linear(4, 3)), lambda x: torch.nested.nested_tensor([x[:2], x[2:]], layout=layout))
    plain, parts = copy.deepcopy(network), cached(network)
    for _ in range(3):
        for one, other in zip(network(ROWS).unbind(), plain(ROWS).unbind(), strict=True):
            assert torch.equal(one, other)
    assert "it is given a nested tensor, whose rows cannot be read" in told(parts)[0]


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
def test_a_row_is_identified_by_everything_its_output_depends_on(change, hits):
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


def test_an_output_keeps_its_memory_layout():
    part = frozen(Part(lambda f, x: f(x).transpose(1, 2)))
    x = torch.randn(12, 5, 4)
    parts = cached(part)
    fresh, kept = part(x), part(x)
    assert counts(parts) == (12, 12)
    assert kept.stride() == fresh.stride()
    assert kept.transpose(1, 2).view(12, -1).equal(fresh.transpose(1, 2).view(12, -1))


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
def test_calls_that_only_look_alike_are_distinguished(compute, one, other):
    part = frozen(Part(compute))
    cached(part)
    one = one if isinstance(one, tuple) else (one,)
    for _ in range(2):
        assert same(part(*one), compute(part.linear, *one))
    with torch.set_grad_enabled(other is not None):
        other = one if other is None else other if isinstance(other, tuple) else (other,)
        assert same(part(*other), compute(part.linear, *other))


def test_a_list_with_a_value_for_each_row_is_not_shared():
    part = frozen(Part(lambda f, x, scales: f(x) * torch.tensor(scales)[:, None]))
    parts = cached(part)
    scales = [float(i) for i in range(12)]
    for rows in (ROWS, ROWS.flip(0)):
        assert same(part(rows, scales), part.linear(rows) * torch.tensor(scales)[:, None])
    assert counts(parts) == (0, 0)


def test_a_shared_tensor_as_long_as_a_batch_is_not_split_into_rows():
    part = frozen(Part(lambda f, x, mask: f(x) + (mask * mask.sum()).sum()))
    parts = cached(part)
    mask = torch.randn(5, 5)
    part(ROWS, mask), part(ROWS, mask)
    for _ in range(2):
        assert same(part(ROWS[:5], mask), part.linear(ROWS[:5]) + (mask * mask.sum()).sum())
    other = mask.clone()
    other[4] += 1
    assert same(part(ROWS[:5], other), part.linear(ROWS[:5]) + (other * other.sum()).sum())
    assert counts(parts) == (12, 12 + 5)  # the first of the short batches fails its trial, the others bypass the cache


def test_arguments_that_cannot_be_read_are_rejected():
    part = frozen(Part(lambda f, pair: f(pair.first)))
    parts = cached(part, "")
    assert same(part(Pair(ROWS)), part.linear(ROWS))
    assert "not caching the network: it is given a Pair, whose content cannot be read" in told(parts)[0]
    part = frozen(Part(lambda f, x: f(x.to_dense())))
    parts = cached(part, "")
    assert same(part(ROWS.to_sparse()), part.linear(ROWS))
    assert "not caching the network: its input cannot be split into rows: " in told(parts)[0]


@pytest.mark.parametrize(
    "compute",
    [
        lambda f, x: {"few" if len(x) < 6 else "many": f(x)},
        lambda f, x: f(x) if len(x) >= 6 else f(x).double(),
    ],
)
def test_outputs_of_different_structure_are_not_mixed(compute):
    part = frozen(Part(lambda f, x: compute(f, x) if is_odd else f(x)))
    parts, is_odd = cached(part, ""), False
    part(ROWS[:9]), part(ROWS[:9])
    is_odd = True
    assert same(part(ROWS[3:]), compute(part.linear, ROWS[3:]))
    assert "the structure of its output changes from batch to batch" in told(parts)[0]
    assert parts.budget.used == 0
