"""A folder belongs to one run, whose calls can be replayed, and whose settings are compared."""

import random
import shutil
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from skorch.callbacks import Callback, InputShapeSetter
from skorch.dataset import Dataset, ValidSplit
from torch import nn

from mlr3torch_py import t_clbk
from mlr3torch_py.checkpoint.folder import CheckpointFolder
from mlr3torch_py.checkpoint.settings import as_data
from mlr3torch_py.network.randomness import generators, random_states
from tests.checkpoint.runs import CrashError, Crashes, checkpoint, files, run
from tests.helpers import Stops, X, iris_net, moved, weights, y

SPLIT = {"train_split": ValidSplit(0.2), "iterator_train__shuffle": True}


def seed(n=1):
    torch.manual_seed(n)
    np.random.seed(n)
    random.seed(n)


def linear(path, *more, **params):
    return run(path, params.pop("epochs", 2), *more, resume=True, module=nn.Linear(4, 3), **params)


# The end is the end


def test_a_finished_run_leaves_the_generators_as_its_end_had_them(tmp_path):
    seed()
    run(tmp_path, 2, resume=True, **SPLIT)
    before = random_states(generators())
    seed(2)
    run(tmp_path, 2, resume=True, **SPLIT)
    assert random_states(generators()) == before


def fit_and_partial_fit(folder, *more):
    seed()
    net = iris_net(checkpoint(folder, resume=True), *more, max_epochs=2, module__p=0.3, **SPLIT)
    return net.fit(X, y).partial_fit(X, y).partial_fit(X, y)


def two_nets(folder, *more):
    seed()
    for name in ("a", "b"):
        net = iris_net(checkpoint(folder / name, resume=True), *more, max_epochs=3, module__p=0.3, **SPLIT).fit(X, y)
    return net


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "at"), [(fit_and_partial_fit, n) for n in range(1, 18, 2)] + [(two_nets, 3), (two_nets, 8)]
)
def test_a_script_that_was_stopped_anywhere_and_started_again_ends_the_same(script, at, tmp_path):
    whole = script(tmp_path / "whole")
    with pytest.raises(CrashError):
        script(tmp_path / "kept", Stops(CrashError, at))
    again = script(tmp_path / "kept")
    assert not moved(weights(whole), weights(again))
    assert len(whole.history) == len(again.history)


# One run


def copied(tmp_path, pattern, epochs=2):
    """Copy some files of one run into the folder of another."""
    for name in ("a", "b"):
        seed()
        linear(tmp_path / name, epochs=epochs)
    for path in (tmp_path / "b").glob(pattern):
        shutil.copy(path, tmp_path / "a")
    return tmp_path / "a"


@pytest.mark.parametrize("pattern", ["run.json", "*2.*", "state2.json"])
def test_files_of_another_run_are_refused_by_name(pattern, tmp_path):
    folder = copied(tmp_path, pattern)
    with pytest.raises(ValueError, match="state2.json is of another run than .*run.json; restore|has changed since"):
        linear(folder, epochs=3)


def test_files_of_another_epoch_are_refused_by_name(tmp_path):
    linear(tmp_path, epochs=2)
    for path in tmp_path.glob("*1.*"):
        path.unlink()
    (tmp_path / "state2.json").rename(tmp_path / "state3.json")
    with pytest.raises(ValueError, match="state3.json is of epoch 2, so it was renamed"):
        linear(tmp_path, epochs=4)


def test_other_dtypes_are_refused(tmp_path):
    linear(tmp_path)
    with pytest.raises(ValueError, match=r"dtype of module.weight \(float64 here, float32 there\)"):
        run(tmp_path, 3, resume=True, module=nn.Linear(4, 3).double())


@pytest.mark.parametrize(
    "of", [lambda y: Dataset(X, y), lambda y: torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(y))]
)
def test_other_targets_in_a_dataset_are_refused(of, tmp_path):
    def net(epochs):
        return iris_net(checkpoint(tmp_path, resume=True), max_epochs=epochs, batch_size=50)

    net(1).fit(of(y), None)
    assert len(net(2).fit(of(y), None).history) == 2
    with pytest.raises(ValueError, match="was started with other data"):
        net(3).fit(of(2 - y), None)


@pytest.mark.parametrize("other", [ValidSplit(0.2, random_state=1), ValidSplit(3), None])
def test_other_rows_for_validation_are_refused(other, tmp_path):
    first = ValidSplit(0.2, random_state=0)
    run(tmp_path, 1, resume=True, train_split=first)
    assert len(run(tmp_path, 2, resume=True, train_split=first).history) == 2
    with pytest.raises(ValueError, match="`train_split`: the run was started with other rows for validation"):
        run(tmp_path, 3, resume=True, train_split=other)


OTHER = {
    "lr": {"lr": 0.5},
    "batch_size": {"batch_size": 75},
    "optimizer__momentum": {"optimizer__momentum": 0.9},
    "criterion__label_smoothing": {"criterion__label_smoothing": 0.1},
    "iterator_train__shuffle": {"iterator_train__shuffle": True},
    "module__p": {"module__p": 0.1},
    "callbacks__early_stopping__patience": {"callbacks__early_stopping__patience": 77},
}


def with_stopping(path, epochs, **params):
    stopping = t_clbk("early_stopping", patience=50, monitor="train_loss")
    net = iris_net(checkpoint(path, resume=True), stopping, max_epochs=epochs, batch_size=150)
    return net.set_params(**params).fit(X, y)


class Tagged(Callback):
    def __init__(self, tags):
        self.tags = tags


def test_equal_settings_are_equal_in_any_process():
    """NaN equals nothing, and the order of a set differs from process to process."""
    table = pd.DataFrame({"epoch": [2, 3], "lr_mult": [0.1, float("nan")]})
    assert as_data(table) == as_data(table.copy())
    assert as_data({"d", "a", "c"}) == as_data({"c", "d", "a"}) != as_data({"a"})


@dataclass
class Config:
    names: object


@pytest.mark.parametrize(
    "wrap", [Config, lambda one: Config({"a": [one]}), lambda one: Config({frozenset(one)}), lambda one: [Config(one)]]
)
def test_a_set_inside_an_object_has_no_order(wrap):
    """LoraConfig of peft holds one. 0 and 8 fall into one slot, so they stand in the order in which they came."""
    assert repr(wrap({0, 8})) != repr(wrap({8, 0}))
    assert as_data(wrap({0, 8})) == as_data(wrap({8, 0})) != as_data(wrap({0, 9}))


@pytest.mark.parametrize("value", [torch.Tensor.relu, (one for one in "a")])
def test_a_function_without_a_module_can_be_a_setting(value):
    assert not hasattr(value, "__module__")
    assert as_data(value).endswith(value.__qualname__)


def test_a_finished_run_with_nan_in_a_setting_can_be_started_again(tmp_path):
    for _ in range(2):
        net = run(tmp_path, 2, Tagged([0.1, float("nan")]), resume=True)
    assert len(net.history) == 2


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", OTHER)
def test_other_settings_are_one_warning_while_something_is_left_to_train_and_an_error_otherwise(name, tmp_path):
    with_stopping(tmp_path, 1)
    with pytest.raises(ValueError, match=f"the run is finished, but had other settings: {name} "):
        with_stopping(tmp_path, 1, **OTHER[name])
    with pytest.warns(UserWarning, match=f"the run is resumed with other settings: {name} ") as caught:
        with_stopping(tmp_path, 2, **OTHER[name])
    assert len(caught) == 1
    assert ("there, which stays)" in str(caught[0].message)) is (name == "lr" or name.startswith("optimizer__"))


def test_callbacks_that_come_and_go_max_epochs_and_the_checkpoint_itself_make_no_error(tmp_path):
    run(tmp_path, 2, ("crashes", Crashes(9)))
    for params in ({}, {"verbose": 1}):
        net = iris_net(
            checkpoint(tmp_path, 7, resume=True), ("other", Crashes(9)), max_epochs=2, batch_size=150, **params
        )
        assert len(net.fit(X, y).history) == 2


# Order


class Sets(Callback):
    def __init__(self, **params):
        self.params = params

    def get_params(self, deep=True):
        return {}

    def on_train_begin(self, net, **kwargs):
        net.set_params(**self.params)


class Shaped(nn.Module):
    def __init__(self, input_dim=7):
        super().__init__()
        self.linear = nn.Linear(input_dim, 3)

    def forward(self, x):
        return self.linear(x)


ORDERS = {
    "a shape setter": ([InputShapeSetter()], {"module": Shaped}),
    "set_params": ([Sets(module__input_dim=4)], {"module": Shaped}),
    "weights of classes": ([Sets(criterion__weight=torch.tensor([0.2, 0.3, 0.5]))], {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("comes_first", [False, True])
def test_what_was_loaded_stays_whatever_others_do_when_they_begin(order, comes_first, tmp_path):
    others, params = ORDERS[order]

    def net_of(folder, *more):
        kept = [checkpoint(tmp_path / folder, resume=True)]
        seed()
        callbacks = [*kept, *others] if comes_first else [*others, *kept]
        return iris_net(*callbacks, *more, audited=False, optimizer=torch.optim.Adam, **params)

    whole = net_of("whole").fit(X, y)
    with pytest.raises(CrashError):
        net_of("kept", Crashes(3)).fit(X, y)
    again = net_of("kept").fit(X, y)
    assert not moved(weights(whole), weights(again))


def test_a_shared_callback_writes_into_the_folder_of_the_net_that_trains(tmp_path):
    made = []

    def folder():
        made.append(tmp_path / str(len(made)))
        return made[-1]

    shared = checkpoint(folder)
    a, b = (iris_net(shared, max_epochs=1) for _ in range(2))
    a.fit(X, y)
    b.fit(X, y)
    a.partial_fit(X, y)
    assert "network2.pt" not in files(made[1])
    assert CheckpointFolder(made[2]).newest() == 2


def test_a_net_whose_module_has_another_name_is_kept(tmp_path):
    class Named(type(iris_net())):
        def initialize_module(self):
            self.encoder_ = nn.Linear(4, 3)
            return self

        def infer(self, x, **fit_params):
            return self.encoder_(x)

    def train(epochs):
        clbks = [t_clbk("history"), checkpoint(tmp_path, resume=True)]
        return Named(
            nn.Linear, criterion=nn.CrossEntropyLoss, verbose=0, train_split=None, max_epochs=epochs, callbacks=clbks
        ).fit(X, y)

    first = train(1).encoder_.weight.detach().clone()
    assert torch.equal(train(1).encoder_.weight, first)
    assert len(train(2).history) == 2
