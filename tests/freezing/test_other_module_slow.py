"""Several governed modules in processes that share batches, and compiled."""

import os
import warnings

import pytest
import torch
from accelerate import Accelerator
from skorch.hf import AccelerateMixin
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from mlr3torch_py import (
    CallbackSetUnfreeze,
    select_all,
    select_last,
    select_name,
    select_none,
    select_prefix,
    t_clbk,
)
from mlr3torch_py.network.unwrap import bare
from tests.freezing.turns import (
    ALL,
    REAL,
    Pair,
    bits,
    gan,
    same,
)
from tests.parallel import in_processes


class ParallelPair(Pair):
    def initialize_module(self):
        super().initialize_module()
        self.module_ = DistributedDataParallel(self.module_)
        self.decoder_ = DistributedDataParallel(self.decoder_)
        return self


class AcceleratedPair(AccelerateMixin, Pair):
    pass


def mean_squares():
    """A criterion that is no module, which accelerate can leave as it is."""
    return nn.functional.mse_loss


def share(cls, per_batch):
    rows = {"epoch": [3], "weights": [select_prefix("0")]}
    callbacks = [
        ("encoder", CallbackSetUnfreeze(select_last(1), {"batch": [4], "weights": [select_all()]})),
        ("decoder", CallbackSetUnfreeze(select_last(1), rows, module="decoder")),
        t_clbk("freeze_audit"),
    ]
    params = {"batch_size": per_batch, "criterion": mean_squares}
    if cls is ParallelPair:
        params["iterator_train__sampler"] = DistributedSampler(REAL, shuffle=False)
    if cls is AcceleratedPair:
        params["accelerator"] = Accelerator(cpu=True)
    net = gan(*callbacks, cls=cls, **params).initialize()
    bare(net.decoder_)[1].p = 0.0  # dropout draws other numbers in each process
    net.partial_fit(REAL, REAL)
    return [bits(bare(net.module_), bare(net.decoder_)), net.history[:, ("n_trainable", "n_trainable_decoder")]]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX, to start processes by a forkserver")
@pytest.mark.parametrize("cls", [ParallelPair, AcceleratedPair])
def test_processes_that_share_batches_agree_on_both_modules(tmp_path, cls):
    weights, trainable = share(Pair, 20)
    ours, theirs = in_processes(tmp_path, share, cls, 10)
    assert same(ours[0], theirs[0])
    assert ours[1] == theirs[1] == trainable == [(5, 20), (25, 20), (25, 32), (25, 32)]
    assert all(map(torch.allclose, ours[0], weights))


class Chain(nn.Sequential):
    """A class whose `forward` is not torch's own."""

    def forward(self, x):
        for one in self:
            x = one(x)
        return x


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.skipif(torch.__version__ < "2.12", reason="this torch does not follow a schedule")
@pytest.mark.parametrize(
    ("kind", "n_encoder", "n_decoder", "message"),
    [
        (nn.Sequential, 4, 3, None),
        (nn.Sequential, 4, 4, "8 sets of trainable weights in training need 9 compilations"),
        (Chain, 4, 4, None),
        (Chain, 5, 4, "9 sets of trainable weights in training need 9 compilations"),
    ],
)
def test_the_compilations_of_modules_that_torch_counts_together_are_warned_of_once(
    kind, n_encoder, n_decoder, message, caplog
):
    class Compiled(Pair):
        def initialize_module(self):
            super().initialize_module()
            self.module_ = kind(*self.module_[:2], nn.Linear(4, 2))
            self.decoder_ = kind(self.decoder_[0], nn.ReLU(), self.decoder_[2])
            return self

        def infer(self, x, **fit_params):
            return self.decoder_(self.module_(x))

    def schedule(n_patterns, module):
        rows = {"epoch": [*range(2, n_patterns + 1)], "weights": list(map(select_name, ALL[: n_patterns - 1]))}
        start = select_none() if n_patterns > 4 else select_name("2.bias")
        return CallbackSetUnfreeze(start, rows, module=module)

    torch._dynamo.reset()
    callbacks = [("encoder", schedule(n_encoder, "module")), ("decoder", schedule(n_decoder, "decoder"))]
    net = gan(*callbacks, cls=Compiled, compile=True, compile__backend="eager", max_epochs=5)
    with caplog.at_level("WARNING", logger="torch._dynamo"), warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message="torch.compile: ")
        net.fit(REAL, REAL)
    torch._dynamo.reset()
    ours = [str(one.message) for one in caught if "torch.compile: " in str(one.message)]
    assert ("recompile_limit" in caplog.text) == (message is not None)
    assert [message in one for one in ours] == [True] * (message is not None)
