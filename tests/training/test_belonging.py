"""The net and the history to which a state belongs."""

import copy
import pickle

import pytest
from skorch.history import History

from mlr3torch_py import CallbackSet
from mlr3torch_py.training.belonging import HistoryMark, Owner
from tests.helpers import X, iris_net, y


def trained(*callbacks, epochs=2):
    return iris_net(*callbacks, max_epochs=epochs, batch_size=150, audited=False).fit(X, y)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_of_a_net_owns_the_copy_of_its_state(copied):
    net = trained()
    again, owner = copied((net, Owner(net)))
    assert owner.fits(again)
    again.partial_fit(X, y)
    assert not owner.fits(again)
    assert Owner(net).fits(net)


def test_a_history_is_known_again_from_its_file(tmp_path):
    net = trained()
    mark = HistoryMark.of(net.history)
    net.history.to_file(tmp_path / "history.json")
    read = History.from_file(tmp_path / "history.json")
    assert mark.fits(read)
    read[-1]["train_loss"] = 0.0
    assert not mark.fits(read)


def test_another_net_with_an_equal_history_is_no_owner(tmp_path):
    net, other = trained(), trained()
    owner = Owner(net)
    net.history.to_file(tmp_path / "history.json")
    other.history = History.from_file(tmp_path / "history.json")
    assert not owner.fits(other)
    del net
    assert owner.fits(other)  # the history of a net that is gone, which another continues


def test_an_owner_knows_that_its_history_was_taken_back():
    net = trained(epochs=3)
    owner = Owner(net)
    net.history = History(net.history[:2])
    assert owner.is_behind(net)
    assert not owner.fits(net)
    assert not owner.is_behind(trained(epochs=1))


class Counts(CallbackSet):
    """A callback of a user that counts the batches of its net."""

    n_ = 0

    def after_begin(self, net, X, y):
        if not self.belongs_to(net):
            self.n_ = 0

    def on_batch_end(self, net, batch=None, training=None, **kwargs):
        self.n_ += training


def test_a_custom_callback_can_ask_whether_its_state_is_of_a_net():
    counts = Counts()
    a = trained(counts)
    assert counts.n_ == 2
    a.partial_fit(X, y)
    assert counts.n_ == 4
    b = trained(counts, epochs=1)
    assert counts.n_ == 1
    assert counts.belongs_to(b)
    assert not counts.belongs_to(a)
    a.partial_fit(X, y)
    assert counts.n_ == 2
    assert not pickle.loads(pickle.dumps(counts)).belongs_to(b)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_state_belongs_to_a_net_whose_training_broke_off(error):
    class Breaks(CallbackSet):
        def on_batch_end(self, net, batch=None, training=None, **kwargs):
            if len(net.history) == 2:
                raise error

    breaks = Breaks()
    net = iris_net(breaks, max_epochs=3, batch_size=150, audited=False)
    if error is KeyboardInterrupt:
        net.fit(X, y)
    else:
        with pytest.raises(error):
            net.fit(X, y)
    assert breaks.belongs_to(net)
    assert not breaks.belongs_to(trained(epochs=2))
