"""Learning-rate schedulers: the rates of R at each batch and epoch, also after a stop."""

import copy
import pickle

import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, LRScheduler
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    OneCycleLR,
    SequentialLR,
)

from mlr3torch_py import CallbackSetLRScheduler, as_lr_scheduler, t_clbk
from tests.helpers import Score, X, golden, iris_net, y

RUNS = golden("lr")["runs"]


class Rates(Callback):
    """Records the rate when a batch begins and when an epoch ends."""

    def __init__(self):
        self.batches_ = []
        self.epochs_ = []

    def on_batch_begin(self, net, training=None, **kwargs):
        if training:
            self.batches_.append(net.optimizer_.param_groups[0]["lr"])

    def on_epoch_end(self, net, **kwargs):
        self.epochs_.append(net.optimizer_.param_groups[0]["lr"])


def params_of(run):
    params = dict(run["params"] or {})
    if isinstance(params.get("lr_lambda"), dict):
        params["lr_lambda"] = eval(params["lr_lambda"]["python"])
    if run["valid_scores"]:
        params["monitor"] = "score"
    return params


def net_of(run, rates):
    return iris_net(
        ("score", Score(run["valid_scores"] or [0.0] * run["epochs"])),
        t_clbk(run["key"], **params_of(run)),
        ("rates", rates),
        optimizer=torch.optim.Adam if run["optimizer"] == "adam" else torch.optim.SGD,
        lr=run["lr"],
        max_epochs=run["epochs"],
        batch_size=run["batch_size"],
    )


@pytest.mark.parametrize("run", RUNS, ids=[run["id"] for run in RUNS])
def test_the_rates_are_those_of_r(run):
    rates = Rates()
    net_of(run, rates).fit(X[: run["n_train"]], y[: run["n_train"]])
    assert rates.batches_ == pytest.approx(run["lr_at_batch_begin"], abs=1e-12, rel=1e-12)
    assert rates.epochs_ == pytest.approx(run["lr_at_epoch_end"], abs=1e-12, rel=1e-12)


def rates_of_rising_score(lower_is_better, **params):
    rates = Rates()
    reduce = t_clbk("lr_reduce_on_plateau", monitor="score", patience=0, factor=0.5, **params)
    iris_net(Score([0.1, 0.2, 0.3], lower_is_better), reduce, rates, max_epochs=3, lr=0.8).fit(X, y)
    return rates.epochs_


def test_a_rising_accuracy_lowers_no_rate_unless_the_mode_says_so():
    assert rates_of_rising_score(lower_is_better=False) == [0.8, 0.8, 0.8]
    assert rates_of_rising_score(lower_is_better=True) == [0.8, 0.4, 0.2]
    assert rates_of_rising_score(lower_is_better=False, mode="min") == [0.8, 0.4, 0.2]
    assert rates_of_rising_score(lower_is_better=None, mode="max") == [0.8, 0.8, 0.8]
    with pytest.warns(UserWarning, match="`monitor` is 'score', which is minimised, .*; give `mode`"):
        assert rates_of_rising_score(lower_is_better=None) == [0.8, 0.4, 0.2]


STOPPED = [run for run in RUNS if run["key"] != "lr_one_cycle"]


@pytest.mark.sample(5)
@pytest.mark.parametrize("way", ["partial_fit", "pickle"])
@pytest.mark.parametrize("stop", [1, 2, 4])
@pytest.mark.parametrize("run", STOPPED, ids=[run["id"] for run in STOPPED])
def test_the_rates_continue_where_they_were(run, stop, way):
    if way == "pickle" and run["key"] in ("lr_lambda", "lr_multiplicative"):
        way = "partial_fit"  # a lambda cannot be pickled
    data = X[: run["n_train"]], y[: run["n_train"]]
    net = net_of(run, Rates()).set_params(max_epochs=stop).fit(*data)
    if way == "pickle":
        net = pickle.loads(pickle.dumps(net))
    net.set_params(max_epochs=run["epochs"] - stop)
    net.partial_fit(*data)
    rates = dict(net.callbacks_)["rates"]
    assert rates.batches_ == pytest.approx(run["lr_at_batch_begin"], abs=1e-12, rel=1e-12)
    net.set_params(max_epochs=run["epochs"])
    net.fit(*data)
    assert rates.batches_[-len(run["lr_at_batch_begin"]) :] == pytest.approx(
        run["lr_at_batch_begin"], abs=1e-12, rel=1e-12
    )


def test_one_cycle_continues_if_its_length_is_given():
    def run(stops, **params):
        rates = Rates()
        net = iris_net(t_clbk("lr_one_cycle", max_lr=0.5, **params), ("rates", rates), optimizer__momentum=0.9)
        for epochs in stops:
            net.set_params(max_epochs=epochs)
            net.partial_fit(X, y)
        return rates.batches_

    whole = run([4])
    assert run([1, 3], epochs=4) == run([2, 1, 1], total_steps=12) == whole
    with pytest.raises(ValueError, match="made for 6 steps, .* comes to 9; give `total_steps`, or `epochs` and"):
        run([2, 1])
    for params in ({"epochs": 4}, {"total_steps": 12}):
        with pytest.raises(ValueError, match="made for 12 steps, .* comes to 15"):
            run([4, 1], **params)
    net = iris_net(t_clbk("lr_one_cycle", max_lr=0.5), optimizer__momentum=0.9).fit(X, y)
    with pytest.raises(ValueError, match="comes to 24"):
        net.partial_fit(X, y)
    assert len(net.history) == 4


def test_a_scheduler_that_cannot_continue_warns():
    net = iris_net(t_clbk("lr_step", step_size=1)).initialize()
    net.history = iris_net(max_epochs=2).fit(X, y).history
    with pytest.warns(UserWarning, match="_StepLR starts from its first step at epoch 3, since it has no"):
        net.partial_fit(X, y)


def test_a_loaded_state_continues():
    scheduler = t_clbk("lr_step", step_size=2).callback
    net = iris_net(("lr", scheduler), max_epochs=3).fit(X, y)
    state = copy.deepcopy(scheduler.state_dict())
    again = t_clbk("lr_step", step_size=2).callback
    assert again.state_dict() is None
    again.load_state_dict(state)
    net.set_params(callbacks__lr=again)
    net.partial_fit(X, y)
    assert net.optimizer_.param_groups[0]["lr"] == pytest.approx(0.1 * 0.1**3)


class StopsAt(Callback):
    """Ctrl-C, or an error, after a batch."""

    def __init__(self, error):
        self.error = error

    def on_batch_end(self, net, training=None, **kwargs):
        if len(net.history) == 2:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_training_that_breaks_off_keeps_the_state(error):
    net = iris_net(t_clbk("lr_step", step_size=1), ("stops", StopsAt(error)), max_epochs=4)
    try:
        net.fit(X, y)
    except ZeroDivisionError:
        assert error is ZeroDivisionError
    net.set_params(callbacks__stops__error=None, max_epochs=2)
    net.callbacks_.pop(next(i for i, (name, _) in enumerate(net.callbacks_) if name == "stops"))
    net.partial_fit(X, y)
    assert net.optimizer_.param_groups[0]["lr"] == pytest.approx(0.1 * 0.1**3)


@pytest.mark.parametrize("is_tensor", [False, True])
@pytest.mark.parametrize("steps", ["by epoch", "by batch"])
def test_the_history_has_the_rate_that_was_used_before_another_callback_changed_it(steps, is_tensor):
    class Halves(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.optimizer_.param_groups[0]["lr"] *= 0.5

    rates, by_batch = Rates(), as_lr_scheduler(ExponentialLR, gamma=1.0, step_on_epoch=False)
    scheduler = t_clbk("lr_step", step_size=2) if steps == "by epoch" else by_batch
    lr = torch.tensor(0.1) if is_tensor else 0.1
    net = iris_net(Halves(), scheduler, ("rates", rates), lr=lr, batch_size=150).fit(X, y)
    second = 0.0025 if steps == "by epoch" else 0.025
    assert net.history[:, "event_lr"] == pytest.approx([0.1, 0.05, second, second / 2])


@pytest.mark.parametrize(
    "callback",
    [t_clbk("lr_step", step_size=1), t_clbk("lr_one_cycle", max_lr=1.0, total_steps=3)],
    ids=["step", "1cycle"],
)
def test_a_loop_by_hand_need_not_begin_its_epochs(callback):
    net = iris_net(callback, callbacks__epoch_timer=None).initialize()  # skorch's timer needs the beginning
    net.notify("on_train_begin", X=X, y=y)
    dataset, _ = net.get_split_datasets(X, y)
    net.history.new_epoch()
    net.run_single_epoch(
        net.get_iterator(dataset, training=True), training=True, prefix="train", step_fn=net.train_step
    )
    net.notify("on_epoch_end", dataset_train=dataset, dataset_valid=None)
    net.notify("on_train_end", X=X, y=y)
    assert "event_lr" in net.history[-1]
    assert net.optimizer_.param_groups[0]["lr"] != 0.1


def test_any_scheduler_of_torch_is_taken():
    made = as_lr_scheduler(ExponentialLR, gamma=0.5)
    net = iris_net(made, max_epochs=3).fit(X, y)
    assert net.optimizer_.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**3)
    rates = Rates()
    by_batch = as_lr_scheduler(OneCycleLR, step_on_epoch=False, max_lr=0.5, total_steps=12)
    iris_net(by_batch, ("rates", rates), optimizer__momentum=0.9).fit(X, y)
    assert len(set(rates.batches_)) == 12
    iris_net(as_lr_scheduler(ExponentialLR), callbacks__lr_ExponentialLR__gamma=0.5).fit(X, y)


class Skipping:
    """Stands in for accelerate, which skips the optimizer's step if gradients overflow in mixed precision."""

    def __init__(self, skipped):
        self.skipped = list(skipped)

    @property
    def optimizer_step_was_skipped(self):
        return self.skipped[-1]


class SkippingNet(NeuralNetClassifier):
    """Skips some of its steps; `skips` tells which."""

    def __init__(self, *args, skips=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.skips = skips
        self.accelerator = Skipping([])

    def _step_optimizer(self, step_fn):
        skipped = self.accelerator.skipped
        skipped.append(self.skips[len(skipped)])
        return step_fn() if skipped[-1] else super()._step_optimizer(step_fn)


SKIPS = [True, False, True, False, False, True]


def rates_after_skips(callback, skips=SKIPS, **params):
    rates = Rates()
    iris_net(callback, ("rates", rates), cls=SkippingNet, skips=skips, lr=1.0, max_epochs=2, **params).fit(X, y)
    return rates


def test_a_scheduler_by_batch_waits_if_accelerate_skips_a_step():
    ours = rates_after_skips(as_lr_scheduler(ExponentialLR, gamma=0.5, step_on_epoch=False))
    assert ours.batches_ == [1, 1, 0.5, 0.5, 0.25, 0.125]
    of_skorch = LRScheduler(ExponentialLR, gamma=0.5, step_every="batch", event_name=None)
    assert rates_after_skips(of_skorch).batches_ == ours.batches_


def test_the_one_cycle_is_behind_by_the_steps_that_accelerate_skips():
    def one_cycle(skips):
        callback = t_clbk("lr_one_cycle", max_lr=0.5)
        return rates_after_skips(callback, skips, optimizer__momentum=0.9).batches_

    whole = one_cycle([False] * 6)
    assert one_cycle(SKIPS) == [whole[i] for i in (0, 0, 1, 1, 2, 3)]


def test_a_scheduler_by_epoch_steps_at_each_epoch():
    ours = rates_after_skips(as_lr_scheduler(ExponentialLR, gamma=0.5), [False, False, True] * 2)
    assert ours.epochs_ == [0.5, 0.25]


@pytest.mark.parametrize("copied", [clone, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_schedulers_can_be_copied(copied):
    for made in (t_clbk("lr_step", step_size=2, weight=3), as_lr_scheduler(ExponentialLR, gamma=0.5)):
        again = copied(made)
        assert again.parameters == made.parameters
        assert again.weight == made.weight
        assert isinstance(again.callback, CallbackSetLRScheduler)


@pytest.mark.slow
def test_schedulers_work_in_a_search():
    net = iris_net(t_clbk("lr_step", step_size=1), max_epochs=2)
    search = GridSearchCV(net, {"callbacks__lr_step__gamma": [0.5, 0.1]}, cv=2, n_jobs=2, error_score="raise").fit(X, y)
    gamma = search.best_params_["callbacks__lr_step__gamma"]
    assert search.best_estimator_.optimizer_.param_groups[0]["lr"] == pytest.approx(0.1 * gamma**2)


def test_wrong_parameters_are_refused():
    with pytest.raises(TypeError, match="no parameter 'verbose'; torch's schedulers no longer have it"):
        t_clbk("lr_step", step_size=1, verbose=True)
    with pytest.raises(TypeError, match="no parameter 'step_sice'; did you mean 'step_size'"):
        t_clbk("lr_step", step_sice=1)
    with pytest.raises(ValueError, match="`step_size` of CallbackSetLRScheduler_StepLR was never set"):
        iris_net(t_clbk("lr_step")).fit(X, y)
    with pytest.raises(TypeError, match="`x` is 3; give a scheduler class"):
        as_lr_scheduler(3)
    with pytest.raises(
        ValueError,
        match="`monitor` is 'valid_los', which nothing in the net records as a number; did you mean 'valid_loss'",
    ):
        iris_net(t_clbk("lr_reduce_on_plateau", monitor="valid_los")).fit(X, y)


class NewOptimizer(Callback):
    """Replaces the optimizer after the first batch of an epoch, or at its end."""

    def __init__(self, hook, n_groups=1, epoch=2, lr=0.1):
        self.hook = hook
        self.n_groups = n_groups
        self.epoch = epoch
        self.lr = lr

    def replace(self, net):
        tensors = list(net.module_.parameters())
        groups = [{"params": tensors[i :: self.n_groups]} for i in range(self.n_groups)]
        net.optimizer_ = torch.optim.SGD(groups, lr=self.lr, momentum=0.9)

    def on_batch_end(self, net, training=None, **kwargs):
        if self.hook == "on_batch_end" and len(net.history) == self.epoch and len(net.history[-1]["batches"]) == 1:
            self.replace(net)

    def on_epoch_end(self, net, **kwargs):
        if self.hook == "on_epoch_end" and len(net.history) == self.epoch:
            self.replace(net)


class InSequence(SequentialLR):
    def __init__(self, optimizer):
        super().__init__(optimizer, [ConstantLR(optimizer, 0.1, 3), ExponentialLR(optimizer, 0.5)], [2])


class Chained(ChainedScheduler):
    def __init__(self, optimizer):
        super().__init__([ConstantLR(optimizer, 0.1, 3), ExponentialLR(optimizer, 0.5)])


RELATIVE = [
    t_clbk("lr_step", step_size=1, gamma=0.5),
    t_clbk("lr_reduce_on_plateau", monitor="train_loss", patience=0, threshold=9.0, threshold_mode="abs"),
    as_lr_scheduler(CosineAnnealingLR, T_max=9, step_on_epoch=False),
    as_lr_scheduler(LambdaLR, lr_lambda=[lambda epoch: 1 / (1 + epoch)]),
    as_lr_scheduler(InSequence),
    as_lr_scheduler(Chained),
]
ABSOLUTE = [
    t_clbk("lr_one_cycle", max_lr=1.0),
    as_lr_scheduler(CyclicLR, base_lr=0.01, max_lr=0.3, step_size_up=3, step_on_epoch=False),
]


def rates_beside(callback, *others):
    rates = Rates()
    callbacks = copy.deepcopy(callback), *others, ("rates", rates)
    iris_net(*callbacks, max_epochs=4, optimizer__momentum=0.9).fit(X, y)
    return rates.batches_


@pytest.mark.sample(5)
@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("hook", ["on_batch_end", "on_epoch_end"])
@pytest.mark.parametrize("callback", RELATIVE + ABSOLUTE, ids=lambda callback: callback.id)
def test_a_scheduler_follows_an_optimizer_that_is_replaced(callback, hook, epoch):
    expected = rates_beside(callback)
    assert len(set(expected)) > 1
    assert rates_beside(callback, NewOptimizer(hook, epoch=epoch)) == pytest.approx(expected)


@pytest.mark.sample(5)
@pytest.mark.parametrize("callback", RELATIVE + ABSOLUTE, ids=lambda callback: callback.id)
def test_a_new_optimizer_with_another_rate_continues_in_proportion_unless_the_schedule_sets_the_rate(callback):
    expected, factor = rates_beside(callback), 1 if callback in ABSOLUTE else 100
    expected[6:] = [rate * factor for rate in expected[6:]]
    assert rates_beside(callback, NewOptimizer("on_epoch_end", lr=10.0)) == pytest.approx(expected, rel=1e-3)


def test_an_optimizer_with_other_groups_is_refused_by_a_scheduler():
    with pytest.raises(ValueError, match="1 param groups, by one with 2"):
        iris_net(t_clbk("lr_step", step_size=1), NewOptimizer("on_epoch_end", 2)).fit(X, y)


@pytest.mark.parametrize("state", ["x", {}, {"lr_step": {"last_epoch": 3}}])
def test_a_state_of_something_else_is_refused(state):
    with pytest.raises(TypeError, match=r"`state` is .*; give what state_dict\(\) has returned"):
        t_clbk("lr_step", step_size=1).callback.load_state_dict(state)
