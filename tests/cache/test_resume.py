"""Trainings with frozen_cache and checkpoints: rows are kept, so that a resumed run has the same ones."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from mlr3torch_py import select_all, select_prefix, t_clbk
from tests.checkpoint.runs import CrashError, Crashes, checkpoint, final
from tests.helpers import X, iris_net, y

WIDE = {"batch_size": 21, "max_epochs": 5, "iterator_train__shuffle": True}


def wide(*more):
    return nn.Sequential(nn.Linear(4, 300), nn.Tanh(), nn.Linear(300, 257), nn.Tanh(), *more)


class Classifier(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body, self.head = body, nn.Linear(257, 3)

    def forward(self, x):
        return self.head(self.between(self.body(x)))

    def between(self, features):
        return features


class Residual(Classifier):
    """Its forward reads outputs of two modules, between which code of its own stands."""

    def __init__(self, body):
        super().__init__(body)
        self.more = nn.Sequential(nn.Linear(257, 257), nn.ReLU())

    def between(self, features):
        return features + self.more(features * 2)


class Named(nn.Module):
    """Returns a dict of several tensors and a number."""

    def __init__(self):
        super().__init__()
        self.body, self.other = wide(), nn.Linear(4, 257)

    def forward(self, x):
        return {"features": self.body(x), "more": (self.other(x), 2.0)}


class OfDict(Classifier):
    def between(self, features):
        return features["features"] + features["more"][0] * features["more"][1]


class Flat(nn.Module):
    """A ResNet in small, whose parts are frozen one by one."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(1, 7, 3), nn.BatchNorm2d(7), nn.ReLU()
        self.more, self.pool, self.head = nn.Conv2d(7, 13, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(13, 3)

    def forward(self, x):
        x = x.repeat(1, 25).reshape(-1, 1, 10, 10)
        x = self.relu(self.norm(self.conv(x)))
        return self.head(self.pool(self.more(x)).flatten(1))


class Turned(Classifier):
    """Differs from itself by the constants of an operation alone."""

    def between(self, features):
        pairs = features[:, :256].reshape(-1, 16, 16)
        return torch.cat([pairs.transpose(1, 2).flatten(1) + features[:, 1:], features[:, :1]], 1)


class Mixing(nn.Module):
    """Cannot be cached itself, but its children can."""

    def __init__(self):
        super().__init__()
        self.first, self.second = wide(), nn.Linear(257, 257)

    def forward(self, x):
        x = self.first(x)
        return self.second(x - x.mean(0))


NETS = {
    "plain": lambda: Classifier(wide()),
    "own code": lambda: Residual(wide()),
    "a dict": lambda: OfDict(Named()),
    "one by one": Flat,
    "operations": lambda: Turned(wide()),
    "mixing": lambda: Classifier(Mixing()),
}


def net_of(folder, *more, module="plain", freq=1, unfreeze=None, max_bytes=2**30, place=None, **params):
    torch.manual_seed(1)
    return iris_net(
        t_clbk("unfreeze", starting_weights=select_prefix("head"), unfreeze=unfreeze, frozen_mode="eval"),
        t_clbk("frozen_cache", max_bytes=max_bytes, device=place),
        checkpoint(folder, freq, resume=True),
        *more,
        **WIDE | {"module": NETS[module], "audited": False} | params,
    )


def resumed_equals_whole(tmp_path, crash, **params):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="frozen_cache: ", category=UserWarning)
        whole = net_of(tmp_path / "whole", **params).fit(X, y)
        with pytest.raises(CrashError):
            net_of(tmp_path / "kept", Crashes(crash), **params).fit(X, y)
        resumed = net_of(tmp_path / "kept", **params).fit(X, y)
    ends = [without_rows(final(path, net)) for path, net in ((tmp_path / "whole", whole), (tmp_path / "kept", resumed))]
    return ends[0] == ends[1]


def without_rows(end):
    """Leave out the rows themselves, which the weights depend on, and the seconds saved."""
    del end["rows"]
    for row in end["history"]:
        del row["cache_saved"]
    return end


@pytest.mark.sample(4)
@pytest.mark.parametrize("module", NETS)
def test_a_resumed_run_has_the_rows_of_the_one_that_was_stopped(tmp_path, module):
    assert resumed_equals_whole(tmp_path, 3, module=module)


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "params",
    [
        {"max_bytes": 100_000},
        {"place": "cpu"},
        {"freq": 2, "crash": 4},
        {"unfreeze": ("epoch", [3], [select_all()]), "crash": 3},
        {"unfreeze": ("epoch", [4], [select_all()]), "crash": 3},
        {"unfreeze": ("batch", [20], [select_prefix("body.2")]), "crash": 4},
        {"batch_size": 64, "iterator_train__drop_last": True},
    ],
    ids=str,
)
def test_it_has_them_with_events_and_without_room(tmp_path, params):
    unfreeze = params.pop("unfreeze", None)
    if unfreeze:
        by, at, weights = unfreeze
        params["unfreeze"] = {by: at, "weights": weights}
    assert resumed_equals_whole(tmp_path, params.pop("crash", 3), **params)


def test_a_resumed_run_computes_no_row_again(tmp_path):
    net_of(tmp_path, max_epochs=2).fit(X, y)
    net = net_of(tmp_path, max_epochs=3).fit(X, y)
    assert net.history[:, ("cache_hits", "cache_misses")] == [(1, 149), (150, 0), (150, 0)]  # two rows are equal


def test_rows_are_written_again_only_when_some_were_added(tmp_path):
    net = net_of(tmp_path, unfreeze={"epoch": [4], "weights": [select_prefix("body.2")]}).fit(X, y)
    assert [file.name for file in sorted(tmp_path.glob("rows-*.pt"))] == ["rows-1.pt", "rows-4.pt"]
    assert len(net.history) == 5


def test_the_rows_that_kept_checkpoints_need_stay(tmp_path):
    folder = tmp_path / "kept"
    net = net_of(folder, callbacks__checkpoint__keep_last=1)
    net.set_params(max_epochs=4).fit(X, y)
    assert sorted(Path(folder).glob("network*.pt")) == [folder / "network4.pt"]
    assert sorted(Path(folder).glob("rows-*.pt")) == [folder / "rows-1.pt"]
    assert net_of(folder, max_epochs=5).fit(X, y).history[-1, "cache_hits"] == 150


def test_rows_of_another_network_are_not_used(tmp_path):
    """Its weights are those of the checkpoint, but it computes something else."""
    net_of(tmp_path, max_epochs=2).fit(X, y)

    def changed():
        module = Classifier(wide())
        module.body[1] = nn.ReLU()
        return module

    net = net_of(tmp_path, max_epochs=3, module="plain").set_params(module=changed)
    with pytest.warns(UserWarning, match="module"):
        net.fit(X, y)
    assert net.history[-1, "cache_misses"] == 149
