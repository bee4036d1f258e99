"""The report of the audit, and its line in the log."""

import copy
import logging
import pickle

import pandas as pd
import pytest
import torch
from sklearn.base import clone
from torch import nn

from mlr3torch_py import CallbackSetUnfreeze, select_all, select_last, select_prefix, t_clbk
from tests.audit.test_callback import acts_at, write
from tests.helpers import Stops, X, iris_net, y

COLUMNS = ["name", "frozen_from", "frozen_to", "comparisons", "moved"]
TABLE = {
    "epoch": [2, 3, 5],
    "weights": [select_prefix("3"), select_all(), select_prefix("3.bias")],
    "action": ["unfreeze", "unfreeze", "freeze"],
}


def net_of(*callbacks, table=TABLE, max_epochs=6, on_change="raise", **params):
    unfreeze = CallbackSetUnfreeze(select_last(1), table)
    return iris_net(unfreeze, t_clbk("freeze_audit", on_change=on_change), *callbacks, max_epochs=max_epochs, **params)


def report_of(net):
    return dict(net.callbacks_)["freeze_audit"].report()


def rows_of(net):
    return [tuple(row) for row in report_of(net).itertuples(index=False)]


STRETCHES = [
    ("0.weight", 1, 2, 2, False),
    ("0.bias", 1, 2, 2, False),
    ("3.weight", 1, 1, 1, False),
    ("3.bias", 1, 1, 1, False),
    ("3.bias", 5, 6, 2, False),
]


def test_every_stretch_in_which_a_name_was_frozen_has_a_row():
    net = net_of().fit(X, y)
    assert rows_of(net) == STRETCHES
    frame = report_of(net)
    assert list(frame.columns) == COLUMNS
    assert frame.dtypes.astype(str).to_dict() | {"name": ""} == {
        "name": "",
        "frozen_from": "int64",
        "frozen_to": "int64",
        "comparisons": "int64",
        "moved": "bool",
    }


def test_before_any_training_it_is_empty():
    frame = t_clbk("freeze_audit").callback.report()
    assert list(frame.columns) == COLUMNS
    assert len(frame) == 0
    assert frame["moved"].dtype == bool
    assert len(report_of(net_of().initialize())) == 0


def test_stretches_of_batches():
    table = {"batch": [2, 3, 5], "weights": [select_prefix("0")] * 3, "action": ["unfreeze", "freeze", "unfreeze"]}
    net = net_of(table=table, max_epochs=2).fit(X, y)
    assert [row for row in rows_of(net) if row[0] == "0.bias"] == [
        ("0.bias", 1, 1, 1, False),
        ("0.bias", 1, 2, 2, False),
    ]
    assert [row for row in rows_of(net) if row[0] == "3.bias"] == [("3.bias", 1, 2, 5, False)]


def test_it_is_that_of_the_last_training():
    net = net_of(max_epochs=2).fit(X, y)
    assert rows_of(net)[0] == ("0.weight", 1, 2, 2, False)
    net.partial_fit(X, y)
    assert rows_of(net) == []
    net.partial_fit(X, y)
    assert rows_of(net) == [("3.bias", 5, 6, 2, False)]
    assert rows_of(net.fit(X, y)) == [*STRETCHES[:2], *STRETCHES[2:4]]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_it_goes_with_a_copy(copied):
    net = net_of().fit(X, y)
    pd.testing.assert_frame_equal(report_of(copied(net)), report_of(net))
    assert len(clone(dict(net.callbacks_)["freeze_audit"]).report()) == 0


def test_it_is_there_after_an_error_of_the_audit():
    net = net_of(acts_at(5, write), table=None)
    with pytest.raises(RuntimeError, match="0.bias changed while frozen, in batches 4 to 6"):
        net.fit(X, y)
    moved = {name: (name, 1, 2, 2, name == "0.bias") for name in ("0.weight", "0.bias", "3.weight", "3.bias")}
    assert rows_of(net) == list(moved.values())


def test_what_moved_once_is_called_moved():
    with pytest.warns(UserWarning, match="0.bias changed while frozen, in batches 1 to 3"):
        net = net_of(acts_at(1, write), table=None, max_epochs=3, on_change="warn").fit(X, y)
    assert rows_of(net)[:2] == [("0.weight", 1, 3, 3, False), ("0.bias", 1, 3, 3, True)]


def test_it_is_there_after_a_training_that_breaks_off():
    net = net_of(Stops(ZeroDivisionError, 5))
    with pytest.raises(ZeroDivisionError):
        net.fit(X, y)
    assert [row for row in rows_of(net) if row[0] == "3.bias"] == [("3.bias", 1, 1, 1, False)]
    net = net_of(Stops(KeyboardInterrupt, 5)).fit(X, y)
    assert rows_of(net)[0] == ("0.weight", 1, 2, 2, False)


def test_a_tied_tensor_has_a_row_for_each_name_and_counts_once(caplog):
    caplog.set_level(logging.INFO, logger="mlr3torch_py")
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    network[1].weight = network[0].weight
    net = net_of(table=None, module=network, max_epochs=2).fit(X, y)
    assert [row[0] for row in rows_of(net)] == ["0.weight", "1.weight", "0.bias", "1.bias"]
    assert caplog.messages[-1] == (
        "freeze_audit compared 3 frozen tensors with 24 values, 6 comparisons in all: nothing moved"
    )


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({}, "compared 4 frozen tensors with 27 values, 8 comparisons in all: nothing moved"),
        ({"sample": 2}, "compared 4 frozen tensors with 8 values, 8 comparisons in all: nothing moved"),
    ],
    ids=str,
)
def test_one_line_at_the_end_says_how_much_was_compared(caplog, params, line):
    caplog.set_level(logging.INFO, logger="mlr3torch_py")
    iris_net(CallbackSetUnfreeze(select_last(1)), t_clbk("freeze_audit", **params), max_epochs=2).fit(X, y)
    (record,) = [record for record in caplog.records if record.message.startswith("freeze_audit")]
    assert record.message == f"freeze_audit {line}"
    assert record.levelno == logging.INFO


def test_one_tensor_is_one_tensor(caplog):
    caplog.set_level(logging.INFO, logger="mlr3torch_py")
    network = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 3))
    iris_net(CallbackSetUnfreeze(select_last(1)), t_clbk("freeze_audit"), module=network, max_epochs=1).fit(X, y)
    assert caplog.messages[-1].startswith("freeze_audit compared 1 frozen tensor with 4 values, 1 comparison in all")


def test_the_line_names_what_moved_and_says_when_nothing_was_frozen(caplog):
    caplog.set_level(logging.INFO, logger="mlr3torch_py")
    with pytest.warns(UserWarning, match="0.bias"):
        net_of(acts_at(1, write), table=None, max_epochs=1, on_change="warn").fit(X, y)
    assert caplog.messages[-1].endswith("4 comparisons in all: 0.bias moved")
    iris_net(t_clbk("freeze_audit")).fit(X, y)
    assert caplog.messages[-1] == "freeze_audit compared nothing, since nothing was frozen"


def test_it_does_not_keep_the_network():
    net = net_of(max_epochs=1).fit(X, y)
    audit = dict(net.callbacks_)["freeze_audit"]
    assert not any(isinstance(one, (torch.Tensor, nn.Module)) for one in vars(audit).values())
    assert audit.frozen_ is None
    assert audit.trainable_ is None
