"""Which rows a resumed run takes from a checkpoint, and what is said of the others before they are lost."""

import copy
import logging
import warnings
from collections import OrderedDict
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from mlr3torch_py import select_prefix, t_clbk
from tests.cache.helpers import ROWS, cached, counts
from tests.cache.test_admission import Tabled, set_up
from tests.cache.test_resume import Classifier, wide
from tests.checkpoint.runs import CrashError, Crashes, checkpoint, final
from tests.helpers import X, iris_net, y


def net_of(folder, module, *more, **params):
    torch.manual_seed(1)
    np.random.seed(1)
    params = {"batch_size": 32, "max_epochs": 5, "iterator_train__shuffle": True, "audited": False} | params
    callbacks = (
        t_clbk("unfreeze", starting_weights=select_prefix("head"), frozen_mode="eval"),
        t_clbk("frozen_cache"),
        checkpoint(folder, 1, resume=True),
    )
    return iris_net(*callbacks, *more, module=module, **params)


class Dies(Callback):
    """Interrupts a run in the middle of an epoch."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.n_ = 0

    def on_batch_end(self, net, batch=None, training=None, **kwargs):
        self.n_ += bool(training)
        if self.n_ == self.batch:
            raise CrashError


def ends(tmp_path, module, *more, dies=(12,), data=(X, y), **params):
    """The end of a run, of one that died in some batches and was resumed, and the net of that."""
    whole = net_of(tmp_path / "whole", module, *more, **params).fit(*data)
    for batch in dies:
        net = net_of(tmp_path / "kept", module, *more, Dies(batch), **params)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*other settings: callbacks__Dies", category=UserWarning)
            with pytest.raises(CrashError):
                net.fit(*data)
    resumed = net_of(tmp_path / "kept", module, *more, **params).fit(*data)
    found = [final(tmp_path / "whole", whole), final(tmp_path / "kept", resumed)]
    for end in found:
        end.pop("rows", None)
        for row in end["history"]:
            del row["cache_saved"]
    return *found, resumed


class Activated(nn.Module):
    def __init__(self, act=torch.tanh, scale=1.0):
        super().__init__()
        self.linear, self.act, self.scale = nn.Linear(4, 257), act, scale

    def forward(self, x):
        return self.act(self.linear(x)) * self.scale


class Setting:
    def __init__(self, value):
        self.value = value


class Configured(Activated):
    """Holds its settings in an object, as networks of transformers do."""

    def __init__(self, value):
        super().__init__()
        self.setting = Setting(value)

    def forward(self, x):
        return super().forward(x) * self.setting.value


class Shaped(Activated):
    """Computes by the shape of a tensor, and by the nesting of a list."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, x):
        depth = len(self.table) if isinstance(self.table, list) else self.table.ndim
        return super().forward(x) + depth


def written(negates):
    """A class of the same name, as after its file was edited."""

    class Written(Activated):
        if negates:

            def forward(self, x):
                return -super().forward(x)

    return Written()


CHANGES = {
    "a number": (partial(Activated, scale=1.0), partial(Activated, scale=5.0)),
    "a function": (partial(Activated, torch.tanh), partial(Activated, torch.sin)),
    "a lambda": (partial(Activated, lambda x: x * 2), partial(Activated, lambda x: x * 3)),
    "an argument of a function": (
        partial(Activated, partial(torch.clamp, min=0)),
        partial(Activated, partial(torch.clamp, min=0.5)),
    ),
    "an object": (partial(Configured, 1), partial(Configured, 2)),
    "a shape": (partial(Shaped, torch.zeros(6)), partial(Shaped, torch.zeros(2, 3))),
    "its code": (partial(written, negates=False), partial(written, negates=True)),
    "a nesting": (partial(Shaped, [1, 2]), partial(Shaped, [[1, 2]])),
}


class Linked(nn.Module):
    """A frozen part, a module without parameters, and a function stand before the head."""

    def __init__(self, body):
        super().__init__()
        self.body, self.relu, self.head = body, nn.ReLU(), nn.Linear(257, 3)

    def forward(self, x):
        return self.head(torch.flatten(self.relu(self.body(x)), 1))


def silent(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", CHANGES)
def test_rows_of_a_module_that_computes_something_else_are_not_recalled(tmp_path, kind, caplog):
    caplog.set_level(logging.INFO, "mlr3torch_py")

    def train(folder, with_cache):
        for make, epochs in zip(CHANGES[kind], (2, 4), strict=True):
            net = net_of(folder, lambda make=make: Linked(make()), max_epochs=epochs)
            if not with_cache:
                net.set_params(callbacks__frozen_cache=None)
            net = silent(net.fit, X, y)
        return net

    cached, plain = train(tmp_path / "cached", True), train(tmp_path / "plain", False)
    torch.testing.assert_close(cached.module_.state_dict(), plain.module_.state_dict())
    assert cached.history[2, "cache_hits"] <= 1  # two rows are equal
    assert "rows of 'body' are computed again, as its weights, settings or code differ" in caplog.text


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "make",
    [
        partial(Activated, torch.sin),
        partial(Activated, lambda x: torch.relu(x)),
        partial(Activated, partial(torch.clamp, min=0)),
        partial(Configured, 3),
        partial(Shaped, torch.zeros(2, 3)),
        partial(written, negates=True),
        lambda: weight_norm(nn.Linear(4, 257)),  # whose class is made when it is called
    ],
)
def test_rows_of_the_same_module_are_recalled(tmp_path, make):
    whole, resumed, net = ends(tmp_path, lambda: Linked(make()))
    assert whole == resumed
    assert net.history[3, "cache_misses"] == 0


def depending_on(number):
    return lambda x: x * number


def test_what_no_other_process_can_tell_apart_is_said_before_the_first_step(tmp_path):
    net = net_of(tmp_path, lambda: Linked(Activated(depending_on(2))), Crashes(1))
    with (
        pytest.warns(
            UserWarning, match="the rows of 'body', since no other process can tell the 'act' of its Activated: use"
        ),
        pytest.raises(CrashError),
    ):
        net.fit(X, y)


class Pair(NamedTuple):
    one: torch.Tensor
    two: torch.Tensor


class Paired(Activated):
    def forward(self, x):
        return Pair(super().forward(x), x + 0)


class OfPair(Linked):
    def forward(self, x):
        return self.head(self.relu(self.body(x).one))


def test_outputs_that_no_file_can_hold_are_named_in_one_warning(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net_of(tmp_path, lambda: OfPair(Paired())).fit(X, y)
    said = [str(one.message) for one in caught if "a resumed run will differ" in str(one.message)]
    assert len(said) == 1
    assert "the rows of 'body', since no file can hold the containers of its output" in said[0]


class InTurn(Classifier):
    def __init__(self):
        super().__init__(nn.Sequential(OrderedDict(first=wide(), second=nn.Linear(257, 257))))
        self.more = nn.Linear(257, 257)

    def between(self, features):
        return self.more(features)


@pytest.mark.sample(3)
@pytest.mark.parametrize("dies", [(12,), (7, 6), (2,), (1, 3, 6, 6)])
@pytest.mark.parametrize("batch_size", [32, 50])
def test_runs_that_are_resumed_several_times_have_the_same_rows(tmp_path, dies, batch_size):
    whole, resumed, _ = ends(tmp_path, InTurn, dies=dies, batch_size=batch_size)
    assert whole == resumed


class Lazy(nn.Module):
    """Sets up a table when it is first called."""

    def __init__(self):
        super().__init__()
        self.linear, self.table = nn.Linear(4, 257), None

    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(257.0)
        return self.linear(x) + self.table


def test_tables_that_a_module_has_set_up_are_restored_before_its_rows(tmp_path):
    whole, resumed, net = ends(tmp_path, lambda: Linked(Lazy()))
    assert whole == resumed
    assert net.history[3, "cache_misses"] == 0


class Scales(Callback):
    """Replaces frozen weights between two epochs."""

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 2:
            with torch.no_grad():
                net.module_.body.linear.weight.mul_(3)


@pytest.mark.sample(3)
@pytest.mark.parametrize("batch", [11, 16])
def test_rows_of_weights_that_were_replaced_are_those_of_the_new_ones(tmp_path, batch):
    scales = ("scales", Scales())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*changed", category=UserWarning)
        whole, resumed, _ = ends(tmp_path, lambda: Linked(Activated()), scales, dies=(batch,))
    assert whole == resumed


class Augmented(torch.utils.data.Dataset):
    """Rows of which some are another at each time."""

    def __init__(self, share=1.0):
        self.share = share

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        is_augmented = i < self.share * len(X)
        return X[i] + is_augmented * torch.rand(4).numpy(), y[i]


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_rows_that_never_come_again_are_not_kept(tmp_path, share):
    params = {"train_split": predefined_split(Dataset(X[:50], y[:50])), "max_epochs": 8, "classes": [0, 1, 2]}
    net = net_of(tmp_path, lambda: Linked(Activated()), **params).fit(Augmented(share), None)
    n_bytes = net.history[:, "cache_bytes"]
    assert n_bytes[3:] == [n_bytes[3]] * 5
    assert (tmp_path / "rows-8.pt").stat().st_size < 2.5 * (tmp_path / "rows-1.pt").stat().st_size
    assert all(net.history[3:, "cache_hits"])


@pytest.mark.sample(3)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_rows_that_never_come_again_leave_a_resumed_run_as_it_is(tmp_path, share):
    params = {"train_split": predefined_split(Dataset(X[:50], y[:50])), "max_epochs": 6, "classes": [0, 1, 2]}
    whole, resumed, _ = ends(tmp_path, lambda: Linked(Activated()), dies=(12,), data=(Augmented(share), None), **params)
    assert whole == resumed


class Watches(Callback):
    """Evaluates other rows after every second epoch."""

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) % 2 == 0:
            net.history.record("watched", float(net.forward(X[::3] + 1).sum()))


def test_rows_that_are_asked_for_now_and_then_stay(tmp_path):
    whole, resumed, _ = ends(tmp_path, lambda: Linked(Activated()), ("watches", Watches()), dies=(12,), max_epochs=6)
    assert whole == resumed


def test_some_rows_at_a_time_are_recalled_as_well(tmp_path):
    sampler = torch.utils.data.RandomSampler(range(len(X)), replacement=True, num_samples=60)
    params = {"iterator_train__sampler": sampler, "iterator_train__shuffle": False, "max_epochs": 7}
    whole, resumed, _ = ends(tmp_path, lambda: Linked(Activated()), dies=(5, 7), **params)
    assert whole == resumed


def on_a_gpu(value):
    """Let a file say that the rows were on a GPU."""
    if isinstance(value, dict):
        return {key: on_a_gpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(on_a_gpu, value))
    return "cuda:99" if value == "cpu" else value


def test_rows_of_a_gpu_are_computed_again_where_there_is_none():
    network = Linked(Activated()).requires_grad_(False)
    parts = cached(network)
    expected = network(ROWS)
    parts.end_epoch()
    packed = on_a_gpu(parts.packed())
    assert "cuda:99" in str(packed)
    again = cached(network)
    again.recall(packed)
    assert torch.equal(network(ROWS), expected)
    assert counts(again) == (0, 12)


def test_rows_of_a_module_that_sets_up_a_table_again_and_again_are_taken():
    network = nn.Sequential(Tabled(set_up), nn.Linear(4, 3)).requires_grad_(False)
    fresh = copy.deepcopy(network)
    parts = cached(network, check=0)
    for i in range(3):
        network.train()(ROWS[4 * i : 4 * i + 4])
    parts.end_epoch()
    again = cached(fresh, check=0)
    again.recall(parts.packed())
    fresh.train()(ROWS[4:8])
    assert counts(again) == (4, 0)
