"""Learning rates of single rows: the column `lr_mult`."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, Checkpoint, GradientNormClipping, LoadInitState, LRScheduler
from skorch.dataset import ValidSplit
from torch import nn
from torch.optim import lr_scheduler

from mlr3torch_py import (
    MLP,
    CallbackSetUnfreeze,
    as_lr_scheduler,
    from_dict,
    gradual_unfreezing,
    select_all,
    select_last,
    select_name,
    select_none,
    select_prefix,
    t_clbk,
    to_dict,
)
from mlr3torch_py.freezing.rate_factors import RateFactors
from mlr3torch_py.schedule.rates import Factor
from tests.checkpoint.runs import CrashError, checkpoint, resumed_equals_whole
from tests.helpers import Stops, Trace, X, iris_net, moved, weights, y

TABLE = {"epoch": [1, 3], "weights": [select_prefix("3"), select_prefix("0")], "lr_mult": [0.5, 0.1]}
PARTS = {"6.": 1.0, "3.": 0.5, "0.": 0.1}


def unfreeze(table=TABLE):
    return ("unfreeze", CallbackSetUnfreeze(select_last(1), table))


def groups_by_hand(module, **options):
    """The groups that one would write oneself."""
    return [
        {"params": [p for n, p in module.named_parameters() if n.startswith(part)], "lr": 0.1 * factor, **options}
        for part, factor in PARTS.items()
    ]


OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, momentum=0.9, weight_decay=0.01),
    "Adam": torch.optim.Adam,
    "AdamW fused": partial(torch.optim.AdamW, fused=True, weight_decay=0.1),
    "RMSprop foreach": partial(torch.optim.RMSprop, foreach=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_weights_are_those_of_groups_that_were_made_by_hand(optimizer):
    """The reference is a plain loop of torch that flips the same flags."""
    trace = Trace()
    net = iris_net(unfreeze(), trace, optimizer=optimizer, train_split=None).initialize()
    module = copy.deepcopy(net.module_)
    net.partial_fit(X, y)

    by_hand = optimizer(groups_by_hand(module), lr=0.1)
    for epoch in range(1, 5):
        for name, tensor in module.named_parameters():
            tensor.requires_grad = not name.startswith("0.") or epoch >= 3
        for start in (0, 50, 100):
            by_hand.zero_grad()
            rows = slice(start, start + 50)
            nn.functional.cross_entropy(module(torch.tensor(X[rows])), torch.tensor(y[rows])).backward()
            by_hand.step()
    assert not moved(weights(net), dict(module.named_parameters()))


def rates_of(net):
    """The recorded rates by the name of the group, one per training batch."""
    entries = [entry for row in net.history for entry in row["batches"] if "train_loss" in entry]
    names = {key for entry in entries for key in entry if key.startswith("lr_")}
    return {name: [entry[name] for entry in entries] for name in names}


def check_ratios(rates, plain):
    assert rates.keys() == {"lr_0", "lr_0_x0.5", "lr_0_x0.1"}
    assert rates["lr_0"] == pytest.approx(plain)
    assert rates["lr_0_x0.5"] == pytest.approx([0.5 * rate for rate in plain])
    assert rates["lr_0_x0.1"] == pytest.approx([0.1 * rate for rate in plain])


SCHEDULERS = {
    "StepLR": (lr_scheduler.StepLR, {"step_size": 1, "gamma": 0.5}, True),
    "MultiStepLR": (lr_scheduler.MultiStepLR, {"milestones": [1, 3]}, True),
    "LambdaLR": (lr_scheduler.LambdaLR, {"lr_lambda": [lambda n: 0.9**n]}, True),
    "MultiplicativeLR": (lr_scheduler.MultiplicativeLR, {"lr_lambda": lambda _: 0.9}, True),
    "ConstantLR": (lr_scheduler.ConstantLR, {"factor": 0.5, "total_iters": 2}, True),
    "LinearLR": (lr_scheduler.LinearLR, {"total_iters": 3}, True),
    "ExponentialLR": (lr_scheduler.ExponentialLR, {"gamma": 0.7}, True),
    "PolynomialLR": (lr_scheduler.PolynomialLR, {"total_iters": 3}, True),
    "CosineAnnealingLR": (lr_scheduler.CosineAnnealingLR, {"T_max": 3, "eta_min": 0.01}, True),
    "CosineAnnealingWarmRestarts": (lr_scheduler.CosineAnnealingWarmRestarts, {"T_0": 2}, True),
    "CyclicLR": (lr_scheduler.CyclicLR, {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 2}, False),
    "OneCycleLR": (lr_scheduler.OneCycleLR, {"max_lr": 0.1, "total_steps": 20}, False),
}


@pytest.mark.sample(5)
@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize("owner", ["skorch", "ours"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_of_torch_goes_on_as_if_there_were_no_factors(name, owner, place):
    cls, params, by_epoch = SCHEDULERS[name]
    every = {"step_every": "epoch" if by_epoch else "batch"}
    make = partial(LRScheduler, cls, **every) if owner == "skorch" else partial(as_lr_scheduler, cls, by_epoch)
    options = {"optimizer__momentum": 0.9, "max_epochs": 5}

    class Rate(Callback):
        def on_batch_begin(self, net, training=None, **kwargs):
            plain.append(net.optimizer_.param_groups[0]["lr"])

    plain = []
    iris_net(make(**params), Rate(), **options).fit(X, y)
    expected, plain = plain, []
    callbacks = [unfreeze(), make(**params)] if place == "behind" else [make(**params), unfreeze()]
    net = iris_net(*callbacks, Rate(), **options).fit(X, y)
    assert plain == expected
    check_ratios(rates_of(net), expected)


def test_reduce_on_plateau_too():
    table = {"epoch": [1], "weights": [select_prefix("3")], "lr_mult": [0.5]}
    plateau = t_clbk("lr_reduce_on_plateau", monitor="train_loss", patience=0, threshold=9.0, threshold_mode="abs")
    rates = rates_of(iris_net(unfreeze(table), plateau).fit(X, y))
    assert rates["lr_0"][::3] == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert rates["lr_0_x0.5"] == pytest.approx([0.5 * rate for rate in rates["lr_0"]])


def test_the_users_own_groups_keep_their_rates():
    groups = [("3.*", {"lr": 0.02}), ("0.bias", {"lr": 0.03})]
    net = iris_net(unfreeze(), optimizer__param_groups=groups, max_epochs=1).fit(X, y)
    first = {name: rates[0] for name, rates in rates_of(net).items()}
    assert first == pytest.approx({"lr_0_x0.5": 0.01, "lr_1_x0.1": 0.003, "lr_2": 0.1, "lr_2_x0.1": 0.01})
    assert [group["lr"] for group in net.optimizer_.param_groups] == [0.02, 0.03, 0.1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, CrashError, None])
def test_outside_of_a_step_the_groups_are_the_users_own(error, tmp_path):
    seen = []

    class Looks(Callback):
        def on_grad_computed(self, net, **kwargs):
            seen.append(len(net.optimizer_.param_groups))
            if error is not None and len(seen) == 5:
                raise error

        def on_batch_end(self, net, **kwargs):
            seen.append(len(net.optimizer_.param_groups))

    net = iris_net(unfreeze(), Looks())
    before = copy.deepcopy(net.initialize().optimizer_.state_dict()["param_groups"])
    if error is CrashError:
        with pytest.raises(CrashError):
            net.partial_fit(X, y)
    else:
        net.partial_fit(X, y)
    assert set(seen) == {1}
    assert net.optimizer_.state_dict()["param_groups"] == before
    steps = len(net.optimizer_._optimizer_step_pre_hooks) + len(net.optimizer_._optimizer_step_post_hooks)
    assert steps == 0


def test_an_update_that_fails_leaves_the_users_groups_too():
    class Fails(torch.optim.SGD):
        def step(self, closure=None):
            loss = closure()
            assert len(self.param_groups) == 3
            raise CrashError(loss)

    net = iris_net(unfreeze(), optimizer=Fails)
    with pytest.raises(CrashError):
        net.fit(X, y)
    assert len(net.optimizer_.param_groups) == 1


def test_what_an_optimizer_counts_in_its_groups_is_kept():
    class Counts(torch.optim.SGD):
        def step(self, closure=None):
            loss = super().step(closure)
            for group in self.param_groups:
                group["k"] = group.get("k", 0) + 1
            return loss

    net = iris_net(unfreeze(), optimizer=Counts).fit(X, y)
    assert net.optimizer_.param_groups[0]["k"] == 12


def test_what_an_optimizer_keeps_in_its_groups_by_their_rates_is_refused():
    class Averages(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        def step(self, closure):
            loss = closure()
            for group in self.param_groups:
                group["lr_sum"] = group.get("lr_sum", 0.0) + group["lr"]
            return loss

    net = iris_net(unfreeze(), optimizer=Averages)
    with pytest.raises(ValueError, match="but Averages keeps 'lr_sum' for each of its groups, which differs"):
        net.fit(X, y)
    assert len(net.history) == len(net.optimizer_.param_groups) == 1


FILES = {"f_params": "p", "f_optimizer": "o", "f_history": "h.json"}


def end_of(net):
    return {
        **weights(net),
        **{f"state{i}": s["momentum_buffer"] for i, s in net.optimizer_.state_dict()["state"].items()},
    }


def whole(epochs=4):
    torch.manual_seed(0)
    return iris_net(unfreeze(), optimizer__momentum=0.9, max_epochs=epochs).fit(X, y)


def test_files_of_a_training_with_factors_fit_with_and_without(tmp_path):
    files = {key: tmp_path / name for key, name in FILES.items()}
    torch.manual_seed(0)
    iris_net(unfreeze(), optimizer__momentum=0.9, max_epochs=2).fit(X, y).save_params(**files)
    net = iris_net(unfreeze(), optimizer__momentum=0.9, max_epochs=2).initialize()
    net.load_params(**files)
    net.partial_fit(X, y)
    assert not moved(end_of(whole()), end_of(net))
    plain = iris_net(optimizer__momentum=0.9).initialize()
    plain.load_params(**files)


@pytest.mark.parametrize("place", ["before", "behind"])
def test_load_init_state_fits_before_and_behind(place, tmp_path):
    def train():
        keep = Checkpoint(monitor=None, dirname=tmp_path)
        others = [keep, LoadInitState(keep)]
        callbacks = [*others, unfreeze()] if place == "before" else [unfreeze(), *others]
        return iris_net(*callbacks, optimizer__momentum=0.9, max_epochs=2).fit(X, y)

    torch.manual_seed(0)
    train()
    assert not moved(end_of(whole()), end_of(train()))


@pytest.mark.sample(4)
@pytest.mark.parametrize("crash", [2, 3, 4])
def test_a_run_resumed_from_a_checkpoint_equals_one_that_never_stopped(crash, tmp_path):
    def net_of(path, *more):
        rate = LRScheduler(lr_scheduler.StepLR, step_size=1, gamma=0.5)
        return iris_net(
            checkpoint(path, resume=True),
            rate,
            unfreeze(),
            *more,
            optimizer__momentum=0.9,
            iterator_train__shuffle=True,
        )

    assert resumed_equals_whole(tmp_path, net_of, crash=crash)


@pytest.mark.parametrize("stop", [lambda net: net, lambda net: pickle.loads(pickle.dumps(net)), copy.deepcopy])
def test_partial_fit_goes_on(stop):
    torch.manual_seed(0)
    net = stop(iris_net(unfreeze(), optimizer__momentum=0.9, max_epochs=1).fit(X, y))
    for _ in range(3):
        net.partial_fit(X, y)
    assert not moved(end_of(whole()), end_of(net))


@pytest.mark.parametrize("param", ["lr", "optimizer__lr"])
def test_a_rate_that_is_set_later_is_multiplied_too(param):
    class Sets(Callback):
        def on_batch_end(self, net, training=None, **kwargs):
            net.set_params(**{param: 0.04})

    net = iris_net(unfreeze(), Sets(), max_epochs=1).fit(X, y)
    check_ratios(rates_of(net), [0.1, 0.04, 0.04])
    net.set_params(**{param: 0.2})
    net.partial_fit(X, y)
    assert rates_of(net)["lr_0_x0.5"][3] == pytest.approx(0.1)


@pytest.mark.usefixtures("no_schedule_warnings")
def test_the_first_row_that_names_a_weight_sets_its_factor():
    table = {
        "epoch": [3, 2, 4],
        "weights": [select_name("3.bias"), select_prefix("3"), select_all()],
        "lr_mult": [0.25, 0.5, None],
    }
    net = iris_net(unfreeze(table), max_epochs=1).fit(X, y)
    assert {name: rates[0] for name, rates in rates_of(net).items()} == pytest.approx(
        {"lr_0": 0.1, "lr_0_x0.25": 0.025, "lr_0_x0.5": 0.05}
    )


def test_tables_of_several_units_and_gradient_clipping():
    tables = [
        {"epoch": [2], "weights": [select_prefix("3")], "lr_mult": [0.5]},
        {"batch": [8], "weights": [select_prefix("0")], "lr_mult": [0.1]},
    ]
    net = iris_net(unfreeze(tables), GradientNormClipping(1.0)).fit(X, y)
    check_ratios(rates_of(net), [0.1] * 12)


def test_without_the_column_nothing_is_recorded():
    assert rates_of(iris_net(unfreeze({"epoch": [2], "weights": [select_all()]})).fit(X, y)) == {}


def test_rates_of_numpy_and_tensors_are_scaled():
    for rate in (np.float32(0.1), torch.tensor(0.1)):
        check_ratios(rates_of(iris_net(unfreeze(), lr=rate).fit(X, y)), [0.1] * 12)


def test_lbfgs_is_refused():
    net = iris_net(unfreeze(), optimizer=torch.optim.LBFGS).initialize()
    before = weights(net)
    with pytest.raises(ValueError, match="`unfreeze` has a column `lr_mult`, but LBFGS has one learning rate for all"):
        net.partial_fit(X, y)
    assert not moved(before, weights(net))


@pytest.mark.parametrize("factor", [0, -0.1, float("inf"), "0.1", True, [0.1]])
def test_what_is_no_factor_is_refused(factor):
    table = {"epoch": [2], "weights": [select_all()], "lr_mult": [factor]}
    with pytest.raises((TypeError, ValueError), match="`unfreeze`: row 0, column `lr_mult`, is .*; give a factor"):
        iris_net(unfreeze(table)).fit(X, y)


def test_a_row_that_freezes_has_no_factor():
    table = {"epoch": [2], "weights": [select_all()], "action": ["freeze"], "lr_mult": [0.1]}
    with pytest.raises(ValueError, match="row 0 has the lr_mult 0.1, but freezes; give the factor in"):
        iris_net(unfreeze(table)).fit(X, y)


def test_two_optimizers_record_under_their_names():
    class Two(NeuralNet):
        def initialize_optimizer(self, *args, **kwargs):
            super().initialize_optimizer(*args, **kwargs)
            self.second_ = torch.optim.SGD(self.module_[0].parameters(), lr=0.3)
            return self

    net = iris_net(unfreeze(), cls=Two, max_epochs=1).fit(X, torch.tensor(y))
    names = {key for entry in net.history[0]["batches"] for key in entry if key.startswith("lr_")}
    assert names >= {"lr_0", "lr_0_x0.5", "lr_0_x0.1"}


def test_gradual_unfreezing_has_the_decay_of_ulmfit():
    schedule = gradual_unfreezing(MLP(4, 3, neurons=(8, 8)), lr_decay=2.6)
    assert schedule["unfreeze"]["lr_mult"].tolist() == pytest.approx([1 / 2.6, 1 / 2.6**2])
    assert "lr_mult" not in gradual_unfreezing(MLP(4, 3, neurons=(8, 8)))["unfreeze"]
    with pytest.raises(ValueError, match="`lr_decay` is 0; give a number above 0"):
        gradual_unfreezing(MLP(4, 3), lr_decay=0)
    with pytest.raises(TypeError, match="`lr_decay` is '2.6'"):
        gradual_unfreezing(MLP(4, 3), lr_decay="2.6")


def test_factors_go_through_plain_data():
    table = {"epoch": [1, 2, 3], "weights": [select_none()] * 3, "lr_mult": [None, 0.5, None]}
    again = from_dict(to_dict(table))
    assert again["lr_mult"].isna().tolist() == [True, False, True]
    assert again["lr_mult"][1] == 0.5
    assert "lr_mult" not in to_dict({"epoch": [1], "weights": [select_none()]})


def test_a_training_that_breaks_off_and_goes_on_scales_once():
    net = iris_net(unfreeze(), Stops(KeyboardInterrupt, 2)).fit(X, y)
    net.partial_fit(X, y)
    check_ratios(rates_of(net), [0.1] * 14)


def test_rows_that_only_set_rates_are_not_idle_and_rows_that_never_come_set_none():
    table = {"epoch": [1], "weights": [select_prefix("3")], "lr_mult": [0.5]}
    unwarned = iris_net(("unfreeze", CallbackSetUnfreeze(select_all(), table)), max_epochs=1).fit(X, y)
    assert rates_of(unwarned).keys() == {"lr_0", "lr_0_x0.5"}
    never = {"epoch": [0, 2], "weights": [select_prefix("3"), select_prefix("0")], "lr_mult": [0.5, np.float32("nan")]}
    with pytest.warns(UserWarning, match="row 0 .* never takes effect"):
        net = iris_net(unfreeze(never), max_epochs=1).fit(X, y)
    assert rates_of(net) == {}


def test_a_step_between_batches_is_not_recorded():
    class Steps(Callback):
        def on_epoch_begin(self, net, **kwargs):
            net.optimizer_.step()

        def on_epoch_end(self, net, **kwargs):
            net.optimizer_.step()

    net = iris_net(unfreeze(), Steps(), train_split=ValidSplit(3, stratified=True), max_epochs=2, audited=False)
    net.fit(X, y)
    for entry in (entry for row in net.history for entry in row["batches"]):
        assert ("lr_0" in entry) is ("train_loss" in entry)


def test_an_optimizer_that_takes_the_step_of_its_parent_has_the_factors_once():
    class Child(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    for cls in (torch.optim.SGD, Child):  # once the parent has been used, both steps call the hooks
        layer, rates = nn.Linear(1, 1), {}
        optimizer = cls(layer.parameters(), lr=0.1)
        RateFactors(optimizer, {id(layer.bias): Factor(0.1)}, rates.__setitem__)
        before = [tensor.item() for tensor in layer.parameters()]
        optimizer.step(lambda: layer(torch.ones(1)).sum().backward())  # noqa: B023
        moved_by = [old - tensor.item() for old, tensor in zip(before, layer.parameters(), strict=True)]
        assert moved_by == pytest.approx([0.1, 0.01], rel=1e-4)
        assert rates == pytest.approx({"lr_0": 0.1, "lr_0_x0.1": 0.01})
        assert len(optimizer.param_groups) == 1


def test_a_step_gets_its_other_arguments_and_groups_their_own_keys():
    class Scaled(torch.optim.SGD):
        def step(self, closure=None, scale=1.0):
            seen.append((scale, [group["name"] for group in self.param_groups]))
            return super().step(closure)

    seen, layer = [], nn.Linear(2, 1)
    optimizer = Scaled([{"params": layer.parameters(), "name": "body"}], lr=0.1)
    rates = {}
    factors = RateFactors(optimizer, {id(layer.bias): Factor(0.1)}, rates.__setitem__)
    for call in (lambda: optimizer.step(None, 5.0), lambda: optimizer.step(scale=5.0)):
        layer(torch.ones(2)).backward()
        call()
    optimizer.step(lambda: layer(torch.ones(2)).sum(), 7.0)
    optimizer.step(closure=lambda: layer(torch.ones(2)).sum(), scale=7.0)
    assert [scale for scale, _ in seen] == [5.0, 5.0, 7.0, 7.0]
    assert {name for _, names in seen for name in names} == {"body"}
    assert rates == pytest.approx({"lr_0": 0.1, "lr_0_x0.1": 0.01})
    factors.remove()
