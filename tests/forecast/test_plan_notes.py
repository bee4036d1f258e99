"""What a plan says of the network and the net: what training warns of, and why training is refused."""

import pytest
import torch
from skorch import NeuralNetClassifier
from skorch import callbacks as callbacks_of_skorch
from torch import nn

from mlr3torch_py import (
    CallbackSetUnfreeze,
    Freezer,
    freeze_plan,
    gradual_unfreezing,
    select_all,
    select_last,
    select_prefix,
    t_clbk,
)
from tests.helpers import X, iris_net, y


def unfreeze(table=None):
    return t_clbk("unfreeze", starting_weights=select_last(1), unfreeze=table)


HEAD = unfreeze()
SLOWER = unfreeze({"epoch": [2], "weights": [~select_last(1)], "lr_mult": [0.1]})


class Adapted(nn.Module):
    """A base that is not to be trained, and something that is added to it."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 3).requires_grad_(False)
        self.added = nn.Linear(4, 3)

    def forward(self, X):
        return self.base(X) + self.added(X)


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4, max_norm=0.5)
        self.head = nn.Linear(4, 3)

    def forward(self, X):
        return self.head(self.table(X.long()).mean(1))


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (
            lambda: iris_net(t_clbk("unfreeze", starting_weights=select_all()), module=Adapted),
            "parameters that required no gradient before training will be trained by the schedule: base;",
        ),
        (lambda: iris_net(HEAD, module=Embedded, audited=False), "table.weight will be frozen, but the Embedding has"),
    ],
)
def test_what_training_warns_of_in_the_network_is_said(net, said):
    (note,) = freeze_plan(net(), X, y).notes
    with pytest.warns(UserWarning, match=said) as caught:
        net().fit(X, y)
    assert [str(one.message) for one in caught] == [note]


class SharesALayer(NeuralNetClassifier):
    def initialize_module(self):
        super().initialize_module()
        self.other_ = nn.Sequential(self.module_[-1])
        return self


@pytest.mark.parametrize(
    ("callbacks", "params", "why"),
    [
        ([SLOWER], {"optimizer": torch.optim.LBFGS}, "`unfreeze` has a column `lr_mult`, but LBFGS has"),
        ([HEAD, t_clbk("freezer", names="0.bias", module="other")], {"cls": SharesALayer}, "are also in"),
    ],
)
def test_why_training_will_be_refused_is_said(callbacks, params, why):
    net = iris_net(*callbacks, **params)
    (note,) = freeze_plan(net, X, y, module="module").notes
    assert note.startswith("training will be refused: `")
    assert why in note
    with pytest.raises(ValueError, match=why):
        net.fit(X, y)


def test_an_optimizer_that_is_none_of_torch_is_not_said_to_be_refused():
    class Own(NeuralNetClassifier):
        def initialize_optimizer(self, *args, **kwargs):
            super().initialize_optimizer(*args, **kwargs)
            self.optimizer_ = Wrapped(self.optimizer_)
            return self

    assert freeze_plan(iris_net(SLOWER, cls=Own), X, y).notes == ()


def test_another_number_of_batches_than_the_data_have_is_said():
    notes = freeze_plan(iris_net(HEAD), X, y, batches_per_epoch=2).notes
    assert notes == ("`batches_per_epoch` is 2, but an epoch of the data has 3 batches",)


def test_rows_after_the_last_epoch_are_said():
    tables = [
        {"epoch": [2, 5], "weights": [select_prefix("3"), select_all()]},
        {"batch": [13], "weights": [select_all()]},
    ]
    plan = freeze_plan(iris_net(unfreeze(tables)), X, y)
    assert plan.notes == (
        "`unfreeze`: row 1 (epoch 5: select_all()) has no effect, since epoch 4 is the last one by `max_epochs`",
        "`unfreeze`: row 2 (batch 13: select_all()) has no effect, since epoch 4 is the last one by `max_epochs`",
    )
    assert freeze_plan(iris_net(unfreeze(tables), max_epochs=5), X, y).notes == ()
    slower = {"epoch": [9], "weights": [~select_last(1)], "lr_mult": [0.1]}
    (note,) = freeze_plan(iris_net(unfreeze(slower)), X, y).notes
    assert "has no effect but its `lr_mult`, which holds from the start, since epoch 4" in note


def test_what_a_freezer_holds_to_the_end_is_said():
    held, end = "Freezer holds 0.weight, 0.bias until after", "since epoch 4 is the last one by `max_epochs`"
    for until, said in (
        ({"until_epoch": 8}, "epoch 8"),
        ({"until_epoch": 8, "until_step": 99}, "epoch 8 or batch 99"),
        ({"until_epoch": 8, "until_step": 5}, None),
    ):
        plan = freeze_plan(iris_net(Freezer(name_starts_with="0.", **until)), X, y)
        assert plan.notes == ((f"{held} {said}, so to the end, {end}",) if said else ())
        assert bool(plan.pending) == bool(said)


@pytest.mark.parametrize("is_initialized", [False, True])
def test_callbacks_of_skorch_that_freeze_are_named(is_initialized):
    callbacks = callbacks_of_skorch.Freezer("0.*"), ("later", callbacks_of_skorch.Unfreezer("0.*", at=3))
    callbacks += (callbacks_of_skorch.Initializer("6.*", fn=nn.init.normal_),)
    net = iris_net(HEAD, *callbacks)
    (note,) = freeze_plan(net.initialize() if is_initialized else net, X, y).notes
    assert note.startswith("'Freezer', 'later' of skorch may freeze or unfreeze parameters beside the plan")


class Overrules(nn.Sequential):
    """A network whose ``train`` sets the mode of a norm directly."""

    def __init__(self):
        super().__init__(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    def train(self, mode=True):
        super().train(mode)
        self[1].training = mode
        return self


def test_a_measured_plan_says_that_a_pin_would_be_overruled():
    rows = {"epoch": [3], "weights": [~select_last(1)], "action": ["freeze"]}
    net = iris_net(CallbackSetUnfreeze(select_all(), rows, frozen_mode="eval"), module=Overrules, audited=False)
    *_, note = freeze_plan(net, X, y, measure=True).notes
    assert "phase 2 cannot be trained on a copy of the net: ValueError: '1' cannot be kept in eval mode" in note
    with pytest.raises(ValueError, match="'1' cannot be kept in eval mode"):
        net.fit(X, y)


class FitsForFive(NeuralNetClassifier):
    def fit(self, X, y=None, **fit_params):
        return super().fit(X, y, epochs=5, **fit_params)


def test_the_epochs_are_those_that_fit_asks_for():
    rows = {"epoch": [5, 7], "weights": [select_last(2), select_all()]}
    net = iris_net(t_clbk("unfreeze", starting_weights=select_last(1), unfreeze=rows), cls=FitsForFive, max_epochs=3)
    plan = freeze_plan(net, X, y)
    assert (plan.max_epochs, [phase.epoch for phase in plan.phases]) == (len(net.fit(X, y).history), [1, 5])
    (note,) = plan.notes
    assert note.endswith("has no effect, since epoch 5 is the last one by `epochs`")
    assert freeze_plan(net, X, y, max_epochs=8).max_epochs == 8


class Wrapped:
    """An optimizer in a wrapper, as accelerate has it."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_a_head_that_is_in_no_group_is_said_to_never_train():
    parts = [select_prefix(path) for path in ("0", "3", "6")]
    without = t_clbk("unfreeze", schedule=gradual_unfreezing(groups=parts[:-1]))
    (note,) = freeze_plan(iris_net(without), X, y).notes
    assert note == "`groups`: 6.weight, 6.bias of the last block are in none of them, and never train"
    whole, head = gradual_unfreezing(groups=parts), gradual_unfreezing(groups=parts[1:])
    for schedule in (whole, head):
        assert freeze_plan(iris_net(t_clbk("unfreeze", schedule=schedule)), X, y).notes == ()
