"""Runs: the recorded stages of mlr3torch, the order by weight, and the stage exit on every way out."""

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import MagicMock, Mock

import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, EpochScoring, LRScheduler
from skorch.dataset import Dataset
from skorch.helper import predefined_split

from mlr3torch_py import CallbackSet, CallbackSetUnfreeze, ContextTorch, select_all, select_last, t_clbk, torch_callback
from tests.helpers import X, golden, iris_net, moved, weights, y
from tests.training.stages import BoomError, boom, logs, stages_of

RUNS = [run for run in golden("stages")["runs"] if run["eval_freq"] == 1]


def names_of(net):
    return [name for name, _ in net.callbacks_]


@pytest.mark.parametrize("run", RUNS, ids=[run["id"] for run in RUNS])
def test_stages_are_called_in_the_order_of_r(run):
    log = []

    def fail(ctx):
        if ctx.global_step == run["fails_in_batch_end_of_global_batch"]:
            raise BoomError("boom")

    def terminate(ctx):
        if ctx.epoch == run["terminate_in_epoch_end_of"]:
            ctx.terminate = True

    callbacks = [
        logs("a", log, run["weights"]["a"], epoch_end=terminate),
        logs("b", log, run["weights"]["b"], batch_end=fail),
    ]
    valid = predefined_split(Dataset(X[: run["n_valid"]], y[: run["n_valid"]])) if run["n_valid"] else None
    net = iris_net(*callbacks, max_epochs=run["epochs"], batch_size=run["batch_size"], train_split=valid)
    if run["error"]:
        with pytest.raises(BoomError, match=run["error"]):
            net.fit(X[: run["n_train"]], y[: run["n_train"]])
    else:
        net.fit(X[: run["n_train"]], y[: run["n_train"]])
    assert log == run["log"]


class TestExit:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, BoomError, SystemExit])
    def test_it_runs_last_on_every_way_out(self, error):
        log = []

        def leave(ctx):
            if ctx.global_step == 2:
                raise error

        net = iris_net(*(logs(name, log, batch_end=leave) for name in "ab"))
        if error is KeyboardInterrupt:
            net.fit(X, y)
            ends = [("a", "end"), ("b", "end")]
        else:
            with pytest.raises(error):
                net.fit(X, y)
            ends = [("a", "batch_end")]
        assert stages_of(log)[-2 - len(ends) :] == [*ends, ("a", "exit"), ("b", "exit")]
        assert all(callback.ctx is None for _, callback in net.callbacks_ if isinstance(callback, CallbackSet))
        assert "fit_loop" not in vars(net)

    def test_it_runs_after_an_error_in_begin(self):
        log = []
        callbacks = [logs("a", log), torch_callback("b", on_begin=boom), logs("c", log)]
        with pytest.raises(BoomError):
            iris_net(*callbacks).fit(X, y)
        assert stages_of(log) == [("a", "begin"), ("a", "exit"), ("c", "exit")]
        assert callbacks[0].callback.ctx is None

    def test_it_runs_for_all_after_errors_in_end_and_exit(self):
        log = []
        with pytest.raises(BoomError):
            iris_net(logs("a", log, end=boom, exit=boom), logs("b", log), max_epochs=1).fit(X, y)
        assert stages_of(log)[-3:] == [("a", "end"), ("a", "exit"), ("b", "exit")]

    def test_its_error_is_a_note_on_the_error_of_training(self):
        def fail(_):
            raise BoomError("in training")

        def fail_too(_):
            raise TypeError("in exit")

        with pytest.raises(BoomError, match="in training") as error:
            iris_net(torch_callback("a", on_batch_end=fail, on_exit=fail_too)).fit(X, y)
        assert error.value.__notes__ == ["the stage exit raised too: TypeError('in exit')"]

    def test_a_parameter_that_was_never_set_is_found_before_anything_runs(self):
        log = []
        net = iris_net(logs("a", log), t_clbk("unfreeze"))
        with pytest.raises(ValueError, match="never set"):
            net.fit(X, y)
        assert log == []


class EndsBadly(NeuralNetClassifier):
    """A net whose own on_train_end raises, before skorch calls any callback."""

    calm = False

    def on_train_end(self, net, **kwargs):
        if not self.calm:
            raise BoomError


def test_a_training_without_an_end_does_not_spoil_the_next_one():
    def stop(self):
        self.ctx.terminate = True

    net = iris_net(torch_callback("stop", on_epoch_end=stop), cls=EndsBadly).initialize()
    names = names_of(net)
    for train in (net.fit, net.partial_fit, net.fit):
        with pytest.raises(BoomError):
            train(X, y)
    assert len(net.history) == 1
    net.calm = True
    assert len(net.fit(X, y).history) == 1
    assert names_of(net) == names


class Plain(Callback):
    """A callback of skorch that logs its hooks."""

    def __init__(self, name, log):
        self.name = name
        self.log = log

    def on_train_begin(self, net, **kwargs):
        self.log.append([self.name, "begin"])

    def on_epoch_end(self, net, **kwargs):
        self.log.append([self.name, "epoch_end"])

    def on_train_end(self, net, **kwargs):
        self.log.append([self.name, "end"])


class TestOrder:
    def test_callbacks_run_by_weight_and_those_of_skorch_weigh_nothing(self):
        log = []
        weights = {"last": math.inf, "late": 2.5, "b": 0, "a": 0, "early": -1}
        mine = [logs(name, log, weight) for name, weight in weights.items()]
        plain = [(name, Plain(name, log)) for name in ("plain1", "plain2")]
        net = iris_net(*mine[:3], plain[0], *mine[3:], plain[1], max_epochs=1)
        net.set_params(verbose=1, callbacks__print_log__sink=lambda _: log.append(["print_log", "epoch_end"]))
        net.fit(X, y)
        for stage in ("begin", "end"):
            order = [entry[0] for entry in log if entry[1] == stage]
            assert order == ["early", "b", "plain1", "a", "plain2", "late", "last"]
        order = list(dict.fromkeys(entry[0] for entry in log if entry[1] == "epoch_end"))
        assert order == ["early", "b", "plain1", "a", "plain2", "late", "print_log", "last"]
        assert [entry[0] for entry in log if entry[1] == "exit"] == ["early", "b", "a", "late", "last"]

    def test_every_callback_begins_and_ends_once_in_each_call(self):
        log = []
        net = iris_net(("plain", Plain("plain", log)), logs("a", log), max_epochs=1)
        net.fit(X, y)
        net.partial_fit(X, y)
        net.fit(X, y)
        assert [entry[:2] for entry in log if entry[1] in ("begin", "end", "exit")] == [
            ["plain", "begin"],
            ["a", "begin"],
            ["plain", "end"],
            ["a", "end"],
            ["a", "exit"],
        ] * 3
        assert [entry[2:] for entry in log if entry[1] == "begin" and entry[0] == "a"] == [
            [0, None, 0],
            [1, None, 3],
            [0, None, 0],
        ]

    @pytest.mark.parametrize("error", [None, BoomError, KeyboardInterrupt])
    @pytest.mark.parametrize("stage", ["begin", "epoch_begin", "batch_end", "epoch_end", "end", "exit"])
    def test_after_training_it_is_that_of_skorch_on_every_way_out(self, stage, error):
        seen = []

        def leave(ctx):
            seen.append(names_of(ctx.net))
            if error is not None:
                raise error

        late, early = logs("late", [], 3, **{stage: leave}), logs("early", [], -3)
        net = iris_net(late, ("plain", Plain("plain", [])), early, max_epochs=1).initialize()
        names = names_of(net)
        assert names.index("late") < names.index("early")
        passes_through = error is KeyboardInterrupt and stage in ("epoch_begin", "batch_end", "epoch_end")
        if error is None or passes_through:
            net.partial_fit(X, y)
        else:
            with pytest.raises(error):
                net.partial_fit(X, y)
        assert names_of(net) == names
        if stage != "exit":
            assert seen[0].index("early") < seen[0].index("late")

    def test_freezing_works_in_any_order(self):
        early = t_clbk("unfreeze", starting_weights=select_last(1), weight=-5)
        net = iris_net(("plain", Plain("plain", [])), early, max_epochs=1).fit(X, y)
        assert net.history[-1, "n_trainable"] == 12
        assert names_of(net)[-1] == "print_log"


class TestChangesDuringTraining:
    """What a user's callback does to the callbacks of the net while it trains."""

    def log_of(self, change=None, *, stage="epoch_end", cls=NeuralNetClassifier):
        """Train for three epochs; `change` is called with the net once, the first time that the stage comes."""
        log, changes = [], [change] * (change is not None)

        def act(ctx):
            if changes:
                changes.pop()(ctx.net)

        callbacks = [logs("late", log, 5), logs("acts", log, **{stage: act}), logs("early", log, -5)]
        net = iris_net(*callbacks, max_epochs=3, cls=cls).initialize()
        self.names = names_of(net)
        net.partial_fit(X, y)
        return stages_of(log), net

    def test_an_added_callback_takes_part_and_is_the_last_one_afterwards(self):
        log = []

        def add(net):
            net.callbacks_.append(("added", logs("added", log, -9).callback))
            net.callbacks_.insert(0, ("plain", Plain("plain", log)))

        _, net = self.log_of(add)
        assert names_of(net) == [*self.names, "plain", "added"]
        assert stages_of(log)[-5:] == [
            ("added", "epoch_end"),
            ("plain", "epoch_end"),
            ("added", "end"),
            ("plain", "end"),
            ("added", "exit"),
        ]
        assert dict(net.callbacks_)["added"].ctx is None
        log.clear()
        net.partial_fit(X, y)
        assert [entry for entry in stages_of(log) if entry[1] in ("begin", "end", "exit")] == [
            ("added", "begin"),
            ("plain", "begin"),
            ("added", "end"),
            ("plain", "end"),
            ("added", "exit"),
        ]

    def test_a_removed_callback_exits_too(self):
        def remove(net):
            net.callbacks_ = [item for item in net.callbacks_ if item[0] != "late"]

        log, net = self.log_of(remove)
        assert names_of(net) == [name for name in self.names if name != "late"]
        assert [stage for name, stage in log if name == "late"].count("epoch_begin") == 1
        assert [entry for entry in log if entry[1] == "exit"] == [("early", "exit"), ("acts", "exit"), ("late", "exit")]

    @pytest.mark.parametrize("stage", ["begin", "epoch_end", "end", "exit"])
    def test_set_params_keeps_stages_order_and_exit(self, stage):
        def change(net):
            net.set_params(callbacks__print_log__floatfmt=".2f")

        untouched, _ = self.log_of(stage=stage)
        log, net = self.log_of(change, stage=stage)
        assert log == untouched
        assert names_of(net) == self.names
        assert dict(net.callbacks_)["print_log"].floatfmt == ".2f"

    def test_set_params_by_the_net_itself_does_not_prevent_exit(self):
        class Resets(NeuralNetClassifier):
            def on_epoch_begin(self, net, **kwargs):
                super().on_epoch_begin(net, **kwargs)
                self.set_params(callbacks__print_log__floatfmt=".2f")

        log, net = self.log_of(cls=Resets)
        assert log[-6:] == [(name, stage) for stage in ("end", "exit") for name in ("early", "acts", "late")]
        assert names_of(net) == self.names


class SetsItself(CallbackSetUnfreeze):
    """Sets its own parameter by the data, through the net, before it begins."""

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        net.set_params(callbacks__unfreeze__starting_weights=select_last(len(X) // 75))
        super().on_train_begin(net, X=X, y=y, **kwargs)


def test_a_callback_may_set_its_parameters_through_the_net_when_training_begins():
    net = iris_net(("unfreeze", SetsItself(select_all())), max_epochs=1).fit(X, y)
    assert net.history[-1, "n_trainable"] == 24


@pytest.mark.parametrize("mock", [Mock(), MagicMock(), MagicMock(spec=CallbackSet)], ids=["plain", "magic", "spec"])
def test_a_mock_is_an_ordinary_callback(mock):
    log = []
    net = iris_net(("mock", mock), logs("a", log), max_epochs=2).fit(X, y)
    assert mock.on_train_begin.call_count == mock.on_train_end.call_count == 1
    assert mock.on_batch_begin.call_count == mock.on_grad_computed.call_count == 6
    assert not mock.on_exit.called
    assert log[-1][:2] == ["a", "exit"]
    assert dict(net.callbacks_)["mock"] is mock


class Begins(Callback):
    def on_train_begin(self, net, **kwargs):
        self.ctx_at_begin_ = self.ctx


class Mixed(Begins, CallbackSet):
    """Inherits on_train_begin from a callback of skorch."""


def test_an_inherited_begin_starts_a_run_too():
    mixed = Mixed()
    iris_net(mixed, max_epochs=1).fit(X, y)
    assert isinstance(mixed.ctx_at_begin_, ContextTorch)


class Counts(CallbackSet):
    """Counts its hooks."""

    def __init__(self, step=1):
        self.step = step

    def initialize(self):
        self.seen_ = []
        return self

    def on_train_begin(self, net, **kwargs):
        self.seen_.append("begin")

    def on_batch_begin(self, net, batch=None, training=None, **kwargs):
        self.seen_.append("train" if training else "valid")

    def on_exit(self, net, **kwargs):
        self.seen_.append("exit")


class Copies(CallbackSet):
    """Copies the net in the middle of training."""

    def on_batch_end(self, net, training=None, **kwargs):
        if self.ctx.global_step == 2:
            self.copies_ = [clone(net), pickle.loads(pickle.dumps(net)), copy.deepcopy(net)]


class TestCopies:
    def net(self):
        early = Counts()
        early.weight = -1
        return iris_net(("copies", Copies()), ("counts", early), max_epochs=2).fit(X, y)

    def test_copies_that_are_made_during_training_train_on_their_own(self):
        net = self.net()
        for copied in dict(net.callbacks_)["copies"].copies_:
            copied.set_params(callbacks__copies=None).fit(X, y)
            assert len(copied.history) == 2
            assert dict(copied.callbacks_)["counts"].seen_ == ["begin", *["train"] * 6, "exit"]
            assert names_of(copied) == [name for name in names_of(net) if name != "copies"]

    @pytest.mark.parametrize("way", [1, 2], ids=["pickle", "deepcopy"])
    def test_a_copy_of_the_middle_continues_by_partial_fit(self, way):
        net = self.net()
        copied = dict(net.callbacks_)["copies"].copies_[way]
        dict(copied.callbacks_)["counts"].seen_.clear()
        copied.partial_fit(X, y)
        assert dict(copied.callbacks_)["counts"].seen_ == ["begin", *["train"] * 6, "exit"]
        assert names_of(copied) == names_of(net)

    def test_a_copy_without_a_begin_has_no_run(self):
        copied = dict(self.net().callbacks_)["copies"].copies_[1]
        counts = dict(copied.callbacks_)["counts"]
        assert counts.ctx is None
        counts.seen_.clear()
        del copied.callbacks_[names_of(copied).index("copies")]
        copied.fit_loop(X, y, epochs=1)
        assert counts.seen_ == ["train"] * 3


def test_a_callback_outside_of_any_net_has_no_context():
    counts = Counts().initialize()
    counts.on_train_begin(iris_net().initialize())
    assert counts.seen_ == ["begin"]
    assert counts.ctx is None


@pytest.mark.slow
def test_search_and_scoring_of_skorch_work_beside_it():
    net = iris_net(("counts", Counts()), EpochScoring("accuracy", on_train=True, name="train_acc"), max_epochs=2)
    search = GridSearchCV(net, {"callbacks__counts__step": [1, 2]}, cv=2, n_jobs=2, error_score="raise").fit(X, y)
    assert len(search.best_estimator_.history) == 2
    assert "train_acc" in search.best_estimator_.history[-1]


class OwnLoop(NeuralNetClassifier):
    def fit_loop(self, X, y=None, epochs=None, **fit_params):
        return super().fit_loop(X, y, epochs=1, **fit_params)


def test_a_net_with_its_own_loop_keeps_it():
    net = iris_net(("counts", Counts()), CallbackSetUnfreeze(select_all()), cls=OwnLoop)
    net.fit(X, torch.as_tensor(y))
    assert len(net.history) == 1


def test_a_scheduler_of_skorch_before_the_first_of_ours_begins_once():
    scheduler = LRScheduler(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    net = iris_net(("plain", scheduler), logs("a", []), max_epochs=2).fit(X, y)
    assert net.optimizer_.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**2)


def test_methods_of_the_users_own_on_the_net_are_called_and_stay():
    net, calls = iris_net(callbacks=[t_clbk("history")], max_epochs=1).initialize(), []
    own = {name: getattr(net, name) for name in ("fit_loop", "get_iterator")}
    mine = {}
    for name, method in own.items():

        def call(*args, _name=name, _method=method, **kwargs):
            calls.append(_name)
            return _method(*args, **kwargs)

        mine[name] = call
        setattr(net, name, call)
    net.partial_fit(X, y)
    assert calls.count("fit_loop") == 1
    assert "get_iterator" in calls
    assert {name: vars(net)[name] for name in mine} == mine


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ("callbacks__unfreze__unfreeze", "did you mean 'unfreeze'?"),
        ("callbacks__unfreeze_starting_weights", "did you mean `callbacks__unfreeze__starting_weights`?"),
        ("callbacks__unfreeze.unfreeze", "did you mean `callbacks__unfreeze__unfreeze`?"),
        ("callbacks__printlog", "did you mean 'print_log'?"),
    ],
)
def test_a_misspelt_name_of_a_callback_is_refused(argument, remedy):
    net = iris_net(t_clbk("unfreeze", starting_weights=select_last(1)), **{argument: None}, audited=False)
    with pytest.raises(ValueError, match=f"`{argument}` names .*, which no callback of the net is called; {remedy}"):
        net.fit(X, y)
    left_out = {"callbacks__print_log": None, "callbacks__valid_acc": None, "callbacks__unfreeze__unfreeze": None}
    assert iris_net(t_clbk("unfreeze", starting_weights=select_last(1)), **left_out, max_epochs=1).fit(X, y).history


class WithoutTable(type(iris_net())):
    @property
    def _default_callbacks(self):
        return [one for one in super()._default_callbacks if one[0] != "print_log"]


@pytest.mark.parametrize(
    "left_out",
    [{"callbacks__print_log__sink": print}, {"callbacks__print_log": None}, {"callbacks__tensorboard": None}],
)
def test_what_a_net_does_not_have_may_be_left_out_of_it(left_out):
    net = iris_net(t_clbk("history"), cls=WithoutTable, max_epochs=1, audited=False, **left_out)
    assert len(net.fit(X, y).history) == 1


SHARED = {"unfreeze": CallbackSetUnfreeze(select_last(1)), "stopping": t_clbk("early_stopping", monitor="train_loss")}


@pytest.mark.parametrize("is_initialized", [False, True])
@pytest.mark.parametrize("kind", SHARED)
def test_a_callback_trains_one_net_at_a_time_and_the_next_in_any_thread(kind, is_initialized):
    shared = copy.deepcopy(SHARED[kind])
    other = iris_net(shared, max_epochs=1)
    if is_initialized:
        other.initialize()
    refused = []

    def train_other(self):
        with pytest.raises(RuntimeError, match="is training another net in another thread; give each net callbacks of"):
            pool.submit(other.partial_fit, X, y).result()
        refused.append(self.ctx.epoch)

    with ThreadPoolExecutor(1) as pool:
        net = iris_net(shared, torch_callback("other", on_epoch_end=train_other), max_epochs=2)
        alone = iris_net(copy.deepcopy(shared), max_epochs=2)
        for one in (net, alone):
            torch.manual_seed(0)
            one.fit(X, y)
        assert not moved(weights(net), weights(alone))
        pool.submit(other.partial_fit, X, y).result()
    assert (refused, len(other.history)) == ([1, 2], 1)
