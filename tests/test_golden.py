"""Every recorded case of mlr3torch, replayed through real nets."""

import pandas as pd
import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from torch import nn

import mlr3torch_py
from mlr3torch_py import MLP, CallbackSetUnfreeze, select_all, t_clbk
from tests.helpers import IRIS, Nested, Trace, X, golden, iris_net, moved, selector, table, y

SELECT = golden("select")["cases"]
UNFREEZE = golden("unfreeze")["cases"]
TABLES = golden("unfreeze_table_check")["cases"]


class Named(nn.Module):
    """A network whose parameters have given names."""

    def __init__(self, names):
        super().__init__()
        for name in names:
            path, _, last = name.rpartition(".")
            module = self
            for part in path.split("."):
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_parameter(last, nn.Parameter(torch.rand(3)))

    def forward(self, x):
        return x[:, :3] + sum(self.parameters())


@pytest.mark.parametrize("case", SELECT, ids=range(len(SELECT)))
def test_selectors_select_what_r_selects(case):
    if case["raises"]:
        with pytest.raises(ValueError, match="lacks"):
            selector(case["select"])(case["names"])
    else:
        assert selector(case["select"])(case["names"]) == case["selected"]


@pytest.mark.sample(7)
@pytest.mark.usefixtures("no_schedule_warnings")
@pytest.mark.parametrize("case", SELECT, ids=range(len(SELECT)))
def test_what_r_selects_moves_in_a_training_and_nothing_else(case):
    trace = Trace()
    unfreeze = CallbackSetUnfreeze(selector(case["select"]))
    net = iris_net(unfreeze, trace, module=Named(case["names"]), max_epochs=1, batch_size=150)
    if case["raises"] or not case["selected"]:
        with pytest.raises(ValueError, match="lacks" if case["raises"] else "nothing trains"):
            net.fit(X, y)
        assert not trace.batches_
    else:
        net.fit(X, y)
        assert moved(*trace.weights_) == set(case["selected"])


@pytest.mark.usefixtures("no_schedule_warnings")
@pytest.mark.parametrize("case", TABLES, ids=[case["id"] for case in TABLES])
@pytest.mark.parametrize("form", [lambda value: value, pd.DataFrame], ids=["as_given", "frame"])
def test_tables_are_accepted_and_refused_as_recorded(case, form):
    unfreeze = eval(case["python"], {"pd": pd} | vars(mlr3torch_py))
    if isinstance(unfreeze, dict):
        unfreeze = form(unfreeze)
    net = iris_net(CallbackSetUnfreeze(select_all(), unfreeze), max_epochs=1)
    if case["accept_here"]:
        net.fit(X, y)
        assert len(net.history) == 1
    else:
        with pytest.raises((TypeError, ValueError), match="`unfreeze`"):
            net.fit(X, y)
        assert len(net.history) == 0


def _network(case):
    if case["network"]["kind"] == "mlp":
        return MLP(4, 3, neurons=case["network"]["neurons"])
    return Nested(case["network"]["blocks"])


@pytest.mark.sample(7)
@pytest.mark.usefixtures("no_schedule_warnings")
@pytest.mark.parametrize("case", UNFREEZE, ids=range(len(UNFREEZE)))
def test_weights_train_exactly_when_they_do_in_r(case):
    trace = Trace()
    unfreeze = CallbackSetUnfreeze(selector(case["starting_weights"]), table(case["unfreeze"]))
    net = NeuralNetClassifier(
        _network(case),
        criterion=nn.CrossEntropyLoss,
        max_epochs=case["epochs"],
        batch_size=case["batch_size"],
        train_split=None,
        callbacks=[unfreeze, trace, t_clbk("freeze_audit")],
        verbose=0,
    ).initialize()
    assert [name for name, _ in net.module_.named_parameters()] == case["names"]
    rows = torch.arange(case["n_train"]) % 150

    if case["error"] == "nothing_trainable":
        with pytest.raises(ValueError, match="nothing trains at batch 1 "):
            net.partial_fit(X[rows], y[rows])
        assert trace.batches_ == []
        assert trace.begin_ == case["trainable_at_begin"]
        return

    net.partial_fit(X[rows], y[rows])
    per_epoch = -(-case["n_train"] // case["batch_size"])
    seen = [
        {"epoch": epoch, "batch_in_epoch": i % per_epoch + 1, "global_batch": i + 1, "trainable": names}
        for i, (epoch, names) in enumerate(zip(trace.epochs_, trace.batches_, strict=True))
        if i == 0 or names != trace.batches_[i - 1]
    ]
    assert trace.begin_ == case["trainable_at_begin"]
    assert seen == case["changes"]
    assert len(trace.batches_) == case["batches_seen"]
    assert unfreeze.state_dict() == case["state_dict"]


OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def _tensors(recorded):
    return {name: torch.tensor(value["values"]).reshape(value["shape"]) for name, value in recorded.items()}


def network_of_run(run):
    module = MLP(4, 3, neurons=run["neurons"], p=0.0)
    module.load_state_dict(_tensors(run["initial"]))
    return module


@pytest.mark.parametrize("run", IRIS["runs"], ids=[run["id"] for run in IRIS["runs"]])
def test_the_iris_runs_have_the_losses_and_weights_of_r(run):
    valid = run["valid_rows_0based"] or []
    train = [row for row in range(150) if row not in valid]
    trace = Trace()
    net = NeuralNetClassifier(
        network_of_run(run),
        criterion=nn.CrossEntropyLoss,
        optimizer=OPTIMIZERS[run["optimizer"]["name"]],
        **{f"optimizer__{key}": value for key, value in run["optimizer"]["args"].items()},
        max_epochs=run["epochs"],
        batch_size=run["batch_size"],
        train_split=predefined_split(Dataset(X[valid], y[valid])) if valid else None,
        callbacks=[
            CallbackSetUnfreeze(selector(run["starting_weights"]), table(run["unfreeze"])),
            trace,
            t_clbk("freeze_audit"),
        ],
        verbose=0,
    ).fit(X[train], y[train])

    losses = [entry["train_loss"] for row in net.history.to_list() for entry in row["batches"] if "train_loss" in entry]
    assert trace.batches_ == [step["trainable"] for step in run["steps"]]
    assert losses == pytest.approx([step["loss"] for step in run["steps"]], abs=1e-6)
    for name, final in _tensors(run["final"]).items():
        torch.testing.assert_close(net.module_.get_parameter(name).detach(), final, atol=1e-6, rtol=0)
    assert net.callbacks[0].state_dict() == run["state_dict_unfreeze"]
