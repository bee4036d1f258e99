"""Every combination of optimizer, schedule, compilation and normalisation, in one fit and resumed, under the audit."""

import functools

import pytest
import torch
from torch import nn

from mlr3torch_py import CallbackSetUnfreeze, select_all, select_prefix, t_clbk
from tests.checkpoint.runs import CrashError, Crashes, checkpoint, final
from tests.helpers import FOLLOWS_SCHEDULES, Trace, X, iris_net, moved, y

# Tracing a criterion asks a tensor for its gradient, of which torch warns.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


class Network(nn.Module):
    def __init__(self, has_norm):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=not has_norm)  # a bias before a norm layer has no gradient
        self.norm = nn.BatchNorm1d(4) if has_norm else nn.Identity()
        self.second = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.norm(self.first(x))))))


OPTIMIZERS = {
    "SGD": functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=0.01),
    "Adam": torch.optim.Adam,
    "AdamW fused": functools.partial(torch.optim.AdamW, fused=True),
    "LBFGS": functools.partial(torch.optim.LBFGS, max_iter=3),
}
WEIGHTS = [select_prefix("second"), select_all(), select_prefix("first", "norm")]
ACTIONS = ["unfreeze", "unfreeze", "freeze"]
TABLES = {
    "epochs": {"epoch": [2, 3, 4], "weights": WEIGHTS, "action": ACTIONS},
    "batches": {"batch": [2, 5, 8], "weights": WEIGHTS, "action": ACTIONS},
}
FOLLOWS = pytest.mark.skipif(not FOLLOWS_SCHEDULES, reason="refused with this torch")
MODES = [
    pytest.param({}, id="eager"),
    pytest.param({"compile": True, "compile__backend": "aot_eager"}, id="compiled", marks=[pytest.mark.slow, FOLLOWS]),
]


def train(folder, optimizer, table, has_norm, trace, *more, **mode):
    torch._dynamo.reset()
    net = iris_net(
        checkpoint(folder, resume=True),
        CallbackSetUnfreeze(select_prefix("head"), table, frozen_norm="eval"),
        trace,
        *more,
        t_clbk("freeze_audit"),
        module=Network,
        module__has_norm=has_norm,
        optimizer=optimizer,
        lr=0.01,
        iterator_train__shuffle=True,
        **mode,
    )
    return net.fit(X, y)


def check(tmp_path, optimizer, table, has_norm, mode):
    torch.manual_seed(0)
    trace = Trace()
    whole = train(tmp_path / "whole", optimizer, table, has_norm, trace, **mode)
    prefix = "_orig_mod." if mode else ""
    for trains, before, after in zip(trace.batches_, trace.weights_, trace.weights_[1:], strict=False):
        assert moved(before, after) == {prefix + name for name in trains}
    torch.manual_seed(0)
    with pytest.raises(CrashError):
        train(tmp_path / "kept", optimizer, table, has_norm, Trace(), Crashes(3), **mode)
    resumed = train(tmp_path / "kept", optimizer, table, has_norm, Trace(), **mode)
    assert final(tmp_path / "kept", resumed) == final(tmp_path / "whole", whole)


@pytest.mark.sample(5)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("has_norm", [False, True], ids=["plain", "norm"])
@pytest.mark.usefixtures("no_schedule_warnings")  # one row names the norm layer, which may be missing
def test_what_is_frozen_stays_and_a_resumed_run_equals_one_fit(optimizer, table, mode, has_norm, tmp_path):
    check(tmp_path, optimizer, table, has_norm, mode)


@FOLLOWS
@pytest.mark.slow
def test_with_inductor_too(tmp_path):
    check(tmp_path, OPTIMIZERS["SGD"], TABLES["epochs"], True, {"compile": True})
