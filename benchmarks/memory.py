"""(f) Memory that torch holds for tensors while a network trains: at most, and at the end.

A deep network is trained with Adam in three ways: with CallbackSetUnfreeze, with flags that are flipped by hand in
skorch, and with everything trainable. In the first two the head trains alone in the first epoch, and everything in the
second. Torch has no statistics of the CPU's allocator, but its profiler records every allocation and every release with
the sum of what is held, to the byte. The profile begins after the network and the data are there, so what is counted
are gradients, the state of the optimizer, activations and temporary tensors; memory inside oneDNN is not seen. The
figures are the most that is held in an epoch, and what is still held when training has ended.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.rounds import row, table
from benchmarks.training import Flips
from mlr3torch_py import MLP, head_first, t_clbk

MB = 1e6
N_BLOCKS = 8
LIMIT = 1
CASES = {
    "epoch 1": "the most while all but the head is frozen",
    "epoch 2": "the most after unfreezing",
    "at the end": "what is held at the end",
}


class Epochs(Callback):
    """Marks the epochs in the profile."""

    def on_epoch_begin(self, net, **kwargs):
        self.mark_ = record_function(f"epoch {len(net.history)}")
        self.mark_.__enter__()

    def on_epoch_end(self, net, **kwargs):
        self.mark_.__exit__(None, None, None)


def head_then_all(epoch):
    return (f"{3 * N_BLOCKS}.",) if epoch == 1 else ("",)


CALLBACKS = {
    "ours": lambda network: [t_clbk("unfreeze", **head_first(network))],
    "flags by hand": lambda _: [Flips(head_then_all)],
    "everything trains": lambda _: [],
}


def prepared(way, width, batch, n_batches):
    """A net and its data; training is all that is still to be done."""
    torch.manual_seed(0)
    network = MLP(d_in=width, d_out=10, neurons=(width,) * N_BLOCKS)
    data = torch.randn(n_batches * batch, width), torch.randint(10, (n_batches * batch,))
    net = NeuralNetClassifier(
        network,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        batch_size=batch,
        max_epochs=2,
        train_split=None,
        verbose=0,
        callbacks=[Epochs(), *CALLBACKS[way](network)],
    )
    return net, data


def held(way, *sizes):
    """Megabytes that tensors hold: the most in each epoch, and at the end."""
    net, data = prepared(way, *sizes)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        net.fit(*data)
    with TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profiled.export_chrome_trace(str(file))
        events = pd.DataFrame(json.loads(file.read_text())["traceEvents"])
    memory = events[events["name"] == "[memory]"].sort_values("ts")
    total, change = (memory["args"].str[key].astype(int) for key in ("Total Allocated", "Bytes"))
    total = (total - (total.iloc[0] - change.iloc[0])) / MB  # without what earlier profiles have left
    figures = {"at the end": total.iloc[-1]}
    for mark in events[events["name"].str.startswith("epoch ")].itertuples():
        figures[mark.name] = total[memory["ts"].between(mark.ts, mark.ts + mark.dur)].max()
    return figures


def measure(width=256, batch=256, n_batches=4):
    megabytes = {way: pd.DataFrame([held(way, width, batch, n_batches)]) for way in CALLBACKS}
    return table(
        row("f", case, way, megabytes["ours"][moment], megabytes[way][moment], LIMIT, "MB")
        for moment, case in CASES.items()
        for way in list(CALLBACKS)[1:]
    )
