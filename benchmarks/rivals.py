"""(d) The same job with the freezing callbacks of others: skorch, Lightning, finetuning-scheduler and Lighter.

The network, the images, their order and the optimizer are those of (c). The head trains alone in the first epoch, and
one more block in each further one; where a rival can unfreeze only once, all blocks follow in the second epoch, with
ours too. The frameworks run without loggers, progress bars, checkpoints and validation. Two things are compared:

- the whole training, in CPU time, with ours in skorch, and with the rival in its framework;
- the callback's hook time, which is the time inside its hooks, taken in the same trainings. For ours that includes all
  that the package brings into the net.

A third row compares the rival's whole with flags that are flipped by hand in the same framework. The note says whether
what should be frozen kept its bits in every epoch, and whether the weights at the end are bit for bit ours.
"""

import logging
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version
from itertools import chain, pairwise
from operator import itemgetter
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import skorch.callbacks
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.rounds import Stopwatch, in_turns, row, table
from benchmarks.training import BATCH, PARTS, RATE, Flips, by_skorch, cpu_seconds, flip, images, network, one_by_one
from mlr3torch_py import CallbackSetUnfreeze, select_prefix
from mlr3torch_py.training.run import _First, _Last

JOBS = {1: 256, 16: 128}  # images by the depth of the network
NORMS = tuple(name for name, layer in network(max(JOBS)).named_modules() if isinstance(layer, nn.BatchNorm2d))


class Way(NamedTuple):
    """A way to do the job: who trains, with which callbacks, and whose hooks are timed."""

    name: str
    parts_of: Callable[[int], tuple[str, ...]]
    train: Callable[..., None]
    callbacks: Callable[[nn.Module], list[Any]]
    owners: tuple[type, ...] = ()
    base: type = object

    def run(self, module, data):
        self.train(module, data, *self.callbacks(module))


def at_once(epoch):
    return PARTS[:1] if epoch == 1 else PARTS


def at_once_but_norms(epoch):
    return (*PARTS[:1], *(f"{name}." for name in NORMS)) if epoch == 1 else PARTS


def ours(parts_of):
    def callbacks(_):
        rest = PARTS[1:] if parts_of is one_by_one else [PARTS[1:]]
        later = [select_prefix(*np.atleast_1d(part)) for part in rest]
        table = pd.DataFrame({"epoch": range(2, 2 + len(rest)), "weights": later})
        return [CallbackSetUnfreeze(select_prefix(PARTS[0]), table)]

    owners = CallbackSetUnfreeze, _First, _Last
    return Way(f"ours, {parts_of.__name__}", parts_of, by_skorch, callbacks, owners, skorch.callbacks.Callback)


def of_skorch():
    def callbacks(_):
        unfreezers = (skorch.callbacks.Unfreezer(f"{part}.*", at=i) for i, part in enumerate(PARTS[1:], start=2))
        return [skorch.callbacks.Freezer("blocks.*"), *unfreezers]

    owners = (skorch.callbacks.ParamMapper,)
    yield Way("skorch's Freezer and Unfreezer", one_by_one, by_skorch, callbacks, owners, skorch.callbacks.Callback)
    yield Way("flags by hand in skorch", one_by_one, by_skorch, lambda _: [Flips(one_by_one)])


def of_lightning():
    import lightning.pytorch as pl

    def callbacks(_):
        same_rate = {"backbone_initial_lr": RATE, "lambda_func": lambda _: 1.0}
        return [pl.callbacks.BackboneFinetuning(unfreeze_backbone_at_epoch=1, **same_rate)]

    train, flips = by_lightning(pl, head_only=True), flips_of(pl)
    owners = (pl.callbacks.BackboneFinetuning,)
    yield Way("Lightning's BackboneFinetuning", at_once, train, callbacks, owners, pl.Callback)
    yield Way("the same flags by hand in Lightning", at_once, by_lightning(pl), lambda _: [flips(at_once_but_norms)])


def of_finetuning_scheduler():
    import lightning.pytorch as pl
    from finetuning_scheduler import FinetuningScheduler

    folder = TemporaryDirectory()  # it writes the schedule down

    def callbacks(_):
        phases = {
            i: {"params": [f"network.{part}.*"], "max_transition_epoch": i + 1, "lr": RATE}
            for i, part in enumerate(PARTS)
        }
        lean = {"restore_best": False, "epoch_transitions_only": True, "logging_level": logging.ERROR}
        return [FinetuningScheduler(phases, base_max_lr=RATE, log_dir=folder.name, **lean)]

    train, flips = by_lightning(pl), flips_of(pl)
    yield Way("finetuning-scheduler", one_by_one, train, callbacks, (FinetuningScheduler,), pl.Callback)
    yield Way("flags by hand in Lightning", one_by_one, train, lambda _: [flips(one_by_one)])


def of_lighter():
    import pytorch_lightning as pl
    from lighter.callbacks import Freezer
    from loguru import logger

    logger.remove()
    train, flips = by_lightning(pl), flips_of(pl)

    def callbacks(_):
        return [Freezer(name_starts_with="network.blocks", until_epoch=1)]

    yield Way("Lighter's Freezer", at_once, train, callbacks, (Freezer,), pl.Callback)
    yield Way("flags by hand beside Lighter", at_once, train, lambda _: [flips(at_once)])


RIVALS = {
    "skorch": of_skorch,
    "lightning": of_lightning,
    "finetuning-scheduler": of_finetuning_scheduler,
    "lighter": of_lighter,
}


def by_lightning(pl, head_only=False):
    """Train in a flavour of Lightning, which is installed under two names."""

    class Training(pl.LightningModule):
        def __init__(self, network):
            super().__init__()
            self.network, self.backbone, self.criterion = network, network.blocks, nn.CrossEntropyLoss()

        def training_step(self, batch, _):
            return self.criterion(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD((self.network.head if head_only else self.network).parameters(), lr=RATE)

    def train(module, data, *callbacks):
        trainer = pl.Trainer(
            accelerator="cpu", devices=1, max_epochs=len(PARTS), barebones=True, callbacks=list(callbacks)
        )
        trainer.fit(Training(module), DataLoader(TensorDataset(*data), BATCH))

    return train


def flips_of(pl):
    class FlipsOfLightning(pl.Callback):
        def __init__(self, parts_of):
            self.parts_of = parts_of

        def on_train_epoch_start(self, trainer, pl_module):
            flip(pl_module.network, self.parts_of(trainer.current_epoch + 1))

    return FlipsOfLightning


def whole_and_own(way, data, depth):
    """CPU seconds of a training, and milliseconds in the hooks of the callback."""
    with Stopwatch(hooks_of(way.owners, way.base)).running() as watch:
        return cpu_seconds(way.run, data, depth), watch.seconds * 1e3


def hooks_of(owners, base):
    """The hooks that classes have beyond a base."""
    names = [name for name in dir(base) if name.startswith("on_") or name in ("setup", "teardown")]
    return [(owner, name) for owner in owners for name in names if getattr(owner, name) is not getattr(base, name)]


def weights_by_epoch(way, data, depth):
    """Return the weights before the first epoch and after each."""
    module, seen = network(depth), []

    def copied():
        return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}

    module.register_forward_pre_hook(lambda *_: seen.append(copied()))
    way.run(module, data)
    return [*seen[:: len(seen) // len(PARTS)], copied()]


def noted(way, own, data, depth):
    """What came out: whether frozen weights kept their bits, and whether all weights are those that ours ends with."""
    weights, expected = weights_by_epoch(way, data, depth), weights_by_epoch(own, data, depth)[-1]
    moved = {
        name
        for epoch, (before, after) in enumerate(pairwise(weights), start=1)
        for name in before
        if not name.startswith(way.parts_of(epoch)) and not torch.equal(before[name], after[name])
    }
    kept = f"frozen weights moved: {', '.join(sorted(moved))}" if moved else "frozen weights kept"
    same = all(torch.equal(weights[-1][name], tensor) for name, tensor in expected.items())
    return f"{kept}; ends with {'the same' if same else 'other'} weights"


def installed():
    """The rivals that can be imported, as pairs of ways: the rival and flags by hand in its framework."""
    for package, of_package in RIVALS.items():
        try:
            yield package, tuple(of_package())
        except ImportError:
            print(
                f"(d) leaves out {package}, which is not installed: pip install '.[rival-{package}]'", file=sys.stderr
            )


def mend_torchvision():
    """Let torchvision, which Lighter imports and does not use here, be imported beside a CPU build of torch.

    Its wheels on PyPI go with another build, and there lack the operators that they want to describe.
    """
    try:
        import_module("torchvision")
    except ImportError:
        pass
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", schema)


def measure(jobs=JOBS, rounds=11):
    mend_torchvision()
    rivals = dict(installed())
    for framework in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(framework).setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        return table(chain(*(rows_of(rivals, images(n), depth, rounds) for depth, n in jobs.items())))


def rows_of(rivals, data, depth, rounds):
    own = {parts_of: ours(parts_of) for parts_of in (one_by_one, at_once)}
    ways = [*own.values(), *chain(*rivals.values())]
    both = in_turns({way.name: partial(whole_and_own, way, data, depth) for way in ways}, rounds)
    whole, part = both.map(itemgetter(0)), both.map(itemgetter(1))
    size = f"{len(list(network(depth).parameters()))} tensors"
    for package, (rival, hand) in rivals.items():
        mine, name = own[rival.parts_of], f"{rival.name} {version(package)}"
        note = noted(rival, mine, data, depth)
        yield row("d", f"whole training, {size}", name, whole[mine.name], whole[rival.name], 1, "s", note)
        yield row("d", f"hook time, {size}", name, part[mine.name], part[rival.name], 1, "ms")
        yield row("d", f"{rival.name}, {size}", hand.name, whole[rival.name], whole[hand.name], unit="s")
