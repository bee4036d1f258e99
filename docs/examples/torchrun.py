"""Train in several processes, with a DistributedDataParallel of one's own.

Run it by ``torchrun --standalone --nproc_per_node 2 docs/examples/torchrun.py``.
"""

import gc

import torch
from sklearn.datasets import load_iris
from skorch import NeuralNetClassifier
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from mlr3torch_py import MLP, select_all, select_last, t_clbk, torch_callback


class ParallelNet(NeuralNetClassifier):
    def initialize_module(self):
        super().initialize_module()
        self.module_ = DistributedDataParallel(self.module_)
        return self


def train():
    is_main = distributed.get_rank() == 0
    X, y = load_iris(return_X_y=True)
    sampler = DistributedSampler(X)

    def shuffle(self):
        sampler.set_epoch(self.ctx.epoch)

    net = ParallelNet(
        MLP,
        module__d_in=4,
        module__d_out=3,
        module__neurons=(8, 8),
        criterion=nn.CrossEntropyLoss,
        max_epochs=6,
        batch_size=25,
        train_split=None,
        iterator_train__sampler=sampler,
        callbacks=[
            torch_callback("shuffle", on_epoch_begin=shuffle),
            t_clbk(
                "unfreeze",
                starting_weights=select_last(1),
                unfreeze={"epoch": [3, 5], "weights": [select_last(2), select_all()]},
            ),
        ],
        verbose=int(is_main),
    )
    net.fit(X.astype("float32"), y)

    own = torch.cat([tensor.detach().flatten() for tensor in net.module_.parameters()])
    weights = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(weights, own)
    if is_main:
        print("all processes have the same weights:", all(torch.equal(one, own) for one in weights))


def main():
    distributed.init_process_group("gloo")  # "nccl" where each process has a GPU
    train()
    gc.collect()  # frees the wrapper, which nets of skorch hold in cycles, before its process group
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
