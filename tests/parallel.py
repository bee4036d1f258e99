"""Trainings in two processes of one machine that share their batches by gloo."""

import multiprocessing
import os
import pickle
import tempfile
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from skorch.hf import AccelerateMixin
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from mlr3torch_py import MLP
from mlr3torch_py.network.unwrap import named_parameters
from tests.helpers import X, iris_net

N_RANKS = 2


class SeededMLP(MLP):
    """Starts from the same weights in every process."""

    def __init__(self, seed=0, **params):
        torch.manual_seed(seed)
        super().__init__(4, 3, **{"neurons": (3, 3), "p": 0.0} | params)


class ParallelNet(NeuralNetClassifier):
    """A user's own net: it wraps its module when that is made."""

    def __init__(self, *args, wrapping=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.wrapping = wrapping

    def initialize_module(self):
        super().initialize_module()
        self.module_ = DistributedDataParallel(self.module_, **self.wrapping or {})
        return self


class Accumulating:
    """Takes a step after every second batch, for which the gradients of both are added up."""

    def train_step(self, batch, **fit_params):
        is_second = len(self.history[-1, "batches"]) % 2 == 0
        with nullcontext() if is_second or not hasattr(self.module_, "no_sync") else self.module_.no_sync():
            step = self.train_step_single(batch, **fit_params)
        if is_second:
            self.optimizer_.step()
            self.optimizer_.zero_grad()
        return step


class AccumulatingNet(Accumulating, NeuralNetClassifier):
    pass


class AccumulatingParallelNet(Accumulating, ParallelNet):
    pass


class AcceleratedNet(AccelerateMixin, NeuralNetClassifier):
    pass


def cross_entropy():
    """A criterion that is no module, which accelerate can leave as it is."""
    return nn.functional.cross_entropy


class ScaledCrossEntropy(nn.Module):
    """A criterion with a weight of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, y_pred, y_true):
        return nn.functional.cross_entropy(self.scale * y_pred, y_true)


class Weights(Callback):
    """Keeps the weights before the first epoch and after each."""

    def __init__(self):
        self.epochs_ = []

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.on_epoch_end(net)

    def on_epoch_end(self, net, **kwargs):
        tensors = named_parameters(net.module_).items()
        self.epochs_.append({name: tensor.detach().clone() for name, tensor in tensors})


def global_net(*callbacks, **params):
    """One process, which sees batches of 48."""
    return iris_net(*callbacks, module=params.pop("module", SeededMLP), **{"batch_size": 48} | params)


def own_net(*callbacks, **params):
    """Each process sees its half of the same batches of 48."""
    sampler = DistributedSampler(X[:144], num_replicas=N_RANKS, rank=distributed.get_rank(), shuffle=False)
    return global_net(*callbacks, **{"cls": ParallelNet, "batch_size": 24, "iterator_train__sampler": sampler} | params)


def accelerated_net(*callbacks, accumulate=1, handlers=(), **params):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate, kwargs_handlers=list(handlers))
    return global_net(
        *callbacks,
        **{"cls": AcceleratedNet, "batch_size": 24, "criterion": cross_entropy, "accelerator": accelerator} | params,
    )


def _rank(rank, n_ranks, folder, task, arguments):
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "OMP_NUM_THREADS/MKL_NUM_THREADS unset")  # accelerate 0.30 says so of set ones
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    if n_ranks > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(n_ranks),
            "MASTER_ADDR": "localhost",
        }
        distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=n_ranks)
    result = task(*arguments)
    (folder / f"{rank}").write_bytes(pickle.dumps(result))
    if n_ranks > 1:
        distributed.barrier()
        distributed.destroy_process_group()


def in_processes(path, task, *arguments, n_ranks=N_RANKS):
    """Call a function in new processes that form a group, and return what each returned."""
    folder = Path(tempfile.mkdtemp(dir=path))
    context = multiprocessing.get_context("forkserver")
    ranks = [context.Process(target=_rank, args=(rank, n_ranks, folder, task, arguments)) for rank in range(n_ranks)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in ranks] == [0] * n_ranks
    return [pickle.loads((folder / f"{rank}").read_bytes()) for rank in range(n_ranks)]
