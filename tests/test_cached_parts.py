"""Modules whose outputs are kept by row: they give what they would give anyway, whatever happens in between."""

import copy
import gc
import io
import pickle
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_flatten

from mlr3torch_py.cached_module import NEEDS_GRADIENT, Tally
from mlr3torch_py.cached_parts import CachedParts, frozen_parts
from mlr3torch_py.row_cache import Budget, RowCache

ROWS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


def cached(network, *names, **params):
    """The cache of a network, with all that is frozen in it, at the begin of an epoch."""
    parts = CachedParts(network, names or None, **params)
    parts.find()
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
    fresh = part(ROWS).clone()
    for _ in range(3):
        output = part(ROWS)
        torch.testing.assert_close(output, fresh)
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
    assert counts(parts) == (36, 36)


def test_rows_kept_in_inference_mode_can_be_trained_on():
    part = frozen(nn.Linear(4, 3))
    parts = cached(part)
    with torch.inference_mode():
        part(ROWS)
    head = nn.Linear(3, 1)
    head(part(ROWS)).sum().backward()
    assert counts(parts) == (12, 12)
    assert head.weight.grad is not None


def test_batches_that_know_a_part_of_their_rows_compute_the_others():
    part = frozen(nn.Linear(4, 3))
    fresh = copy.deepcopy(part)
    parts = cached(part)
    part(ROWS[:5])
    torch.testing.assert_close(part(ROWS), fresh(ROWS))
    torch.testing.assert_close(part(ROWS[[3, 11, 3]]), fresh(ROWS[[3, 11, 3]]))
    assert counts(parts) == (5 + 3, 5 + 7)


def test_a_single_row_is_computed_until_rows_are_known_to_be_independent():
    part = frozen(nn.Linear(4, 3))
    parts = cached(part)
    part(ROWS[:1]), part(ROWS[:1])
    part(ROWS[1:])
    part(ROWS[:1]), part(ROWS[:1])
    assert counts(parts) == (1, 14)


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


def counting(f, x):
    f.bias.data += 1
    return f(x)


def one_for_all(f, x):
    return f(x).mean()


def strange(f, x):
    return Pair(f(x))


LEFT_ALONE = {
    noisy: "it draws random numbers; name others in `modules`",
    centred: "the output of a row depends on the other rows of its batch; name others in `modules`",
    summed_up: "the output of a row depends on the other rows of its batch",
    in_place: "it writes into its input",
    remembering: "its Linear sets its 'seen' in a call",
    counting: "it changes its own buffers",
    one_for_all: r"its output holds a tensor of shape \(\) for 12 rows",
    strange: "its output holds a Pair, which is not made of rows",
    lambda f, x: f(x) if len(x) == 12 else 1 / 0: "the output of a row depends on the other rows of its batch",
    lambda f, x: (f(x), len(x)): "the output of a row depends on the other rows of its batch",
}


@pytest.mark.parametrize("compute", LEFT_ALONE)
def test_a_module_that_is_no_function_of_rows_is_left_alone(compute):
    part = frozen(Part(compute))
    plain = copy.deepcopy(part)
    parts = cached(part)
    for i in range(3):
        one, other = ROWS.clone(), ROWS.clone()
        torch.manual_seed(i)
        if i == 0:
            with pytest.warns(UserWarning, match=f"frozen_cache leaves the network alone: {LEFT_ALONE[compute]}"):
                ours = part(one)
        else:
            ours = part(one)
        torch.manual_seed(i)
        assert str(ours) == str(plain(other))
        assert torch.equal(one, other)
    assert torch.equal(part.linear.bias, plain.linear.bias)
    assert counts(parts)[0] == 0
    assert "_compiled_call_impl" not in vars(part)


def test_arguments_that_cannot_be_read_are_left_alone():
    part = frozen(Part(lambda f, pair: f(pair.first)))
    cached(part)
    with pytest.warns(UserWarning, match="leaves the network alone: it is given a Pair, whose content cannot be read"):
        assert same(part(Pair(ROWS)), part.linear(ROWS))
    part = frozen(Part(lambda f, x: f(x.to_dense())))
    cached(part)
    with pytest.warns(UserWarning, match="leaves the network alone: its input cannot be read by rows: "):
        assert same(part(ROWS.to_sparse()), part.linear(ROWS))


def test_something_trainable_that_a_module_borrows_is_seen():
    part, outside = frozen(Part(lambda f, x: f(x) * outside)), nn.Parameter(torch.ones(3))
    cached(part)
    with pytest.warns(UserWarning, match="its output needs a gradient, so that something trainable is in it"):
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
    with pytest.warns(UserWarning, match=rf"leaves the network alone: .* is in training mode.*set {option}='eval'"):
        network(ROWS)
    network.eval()
    parts.find()
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
        assert [str(one.message) for one in warned] == [f"frozen_cache leaves 1 alone: {NEEDS_GRADIENT}"] * n_warnings
        assert counts(parts) == (0, 0)


# ---- when rows are forgotten

CHANGES = {
    "in place": torch.no_grad()(lambda part: part[0].weight.add_(1)),
    "loading": lambda part: part.load_state_dict({key: value + 1 for key, value in part.state_dict().items()}),
    "assignment": lambda part: setattr(part[0], "bias", nn.Parameter(torch.ones(3), requires_grad=False)),
    "another layer": lambda part: part.__setitem__(0, frozen(nn.Linear(4, 3))),
    "a buffer": lambda part: part[1].running_mean.add_(1),
    "unfrozen by hand": lambda part: part.requires_grad_(True),
}
UNSEEN = {
    "data": lambda part: part[0].weight.data.add_(1),
    "numpy": lambda part: np.add(array := part[0].weight.detach().numpy(), 1, out=array),
    "statistics": lambda part: (part[1].train()._call_impl(torch.randn(5, 3)), part[1].eval()),
    "a setting": lambda part: setattr(part[1], "eps", 10.0),
    "a new child": lambda part: part.append(nn.ReLU()),
}


def normed():
    return frozen(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))).eval()


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
    with pytest.raises(RuntimeError, match="frozen_cache: what the network gives for a row is not what it gave"):
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
    assert list(frozen_parts(network, {"3.weight"}, opened={"0"})) == ["0.0", "0.1", "1.0", "1.1"]


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
    with pytest.warns(UserWarning, match="leaves encoder alone: the network does not call it, but maybe its children"):
        parts.replace_uncalled()


def test_modules_whose_rows_never_come_again_are_let_go_of():
    network = nn.Sequential(frozen(nn.Linear(4, 4)), nn.Linear(4, 1))
    for names, bytes_left in (((), 0), (("0",), 1)):
        parts = cached(network, *names)
        for _ in range(2):
            parts.begin_epoch()
            network(torch.randn(12, 4))
            parts.end_epoch()
        assert (parts.budget.used > 0) == bytes_left
        parts.find(after_event=False)
        assert ("_compiled_call_impl" in vars(network[0])) == bytes_left
        parts.find()
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
    parts.find()
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
            parts.find()
        elif action == "mode":
            network.train(what[0])
            network[2][1].eval()
    parts.close()
    assert all("_compiled_call_impl" not in vars(module) for module in network.modules())
