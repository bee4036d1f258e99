import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from torch import nn
from torch.utils.data import SubsetRandomSampler, WeightedRandomSampler

from mlr3torch_py import t_clbk
from mlr3torch_py.checkpoint.objects import different_objects, objects_of
from tests.checkpoint.runs import checkpoint, reseal, run
from tests.helpers import X, iris_net, y


def net_of(**params):
    return iris_net(audited=False, **{"module": nn.Linear(4, 3)} | params)


def sequential(activation=nn.ReLU, p=0.1):
    return nn.Sequential(nn.Linear(4, 3), activation(), nn.Dropout(p))


def power(base, exponent_of=lambda epoch: epoch):
    return lambda epoch: base ** exponent_of(epoch)


def rates(function):
    return iris_net(t_clbk("lr_lambda", lr_lambda=function))


class Tempered(NeuralNetClassifier):
    def __init__(self, *args, tau=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.tau = tau
        self.n_losses = 0

    def get_loss(self, *args, **kwargs):
        self.n_losses += 1  # which skorch takes for a parameter
        return super().get_loss(*args, **kwargs)


def sampled(weights):
    return net_of(iterator_train__sampler=WeightedRandomSampler(weights, 150))


RATES = "callbacks__lr_lambda__lr_lambda"
OTHER = {
    "a class of module": (net_of(module=sequential()), net_of(module=sequential(nn.Tanh)), r"module.1 \(Tanh here, R"),
    "one module more": (net_of(module=sequential()), net_of(module=sequential()[:2]), r"module.2 \(nothing here, Dro"),
    "its argument": (net_of(module=sequential()), net_of(module=sequential(p=0.9)), r"module.2.p \(0.9 here, 0.1 th"),
    "a factory": (net_of(module=lambda: sequential()), net_of(module=lambda: sequential(p=1)), "module .*other code"),
    "a criterion": (
        net_of(criterion=nn.CrossEntropyLoss()),
        net_of(criterion=nn.CrossEntropyLoss(label_smoothing=0.5)),
        r"criterion.label_smoothing \(0.5 here, 0.0 there\)",
    ),
    "a constant": (rates(lambda e: 0.9**e), rates(lambda e: 0.1**e), f"{RATES} .*other code"),
    "a name": (rates(lambda e: np.sin(e)), rates(lambda e: np.cos(e)), f"{RATES} .*other code"),
    "a variable": (rates(power(0.9)), rates(power(0.1)), rf"{RATES}.base \(0.1 here, 0.9 there\)"),
    "a default": (rates(lambda e, b=0.9: b**e), rates(lambda e, b=0.1: b**e), rf"{RATES}.b \(0.1 here"),
    "an inner function": (rates(power(2)), rates(power(2, lambda e: -e)), f"{RATES}.exponent_of .*other code"),
    "in a list": (rates([lambda e: e]), rates([lambda e: -e]), f"{RATES}.0 .*other code"),
    "in a partial": (
        net_of(iterator_train__collate_fn=partial(power(1), 1)),
        net_of(iterator_train__collate_fn=partial(power(2), 1)),
        r"iterator_train__collate_fn.func.base \(2 here",
    ),
    "a sampler": (sampled([1.0] * 150), sampled([1.0] * 149 + [2.0]), r"iterator_train__sampler.weights \(.tensor"),
    "long lists": (
        net_of(iterator_train__sampler=SubsetRandomSampler(list(range(150)))),
        net_of(iterator_train__sampler=SubsetRandomSampler(list(range(149)))),
        r"iterator_train__sampler.indices \(.hash",
    ),
    "a net of one's own": (net_of(cls=Tempered), net_of(cls=Tempered, tau=2.0), r"tau \(2.0 here, 1.0 there\)"),
}


@pytest.mark.parametrize("one", OTHER)
def test_other_objects_are_told_apart(one):
    before, now, message = OTHER[one]
    described = [objects_of(net.initialize()) for net in (before, now)]
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(*different_objects(*described))
    assert not different_objects(described[0], described[0])


class Counting(nn.Module):
    """Changes attributes that are no arguments."""

    def __init__(self, width):
        super().__init__()
        self.lazy = nn.LazyLinear(3)
        self.n = 0

    def forward(self, x):
        self.n += 1
        return self.lazy(x)


def trained_with(folder, module, function):
    """Return a net with a new object of each kind."""
    sampler = WeightedRandomSampler([1.0] * 150, 150, generator=torch.Generator().manual_seed(1))
    return iris_net(
        t_clbk("frozen_cache"),
        t_clbk("lr_lambda", lr_lambda=function),
        checkpoint(folder, resume=True),
        module=module,
        criterion=nn.CrossEntropyLoss(),
        iterator_train__sampler=sampler,
        cls=Tempered,
        audited=False,
        max_epochs=2,
    )


def test_the_same_objects_at_other_lines_and_addresses_are_no_other_settings(tmp_path):
    module = Counting(4)  # which a second training in the same process finds as the first one has left it
    for lines in (0, 7):
        function = eval(compile("\n" * lines + "lambda e: 0.9 ** e", f"file{lines}.py", "eval"))
        net = trained_with(tmp_path, module, function)
        assert len(net.fit(X, y).history) == 2
    assert len(net.fit(X, y).history) == 2


DESCRIBED = """
from tests.checkpoint.test_objects import rates, objects_of
print(objects_of(rates(lambda e: e in {"a", "b", "c", "d"}).initialize()))
"""


@pytest.mark.slow
def test_the_same_objects_are_described_the_same_in_any_process():
    said = {subprocess.check_output([sys.executable, "-c", DESCRIBED], env={"PYTHONHASHSEED": n}) for n in ("1", "2")}
    assert len(said) == 1


class Learns(Callback):
    def __init__(self, writer):
        self.writer = writer


class Writer:
    def __init__(self, folder):
        self.folder = folder


def test_where_a_callback_writes_is_no_setting(tmp_path):
    for folder in ("a", "b"):
        net = run(tmp_path, 1, Learns(Writer(folder)), resume=True)
    assert len(net.history) == 1  # that of the first run, which is finished


def test_a_checkpoint_of_an_older_version_says_nothing_of_objects(tmp_path):
    run(tmp_path, 1, module=sequential(), resume=True)
    reseal(tmp_path / "state1.json", lambda state: state.pop("described"))
    assert len(run(tmp_path, 2, module=sequential(p=0.2), resume=True).history) == 2
