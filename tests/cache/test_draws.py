"""Random numbers of other threads are not blamed on a module, and its own are found whoever else draws."""

import importlib
import random
import threading
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import _get_current_dispatch_mode

from mlr3torch_py import CallbackSetUnfreeze, select_last, t_clbk
from mlr3torch_py.cache.trials.draws import draws_itself
from mlr3torch_py.network.randomness import generators, random_states
from tests.cache.helpers import ROWS, Part, cached, counts, frozen, told
from tests.helpers import X, iris_net, y

DRAW = {"torch": lambda: torch.rand(1), "numpy": lambda: np.random.rand(), "python": lambda: random.random()}


@contextmanager
def somebody_else_drawing(draw):
    stop = threading.Event()

    def go_on():
        while not stop.is_set():
            draw()

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def attention(dropout):
    return lambda f, x: functional.scaled_dot_product_attention(*[f(x)[:, None]] * 3, dropout_p=dropout)[:, 0]


def own_generator(f, x):
    if not hasattr(f, "generator"):
        f.generator = torch.Generator()
    return f(x) + torch.rand(1, generator=f.generator)


RANDOM = {
    "dropout": lambda f, x: functional.dropout(f(x), 0.5),
    "dropout without effect": lambda f, x: f(x) + functional.dropout(torch.zeros(3), 0.5),
    "a number that is not used": lambda f, x: f(x) + 0 * torch.rand(1),
    "like another": lambda f, x: f(x) + torch.randn_like(f(x)),
    "attention": attention(0.5),
    "a permutation": lambda f, x: f(x[:, torch.randperm(4)]),
    "choices": lambda f, x: f(x) + torch.multinomial(torch.ones(9), 4, replacement=True)[:1],
    "numpy": lambda f, x: f(x) + np.random.rand(),
    "python": lambda f, x: f(x) + random.random(),
    "numpy in another way": lambda f, x: f(x) * np.random.normal(),
}
STEADY = {
    "linear": lambda f, x: f(x),
    "attention": attention(0.0),
    "RReLU at rest": lambda f, x: functional.rrelu(f(x), training=False, inplace=True),
    "dropout at rest": lambda f, x: functional.dropout(f(x), 0.5, training=False),
}


@pytest.mark.sample(7)
@pytest.mark.parametrize("draw", DRAW)
@pytest.mark.parametrize("kind", RANDOM)
def test_a_module_that_draws_is_found_every_time(kind, draw):
    with somebody_else_drawing(DRAW[draw]):
        for _ in range(5):
            part = frozen(Part(RANDOM[kind]))
            parts = cached(part, "")
            part(ROWS)
            assert "it draws random numbers" in told(parts)[0]
            assert not parts.budget.used


@pytest.mark.parametrize("draw", DRAW)
@pytest.mark.parametrize("kind", STEADY)
def test_a_module_that_does_not_draw_is_not_blamed(kind, draw):
    with somebody_else_drawing(DRAW[draw]):
        part = frozen(Part(STEADY[kind]))
        parts = cached(part, "")
        for i in range(6):
            part(ROWS + i)
        part(ROWS)
        assert told(parts) == []
        assert counts(parts) == (12, 72)


@pytest.mark.sample(3)
@pytest.mark.parametrize("thread", [*DRAW, "idle", "none"])
@pytest.mark.parametrize("n_calls", range(1, 8))
@pytest.mark.parametrize("n_known", [0, 6])
def test_a_module_that_draws_only_at_times_leaves_no_rows(n_calls, n_known, thread):
    part = frozen(Part(lambda f, x: f(x) + (torch.rand(1) if is_noisy else 0)))
    parts, is_noisy = cached(part, "", check=0), False
    with nullcontext() if thread == "none" else somebody_else_drawing(DRAW.get(thread, lambda: None)):
        for i in range(n_calls):
            part(ROWS + i)
        is_noisy = True
        part(torch.cat([ROWS[:n_known], -ROWS[n_known:]]))
    assert "it draws random numbers" in told(parts)[0]
    assert parts.budget.used == 0


def test_the_repetitions_leave_the_generators_as_they_were():
    found = generators()
    before = random_states(found)
    assert draws_itself(lambda: bool(torch.rand(1) < 0), found)
    assert random_states(found) == before


def test_a_generator_inside_the_module_counts():
    part = frozen(Part(own_generator))
    parts = cached(part, "")
    part(ROWS), part(ROWS)
    assert told(parts)
    assert counts(parts)[0] == 0


def test_a_module_that_cannot_be_watched_is_judged_by_its_output():
    def repeat():
        return _get_current_dispatch_mode() is None  # False where the repetition fails

    with somebody_else_drawing(DRAW["torch"]):
        assert not draws_itself(repeat, generators())


@pytest.mark.parametrize("draw", DRAW)
def test_a_net_that_trains_beside_a_thread_has_its_cache(draw):
    torch.manual_seed(0)
    freezing = CallbackSetUnfreeze(select_last(1), frozen_mode="eval")
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 3))
    importlib.import_module("torch._dynamo")  # whose functions are watched once they are there
    with somebody_else_drawing(DRAW[draw]):
        net = iris_net(freezing, t_clbk("frozen_cache"), module=network, max_epochs=3).fit(X, y)
    assert net.history[:, "cache_hits"][1:] == [150, 150]
