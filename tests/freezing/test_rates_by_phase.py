"""Learning rates by phase: the columns `lr_mult_from` and `warmup`."""

import copy
import pickle
from functools import partial

import pytest
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, LRScheduler
from torch import nn
from torch.optim import lr_scheduler

from mlr3torch_py import (
    MLP,
    CallbackSetUnfreeze,
    Freezer,
    Plateau,
    as_lr_scheduler,
    freeze_plan,
    from_dict,
    gradual_unfreezing,
    head_first,
    plot_history,
    select_all,
    select_last,
    select_name,
    select_none,
    select_prefix,
    t_clbk,
    to_dict,
)
from mlr3torch_py.schedule.rates import Factor
from tests.checkpoint.runs import checkpoint, resumed_equals_whole
from tests.helpers import Trace, X, iris_net, moved, weights, y

BATCHES = 3  # of an epoch with train_split=None and a batch size of 50


def unfreeze(table):
    return ("unfreeze", CallbackSetUnfreeze(select_last(1), table))


def rates_of(net):
    """The recorded rates by the name of the part, one entry per training batch."""
    return [
        {key: rate for key, rate in entry.items() if key.startswith("lr_")}
        for row in net.history
        for entry in row["batches"]
        if "train_loss" in entry
    ]


def constant(batch):
    return 0.1


def by_hand(module, optimizer, factors, *, epochs=4, rate=constant, apart=()):
    """Train with one group per layer, whose rate is set before every step.

    `factors` gives the factor of a layer in a batch, and None while it is frozen. Layers `apart` have an optimizer of
    their own.
    """
    layers = ["0.", "3.", "6."]
    tensors = {one: [p for n, p in module.named_parameters() if n.startswith(one)] for one in layers}
    groups = {one: {"params": tensors[one], "lr": 0.1} for one in layers}
    optimizers = [
        optimizer([groups[one] for one in layers if (one in apart) is is_apart], lr=0.1)
        for is_apart in ([False, True] if apart else [False])
    ]
    groups = {
        layer: group
        for one in optimizers
        for group in one.param_groups
        for layer in layers
        if group["params"][0] is tensors[layer][0]
    }
    for batch in range(1, epochs * BATCHES + 1):
        for layer, group in groups.items():
            factor = factors(layer, batch)
            for tensor in tensors[layer]:
                tensor.requires_grad = factor is not None
            group["lr"] = rate(batch) * (1.0 if factor is None else factor)
        start = (batch - 1) % BATCHES * 50
        rows = slice(start, start + 50)

        def closure():
            module.zero_grad()
            loss = nn.functional.cross_entropy(module(torch.tensor(X[rows])), torch.tensor(y[rows]))  # noqa: B023
            loss.backward()
            return loss

        for one in optimizers:
            one.step(closure)
    return dict(module.named_parameters())


def check(table, factors, *callbacks, optimizer=torch.optim.SGD, rate=constant, **params):
    """Compare the weights of a training by a table with those of a loop by hand, bit for bit."""
    net = iris_net(unfreeze(table), *callbacks, Trace(), optimizer=optimizer, train_split=None, **params).initialize()
    module = copy.deepcopy(net.module_)
    net.partial_fit(X, y)
    assert not moved(weights(net), by_hand(module, optimizer, factors, rate=rate))
    return net


OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, momentum=0.9, weight_decay=0.01),
    "Adam": torch.optim.Adam,
    "AdamW fused": partial(torch.optim.AdamW, fused=True, weight_decay=0.1),
}
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)

TENTH = {"epoch": [3], "weights": [select_all()], "lr_mult": [0.1], "lr_mult_from": ["row"]}
RAMPS = {"epoch": [2, 3], "weights": [select_prefix("3"), select_prefix("0")], "warmup": [2, 5], "lr_mult": [None, 0.5]}


def a_tenth(layer, batch):
    """Of all layers from epoch 3 on, which begins with batch 7."""
    return (None if layer == "0." or layer == "3." else 1.0) if batch < 7 else 0.1


def ramps(layer, batch):
    if layer == "3.":
        return None if batch < 4 else min(1.0, (batch - 3) / 2)
    if layer == "0.":
        return None if batch < 7 else 0.5 * ((batch - 6) / 5) if batch < 11 else 0.5
    return 1.0


@every_optimizer
def test_a_factor_from_the_row_on_leaves_the_rates_before_alone(optimizer):
    net = check(TENTH, a_tenth, optimizer=optimizer)
    assert rates_of(net) == [{"lr_0": 0.1}] * 6 + [{"lr_0_x0.1": 0.1 * 0.1}] * 6


@every_optimizer
def test_what_a_row_releases_warms_up(optimizer):
    net = check(RAMPS, ramps, optimizer=optimizer)
    assert rates_of(net)[3:8] == [
        {"lr_0": 0.1, "lr_0_x0.5": 0.05, "lr_0_warmup2_from4": 0.05},
        {"lr_0": 0.1, "lr_0_x0.5": 0.05},
        {"lr_0": 0.1, "lr_0_x0.5": 0.05},
        {"lr_0": 0.1, "lr_0_x0.5_warmup5_from7": 0.1 * (0.5 * (1 / 5))},
        {"lr_0": 0.1, "lr_0_x0.5_warmup5_from7": 0.1 * (0.5 * (2 / 5))},
    ]


def test_a_factor_from_the_row_on_replaces_the_one_from_the_start():
    table = {
        "epoch": [2, 4],
        "weights": [select_prefix("3"), select_prefix("3", "0")],
        "lr_mult": [0.5, 0.25],
        "lr_mult_from": ["start", "row"],
    }

    def factors(layer, batch):
        if layer == "6.":
            return 1.0
        if batch >= 10:
            return 0.25
        return 0.5 if layer == "3." and batch >= 4 else None

    check(table, factors)


@pytest.mark.parametrize("batch", [5, 7])
def test_a_row_of_a_batch_warms_up_from_that_batch_on(batch):
    table = {"batch": [batch], "weights": [select_all()], "warmup": [4]}
    check(table, lambda layer, at: 1.0 if layer == "6." else None if at < batch else min(1.0, (at - batch + 1) / 4))


def test_a_row_at_the_beginning_warms_up_too():
    table = {"epoch": [1], "weights": [select_prefix("3")], "warmup": [6]}
    factors = {"6.": lambda _: 1.0, "3.": lambda at: min(1.0, at / 6), "0.": lambda _: None}
    check(table, lambda layer, at: factors[layer](at))


def test_a_row_that_waits_for_a_plateau_scales_and_warms_up_when_it_comes():
    never_better = Plateau("train_loss", patience=1, min_delta=100)  # so that it comes in epoch 3
    table = {
        "when": [never_better],
        "weights": [select_all()],
        "lr_mult": [0.1],
        "lr_mult_from": ["row"],
        "warmup": [4],
    }

    def factors(layer, batch):
        if batch < 7:
            return 1.0 if layer == "6." else None
        return 0.1 if layer == "6." or batch > 9 else 0.1 * ((batch - 6) / 4)

    check(table, factors)


def test_what_was_trainable_before_the_row_does_not_warm_up_again():
    table = {"epoch": [2, 3], "weights": [select_prefix("3"), select_all()], "warmup": [None, 4]}

    def factors(layer, batch):
        first = {"0.": 7, "3.": 4, "6.": 1}[layer]
        return None if batch < first else min(1.0, (batch - 6) / 4) if layer == "0." else 1.0

    check(table, factors)


def test_what_is_frozen_and_released_again_follows_the_row_that_releases_it():
    layer = select_prefix("3")
    table = {
        "epoch": [1, 2, 3, 4],
        "weights": [layer] * 4,
        "action": ["unfreeze", "freeze", "unfreeze", "freeze"],
        "warmup": [2, None, 3, None],
    }

    def factors(at, batch):
        if at != "3.":
            return 1.0 if at == "6." else None
        return {1: 0.5, 2: 1.0, 3: 1.0, 7: 1 / 3, 8: 2 / 3, 9: 1.0}.get(batch)

    check(table, factors)


def test_a_tied_tensor_warms_up_only_if_none_of_its_names_trained():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, X):
            return self.b(self.a(X))

    table = {"epoch": [2], "weights": [select_prefix("b")], "warmup": [4]}
    callback = ("unfreeze", CallbackSetUnfreeze(select_name("a.weight"), table))
    with pytest.warns(UserWarning, match="tied|same tensor|names"):
        net = iris_net(callback, module=Tied, max_epochs=2).fit(X, y)
    assert rates_of(net)[3] == {"lr_0": 0.1, "lr_0_warmup4_from4": 0.025}
    ramp = net.history[1, "batches", 0]
    assert ramp["lr_0"] == 0.1


def step_rate(batch):
    """What StepLR by epochs sets with gamma 0.5."""
    return 0.1 * 0.5 ** ((batch - 1) // BATCHES)


SCHEDULERS = {
    "skorch by epoch": (lambda: LRScheduler(lr_scheduler.StepLR, step_size=1, gamma=0.5), step_rate),
    "ours by epoch": (lambda: t_clbk("lr_step", step_size=1, gamma=0.5), step_rate),
    "skorch by batch": (
        lambda: LRScheduler(lr_scheduler.StepLR, step_size=3, gamma=0.5, step_every="batch"),
        step_rate,
    ),
    "ours by batch": (
        lambda: as_lr_scheduler(lr_scheduler.StepLR, False, step_size=3, gamma=0.5),
        step_rate,
    ),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(("table", "factors"), [(TENTH, a_tenth), (RAMPS, ramps)], ids=["row", "warm-up"])
def test_schedulers_keep_their_rates(table, factors, name, place):
    make, rate = SCHEDULERS[name]
    seen = []

    class Rate(Callback):
        def on_batch_begin(self, net, training=None, **kwargs):
            seen.append(net.optimizer_.param_groups[0]["lr"])

    if place == "behind":
        check(table, factors, make(), Rate(), rate=rate)
    else:
        net = iris_net(make(), unfreeze(table), Rate(), train_split=None).initialize()
        module = copy.deepcopy(net.module_)
        net.partial_fit(X, y)
        assert not moved(weights(net), by_hand(module, torch.optim.SGD, factors, rate=rate))
    assert seen == [rate(batch) for batch in range(1, 13)]


def test_a_rate_that_is_set_in_the_middle_of_a_warm_up_is_scaled_too():
    class Sets(Callback):
        def on_batch_begin(self, net, training=None, **kwargs):
            if self.n == 8:
                net.set_params(lr=0.04)
            self.n += 1

        def on_train_begin(self, net, **kwargs):
            self.n = 0

    check(RAMPS, ramps, Sets(), rate=lambda batch: 0.1 if batch < 9 else 0.04)


def test_all_optimizers_of_a_net_warm_up():
    class Two(NeuralNet):
        def initialize_optimizer(self, *args, **kwargs):
            body = [p for n, p in self.module_.named_parameters() if not n.startswith("0.")]
            self.optimizer_ = torch.optim.SGD(body, lr=0.1)
            self.first_ = torch.optim.SGD(self.module_[0].parameters(), lr=0.1)
            return self

    net = iris_net(unfreeze(RAMPS), cls=Two, criterion=nn.CrossEntropyLoss, train_split=None).initialize()
    module = copy.deepcopy(net.module_)
    net.partial_fit(X, torch.tensor(y))
    assert not moved(weights(net), by_hand(module, torch.optim.SGD, ramps, apart=["0."]))
    assert rates_of(net)[7].keys() == {"lr_0", "lr_first_0_x0.5_warmup5_from7"}


@pytest.mark.parametrize(
    "holder",
    [
        Freezer(name_starts_with=["0."], until_epoch=2),
        CallbackSetUnfreeze(~select_prefix("0"), {"epoch": [3], "weights": [select_all()]}),
    ],
)
def test_a_warm_up_begins_when_no_other_callback_holds_the_weights_any_more(holder):
    table = {"epoch": [2], "weights": [select_all()], "warmup": [8]}

    def factors(layer, batch):
        first = {"0.": 7, "3.": 4, "6.": 1}[layer]
        return None if batch < first else 1.0 if layer == "6." else min(1.0, (batch - first + 1) / 8)

    check(table, factors, ("holder", holder))
    callbacks = [unfreeze(table), ("holder", holder)]
    plan = freeze_plan(MLP(4, 3, neurons=(3, 3)), callbacks=callbacks, max_epochs=4, batches_per_epoch=3)
    assert plan.phases[-1].factors["0.weight"] == Factor(warmup=8, first=7)


def stopped(stop, table):
    torch.manual_seed(0)
    net = iris_net(unfreeze(table), optimizer__momentum=0.9, max_epochs=3).fit(X, y)
    return stop(net).partial_fit(X, y)


@pytest.mark.sample(4)
@pytest.mark.parametrize("table", [TENTH, RAMPS, RAMPS | {"warmup": [20, 40]}])
@pytest.mark.parametrize("stop", [lambda net: net, lambda net: pickle.loads(pickle.dumps(net)), copy.deepcopy])
def test_a_training_goes_on_in_the_middle_of_a_warm_up(stop, table):
    torch.manual_seed(0)
    whole = iris_net(unfreeze(table), optimizer__momentum=0.9, max_epochs=6).fit(X, y)
    resumed = stopped(stop, table)
    assert not moved(weights(whole), weights(resumed))
    assert rates_of(whole) == rates_of(resumed)


@pytest.mark.sample(4)
@pytest.mark.parametrize("crash", [2, 3, 4])
def test_a_run_resumed_from_a_checkpoint_warms_up_as_one_that_never_stopped(crash, tmp_path):
    table = RAMPS | {"warmup": [7, 5]}

    def net_of(path, *more):
        rate = LRScheduler(lr_scheduler.StepLR, step_size=1, gamma=0.5)
        return iris_net(checkpoint(path, resume=True), rate, unfreeze(table), *more, iterator_train__shuffle=True)

    assert resumed_equals_whole(tmp_path, net_of, crash=crash)


def test_the_rates_of_all_batches_are_recorded_also_before_and_behind_a_warm_up():
    net = iris_net(unfreeze(RAMPS), max_epochs=6).fit(X, y)
    assert all("lr_0" in rates for rates in rates_of(net))


def test_a_warm_up_of_one_batch_is_none():
    table = {"epoch": [2], "weights": [select_all()], "warmup": [1]}
    assert rates_of(iris_net(unfreeze(table)).fit(X, y)) == [{}] * 12


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (
            {"lr_mult_from": ["end"], "lr_mult": [0.1]},
            ValueError,
            "row 0, column `lr_mult_from`, is 'end'; give",
        ),
        ({"lr_mult_from": [3], "lr_mult": [0.1]}, TypeError, "row 0, column `lr_mult_from`, is 3; give 'start'"),
        ({"lr_mult_from": ["row"]}, ValueError, "row 0 has the lr_mult_from 'row', but no lr_mult; give the factor"),
        ({"warmup": [-1]}, ValueError, "row 0, column `warmup`, is -1; give a whole number of batches, at least 0"),
        ({"warmup": [2.5]}, TypeError, "row 0, column `warmup`, is 2.5; give a whole number of batches"),
        ({"warmup": ["2"]}, TypeError, "row 0, column `warmup`, is '2'; give a whole number of batches"),
        ({"warmup": [True]}, TypeError, "row 0, column `warmup`, is True; give a whole number of batches"),
        (
            {"warmup": [3], "action": ["freeze"]},
            ValueError,
            "row 0 has the warmup 3, but freezes; give the warm-up",
        ),
        ({"warm_up": [3]}, ValueError, "has the column 'warm_up'; did you mean 'warmup'"),
        ({"lr_mult_form": ["row"]}, ValueError, "has the column 'lr_mult_form'; did you mean 'lr_mult_from'"),
    ],
)
def test_bad_values_are_refused_before_the_first_step(more, error, message):
    table = {"epoch": [2], "weights": [select_all()]} | more
    net = iris_net(unfreeze(table))
    with pytest.raises(error, match=message):
        net.fit(X, y)
    assert len(net.history) == 0


@pytest.mark.parametrize("more", [{"warmup": [5]}, {"lr_mult": [0.1], "lr_mult_from": ["row"]}])
def test_an_optimizer_without_rates_to_scale_is_refused_long_before_the_row(more):
    table = {"epoch": [9], "weights": [select_all()]} | more
    net = iris_net(unfreeze(table), optimizer=torch.optim.LBFGS)
    with pytest.raises(ValueError, match=f"has a column `{next(iter(more))}`, but LBFGS has one learning rate for all"):
        net.fit(X, y)
    assert len(net.history) == 0


def test_tables_with_rates_by_phase_go_through_plain_data():
    table = {"epoch": [2, 3], "weights": [select_none()] * 2, "lr_mult": [0.1, None], "lr_mult_from": ["row", None]}
    table["warmup"] = [50, None]
    again = to_dict(from_dict(to_dict(table)))
    assert again == to_dict(table)
    assert again["lr_mult_from"] == ["row", "start"]
    assert again["warmup"] == [50, 0]
    plain = to_dict({"epoch": [2], "weights": [select_none()]})
    assert plain.keys() == {"epoch", "weights", "action"}


@pytest.mark.parametrize(
    "schedule", [head_first(lr_mult=0.1, warmup=20), gradual_unfreezing(every=2, lr_decay=2.6, warmup=100)]
)
def test_schedules_with_rates_by_phase_are_values(schedule):
    assert from_dict(to_dict(schedule)) == schedule == eval(repr(schedule))
    assert "warmup" in repr(schedule)
    assert pickle.loads(pickle.dumps(schedule)) == schedule


def test_head_first_goes_on_with_a_tenth_of_the_rate():
    table = head_first(MLP(4, 3, neurons=(8, 8)), epochs=2, lr_mult=0.1, warmup=3)["unfreeze"]

    def factors(layer, batch):
        if batch < 7:
            return 1.0 if layer == "6." else None
        return 0.1 if layer == "6." or batch > 8 else 0.1 * ((batch - 6) / 3)

    check(table, factors)
    assert "lr_mult" not in head_first(MLP(4, 3, neurons=(8, 8)))["unfreeze"]


@pytest.mark.parametrize(
    ("params", "message"), [({"lr_mult": 0}, "`lr_mult` is 0; give"), ({"warmup": -1}, "`warmup` is -1")]
)
def test_bad_arguments_of_schedules_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        head_first(**params)


def test_a_plan_says_which_rates_are_scaled_when():
    net = iris_net(unfreeze({**TENTH, "warmup": [4]}), max_epochs=4)
    plan = freeze_plan(net, X, y)
    assert "2 lr_mult 0.1: {0,3,6} (6 tensors)" in str(plan)
    assert "\nwarmup 4: 0.weight, 0.bias, 3.weight, 3.bias" in plan._repr_html_()
    assert plan.summary()["lr_mult"].tolist() == ["1", "0.1"]
    assert plan.summary()["warmup"].tolist() == [0, 4]
    frame = plan.to_frame().set_index(["phase", "name"])
    assert frame.loc[(1, "6.weight"), "lr_mult"] == 1
    assert frame.loc[(2, "6.weight"), ["lr_mult", "warmup"]].tolist() == [0.1, 0]
    assert frame.loc[(2, "0.weight"), ["lr_mult", "warmup"]].tolist() == [0.1, 4]
    texts = [text.get_text().strip() for text in plan.plot().texts]
    assert [text for text in texts if text.startswith("x")] == ["x0.1"] * 6


def test_a_change_of_rates_alone_is_a_phase_and_the_end_of_a_warm_up_is_none():
    table = {"epoch": [1, 3], "weights": [select_all()] * 2, "lr_mult": [None, 0.1], "lr_mult_from": [None, "row"]}
    table["warmup"] = [2, None]
    plan = freeze_plan(iris_net(unfreeze(table)), X, y)
    assert [(phase.epoch, len(phase.trainable)) for phase in plan.phases] == [(1, 6), (3, 6)]
    assert plan.to_frame()["warmup"].max() == 2
    plain = freeze_plan(iris_net(unfreeze({"epoch": [3], "weights": [select_all()]})), X, y)
    assert "lr_mult" not in plain.to_frame()


def test_the_picture_of_a_history_shows_a_warm_up_where_it_was():
    net = iris_net(unfreeze(RAMPS), train_split=None).fit(X, y)
    (rates,) = [ax for ax in plot_history(net).axes if ax.get_ylabel() == "rate"]
    lines = {line.get_label(): line.get_xydata() for line in rates.get_lines()}
    ramp = lines["lr_0_x0.5_warmup5_from7"]
    assert ramp[:, 0].min() == 3
    assert ramp[:, 0].max() == pytest.approx(4 + 1 / 3)  # four of five batches, the fifth has the whole rate
