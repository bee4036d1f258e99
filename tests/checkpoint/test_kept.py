"""What a checkpoint keeps beyond state dicts."""

import itertools
import warnings
from collections import deque
from copy import deepcopy
from functools import partial
from random import Random

import numpy as np
import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, EarlyStopping
from torch import nn

from mlr3torch_py import t_clbk
from mlr3torch_py.checkpoint.folder import CheckpointFolder
from mlr3torch_py.checkpoint.parts import generators_of
from tests.checkpoint.kept import (
    Accumulates,
    Around,
    Averages,
    Criterion,
    Hidden,
    Measures,
    PlainCriterion,
    Scaled,
    Scaler,
    TwoOptimizers,
    Zeroes,
)
from tests.checkpoint.runs import checkpoint, files, resumed_equals_whole, run
from tests.helpers import X, iris_net, moved, weights, y


class Halves(Callback):
    """Changes parameters of the net by their own values, one of which skorch has read already."""

    def on_epoch_end(self, net, **kwargs):
        net.set_params(lr=net.lr / 2, batch_size=net.batch_size + 10)
        net.set_params(criterion__label_smoothing=net.criterion__label_smoothing + 0.1)


RNG = Random(2)


class Tempered(NeuralNetClassifier):
    """Changes an argument of its own."""

    def __init__(self, *args, tau=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.tau = tau

    def get_loss(self, *args, training=False, **kwargs):
        self.tau *= 0.9 if training else 1
        return super().get_loss(*args, training=training, **kwargs) * self.tau


class Scales(NeuralNetClassifier):
    """Draws from generators of its class and of the module of Python."""

    rng = Random(1)

    def get_loss(self, *args, training=False, **kwargs):
        factor = self.rng.random() * RNG.random() if training else 1
        return super().get_loss(*args, training=training, **kwargs) * factor


KINDS = {
    "pending gradients": {"cls": Accumulates},
    "further objects, and counters of the net": {"cls": Scaled},
    "buffers and attributes of a module": {"module": Hidden},
    "attributes of a criterion": {"criterion": Criterion},
    "attributes of a criterion that is no module": {"criterion": PlainCriterion},
    "parameters of the net that a callback changes": {"callbacks": [Halves()], "criterion__label_smoothing": 0.0},
    "arguments of the net that it changes itself": {"cls": Tempered},
    "two modules with two optimizers": {"cls": TwoOptimizers},
    "an optimizer around another": {"optimizer": Around},
    "what a callback makes when training begins": {"callbacks": [t_clbk("history"), Averages()]},
    "attributes and buffers of a module of a callback": {"callbacks": [Measures()]},
    "a tensor that a callback zeroes in place": {"callbacks": [Zeroes()]},
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_kept(kind, tmp_path):
    def net_of(path, *more):
        return iris_net(
            checkpoint(path, resume=True),
            *deepcopy(first),
            *more,
            audited=False,
            **{"module": nn.Linear, **of_linear, **params},
        )

    params = dict(KINDS[kind])
    first = params.pop("callbacks", [])
    of_linear = {"module__in_features": 4, "module__out_features": 3} if "module" not in params else {}
    assert resumed_equals_whole(tmp_path, net_of)


def test_generators_that_a_class_of_net_uses_are_kept():
    found = generators_of(iris_net(cls=Scales).initialize()).values()
    assert {id(Scales.rng), id(RNG)} <= set(map(id, found))


def test_a_net_that_steps_as_skorch_does_keeps_no_gradients(tmp_path):
    run(tmp_path / "a", 2)
    assert not any("gradients" in name for name in files(tmp_path / "a"))
    run(tmp_path / "b", 2, cls=Accumulates)
    assert any("gradients" in name for name in files(tmp_path / "b"))


def test_what_does_not_change_is_not_kept(tmp_path):
    run(tmp_path, 1, module=nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)))
    assert CheckpointFolder(tmp_path).read(1).contents()["attributes"] == {}


class Queue(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        self.queue = deque(maxlen=3)

    def forward(self, x):
        self.queue.append(1)
        return super().forward(x)


def test_a_changed_attribute_that_no_file_can_hold_is_named_once(tmp_path):
    with pytest.warns(UserWarning, match=r"cannot keep module.queue \(deque\), whose kind no file can hold") as caught:
        run(tmp_path, 3, module=Queue)
    assert len(caught) == 1


class Draws(Callback):
    """Makes a generator when it is first used, or in each epoch."""

    def __init__(self, each_epoch):
        self.each_epoch = each_epoch

    def on_epoch_begin(self, net, **kwargs):
        if self.each_epoch or not hasattr(self, "rng"):
            self.rng = np.random.default_rng(len(net.history))
        net.history.record("drawn", self.rng.random())


def test_a_generator_that_a_callback_makes_while_it_trains_is_named_unless_it_is_of_one_epoch(tmp_path):
    with pytest.warns(UserWarning, match=r"callbacks_.draws.rng, a generator .*: make it in initialize\(\)") as caught:
        run(tmp_path / "a", 3, ("draws", Draws(each_epoch=False)))
    assert len(caught) == 1
    run(tmp_path / "b", 3, ("draws", Draws(each_epoch=True)))


class Sharpness(torch.optim.SGD):
    """Takes its steps by an optimizer of whose state its own says nothing."""

    def __init__(self, params, lr, momentum):
        super().__init__(params, lr, momentum)
        self.inner = torch.optim.SGD(self.param_groups, lr=lr, momentum=momentum)

    def step(self, closure=None):
        return self.inner.step(closure)


def test_an_optimizer_whose_state_the_one_around_it_leaves_out_is_named(tmp_path):
    with pytest.warns(UserWarning, match="the state of optimizer_.inner, which the state_dict.. of optimizer leaves"):
        run(tmp_path / "a", 2, optimizer=Sharpness, optimizer__momentum=0.9)
    run(tmp_path / "b", 2, optimizer=Sharpness, optimizer__momentum=0.0)
    run(tmp_path / "c", 2, optimizer=Around)


class Numbers(torch.utils.data.Dataset):
    """Draws from an iterator that has a state dict."""

    def __init__(self):
        self.numbers = Cycle()

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i] + np.float32(next(self.numbers)), y[i]


class Cycle(Scaler):
    def __iter__(self):
        return self

    def __next__(self):
        self.scale = -self.scale
        return self.scale


def test_an_iterator_in_a_data_set_is_named_though_it_has_a_state_dict(tmp_path):
    net = iris_net(checkpoint(tmp_path), audited=False)
    with pytest.warns(UserWarning, match="dataset_train.numbers, since it asks nothing in a data set"):
        net.fit(Numbers(), None)


class Counter:
    def __init__(self):
        self.n = 0

    def __call__(self):
        self.n += 1


class Unpicklable:
    def __init__(self):
        self.counter, self.rule = Counter(), lambda: None

    def count(self):
        self.counter()


def closure():
    counter = Counter()

    def count():
        counter()

    return count


OPAQUE = {
    "called": (Counter, lambda one: one()),
    "unpicklable": (Unpicklable, lambda one: one.count()),
    "closure": (closure, lambda one: one()),
    "partial": (lambda: partial(list.append, []), lambda one: one(1)),
    "beside a function": (lambda: {"rule": torch.relu, "n": 0}, lambda one: one.update(n=one["n"] + 1)),
    "beside a generator": (lambda: [np.random.default_rng(1), torch.zeros(1)], lambda one: one[1].add_(1)),
}


class Opaque(nn.Linear):
    def __init__(self, make, change):
        super().__init__(4, 3)
        self.helper, self.change = make(), change

    def forward(self, x):
        self.change(self.helper)
        return super().forward(x)


@pytest.mark.parametrize("kind", OPAQUE)
def test_what_changes_in_an_attribute_of_any_kind_is_named(tmp_path, kind):
    with pytest.warns(UserWarning, match=r"cannot keep module.helper \(\w+\), whose kind no file can hold") as caught:
        run(tmp_path, 2, module=Opaque(*OPAQUE[kind]))
    assert len(caught) == 1


UNCHANGED = {
    "called, but not changed": (Counter, repr),
    "a generator of Python, which is kept": (lambda: {"rngs": [Random(1)]}, lambda one: one["rngs"][0].gauss(0, 1)),
    "an object with a state dict, which is kept": (lambda: [Scaler()], lambda one: vars(one[0]).update(scale=2.0)),
    "a module, which is kept": (lambda: (torch.relu, nn.BatchNorm1d(2)), lambda one: one[1](torch.rand(3, 2))),
}


@pytest.mark.parametrize("kind", UNCHANGED)
def test_what_is_kept_elsewhere_is_not_named_as_lost(tmp_path, kind):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(tmp_path, 2, module=Opaque(*UNCHANGED[kind]))
    assert not [one for one in caught if "cannot keep" in str(one.message)]


def test_a_helper_that_refers_to_parameters_and_to_the_net_is_not_named_as_lost(tmp_path):
    class Refers(Callback):
        def on_train_begin(self, net, **kwargs):
            net.module_.helper = lambda: (net, [*net.module_.parameters()])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(tmp_path, 2, Refers())
    assert not [one for one in caught if "cannot keep" in str(one.message)]


class Unloadable(Scaler):
    def state_dict(self):
        return {"scale": object()}


class Odd(NeuralNetClassifier):
    def initialize(self):
        self.scaler = Unloadable()
        self.rows = itertools.cycle([1, 2])
        return super().initialize()


def test_what_cannot_be_kept_is_named_in_one_warning_before_the_first_step(tmp_path):
    class Seen(Callback):
        def on_batch_begin(self, net, **kwargs):
            seen.append(len(caught))

    seen = []
    with pytest.warns(UserWarning, match="rows, whose state cannot be read.*scaler, whose state_dict") as caught:
        run(tmp_path, 1, Seen(), cls=Odd)
    assert len(caught) == 1
    assert seen[0] == 1


@pytest.mark.slow
def test_persistent_workers_are_named_and_restarted(tmp_path):
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 150

        def __getitem__(self, i):
            return X[i] + torch.randn(4).numpy(), y[i]

    def net_of(path, *more):
        workers = {"iterator_train__num_workers": 1, "iterator_train__persistent_workers": True}
        return iris_net(
            checkpoint(path, resume=True), *more, module=nn.Linear(4, 3), audited=False, max_epochs=3, **workers
        )

    with pytest.warns(
        UserWarning, match="restarts persistent workers after each epoch.* as with persistent_workers=False"
    ):
        assert resumed_equals_whole(tmp_path, net_of, lambda: (Noisy(), None))


def test_an_object_that_the_net_lacks_is_named(tmp_path):
    run(tmp_path, 1, cls=Scaled)
    with pytest.warns(UserWarning, match=r"holds a state of scaler, scalers\[0\], which the net lacks; give"):
        run(tmp_path, 2, resume=True)


@pytest.mark.parametrize("load_best", [False, True])
def test_a_run_that_early_stopping_of_skorch_had_ended_stays_ended(load_best, tmp_path):
    def train(path, patience):
        torch.manual_seed(0)
        stopping = EarlyStopping("train_loss", patience, threshold=9, threshold_mode="abs", load_best=load_best)
        net = iris_net(stopping, checkpoint(path, resume=True), audited=False).fit(X, y)
        return net, weights(net), torch.rand(3).tolist()

    first, trained, drawn = train(tmp_path / "resumed", 2)
    again, kept, drawn_again = train(tmp_path / "resumed", 2)
    assert len(first.history) == len(again.history) == 3
    assert (moved(trained, kept), drawn) == (set(), drawn_again)
    with pytest.warns(UserWarning, match="resumed with other settings: callbacks__EarlyStopping__patience"):
        longer, further, _ = train(tmp_path / "resumed", 9)
    whole, uninterrupted, _ = train(tmp_path / "whole", 9)
    assert len(longer.history) == len(whole.history) == 4
    assert not moved(further, uninterrupted)


def test_checkpoints_with_early_stopping_of_skorch_keep_the_last_epoch(tmp_path):
    class Ends(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 2:
                raise KeyboardInterrupt

    for freq in (1, 9):
        net = iris_net(Ends(), checkpoint(tmp_path / str(freq), freq), t_clbk("history")).fit(X, y)
        assert len(net.history) == 2
        assert CheckpointFolder(tmp_path / str(freq)).newest() == 2


class Autocast(nn.Linear):
    """Computes in half precision, as accelerate's mixed precision has it."""

    def __init__(self):
        super().__init__(4, 3)
        self.forward = torch.autocast("cpu", dtype=torch.bfloat16)(self.forward)


def test_what_an_autocast_remembers_is_not_named_as_lost(tmp_path):
    net = run(tmp_path, 2, module=Autocast)
    assert files(tmp_path)
    assert len(net.history) == 2
