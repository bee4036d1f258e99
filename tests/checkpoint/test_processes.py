"""Checkpoints of a net that several processes train."""

import warnings
from functools import partial

import pytest
import torch
from skorch.callbacks import EarlyStopping
from torch import distributed

from mlr3torch_py import check_resume, t_clbk
from mlr3torch_py.checkpoint.layout import differences
from mlr3torch_py.checkpoint.net_state import capture
from tests.helpers import X, iris_net, y
from tests.parallel import (
    AccumulatingParallelNet,
    Weights,
    accelerated_net,
    cross_entropy,
    global_net,
    in_processes,
    own_net,
)

pytestmark = pytest.mark.slow

X, y = X[:144], y[:144]


def zero(params, lr):
    """Keeps a part of its state in each process."""
    with warnings.catch_warnings(action="ignore"):  # torch 2.13 says that a decorator of its own is deprecated
        from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(params, optimizer_class=torch.optim.Adam, lr=lr)


def train(make, folder, max_epochs, *callbacks, **params):
    kept, checkpoint = Weights(), t_clbk("checkpoint", path=folder, freq=1, resume=True)
    net = make(*callbacks, kept, checkpoint, max_epochs=max_epochs, **params).fit(X, y)
    return kept.epochs_[-1], len(net.history)


def are_equal(one, other):
    return one[1] == other[1] and all(torch.equal(one[0][name], other[0][name]) for name in one[0])


def test_a_state_that_is_spread_over_the_processes_is_collected(tmp_path):
    make = partial(own_net, optimizer=zero)
    in_processes(tmp_path, train, make, tmp_path / "stopped", 2)
    main, other = in_processes(tmp_path, train, make, tmp_path / "stopped", 4)
    whole, _ = in_processes(tmp_path, train, make, tmp_path / "whole", 4)
    assert are_equal(main, other)
    assert are_equal(main, whole)


def train_until_skorch_stops(folder):
    stop = EarlyStopping("train_loss", patience=1, threshold=10, threshold_mode="abs")
    return train(partial(own_net, optimizer=zero), folder, 4, stop)


def test_the_state_of_an_epoch_is_collected_at_whose_end_skorch_stops(tmp_path):
    (_, n_epochs), _ = in_processes(tmp_path, train_until_skorch_stops, tmp_path / "run")
    assert n_epochs == 2
    first, last = (torch.load(tmp_path / "run" / f"optimizer{epoch}.pt")["state"][0]["step"] for epoch in (1, 2))
    assert (first, last) == (3, 6)


def resume_with_other_settings(make, folder):
    with warnings.catch_warnings(action="ignore"):  # which differ in the batch size, or in the criterion
        return train(make, folder, 2)


MAKERS = {"plain": partial(global_net, criterion=cross_entropy), "own": own_net, "accelerate": accelerated_net}


@pytest.mark.parametrize(("before", "after"), [("plain", "accelerate"), ("accelerate", "plain"), ("accelerate", "own")])
def test_a_run_can_change_the_way_in_which_it_is_shared(before, after, tmp_path):
    n_ranks = {"plain": 1, "own": 2, "accelerate": 2}
    in_processes(tmp_path, train, MAKERS[before], tmp_path / "run", 1, n_ranks=n_ranks[before])
    make, n_after = MAKERS[after], n_ranks[after]
    resumed, *_ = in_processes(tmp_path, resume_with_other_settings, make, tmp_path / "run", n_ranks=n_after)
    assert resumed[1] == 2


def test_a_file_that_names_the_wrapper_of_accelerate_fits_any_optimizer():
    net = iris_net().fit(X, y)
    checkpoint = capture(net, {}, {}, 0)
    checkpoint.state["classes"]["optimizer"] = "AcceleratedOptimizer"
    assert differences(net, checkpoint) == []
    checkpoint.state["classes"]["optimizer"] = "Adam"
    assert differences(net, checkpoint) == ["optimizer (SGD here, Adam there)"]


def warnings_of(seeds, folder, **params):
    net = own_net(t_clbk("checkpoint", path=folder, freq=1), **params).initialize()
    torch.manual_seed(seeds[distributed.get_rank()])  # the module has a seed of its own
    with warnings.catch_warnings(record=True, action="always") as said:
        net.partial_fit(X, y)
    return [str(one.message) for one in said]


def test_random_states_that_differ_between_processes_are_named(tmp_path):
    for said in in_processes(tmp_path, warnings_of, [1, 2], tmp_path / "different"):
        assert len(said) == 1
        assert "cannot keep the random states of torch, which differ between the processes" in said[0]
    assert in_processes(tmp_path, warnings_of, [1, 1], tmp_path / "same") == [[], []]


@pytest.mark.parametrize(("batch_size", "n_said"), [(24, 1), (36, 0)])  # three batches leave one for the next step
def test_pending_gradients_that_differ_between_processes_are_named(batch_size, n_said, tmp_path):
    train = partial(warnings_of, cls=AccumulatingParallelNet, batch_size=batch_size, module__seed=1)
    for said in in_processes(tmp_path, train, [1, 1], tmp_path / "run"):
        assert len(said) == n_said
        assert all("cannot keep the pending gradients, which differ between the processes" in one for one in said)


def full():
    if distributed.get_rank() == 0:
        raise OSError("disk full")
    return "another"


def error_of(function):
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def train_into_a_path_that_fails():
    net = own_net(t_clbk("checkpoint", path=full, freq=1))
    return error_of(partial(net.fit, X, y))


def test_a_path_that_fails_in_the_main_process_fails_in_all(tmp_path):
    main, other = in_processes(tmp_path, train_into_a_path_that_fails)
    assert main == other
    assert "`path` is <" in main
    assert "disk full" in main


def check_shared():
    return error_of(partial(check_resume, own_net().initialize(), X, y)), error_of(partial(check_resume, own_net(), X))


def test_check_resume_says_that_it_trains_in_one_process(tmp_path):
    for made, to_be_made in in_processes(tmp_path, check_shared):
        assert made.startswith("TypeError: `net` is trained by several processes, of which check_resume starts none; ")
        assert "process group has not been initialized" in to_be_made
        assert "; check the same net without a wrapper that shares its batches\n" in to_be_made
