"""A fit from scratch starts with callbacks as they were given."""

import copy
import pickle

import pytest
import torch
from sklearn.base import clone

from mlr3torch_py import CallbackSet, callback_set, t_clbk, torch_callback
from tests.helpers import X, iris_net, y


def initialize(self, alpha=0.5):
    self.alpha = alpha
    self.losses = []
    self.moving_loss = None


def remember(self):
    self.losses.append(self.ctx.last_loss)
    self.moving_loss = self.ctx.last_loss
    self.alpha *= 0.5
    self.n_batches = getattr(self, "n_batches", 0) + 1
    self.count_ += 1


CallbackSetLogger = callback_set(
    "CallbackSetLogger", initialize=initialize, on_batch_end=remember, public={"count_": 0}
)


class Logger(CallbackSet):
    count_ = 0

    def __init__(self, alpha=0.5):
        initialize(self, alpha)

    def on_batch_end(self, net, batch=None, training=None, **kwargs):
        if training:
            remember(self)


KINDS = pytest.mark.parametrize("kind", [CallbackSetLogger, Logger])


def look(logger):
    return logger.alpha, len(logger.losses), getattr(logger, "n_batches", 0), logger.count_


AFTER_ONE = (0.5**4, 3, 3, 3)
AFTER_TWO = (0.5**7, 6, 6, 6)


@KINDS
def test_what_a_fit_has_set_is_gone_in_the_next_but_not_in_partial_fit(kind):
    logger = kind()
    net = iris_net(logger, max_epochs=1, audited=False).fit(X, y)
    assert look(logger) == AFTER_ONE
    net.fit(X, y)
    assert look(logger) == AFTER_ONE
    net.partial_fit(X, y)
    assert look(logger) == AFTER_TWO
    net.initialize()
    net.partial_fit(X, y)
    assert look(logger) == AFTER_ONE


@KINDS
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), clone])
def test_copies_of_a_trained_net_start_anew_as_well(kind, copied):
    net = copied(iris_net(("logger", kind(0.5)), max_epochs=1, audited=False).fit(X, y)).fit(X, y)
    assert look(dict(net.callbacks_)["logger"])[1:] == AFTER_ONE[1:]


@KINDS
def test_an_error_within_a_fit_leaves_nothing_behind(kind):
    logger = kind()

    def fail(self):
        if self.ctx.global_step == self.fail_at:
            raise RuntimeError("no")

    fails = torch_callback("fails", on_batch_end=fail, public={"fail_at": 2})
    net = iris_net(logger, fails, max_epochs=1, audited=False)
    with pytest.raises(RuntimeError, match="no"):
        net.fit(X, y)
    fails.callback.fail_at = 0
    net.fit(X, y)
    assert look(logger) == AFTER_ONE


@KINDS
def test_what_the_user_sets_counts_as_given(kind):
    logger = kind()
    logger.n_batches = 10
    net = iris_net(("logger", logger), max_epochs=1, audited=False).fit(X, y)
    assert logger.n_batches == 13
    net.set_params(callbacks__logger__alpha=16.0)
    net.fit(X, y)
    assert (logger.n_batches, logger.alpha) == (13, 2.0)
    logger.n_batches = 20
    net.fit(X, y)
    assert logger.n_batches == 23


@KINDS
@pytest.mark.parametrize("copied", [lambda net: net, lambda net: pickle.loads(pickle.dumps(net))])
def test_what_the_user_sets_in_the_place_of_what_the_constructor_makes_stays(kind, copied):
    logger = kind()
    net = iris_net(("logger", logger), max_epochs=1, audited=False)
    logger.moving_loss, logger.losses = 5, [1]
    for _ in range(3):
        net = copied(net).fit(X, y)
        assert dict(net.callbacks_)["logger"].losses[0] == 1
        assert len(dict(net.callbacks_)["logger"].losses) == 4
    logger = dict(net.callbacks_)["logger"]
    logger.renew()
    assert (logger.moving_loss, logger.losses) == (5, [1])


def test_parameters_are_what_the_constructor_takes():
    logger = Logger()
    iris_net(logger, max_epochs=1, audited=False).fit(X, y)
    assert list(logger.get_params()) == ["alpha"]
    assert repr(Logger(0.25)) == "Logger(alpha=0.25)"
    assert clone(logger).losses == []


def test_a_callback_with_any_keywords_keeps_its_parameters():
    class Anything(CallbackSet):
        def __init__(self, **params):
            self.__dict__.update(params)

        def on_epoch_end(self, net, **kwargs):
            self.seen_ = True

    anything = Anything(a=1)
    net = iris_net(anything, max_epochs=1, audited=False).fit(X, y)
    net.fit(X, y)
    assert anything.get_params() == {"a": 1}
    assert anything.seen_


def test_a_state_that_is_loaded_before_the_first_fit_is_there():
    def load(self, state):
        self.total = state

    seen = []
    total = torch_callback(
        "total", on_begin=lambda self: seen.append(self.total), state_dict=lambda self: self.total, load_state_dict=load
    )
    total.callback.load_state_dict(5)
    iris_net(total, max_epochs=1, audited=False).fit(X, y)
    assert seen == [5]


def test_a_callback_in_two_nets_at_once_keeps_what_the_outer_one_has_set():
    def train_another(self):
        iris_net(logger, max_epochs=1, audited=False).fit(X, y)

    logger = Logger()
    outer = torch_callback("outer", on_epoch_end=train_another)
    iris_net(logger, outer, max_epochs=1, audited=False).fit(X, y)
    assert logger.count_ == 6


def test_the_history_and_early_stopping_of_a_second_fit_are_those_of_the_second():
    history, stopping = t_clbk("history"), t_clbk("early_stopping", monitor="train_loss")
    net = iris_net(history, stopping, max_epochs=3).fit(X, y)
    net.set_params(max_epochs=2).fit(X, y)
    assert history.callback.history["epoch"].tolist() == [1, 2]
    assert stopping.callback.best_epoch <= 2


@pytest.mark.parametrize("kept", [[], {}, torch.zeros(3)])
def test_each_callback_and_fit_has_its_own_value_of_what_is_public(kept):
    def keep(self):
        self.kept[self.ctx.epoch - 1 : self.ctx.epoch] = [1] if isinstance(self.kept, list) else torch.ones(1)

    def keep_by_key(self):
        self.kept[self.ctx.epoch] = 1

    seen = []
    hooks = {
        "on_epoch_end": keep_by_key if isinstance(kept, dict) else keep,
        "on_end": lambda self: seen.append(float(sum(self.kept.values() if isinstance(kept, dict) else self.kept))),
    }
    keeps = torch_callback("keeps", public={"kept": kept}, **hooks)
    net = iris_net(keeps, max_epochs=2, audited=False)
    for one in (net, net, clone(net), copy.deepcopy(net).set_params(max_epochs=1)):
        one.fit(X, y)
    net.set_params(max_epochs=1).partial_fit(X, y)
    assert seen == [2, 2, 2, 1, 3]
    assert len(kept) in (0, 3)
    assert not any(kept)
