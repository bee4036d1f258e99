"""frozen_cache on a GPU: an epoch of ResNet-50, head only, by one command: ``python -m benchmarks.gpu``.

All but the head is frozen with ``frozen_mode="eval"``; images of 224 x 224 come in batches of 64, shuffled, and lie on
the GPU, so that no way is timed for moving them there. Weights are random. The head alone is trained on the features,
which were computed beforehand. Times are those on the wall, from the end of one epoch to the end of the next, each time
after the GPU has finished; the first epoch, which fills the cache, is in the note. It needs torchvision.
"""

import sys
from copy import deepcopy
from functools import partial
from statistics import median
from time import perf_counter

import torch
from skorch.callbacks import Callback
from torch import nn

from benchmarks.__main__ import shown
from benchmarks.cache import trained as on_any_device
from benchmarks.rounds import in_turns, row, table
from mlr3torch_py import select_prefix, t_clbk

BATCH, SIZE, CLASSES = 64, 224, 10
LIMITS = {"plain freezing": 1 / 8, "the head alone": 2}


class Seconds(Callback):
    """Seconds from the end of an epoch to that of the next, when the GPU has done all of it."""

    def on_train_begin(self, net, **kwargs):
        self.seconds_, self.begin_ = [], self.now()

    def on_epoch_end(self, net, **kwargs):
        begin, self.begin_ = self.begin_, self.now()
        self.seconds_.append(self.begin_ - begin)

    def now(self):
        torch.cuda.synchronize()
        return perf_counter()


def trained(module, data, labels, epochs, *callbacks):
    return on_any_device(
        module, data, labels, *callbacks, ("seconds", Seconds()), batch=BATCH, epochs=epochs, device="cuda"
    )


def epochs_of(net):
    return dict(net.callbacks_)["seconds"].seconds_


def features(network, data):
    """What the head is given."""
    body = deepcopy(network).cuda().eval()
    body.fc = nn.Identity()
    with torch.no_grad():
        return torch.cat([body(rows) for rows in data.split(BATCH)])


def measure(n=2048, epochs=5, rounds=3):
    from torchvision.models import resnet50

    torch.manual_seed(0)
    network = resnet50(weights=None, num_classes=CLASSES)
    data = torch.randn(n, 3, SIZE, SIZE, device="cuda")
    labels = torch.randint(CLASSES, (n,), device="cuda")
    ready, filling = features(network, data), []

    def frozen(*callbacks):
        freezing = t_clbk("unfreeze", starting_weights=select_prefix("fc"), frozen_mode="eval")
        return epochs_of(trained(deepcopy(network), data, labels, epochs, freezing, *callbacks))

    def cached(place=None):
        first, *later = frozen(t_clbk("frozen_cache", device=place))
        filling.append(first)
        return median(later)

    ways = {
        "frozen_cache": cached,
        "frozen_cache in host memory": partial(cached, "cpu"),
        "plain freezing": lambda: median(frozen()[1:]),
        "the head alone": lambda: median(epochs_of(trained(deepcopy(network.fc), ready, labels, epochs))[1:]),
    }
    seconds = in_turns(ways, rounds)
    return table(
        [
            row("gpu", f"ResNet-50, {n:,} images, {ours}", other, seconds[ours], seconds[other], limit, "s", note)
            for ours in list(ways)[:2]
            for other, limit in LIMITS.items()
            for note in [f"{seconds[other].median():.3g} s there; {median(filling):.3g} s when it is filled"]
        ]
    )


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("there is no GPU that torch can use")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(shown(measure()).to_string(index=False))
