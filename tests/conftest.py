"""Helpers that several test modules share."""

import gc
import multiprocessing
import os
import warnings
from collections import Counter

import pytest
import torch
from hypothesis import settings

settings.register_profile("tests", deadline=None, derandomize=True)
settings.register_profile("quick", settings.get_profile("tests"), max_examples=20)
settings.load_profile("tests")

# Each pytest worker is a process of its own; more threads than cores only slow them down.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Processes that have imported everything start in no time. The first that is started decides on this for all.
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
if START == "forkserver":
    multiprocessing.set_forkserver_preload(["tests.killed", "tests.parallel", "accelerate", "torch._dynamo"])


def pytest_configure(config):
    if "not slow" in config.option.markexpr:
        settings.load_profile("quick")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark as slow what is left out of a sample of cases."""
    seen = Counter()
    for item in items:
        if mark := item.get_closest_marker("sample"):
            if seen[item.function] % mark.args[0]:
                item.add_marker("slow")
            seen[item.function] += 1


def pytest_collection_finish():
    """Let the collector of garbage leave out what is imported, which is most of what there is."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def processes():
    """Processes that start in no time."""
    return multiprocessing.get_context(START)


@pytest.fixture
def no_schedule_warnings():
    """For schedules that are odd on purpose: rows that never come, that select nothing, or what cannot train."""
    with warnings.catch_warnings():
        for message in ("`(unfreeze|starting_weights)`", ".* required no gradient before", ".* no optimizer holds"):
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        yield
