import os
import re
import sys
import threading

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, EpochScoring
from torch import nn

from mlr3torch_py import MLP, check_resume, select_all, select_last, t_clbk
from mlr3torch_py.checkpoint.check_resume import _compare
from mlr3torch_py.checkpoint.rehearsal import Ending
from mlr3torch_py.network.randomness import generators, random_states
from tests.checkpoint import planted
from tests.helpers import X, iris_net, weights, y
from tests.parallel import AcceleratedNet

# Each takes three or four processes; CHECKS=all runs the others too.
ALL = os.environ.get("CHECKS") == "all"
LOSSES = (
    list(planted.planted())
    if ALL
    else ["a counter of the dataset", "a counter of the sampler", "a counter of the optimizer"]
)
GOOD = list(planted.good()) if ALL else ["plain", "dropout", "Adam", "the history"]


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_lost_is_found_and_named(loss):
    net, data, named = planted.planted()[loss]
    report = check_resume(net, *((X, y) if data is None else (data, None)))
    assert not report
    assert re.search(named, str(report))


@pytest.mark.slow
@pytest.mark.parametrize("one", GOOD)
def test_a_net_that_resumes_well_is_said_to(one):
    assert check_resume(planted.good()[one], X, y).ok


@pytest.mark.slow
def test_the_net_the_disk_and_the_random_states_stay_as_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = iris_net(max_epochs=1).fit(X, y)
    before, random_before = weights(net), random_states(generators())
    assert check_resume(net, X, y)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(net).items())
    assert (len(net.history), net.max_epochs) == (1, 1)
    assert random_states(generators()) == random_before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_a_network_that_torch_does_not_copy_can_be_checked():
    layer = nn.utils.weight_norm(nn.Linear(4, 3))
    assert check_resume(iris_net(module=layer, max_epochs=2), X, y).ok
    assert layer.weight.grad_fn is not None


@pytest.mark.slow
def test_classes_of_a_notebook_can_be_checked():
    class Own(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)

    Own.__module__ = "__main__"
    sys.modules["__main__"].Own = Own
    assert check_resume(planted.linear(module=Own), X, y)


@pytest.mark.slow
def test_a_training_that_fails_is_an_error_with_its_message():
    with pytest.raises(RuntimeError, match="`net`: a training .* has failed: .*mat1 and mat2.*; fit the net itself"):
        check_resume(planted.linear(module=nn.Linear(5, 3)), X, y)


class Noisy(Callback):
    """Changes what the network computes by a count that nothing keeps."""

    n_ = 0

    def on_epoch_begin(self, net, **kwargs):
        self.n_ += 1
        net.module_.scale = 0.1 * self.n_


class Scaled(nn.Linear):
    scale = 1.0

    def forward(self, x):
        return self.scale * super().forward(x)


@pytest.mark.slow
def test_what_follows_from_a_loss_is_not_named_as_its_cause():
    callbacks = [Noisy(), EpochScoring("accuracy"), t_clbk("early_stopping", monitor="train_loss", patience=9)]
    report = check_resume(planted.linear(*callbacks, module=Scaled(4, 3)), X, y, epochs=3)
    assert "nothing keeps callbacks_.Noisy.n_ (1 resumed, 3 without a stop): give" in str(report)


@pytest.mark.slow
def test_a_net_that_stops_early_can_be_checked():
    stops = t_clbk("early_stopping", monitor="train_loss", patience=1, min_delta=100.0)
    report = check_resume(planted.linear(stops), X, y, epochs=5)
    assert report.ok


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [2, 3])
def test_rows_that_the_check_does_not_reach_are_named(epochs):
    unfreeze = t_clbk("unfreeze", starting_weights=select_last(1), unfreeze={"epoch": [3], "weights": [select_all()]})
    report = check_resume(iris_net(unfreeze), X, y, epochs=epochs)
    assert report
    said = "Rows of a schedule are pending after epoch 2, so they were not checked; give more `epochs`."
    assert (said in str(report)) == (said in report._repr_html_()) == (epochs == 2)


class Locked(Callback):
    def __init__(self):
        self.lock = threading.Lock()


def test_a_callback_that_cannot_be_copied_is_an_error():
    with pytest.raises(TypeError, match="`net`, .* cannot be sent to a new process: cannot pickle '_thread.lock'"):
        check_resume(planted.linear(Locked()), X, y)


def test_one_epoch_is_too_few():
    with pytest.raises(ValueError, match="`epochs` is 1; give a whole number of epochs, at least 2"):
        check_resume(iris_net(), X, y, epochs=1)


@pytest.mark.parametrize(
    "net", [None, 3, "net", nn.Linear(4, 3), iris_net, [iris_net()]], ids=lambda net: type(net).__name__
)
def test_what_is_no_net_is_refused(net):
    with pytest.raises(TypeError, match="`net` is .*; give a net of skorch"):
        check_resume(net, X, y)


@pytest.mark.parametrize("epochs", [0, -1, 2.5, "2", None, float("nan"), True])
def test_epochs_are_a_whole_number(epochs):
    with pytest.raises((TypeError, ValueError), match="`epochs` is "):
        check_resume(iris_net(), X, y, epochs=epochs)


def test_what_cannot_be_sent_to_a_process_is_an_error():
    with pytest.raises(TypeError, match="cannot be sent to a new process: .*; give what can be pickled"):
        check_resume(planted.linear(), X, (one for one in y))


def ending(weight="a", said=(), **elsewhere):
    parts = {
        "weights": {"module.weight": weight, "module.bias": "b"},
        "history": {"epoch 1: dur": str(np.random.rand())},
    }
    return Ending(parts, elsewhere, {2: elsewhere}, list(said))


def test_a_report_is_true_if_all_is_equal_and_prints():
    report = _compare(ending(), ending(), ending())
    assert report
    assert str(report) == repr(report)
    assert "weights: 2 of 2 equal, bit for bit" in str(report)
    assert "<table" in report._repr_html_()


def test_a_report_says_what_differs_and_why():
    counted = ending(n="4"), ending(n="4")
    assert (
        "* weights: different in module.weight\n  likely cause: nothing keeps n (2 resumed, 4 without a stop)"
        in str(_compare(*counted, ending("other", n="2")))
    )
    said = ["a resumed run will differ from one that never stopped, since a checkpoint cannot keep the clock"]
    assert "a checkpoint cannot keep the clock" in str(_compare(*counted, ending("other", said)))
    assert "does not repeat itself even without a stop" in str(_compare(ending(), ending("x"), ending("y")))
    assert "something outside of the net" in str(_compare(ending(), ending(), ending("y")))


def test_a_net_with_an_accelerator_is_refused():
    net = AcceleratedNet(MLP, accelerator=object())
    with pytest.raises(TypeError, match="`net` has an accelerator, .*; check the same net without AccelerateMixin"):
        check_resume(net, X, y)
