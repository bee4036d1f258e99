import json
import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, RandomSampler

from mlr3torch_py.network.randomness import generators, kept_random_states, random_states, set_random_states

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Owner:
    """Has a generator of every kind, one of them in a part of a part."""

    def __init__(self):
        self.legacy = np.random.RandomState(1)
        self.modern = np.random.default_rng(2)
        self.python = random.Random(3)
        self.batches = BatchSampler(RandomSampler(range(9), generator=torch.Generator().manual_seed(4)), 2, False)

    def draw(self):
        own = [self.legacy.rand(), self.modern.random(), self.python.random(), *map(tuple, self.batches)]
        return [*own, torch.rand(2).tolist(), np.random.rand(), random.random()]


def test_all_draws_are_repeated_from_states_that_went_through_json():
    owner = Owner()
    states = json.loads(json.dumps(random_states(generators(owner=owner))))
    drawn = owner.draw()
    assert owner.draw() != drawn
    set_random_states(generators(owner=owner), states)
    assert owner.draw() == drawn


def test_generators_are_named_by_where_they_are():
    names = ["torch", "numpy", "python", "x.legacy", "x.modern", "x.python", "x.batches.sampler.generator"]
    assert [name for name in generators(x=Owner()) if not name.startswith("cuda")] == names


def test_a_state_that_is_missing_leaves_its_generator_alone():
    owner = Owner()
    states = random_states(generators(owner=owner))
    del states["owner.legacy"]
    first = owner.draw()[0]
    set_random_states(generators(owner=owner), states)
    assert owner.draw()[0] != first


@pytest.mark.parametrize("error", [None, KeyError])
def test_what_is_drawn_inside_changes_nothing_outside(error):
    def draw_inside():
        with kept_random_states(owner=owner):
            owner.draw()
            torch.manual_seed(99)
            np.random.seed(99)
            random.seed(99)
            if error:
                raise error

    owner, twin = Owner(), Owner()
    with kept_random_states():
        expected = twin.draw()
    if error:
        with pytest.raises(error):
            draw_inside()
    else:
        draw_inside()
    assert owner.draw() == expected


def test_without_cuda_in_use_looking_for_generators_does_not_initialize_it():
    before = torch.cuda.is_initialized()
    with kept_random_states():
        generators()
    assert torch.cuda.is_initialized() == before


@needs_cuda
def test_what_cuda_draws_inside_changes_nothing_outside():
    torch.rand(1, device="cuda")
    with kept_random_states():
        drawn = torch.rand(2, device="cuda")
    assert torch.equal(torch.rand(2, device="cuda"), drawn)


def draws_equal_ones_first(messages):
    torch.manual_seed(5)
    with kept_random_states():
        first = torch.rand(2, device="cuda")
    messages.put(torch.equal(torch.rand(2, device="cuda"), first))


@needs_cuda
@pytest.mark.slow
def test_cuda_that_is_initialized_inside_starts_from_its_seed(processes):
    messages = processes.SimpleQueue()
    child = processes.Process(target=draws_equal_ones_first, args=(messages,))
    child.start()
    child.join()
    assert messages.get()
