"""A cached module returns what it would compute, whatever happens in between."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad

from mlr3torch_py.cache.parts import CachedParts
from mlr3torch_py.cache.storage.layout import N_TRIALS
from mlr3torch_py.cache.storage.tally import Tally
from mlr3torch_py.cache.trials.check import HitCheck
from tests.cache.helpers import CHANGES, COMPUTED, ROWS, UNSEEN, Part, cached, counts, frozen, normed, note


def test_cached_rows_are_safe_from_in_place_changes():
    part = frozen(nn.Linear(4, 3))
    cached(part)
    fresh = copy.deepcopy(part)(ROWS)
    for _ in range(3):
        output = part(ROWS[:6])
        torch.testing.assert_close(output, fresh[:6])
        output.zero_()


def test_modes_and_precision_are_distinguished():
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


def test_an_inner_layer_in_another_mode_is_another_call():
    class Doubling(nn.ReLU):
        def forward(self, x):
            return super().forward(x) * (2 if self.training else 1)

    part = frozen(nn.Sequential(nn.Linear(4, 3), Doubling()))
    cached(part)
    for training in (True, False, True):
        part[1].train(training)
        assert torch.equal(part(ROWS), copy.deepcopy(part)(ROWS))


def test_rows_cached_in_inference_mode_can_be_trained_on():
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


def test_a_batch_with_some_known_rows_computes_the_others():
    part = frozen(nn.Linear(4, 3))
    fresh = copy.deepcopy(part)
    parts = cached(part)
    part(ROWS[:5])
    torch.testing.assert_close(part(ROWS[3:8]), fresh(ROWS[3:8]))
    torch.testing.assert_close(part(ROWS[[3, 7, 3]]), fresh(ROWS[[3, 7, 3]]))
    assert counts(parts) == (2 + 3, 5 + 3)


def test_single_rows_are_cached_too():
    part = frozen(nn.Linear(4, 3))
    parts = cached(part)
    part(ROWS[:1]), part(ROWS[:1])
    part(ROWS)
    part(ROWS[5:6])
    assert counts(parts) == (1 + 1, 1 + 12)  # the first longer batch is a trial


def test_empty_batches_pass():
    part = frozen(nn.Linear(4, 3))
    parts = cached(part)
    assert part(ROWS[:0]).shape == (0, 3)
    assert counts(parts) == (0, 0)


def test_an_error_of_the_module_is_raised_as_it_is():
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


def test_tracing_and_forward_mode_bypass_the_cache():
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


@pytest.mark.slow
def test_the_memory_for_different_calls_is_limited():
    part = frozen(Part(lambda f, x, scale: f(x) * scale))
    parts = cached(part)
    for i in range(1100):
        part(ROWS[:2], float(i))
    assert parts.modules[""].n_bytes < 1000 * 2 * 300


def test_the_check_finds_an_unseen_change():
    part = normed()
    cached(part, check=1)
    part(ROWS)
    UNSEEN["data"](part)
    with pytest.raises(RuntimeError, match="frozen_cache: the network now gives another output for a row"):
        part(ROWS)


class Counting(nn.Linear):
    """Logs the rows that are computed."""

    def forward(self, x):
        note(x)
        return super().forward(x)


@pytest.mark.sample(3)
@pytest.mark.parametrize(("check", "expected"), [(0, []), (1, [1]), (3, [3]), (100, [12])])
def test_the_check_recomputes_some_rows_of_the_first_epoch_with_hits(check, expected):
    checked = set()
    for _ in range(100):  # so that chance leaves out no batch
        part = frozen(Counting(4, 3))
        parts = cached(part, check=check)
        for i in range(N_TRIALS):
            part(ROWS + i)
        parts.begin_epoch()
        COMPUTED.rows.clear()
        for i in range(N_TRIALS):
            before = len(COMPUTED.rows)
            part(ROWS + i)
            checked |= {i} if len(COMPUTED.rows) > before else set()
        assert COMPUTED.rows == expected
    assert checked == ({0, 1, 2, 3} if check else set())


def test_later_checks_take_little_of_what_the_hits_save():
    check = HitCheck(1)
    drawn = []
    for _ in range(40):
        check.begin_epoch(n_known=50)
        drawn.append(check.draw(list(range(50))))
        if drawn[-1]:
            check.pay(0.00075, seconds_per_row=0.005)  # the time of 0.15 rows, for 300 hits
    assert [i for i, rows in enumerate(drawn) if rows] == list(range(0, 40, 7))


def test_hits_and_misses_are_counted():
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


class Leaky(nn.Linear):
    """Pickles all of its attributes."""

    def __getstate__(self):
        return dict(vars(self))


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("cls", [nn.Linear, Leaky])
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), lambda module: saved(module)]
)
def test_copies_are_without_the_cache(cls, copied):
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:frozen_cache. .* so nothing is cached")
@given(st.lists(st.one_of(*ACTIONS.values()), max_size=25), st.sampled_from([3000, 20_000, 10**6]))
def test_an_output_is_never_stale_whatever_happens(actions, max_bytes):
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


DTYPES = [torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int64, torch.float8_e4m3fn, torch.float64]


def has_rows(dtype):
    try:
        return len(torch.zeros(2, dtype=dtype)[[0]]) == 1
    except NotImplementedError:  # in older releases, for some of them
        return False


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16, torch.complex64])
def test_outputs_of_any_dtype_are_cached_beside_others(dtype):
    if not has_rows(dtype):
        pytest.skip(f"this release of torch takes no rows of {dtype}")

    def with_another(f, x):
        y = f(x)
        return y, (10 * y).abs().to(dtype)

    part = frozen(Part(with_another))
    parts, expected = cached(part, check=8), with_another(part.linear, ROWS)
    for n_hits in (0, 12, 12):
        for one, other in zip(part(ROWS), expected, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one.to(torch.complex64), other.to(torch.complex64))
        assert parts.end_epoch().hits == n_hits
        parts.begin_epoch(), parts.refresh()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_modules_that_are_given_quantized_rows_are_not_cached_and_those_in_them_are():
    part = frozen(Part(lambda f, x: f(x.dequantize())))
    parts, rows = cached(part), torch.quantize_per_tensor(ROWS, 0.1, 128, torch.quint8)
    expected = part.linear(rows.dequantize())
    for _ in range(4):
        assert torch.equal(part(rows), expected)
        parts.settle()
    assert list(parts.modules) == ["linear"]


def test_a_lazy_network_is_cached_once_its_shapes_are_known():
    network = nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(3), nn.Linear(3, 2))
    for parameter in network[:3].parameters():
        parameter.requires_grad = False
    parts = cached(network)
    for _ in range(2):
        network(ROWS[:6]), parts.settle(), network(ROWS[6:]), parts.settle()
        hits = parts.end_epoch().hits
        parts.begin_epoch(), parts.refresh()
    assert hits == 6
