"""Training in two processes that share the batches: what is right in one process is right in both."""

import pytest
import torch
from skorch.callbacks import Checkpoint

from mlr3torch_py import CallbackSetUnfreeze, select_all, select_last, select_prefix
from tests.helpers import X, y
from tests.parallel import Weights, accelerated_net, global_net, in_two_processes, own_net

X, y = X[:144], y[:144]  # three batches of 48
NETS = {"own": own_net, "accelerate": accelerated_net}
TABLES = {
    "unfreeze by epoch": {"epoch": [2, 3], "weights": [select_prefix("3"), select_all()]},
    "freeze by epoch": {
        "epoch": [2, 3, 4],
        "weights": [select_prefix("3"), select_prefix("6"), select_prefix("0")],
        "action": ["unfreeze", "freeze", "unfreeze"],
    },
    "unfreeze by batch": {"batch": [2, 6], "weights": [select_prefix("3"), select_all()]},
    "freeze by batch": {
        "batch": [2, 5, 9],
        "weights": [select_all(), select_prefix("6"), select_prefix("0")],
        "action": ["unfreeze", "freeze", "freeze"],
    },
}


def train(make, table, *more, **params):
    kept = Weights()
    net = make(("unfreeze", CallbackSetUnfreeze(select_last(1), table)), *more, kept, **params)
    net.fit(X, y)
    return kept.epochs_


def in_rank(kind, table, folder=None, **params):
    more = [] if folder is None else [Checkpoint(monitor=None, dirname=folder / torch.distributed.get_rank().__str__())]
    return train(NETS[kind], table, *more, **params)


def are_bit_identical(runs, others):
    return all(torch.equal(run[name], other[name]) for run, other in zip(runs, others, strict=True) for name in run)


def distance(runs, others):
    pairs = zip(runs, others, strict=True)
    return max(float((run[name] - other[name]).abs().max()) for run, other in pairs for name in run)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("table", TABLES)
def test_ranks_are_bit_identical_after_every_epoch_and_equal_to_one_process(kind, table, tmp_path):
    main, other = in_two_processes(tmp_path, in_rank, kind, TABLES[table])
    assert are_bit_identical(main, other)
    alone = train(global_net, TABLES[table])
    assert distance(main[:1], alone[:1]) == 0
    assert distance(main, alone) < 1e-6
