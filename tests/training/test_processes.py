"""Several processes that train one net follow the main one; a process that trains a net of its own follows nobody."""

import os
import subprocess
import sys

import pytest
import torch
from skorch.callbacks import Callback
from skorch.history import DistributedHistory
from torch import distributed

from mlr3torch_py import Plateau, select_all, select_last, t_clbk
from mlr3torch_py.training.processes import are_several, from_main_process, is_main_process, on_main_process
from tests.helpers import X, iris_net, y
from tests.parallel import ParallelNet, Weights, accelerated_net, global_net, in_processes, own_net

pytestmark = pytest.mark.slow

X, y = X[:144], y[:144]


class TwoPartError(Exception):
    """Cannot be unpickled."""

    def __init__(self, what, where):
        super().__init__(f"{what} on {where}")


def fail():
    raise ValueError(f"on rank {distributed.get_rank()}")


def fail_in_two_parts():
    raise TwoPartError("failed", f"rank {distributed.get_rank()}")


def message_of(net, function):
    try:
        on_main_process(net, function)
    except Exception as error:
        return str(error)
    return None


def decide():
    net, rank = own_net().initialize(), distributed.get_rank()
    messages = message_of(net, fail), message_of(net, fail_in_two_parts)
    return is_main_process(net), from_main_process(net, rank), on_main_process(net, distributed.get_rank), *messages


def test_the_result_or_error_of_the_main_process_reaches_all(tmp_path):
    main, other = in_processes(tmp_path, decide)
    assert main == (True, 0, 0, "on rank 0", "failed on rank 0")
    assert other == (False, 0, 0, "on rank 0", "TwoPartError: failed on rank 0")


def decide_alone():
    net = iris_net().initialize()
    return is_main_process(net), from_main_process(net, 3), on_main_process(net, lambda: 4)


def test_a_single_process_decides_for_itself(tmp_path):
    assert in_processes(tmp_path, decide_alone, n_ranks=1) == [(True, 3, 4)]
    assert decide_alone() == (True, 3, 4)


class ByHandNet(ParallelNet):
    """Says by its history that the processes share the batches."""

    def initialize_module(self):
        return super(ParallelNet, self).initialize_module()

    def initialize_history(self):
        store = distributed.HashStore()
        self.history_ = DistributedHistory(store=store, rank=distributed.get_rank(), world_size=2)
        return self


def who_trains():
    groups = [distributed.new_group([rank]) for rank in range(2)]
    nets = {
        "wrapped": own_net(),
        "accelerated": accelerated_net(),
        "by hand": own_net(cls=ByHandNet),
        "plain": global_net(),
        "in a group of its own": own_net(wrapping={"process_group": groups[distributed.get_rank()]}),
    }
    return [name for name, net in nets.items() if are_several(net.initialize())]


def test_the_net_says_whether_several_processes_train_it(tmp_path):
    assert in_processes(tmp_path, who_trains) == [["wrapped", "accelerated", "by hand"]] * 2


class Scores(Callback):
    name = "score"
    lower_is_better = True

    def __init__(self, scores):
        self.scores = scores

    def on_epoch_end(self, net, **kwargs):
        if self.scores is not None:
            net.history.record("score", self.scores[len(net.history) - 1])


STAGNATES, IMPROVES = [0.9, 0.8, 0.8, 0.8, 0.8, 0.8], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]


def train_nets_of_their_own(folder):
    rank = distributed.get_rank()
    stop = t_clbk("early_stopping", monitor="score", patience=3)
    checkpoint = t_clbk("checkpoint", path=folder / f"fold {rank}", freq=1)
    scores = [("score", Scores([STAGNATES, IMPROVES][rank])), stop, checkpoint]
    net = global_net(*scores, max_epochs=[6, 5][rank]).fit(X, y)
    return len(net.history), len(list(folder.glob(f"fold {rank}/network*.pt")))


def test_each_process_can_train_a_net_of_its_own(tmp_path):
    assert in_processes(tmp_path, train_nets_of_their_own, tmp_path) == [(5, 5), (5, 5)]


FOLLOWERS = {
    "early_stopping": {"monitor": "score", "patience": 3, "restore_best_weights": True},
    "lr_reduce_on_plateau": {"monitor": "score", "patience": 0},
    "unfreeze": {
        "starting_weights": select_last(1),
        "unfreeze": {"when": [Plateau("score", patience=1)], "weights": [select_all()]},
    },
    "checkpoint": {"freq": 1, "keep_best": True, "monitor": "score"},
}


def train_by_scores_of_the_main_process(key, folder):
    kept, params = Weights(), FOLLOWERS[key] | ({"path": folder / "run"} if key == "checkpoint" else {})
    scores = Scores(STAGNATES if distributed.get_rank() == 0 else None)
    net = own_net(("score", scores), t_clbk(key, **params), kept, max_epochs=6).fit(X, y)
    return len(net.history), net.optimizer_.param_groups[0]["lr"], kept.epochs_


@pytest.mark.parametrize("key", FOLLOWERS)
def test_the_main_process_alone_may_record_the_score(key, tmp_path):
    main, other = in_processes(tmp_path, train_by_scores_of_the_main_process, key, tmp_path)
    assert main[:2] == other[:2]
    assert main[0] == (5 if key == "early_stopping" else 6)
    pairs = zip(main[2], other[2], strict=True)
    assert all(torch.equal(one[name], another[name]) for one, another in pairs for name in one)


def train_with_best_weights_between_phases():
    kept, scores = Weights(), Scores(IMPROVES if distributed.get_rank() == 0 else None)
    table = {"epoch": [4], "weights": [select_all()]}
    best = {"restore_best_between": True, "monitor": "score"}
    unfreeze = t_clbk("unfreeze", starting_weights=select_last(1), unfreeze=table, **best)
    own_net(unfreeze, ("score", scores), kept, max_epochs=5).fit(X, y)  # the score comes after the one who reads it
    return kept.epochs_


def test_a_score_that_the_main_process_records_late_is_read_by_all(tmp_path):
    main, other = in_processes(tmp_path, train_with_best_weights_between_phases)
    assert all(torch.equal(one[name], two[name]) for one, two in zip(main, other, strict=True) for name in one)


class Fails(Callback):
    """Raises in one process, while the other waits for its gradients."""

    def on_batch_begin(self, net, training=None, **kwargs):
        if training and len(net.history) == 3 and distributed.get_rank() == 1:
            raise RuntimeError("out of memory, say")


CALLBACKS_THAT_EXIT = {
    "early_stopping": {"monitor": "train_loss", "patience": 9, "restore_best_weights": True},
    "checkpoint": {"freq": 5},
}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SCRIPT = """
import sys
from pathlib import Path
from torch import distributed
from tests.training.test_processes import CALLBACKS_THAT_EXIT, Fails, X, own_net, t_clbk, y

distributed.init_process_group("gloo")
key, folder = sys.argv[1:]
path = {"path": Path(folder) / "run"} if key == "checkpoint" else {}
own_net(("fails", Fails()), t_clbk(key, **CALLBACKS_THAT_EXIT[key], **path)).fit(X, y)
"""


@pytest.mark.skipif(os.name != "posix", reason="torchrun needs POSIX")
@pytest.mark.parametrize("key", CALLBACKS_THAT_EXIT)
def test_an_error_in_one_process_ends_the_training_of_all(key, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [*TORCHRUN, tmp_path / "script.py", key, tmp_path],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    assert "RuntimeError: out of memory, say" in done.stderr
    if key == "checkpoint":
        assert (tmp_path / "run" / "network2.pt").exists()
