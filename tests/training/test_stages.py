"""Stages, context and order of callbacks, on plain nets of skorch; the recorded stage runs of mlr3torch."""

import copy
import math
import pickle

import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, Checkpoint, EpochScoring, LoadInitState, PrintLog
from skorch.dataset import Dataset, ValidSplit
from skorch.helper import predefined_split
from torch import nn

from mlr3torch_py import (
    CallbackSet,
    CallbackSetUnfreeze,
    ContextTorch,
    callback_set,
    select_all,
    select_last,
    t_clbk,
    torch_callback,
)
from mlr3torch_py.training.callback_set import HOOK_OF_STAGE
from tests.helpers import X, golden, iris_net, y

STAGES = list(HOOK_OF_STAGE)
RUNS = [run for run in golden("stages")["runs"] if run["eval_freq"] == 1]


def logger_of(name, log, extra=()):
    """A callback that logs every stage with the clock that it sees."""

    def logs(stage):
        def function(self):
            ctx = self.ctx
            log.append([name, stage, ctx.epoch, ctx.step, ctx.global_step])
            for wanted, act in extra:
                if stage == wanted:
                    act(ctx)

        return function

    return {f"on_{stage}": logs(stage) for stage in STAGES}


class BoomError(Exception):
    pass


@pytest.mark.parametrize("run", RUNS, ids=[run["id"] for run in RUNS])
def test_stages_come_in_the_order_of_r(run):
    log = []

    def fail(ctx):
        if ctx.global_step == run["fails_in_batch_end_of_global_batch"]:
            raise BoomError("boom")

    def terminate(ctx):
        if ctx.epoch == run["terminate_in_epoch_end_of"]:
            ctx.terminate = True

    extra = {"a": [("epoch_end", terminate)], "b": [("batch_end", fail)]}
    callbacks = [
        torch_callback(name, weight=run["weights"][name], **logger_of(name, log, extra[name])) for name in ("a", "b")
    ]
    valid = predefined_split(Dataset(X[: run["n_valid"]], y[: run["n_valid"]])) if run["n_valid"] else None
    net = iris_net(*callbacks, max_epochs=run["epochs"], batch_size=run["batch_size"], train_split=valid)
    if run["error"]:
        with pytest.raises(BoomError, match=run["error"]):
            net.fit(X[: run["n_train"]], y[: run["n_train"]])
    else:
        net.fit(X[: run["n_train"]], y[: run["n_train"]])
    assert log == run["log"]


def stages_of(log):
    return [(name, stage) for name, stage, *_ in log]


@pytest.mark.parametrize("error", [KeyboardInterrupt, BoomError, SystemExit])
def test_exit_runs_last_on_every_way_out(error):
    log = []

    def leave(ctx):
        if ctx.global_step == 2:
            raise error

    callbacks = [torch_callback(name, **logger_of(name, log, [("batch_end", leave)])) for name in "ab"]
    net = iris_net(*callbacks)
    before = [name for name, _ in net.initialize().callbacks_]
    if error is KeyboardInterrupt:
        net.partial_fit(X, y)
        ends = [("a", "end"), ("b", "end")]
    else:
        with pytest.raises(error):
            net.partial_fit(X, y)
        ends = [("a", "batch_end")]
    assert stages_of(log)[-2 - len(ends) :] == [*ends, ("a", "exit"), ("b", "exit")]
    assert [name for name, _ in net.callbacks_] == before
    assert all(callback.ctx is None for _, callback in net.callbacks_ if isinstance(callback, CallbackSet))
    assert "fit_loop" not in vars(net)


def test_an_error_in_begin_exits_too():
    log = []

    def fail(_):
        raise BoomError

    callbacks = [torch_callback("a", **logger_of("a", log)), torch_callback("b", on_begin=lambda self: fail(self))]
    net = iris_net(*callbacks)
    with pytest.raises(BoomError):
        net.fit(X, y)
    assert stages_of(log) == [("a", "begin"), ("a", "exit")]
    assert callbacks[0].callback.ctx is None


def test_an_error_in_end_or_exit_still_exits_all():
    log = []

    def fail(_):
        raise BoomError

    callbacks = [
        torch_callback("a", **logger_of("a", log, [("end", fail), ("exit", fail)])),
        torch_callback("b", **logger_of("b", log)),
    ]
    with pytest.raises(BoomError):
        iris_net(*callbacks, max_epochs=1).fit(X, y)
    assert stages_of(log)[-3:] == [("a", "end"), ("a", "exit"), ("b", "exit")]


def test_the_error_of_training_comes_through_with_a_note_of_that_of_exit():
    def fail(_):
        raise BoomError("in training")

    def fail_too(_):
        raise TypeError("in exit")

    with pytest.raises(BoomError, match="in training") as error:
        iris_net(torch_callback("a", on_batch_end=fail, on_exit=fail_too)).fit(X, y)
    assert error.value.__notes__ == ["the stage exit raised too: TypeError('in exit')"]


class EndsBadly(NeuralNetClassifier):
    """Its own end raises, before any callback has its turn."""

    def on_train_end(self, net, **kwargs):
        if not self.calm:
            raise BoomError

    calm = False


def test_a_training_without_an_end_does_not_spoil_the_next_one():
    def stop(self):
        self.ctx.terminate = True

    net = iris_net(torch_callback("stop", on_epoch_end=stop), cls=EndsBadly)
    for train in (net.fit, net.partial_fit, net.fit):
        with pytest.raises(BoomError):
            train(X, y)
    assert len(net.history) == 1
    EndsBadly.calm = True
    assert len(net.fit(X, y).history) == 1
    assert [name for name, _ in net.callbacks_][-1] == "print_log"


class Begins(Callback):
    def on_train_begin(self, net, **kwargs):
        self.ctx_at_begin_ = self.ctx


class Mixed(Begins, CallbackSet):
    """Takes its begin from a callback of skorch."""


def test_a_begin_that_is_inherited_is_conducted_too():
    mixed = Mixed()
    iris_net(mixed, max_epochs=1).fit(X, y)
    assert isinstance(mixed.ctx_at_begin_, ContextTorch)


def test_the_context_counts_on_from_a_history_that_is_loaded(tmp_path):
    seen = []

    def look(self):
        seen.append((self.ctx.epoch, self.ctx.step, self.ctx.global_step, self.ctx.total_epochs))

    for _ in range(2):
        checkpoint = Checkpoint(monitor=None, dirname=tmp_path)
        looks = torch_callback("looks", on_epoch_end=look)
        iris_net(looks, checkpoint, LoadInitState(checkpoint), max_epochs=2).fit(X, y)
    assert seen == [(1, 3, 3, 2), (2, 3, 6, 2), (3, 3, 9, 4), (4, 3, 12, 4)]


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


def test_callbacks_run_by_weight_and_those_of_skorch_weigh_nothing():
    log = []
    weights = {"last": math.inf, "late": 2.5, "b": 0, "a": 0, "early": -1}
    mine = [torch_callback(name, weight=weight, **logger_of(name, log)) for name, weight in weights.items()]
    net = iris_net(
        *mine[:3], ("plain1", Plain("plain1", log)), *mine[3:], ("plain2", Plain("plain2", log)), max_epochs=1
    )
    net.set_params(verbose=1, callbacks__print_log__sink=lambda _: log.append(["print_log", "epoch_end"]))
    net.fit(X, y)
    for stage in ("begin", "end"):
        order = [entry[0] for entry in log if entry[1] == stage]
        assert order == ["early", "b", "plain1", "a", "plain2", "late", "last"]
    order = list(dict.fromkeys(entry[0] for entry in log if entry[1] == "epoch_end"))
    assert order == ["early", "b", "plain1", "a", "plain2", "late", "print_log", "last"]


def test_every_callback_begins_once_also_in_later_calls():
    log = []
    net = iris_net(("plain", Plain("plain", log)), torch_callback("a", **logger_of("a", log)), max_epochs=1)
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


@pytest.mark.parametrize("weight", [math.nan, "1", None, True])
def test_a_weight_is_a_number(weight):
    with pytest.raises(TypeError, match="`weight` is"):
        CallbackSet().weight = weight
    with pytest.raises(TypeError, match="`weight` is"):
        torch_callback("a", weight=weight, on_begin=print)


def test_a_weight_survives_clone_and_pickle():
    made = t_clbk("unfreeze", weight=3, starting_weights=select_all())
    assert (made.weight, made.callback.weight) == (3, 3)
    net = clone(iris_net(made, ("pair", made.generate()), audited=False))
    assert [callback.weight for _, callback in net.callbacks] == [3, 3]
    assert pickle.loads(pickle.dumps(made)).weight == 3
    assert t_clbk("early_stopping").weight == 1000


def test_the_context_shows_the_training():
    seen = []

    def look(self):
        ctx = self.ctx
        assert isinstance(ctx, ContextTorch)
        seen.append(
            (ctx.epoch, ctx.step, ctx.global_step, ctx.total_epochs, len(ctx.dataset_train), len(ctx.dataset_valid))
        )
        assert ctx.network is ctx.net.module_
        assert ctx.optimizer is ctx.net.optimizer_
        assert ctx.loss is ctx.net.criterion_
        assert ctx.device == "cpu"
        assert (len(ctx.loader_train), len(ctx.loader_valid)) == (2, 1)
        assert ctx.last_scores_train == {"loss": ctx.net.history[-1, "train_loss"]}
        assert ctx.last_scores_valid == {
            "acc": ctx.net.history[-1, "valid_acc"],
            "loss": ctx.net.history[-1, "valid_loss"],
        }
        assert list(ctx.callbacks)[-2:] == ["print_log", "context_end"]
        assert [len(y_hat) for y_hat in ctx.y_hats] == [50]
        assert ctx.batch is None

    def look_at_batch(self):
        ctx = self.ctx
        assert ctx.y_hat.shape == (50, 3)
        assert ctx.last_loss == ctx.net.history[-1, "batches", -1, "train_loss"]
        assert len(ctx.y_hats) == ctx.step
        assert len(ctx.batch[0]) == 50

    def look_at_begin(self):
        assert self.ctx.loader_train is None
        assert self.ctx.loader_valid is None
        assert bool(self.ctx.last_scores_train) is (self.ctx.epoch > 0)

    looks = torch_callback(
        "looks",
        on_begin=look_at_begin,
        on_epoch_end=look,
        on_batch_end=look_at_batch,
        public={"keeps_outputs": True},
    )
    assert looks.callback.ctx is None
    net = iris_net(looks, max_epochs=2, train_split=ValidSplit(3, stratified=True)).fit(X, y)
    assert seen == [(1, 2, 2, 2, 100, 50), (2, 2, 4, 2, 100, 50)]
    net.partial_fit(X, y)
    assert seen[-1] == (4, 2, 8, 4, 100, 50)
    assert looks.callback.ctx is None


def test_the_last_loss_is_that_of_the_last_training_batch():
    losses = []

    def look(self):
        losses.append(self.ctx.last_loss)

    looks = torch_callback("looks", on_begin=look, on_batch_begin=look, on_batch_valid_end=look)
    net = iris_net(looks, max_epochs=2, train_split=ValidSplit(3, stratified=True)).fit(X, y)
    (first, second), (third, fourth) = (
        [batch["train_loss"] for batch in row["batches"] if "train_loss" in batch] for row in net.history
    )
    assert losses == [None, None, first, second, second, third, fourth]
    net.partial_fit(X, y)
    assert losses[7:9] == [fourth, fourth]


def test_outputs_are_kept_only_where_somebody_asks():
    def look(self):
        assert self.ctx.y_hats == []
        assert not self.ctx.y_hat.requires_grad

    iris_net(torch_callback("look", on_batch_end=look), max_epochs=1).fit(X, y)


class Counts(CallbackSet):
    """A class with the hooks of skorch and the stages that skorch lacks."""

    def __init__(self, step=1):
        self.step = step

    def initialize(self):
        self.seen_ = []
        return self

    def on_train_begin(self, net, **kwargs):
        self.seen_.append("begin")

    def on_batch_begin(self, net, batch=None, training=None, **kwargs):
        self.seen_.append("train" if training else "valid")

    def on_batch_valid_begin(self, net, batch=None, **kwargs):
        assert len(batch[0]) == 50
        self.seen_.append("valid_begin")

    def on_exit(self, net, **kwargs):
        self.seen_.append("exit")


def test_a_class_needs_no_super_and_gets_all_stages():
    net = iris_net(("counts", Counts()), max_epochs=1, train_split=ValidSplit(3, stratified=True)).fit(X, y)
    assert dict(net.callbacks_)["counts"].seen_ == ["begin", "train", "train", "valid_begin", "valid", "exit"]
    assert Counts().stages == ["begin", "batch_begin", "batch_valid_begin", "exit"]
    assert CallbackSet().stages == []


class Copies(CallbackSet):
    """Copies the net in the middle of training."""

    def on_batch_end(self, net, training=None, **kwargs):
        if self.ctx.global_step == 2:
            self.copies_ = [clone(net), pickle.loads(pickle.dumps(net)), copy.deepcopy(net)]


def test_copies_that_are_made_while_training_train_on_their_own():
    copies = Copies()
    net = iris_net(("copies", copies), ("counts", Counts()), max_epochs=2).fit(X, y)
    for copied in dict(net.callbacks_)["copies"].copies_:
        copied.set_params(callbacks__copies=None).fit(X, y)
        assert len(copied.history) == 2
        assert dict(copied.callbacks_)["counts"].seen_ == ["begin", *["train"] * 6, "exit"]
        assert [name for name, _ in copied.callbacks_] == [name for name, _ in net.callbacks_ if name != "copies"]


def test_a_pickle_of_the_middle_goes_on_by_partial_fit():
    copies = Copies()
    net = iris_net(("copies", copies), ("counts", Counts()), max_epochs=2).fit(X, y)
    copied = dict(net.callbacks_)["copies"].copies_[1]
    dict(copied.callbacks_)["counts"].seen_.clear()
    copied.partial_fit(X, y)
    assert dict(copied.callbacks_)["counts"].seen_ == ["begin", *["train"] * 6, "exit"]
    assert [name for name, _ in copied.callbacks_] == [name for name, _ in net.callbacks_]


def test_a_callback_outside_of_any_net_has_no_context():
    counts = Counts().initialize()
    counts.on_train_begin(iris_net().initialize())
    assert counts.seen_ == ["begin"]
    assert counts.ctx is None


def test_search_and_scoring_of_skorch_work_beside_it():
    net = iris_net(("counts", Counts()), EpochScoring("accuracy", on_train=True, name="train_acc"), max_epochs=2)
    search = GridSearchCV(net, {"callbacks__counts__step": [1, 2]}, cv=2, n_jobs=2, error_score="raise").fit(X, y)
    assert len(search.best_estimator_.history) == 2
    assert "train_acc" in search.best_estimator_.history[-1]


def double(self):
    self.total += self.step


def set_step(self, step, start=0):
    self.step = step
    self.start = start


def total_of(self):
    return {"total": self.total}


def take_total(self, state):
    self.total = state["total"]


CallbackSetTotal = callback_set(
    "CallbackSetTotal",
    initialize=set_step,
    on_batch_end=double,
    state_dict=total_of,
    load_state_dict=take_total,
    public={"total": 0, "label": "Total"},
    weight=7,
)


def test_a_class_is_made_of_functions():
    total = CallbackSetTotal(step=2)
    assert total.get_params() == {"step": 2, "start": 0}
    assert (total.weight, total.label, total.stages) == (7, "Total", ["batch_end"])
    total.load_state_dict({"total": 5})
    assert total.state_dict() == {"total": 5}
    with pytest.raises(TypeError):
        CallbackSetTotal()


@pytest.mark.parametrize("copied", [clone, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_callback_made_of_functions_can_be_copied(copied):
    again = copied(CallbackSetTotal(step=2))
    assert again.get_params() == {"step": 2, "start": 0}
    assert str(again) == "<CallbackSetTotal>\n* Stages: batch_end"
    assert again.weight == 7


def test_a_described_callback_takes_its_parameters_through_the_net():
    say = []
    described = torch_callback(
        "say", initialize=set_step, on_epoch_end=lambda self: say.append(self.step), label="Says"
    )
    assert described.parameters["start"] == 0
    with pytest.raises(ValueError, match="`step` of CallbackSetSay was never set"):
        iris_net(described).fit(X, y)
    iris_net(described, callbacks__say__step=3, max_epochs=2).fit(X, y)
    assert say == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_epoch_edn": print}, "no stage 'on_epoch_edn'; did you mean 'on_epoch_end'"),
        ({"on_begin": 3}, "`on_begin` is 3; give a function that takes the callback"),
        ({"on_begin": lambda: None}, "`on_begin` must be a function that takes the callback"),
        ({"state_dict": total_of}, "`state_dict` is given without `load_state_dict`"),
        ({"load_state_dict": take_total}, "`load_state_dict` is given without `state_dict`"),
        ({"state_dict": total_of, "load_state_dict": total_of}, "`load_state_dict` must be a function"),
    ],
)
def test_a_wrong_description_is_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        torch_callback("a", **arguments)
    with pytest.raises((TypeError, ValueError), match=message):
        callback_set("A", **arguments)


def test_a_name_must_fit_into_a_parameter():
    with pytest.raises(TypeError, match="`id` is 'a b'"):
        torch_callback("a b")


def test_terminate_lets_the_epoch_end_and_print(capsys):
    def stop(self):
        self.ctx.terminate = self.ctx.epoch == 2

    log = []
    stops = torch_callback("stops", on_batch_end=stop)
    net = iris_net(stops, torch_callback("a", weight=9, **logger_of("a", log)), verbose=1, max_epochs=5).fit(X, y)
    assert len(net.history) == 2
    assert stages_of(log)[-3:] == [("a", "epoch_end"), ("a", "end"), ("a", "exit")]
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == "2"


def test_freezing_works_the_same_under_any_order():
    early = t_clbk("unfreeze", starting_weights=select_last(1), weight=-5)
    net = iris_net(early, Counts(), max_epochs=1).fit(X, y)
    assert net.history[-1, "n_trainable"] == 12
    assert next(iter(dict(net.callbacks_))) == "unfreeze"
    assert isinstance(net.callbacks_[-1][1], PrintLog)


class Subclass(NeuralNetClassifier):
    def fit_loop(self, X, y=None, epochs=None, **fit_params):
        return super().fit_loop(X, y, epochs=1, **fit_params)


def test_a_net_with_its_own_loop_keeps_it():
    net = iris_net(("counts", Counts()), CallbackSetUnfreeze(select_all()), cls=Subclass, criterion=nn.CrossEntropyLoss)
    net.fit(X, torch.as_tensor(y))
    assert len(net.history) == 1
