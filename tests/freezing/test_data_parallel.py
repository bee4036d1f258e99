"""Training in two processes that share the batches: what is right in one process is right in both."""

import os
import socket
import subprocess
import sys
from itertools import pairwise
from multiprocessing import forkserver
from pathlib import Path

import dask
import joblib
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, Checkpoint
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mlr3torch_py import (
    CallbackSetUnfreeze,
    Freezer,
    Plateau,
    freeze_plan,
    select_all,
    select_last,
    select_none,
    select_prefix,
    t_clbk,
    trainable_names,
)
from mlr3torch_py.network.unwrap import bare, named_parameters
from tests.helpers import X, moved, weights, y
from tests.parallel import (
    N_RANKS,
    AccumulatingNet,
    AccumulatingParallelNet,
    ParallelNet,
    ScaledCrossEntropy,
    SeededMLP,
    Weights,
    accelerated_net,
    global_net,
    in_processes,
    own_net,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="needs POSIX, to start processes by a forkserver"),
]

X, y = X[:144], y[:144]  # three batches of 48
NETS = {"own": own_net, "accelerate": accelerated_net}
TABLES = {
    "unfreeze by epoch": {"epoch": [2, 3], "weights": [select_prefix("3"), select_all()]},
    "freeze by epoch": {
        "epoch": [2, 3, 4],
        "weights": [select_prefix("3"), select_prefix("6"), select_prefix("0")],
        "action": ["unfreeze", "freeze", "unfreeze"],
    },
    "with factors": {"epoch": [1, 3], "weights": [select_prefix("3"), select_prefix("0")], "lr_mult": [0.5, 0.1]},
    "unfreeze by batch": {"batch": [2, 6], "weights": [select_prefix("3"), select_all()]},
    "freeze by batch": {
        "batch": [2, 5, 9],
        "weights": [select_all(), select_prefix("6"), select_prefix("0")],
        "action": ["unfreeze", "freeze", "freeze"],
    },
}


def train(kind, table, *more, calls=1, **params):
    """Return the weights before each call and after each epoch."""
    kept = Weights()
    make = NETS.get(kind, global_net)
    net = make(("unfreeze", CallbackSetUnfreeze(select_last(1), table)), *more, kept, **params)
    net.fit(X, y)
    for _ in range(calls - 1):
        net.partial_fit(X, y)
    return kept.epochs_


def are_bit_identical(runs, others):
    return all(torch.equal(run[name], other[name]) for run, other in zip(runs, others, strict=True) for name in run)


def distance(runs, others):
    pairs = zip(runs, others, strict=True)
    return max(float((run[name] - other[name]).abs().max()) for run, other in pairs for name in run)


def check_equal_to_one_process(main, other, alone):
    assert are_bit_identical(main, other)
    assert are_bit_identical(main[:1], alone[:1])
    assert distance(main, alone) < 1e-6


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("table", TABLES)
def test_ranks_are_bit_identical_after_every_epoch_and_equal_to_one_process(kind, table, tmp_path):
    main, other = in_processes(tmp_path, train, kind, TABLES[table])
    check_equal_to_one_process(main, other, train("alone", TABLES[table]))


def train_with_decay(kind):
    """AdamW would move by its decay what has a gradient."""
    adam = {"optimizer": torch.optim.AdamW, "optimizer__weight_decay": 0.1}
    return train(kind, None, ("freezer", Freezer(["6.bias"])), **adam)


@pytest.mark.parametrize("kind", NETS)
def test_frozen_weights_are_bit_identical_to_their_start(kind, tmp_path):
    main, other = in_processes(tmp_path, train_with_decay, kind)
    assert are_bit_identical(main, other)
    for epoch in main[1:]:
        assert moved(main[0], epoch) == {"6.weight"}


def train_and_save(kind, table, folder):
    own = folder / str(distributed.get_rank())
    checkpoint = Checkpoint(monitor=None, dirname=own, f_optimizer=None, f_criterion=None, f_history=None)
    runs = train(kind, table, ("checkpoint", checkpoint))
    return runs, (torch.load(own / "params.pt") if own.exists() and any(own.iterdir()) else None)


@pytest.mark.parametrize("table", TABLES)
def test_checkpoints_of_skorch_that_wrap_anew_after_each_epoch_change_nothing(table, tmp_path):
    (main, saved), (other, nothing) = in_processes(tmp_path, train_and_save, "accelerate", TABLES[table], tmp_path)
    check_equal_to_one_process(main, other, train("alone", TABLES[table]))
    assert nothing is None
    assert are_bit_identical([saved], main[-1:])


def train_accumulating(kind, table, n_ranks=N_RANKS):
    if kind == "accelerate":
        return train(kind, table, accumulate=2, batch_size=48 // n_ranks)
    return train(kind, table, cls=AccumulatingParallelNet if n_ranks > 1 else AccumulatingNet)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("table", ["unfreeze by batch", "freeze by batch"])
def test_gradients_that_are_accumulated_across_an_event_are_right(kind, table, tmp_path):
    main, other = in_processes(tmp_path, train_accumulating, kind, TABLES[table])
    one = kind if kind == "accelerate" else "alone"
    (alone,) = in_processes(tmp_path, train_accumulating, one, TABLES[table], 1, n_ranks=1)
    check_equal_to_one_process(main, other, alone)


def train_in_calls(kind, table, **params):
    return train(kind, table, calls=2, max_epochs=2, **params)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("table", ["unfreeze by epoch", "freeze by batch"])
def test_partial_fit_after_fit_goes_on_together(kind, table, tmp_path):
    main, other = in_processes(tmp_path, train_in_calls, kind, TABLES[table])
    check_equal_to_one_process(main, other, train_in_calls("alone", TABLES[table]))


def train_anew_while_wrapped():
    kept = Weights()
    unfreeze = CallbackSetUnfreeze(select_last(1), TABLES["unfreeze by batch"])
    net = accelerated_net(("unfreeze", unfreeze), kept, max_epochs=2, unwrap_after_train=False)
    net.fit(X, y).fit(X, y)
    return kept.epochs_


def test_a_second_fit_of_a_net_that_stays_wrapped_is_wrapped_too(tmp_path):
    main, other = in_processes(tmp_path, train_anew_while_wrapped)
    assert are_bit_identical(main, other)
    assert are_bit_identical(main[:3], main[3:])


class HookedNet(ParallelNet):
    """Wraps with arguments of its own, and counts what its hook reduces."""

    def initialize_module(self):
        group = distributed.new_group([0, 1])
        self.wrapping = {"process_group": group, "gradient_as_bucket_view": True, "find_unused_parameters": True}
        super().initialize_module()
        self.module_.register_comm_hook(self, reduce_and_count)
        return self


def reduce_and_count(net, bucket):
    net.reduced_ = [*getattr(net, "reduced_", []), bucket.buffer().numel()]
    return allreduce_hook(None, bucket)


def train_hooked():
    kept = Weights()
    unfreeze = CallbackSetUnfreeze(select_last(1), TABLES["freeze by batch"])
    net = own_net(("unfreeze", unfreeze), kept, cls=HookedNet).fit(X, y)
    return kept.epochs_, net.reduced_


def test_arguments_of_the_wrapper_and_its_hook_stay_and_only_what_trains_is_reduced(tmp_path):
    (main, reduced), (other, _) = in_processes(tmp_path, train_hooked)
    check_equal_to_one_process(main, other, train("alone", TABLES["freeze by batch"]))
    assert reduced == [12] * 1 + [39] * 3 + [27] * 4 + [12] * 4


def train_criterion():
    kept = Weights()
    callback = CallbackSetUnfreeze(select_none(), {"epoch": [2], "weights": [select_all()]})
    net = accelerated_net(("unfreeze", callback), kept, criterion=ScaledCrossEntropy, max_epochs=3).fit(X, y)
    return kept.epochs_, net.criterion_.scale.item()


def test_while_nothing_but_the_criterion_trains_the_network_is_left_alone(tmp_path):
    (main, scale), (other, same) = in_processes(tmp_path, train_criterion)
    assert are_bit_identical(main, other)
    assert scale == same != 1
    assert are_bit_identical(main[:1], main[1:2])
    assert not are_bit_identical(main[1:2], main[2:3])


class Score(Callback):
    """Writes other scores in every process."""

    name = "score"
    lower_is_better = True

    def __init__(self, scores):
        self.scores = scores

    def on_epoch_end(self, net, **kwargs):
        net.history.record("score", self.scores[distributed.get_rank()][len(net.history) - 1])


SCORES = [[0.9, 0.8, 0.8, 0.8, 0.8, 0.8], [0.9, 0.9, 0.7, 0.6, 0.5, 0.4]]


def train_with(kind, callback):
    waiting = {"when": [Plateau("score", patience=1)], "weights": [select_all()]}
    return train(kind, waiting, ("score", Score(SCORES)), callback, max_epochs=6)


def train_until_stopped(kind):
    kept = Weights()
    stop = t_clbk("early_stopping", monitor="score", patience=3, restore_best_weights=True)
    net = NETS[kind](("score", Score(SCORES)), stop, kept, max_epochs=6).fit(X, y)
    kept.on_epoch_end(net)
    return kept.epochs_


@pytest.mark.parametrize("kind", NETS)
def test_the_main_process_stops_early_for_all_and_restores_the_same_weights(kind, tmp_path):
    main, other = in_processes(tmp_path, train_until_stopped, kind)
    assert len(main) == 1 + 5 + 1
    assert are_bit_identical(main, other)
    assert are_bit_identical(main[-1:], main[2:3])


@pytest.mark.parametrize("kind", NETS)
def test_the_main_process_decides_on_conditions_and_rates_for_all(kind, tmp_path):
    rates = t_clbk("lr_reduce_on_plateau", monitor="score", patience=0, factor=0.5)
    main, other = in_processes(tmp_path, train_with, kind, rates)
    assert len(main) == 7
    assert are_bit_identical(main, other)
    still = [torch.equal(before["0.weight"], after["0.weight"]) for before, after in pairwise(main)]
    assert still == [True] * 3 + [False] * 3


class Keeps(Callback):
    """Notes who holds the lock."""

    def on_epoch_end(self, net, **kwargs):
        self.has_lock_ = dict(net.callbacks_)["checkpoint"].folder_.files.is_locked


def train_checkpointed(kind, folder, max_epochs):
    kept, keeps = Weights(), Keeps()
    unfreeze = CallbackSetUnfreeze(select_last(1), TABLES["freeze by batch"])
    checkpoint = t_clbk("checkpoint", path=folder, freq=1, resume=True)
    momentum = {"optimizer__momentum": 0.9, "max_epochs": max_epochs}
    NETS[kind](("unfreeze", unfreeze), keeps, kept, checkpoint, **momentum).fit(X, y)
    return kept.epochs_, keeps.has_lock_


@pytest.mark.parametrize("kind", NETS)
def test_only_the_main_process_writes_checkpoints_and_a_run_that_goes_on_equals_one(kind, tmp_path):
    (first, locked), (_, other_locked) = in_processes(tmp_path, train_checkpointed, kind, tmp_path / "a", 2)
    (second, _), (other, _) = in_processes(tmp_path, train_checkpointed, kind, tmp_path / "a", 4)
    (whole, _), _ = in_processes(tmp_path, train_checkpointed, kind, tmp_path / "b", 4)
    assert locked
    assert not other_locked
    assert sorted(file.name for file in (tmp_path / "a").glob("network*")) == [f"network{i}.pt" for i in (1, 2, 3, 4)]
    assert are_bit_identical(second, other)
    assert are_bit_identical([*first, *second[1:]], whole)


class ByHand(Callback):
    """Thaws a weight that a schedule holds, and freezes one that trains."""

    def on_epoch_end(self, net, **kwargs):
        tensors = named_parameters(net.module_)
        tensors["0.weight"].requires_grad, tensors["6.bias"].requires_grad = True, False


def train_by_hand():
    return train("own", None, ByHand(), max_epochs=3, audited=False)


def test_what_is_changed_by_hand_between_epochs_is_followed_too(tmp_path):
    main, other = in_processes(tmp_path, train_by_hand)
    assert are_bit_identical(main, other)
    assert [moved(*pair) for pair in pairwise(main)] == [{"6.weight", "6.bias"}, *[{"0.weight", "6.weight"}] * 2]


@pytest.fixture
def group_of_one():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("table", TABLES)
def test_a_group_of_one_process_trains_as_one_without_a_group(table, group_of_one):
    """As in a script that is launched for as many processes as there happen to be."""
    assert are_bit_identical(
        train("own", TABLES[table], batch_size=48, iterator_train__sampler=None), train("alone", TABLES[table])
    )


class StaticNet(ParallelNet):
    def initialize_module(self):
        self.wrapping = {"static_graph": True}
        return super().initialize_module()


class ShardedNet(NeuralNetClassifier):
    def initialize_module(self):
        super().initialize_module()
        fully_shard(self.module_, mesh=init_device_mesh("cpu", (N_RANKS,)))
        return self


def static_graph():
    return own_net(CallbackSetUnfreeze(select_last(1)), cls=StaticNet)


def static_graph_of_accelerate():
    from accelerate import DistributedDataParallelKwargs

    return accelerated_net(
        CallbackSetUnfreeze(select_last(1)), handlers=[DistributedDataParallelKwargs(static_graph=True)]
    )


def fully_sharded():
    return own_net(CallbackSetUnfreeze(select_last(1)), cls=ShardedNet)


def sharded_beside_checkpoint():
    return own_net(t_clbk("checkpoint", path="never_written", freq=1), cls=ShardedNet)


def sharded_beside_audit():
    return own_net(t_clbk("freeze_audit"), cls=ShardedNet)


def sharded_beside_cache():
    return own_net(t_clbk("frozen_cache"), cls=ShardedNet)


def error_of(make):
    net = make()
    try:
        net.fit(X, y)
    except Exception as error:
        return f"{type(error).__name__}: {error}", len(getattr(net, "history", []))
    return None


@pytest.mark.parametrize("make", [static_graph, static_graph_of_accelerate, fully_sharded])
def test_what_takes_for_granted_what_trains_is_refused_before_the_first_step(make, tmp_path):
    (message, n_epochs), other = in_processes(tmp_path, error_of, make)
    assert (message, n_epochs) == other
    assert n_epochs == 0
    if make is fully_sharded:
        assert "ValueError: `module_` is sharded by FSDP, which assumes that the set of trainable" in message
        assert "; use DistributedDataParallel" in message
    else:
        assert "ValueError: `module_` is wrapped in DistributedDataParallel with static_graph" in message
        assert "; leave that out" in message


@pytest.mark.parametrize("make", [sharded_beside_checkpoint, sharded_beside_audit, sharded_beside_cache])
def test_what_needs_the_whole_network_is_refused_beside_shards(make, tmp_path):
    (message, n_epochs), other = in_processes(tmp_path, error_of, make)
    assert (message, n_epochs) == other
    assert n_epochs == 0
    assert "ValueError: `module_` is sharded by FSDP, so that no process holds all of it" in message


def criterion_without_weights():
    return accelerated_net(criterion=nn.CrossEntropyLoss)


def module_frozen_by_hand():
    return accelerated_net(CallbackSetUnfreeze(select_last(1)), module=SeededMLP().requires_grad_(False))


@pytest.mark.parametrize("make", [criterion_without_weights, module_frozen_by_hand])
def test_what_accelerate_cannot_wrap_on_a_cpu_fails_as_the_guide_says(make, tmp_path):
    """It happens in skorch before there is a callback that could say it better."""
    (message, n_epochs), _ = in_processes(tmp_path, error_of, make)
    assert message.startswith("RuntimeError: DistributedDataParallel is not needed")
    assert n_epochs == 0


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return str(one.getsockname()[1])


EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
LAUNCHERS = {
    "torchrun.py": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate_launch.py": [
        *("accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2"),
        *("--main_process_port", free_port(), "--mixed_precision", "no", "--dynamo_backend", "no"),
    ],
}


@pytest.mark.parametrize("example", LAUNCHERS)
def test_the_examples_run_as_the_guide_says(example):
    options = ["--cpu"] if example == "accelerate_launch.py" else []
    done = subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[example], EXAMPLES / example, *options],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "all processes have the same weights: True" in done.stdout
    rows = [line for line in done.stdout.splitlines() if not line.startswith("[Gloo]")]  # which torch 2.8 prints
    assert [int(row.split()[1]) for row in rows[2:8]] == [27, 27, 99, 99, 139, 139]


def n_trainable_of(net, X, y):
    return len(trainable_names(net.module_))


def test_a_grid_search_over_schedules_runs_on_a_dask_cluster():
    forkserver.ensure_running()
    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})  # read when distributed is imported
    from distributed import Client

    table = TABLES["unfreeze by epoch"]
    unfreeze = ("unfreeze", CallbackSetUnfreeze(select_last(1)))
    search = GridSearchCV(
        global_net(unfreeze),
        {"callbacks__unfreeze__unfreeze": [table, None], "lr": [0.1, 0.2]},
        scoring={"accuracy": "accuracy", "n_trainable": n_trainable_of},
        refit="accuracy",
        cv=2,
    )
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None), joblib.parallel_config(backend="dask"):
        spread = clone(search).fit(X, y)
    alone = search.fit(X, y)
    for scores in ("mean_test_accuracy", "mean_test_n_trainable"):
        assert spread.cv_results_[scores].tolist() == alone.cv_results_[scores].tolist()
    assert set(alone.cv_results_["mean_test_n_trainable"]) == {2, 6}
    assert not moved(weights(spread.best_estimator_), weights(alone.best_estimator_))


class ReplacesWeight(Callback):
    """Puts a new parameter under a name at the end of the first epoch, and tells the optimizer."""

    def __init__(self, path):
        self.path = path

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 1:
            layer = bare(net.module_).get_submodule(self.path)
            layer.weight = nn.Parameter(layer.weight.detach() + 0.1)
            net.optimizer_.add_param_group({"params": [layer.weight]})


def train_replacing(kind, table, path):
    return train(kind, table, ("replaces", ReplacesWeight(path)))


@pytest.mark.parametrize("path", ["0", "6"])
@pytest.mark.parametrize("table", [None, {"epoch": [3], "weights": [select_all()]}])
def test_the_gradients_of_a_weight_that_is_replaced_are_reduced_too(path, table, tmp_path):
    main, other = in_processes(tmp_path, train_replacing, "own", table, path)
    check_equal_to_one_process(main, other, train_replacing("alone", table, path))


def plan_shared(made, ranks):
    net = own_net(("unfreeze", CallbackSetUnfreeze(select_last(1), TABLES["unfreeze by epoch"])))
    net = net.initialize() if made else net
    before = dict(named_parameters(net.module_)) if made else {}
    said = " ".join(freeze_plan(net, X, y, measure=True).notes) if distributed.get_rank() in ranks else ""
    distributed.barrier()
    return said, all(named_parameters(net.module_)[name] is tensor for name, tensor in before.items())


@pytest.mark.parametrize(("made", "ranks"), [(True, (0,)), (False, (0, 1))])
def test_a_plan_is_measured_without_the_other_processes(made, ranks, tmp_path):
    (said, is_unchanged), _ = in_processes(tmp_path, plan_shared, made, ranks)
    assert "measured: all batches of the training take about" in said
    assert " s, without communication between processes" in said
    assert is_unchanged


def plan_accelerated():
    net = accelerated_net(("unfreeze", CallbackSetUnfreeze(select_last(1), TABLES["unfreeze by epoch"])))
    return " ".join(freeze_plan(net, X, y, measure=True).notes)


def test_the_plan_of_a_net_with_an_accelerator_is_measured_before_it_is_fitted(tmp_path):
    (said,) = in_processes(tmp_path, plan_accelerated, n_ranks=1)
    assert "measured: all batches of the training take about" in said
    assert "communication" not in said
