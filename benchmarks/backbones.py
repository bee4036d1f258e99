"""(i) frozen_cache on networks that people fine-tune, head only, as they come from torchvision, timm and transformers.

Weights are random, all but the head is frozen with ``frozen_mode="eval"``, and rows are shuffled. What is compared is
CPU seconds of an epoch, the best of several after the first: against plain freezing; and against three epochs of the
head alone, on features that were computed beforehand, and hashing the input once. The first epoch, which fills the
cache, is compared with a plain one, and the bytes that the cache takes with those of the features. What is checked when
an epoch begins, and at times during one, is left out, and its share of a plain epoch is said.
"""

from copy import deepcopy
from importlib.util import find_spec
from math import nan
from time import process_time

import numpy as np
import pandas as pd
import torch
from xxhash import xxh3_128_digest

from benchmarks.cache import Bert, Seconds, trained
from benchmarks.rounds import Stopwatch, row, table
from mlr3torch_py import select_prefix, t_clbk
from mlr3torch_py.cache.parts import CachedParts
from mlr3torch_py.cache.passes.answer import Answer

BATCH, CLASSES = 16, 10
LIMITS = {"3 heads and hashing": 1, "plain, when it is filled": 1.5, "the features, in bytes": 1.2}


def of_torchvision(name, **params):
    import torchvision.models

    return getattr(torchvision.models, name)(weights=None, num_classes=CLASSES, **params)


def of_timm(name, **params):
    import timm

    return timm.create_model(name, pretrained=False, num_classes=CLASSES, **params)


def images(n, size=96):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0)).numpy()


def texts(n):
    return torch.randint(1000, (n, 32), generator=torch.Generator().manual_seed(0)).numpy()


# Where they come from, how they are made, the head, and the rows.
NETWORKS = {
    "ResNet-18": ("torchvision", lambda: of_torchvision("resnet18"), "fc", images),
    "ResNet-50": ("torchvision", lambda: of_torchvision("resnet50"), "fc", images),
    "MobileNetV3 small": ("torchvision", lambda: of_torchvision("mobilenet_v3_small"), "classifier", images),
    "EfficientNet-B0": ("torchvision", lambda: of_torchvision("efficientnet_b0"), "classifier", images),
    "ConvNeXt tiny": ("torchvision", lambda: of_torchvision("convnext_tiny"), "classifier", images),
    "ViT-B/16": ("torchvision", lambda: of_torchvision("vit_b_16", image_size=96), "heads", images),
    "timm's ViT tiny": ("timm", lambda: of_timm("vit_tiny_patch16_224", img_size=96), "head", images),
    "timm's ConvNeXt nano": ("timm", lambda: of_timm("convnext_nano"), "head.fc", images),
    "timm's Swin tiny": (
        "timm",
        lambda: of_timm("swin_tiny_patch4_window7_224", img_size=128, window_size=4),
        "head.fc",
        lambda n: images(n, 128),
    ),
    "BERT": ("transformers", Bert, "head", texts),
}


def timed(module, data, labels, *callbacks, epochs, stopwatch=None):
    """Train; the seconds are those of all other callbacks, too."""
    seconds = ("seconds", Seconds(stopwatch))
    net = trained(module, data, labels, seconds, *callbacks, batch=BATCH, epochs=epochs)
    return net, dict(net.callbacks_)["seconds"]


def features(network, head, data):
    """What the head is given."""
    seen = []
    handle = network.get_submodule(head).register_forward_hook(lambda _, given, __: seen.append(given[0].clone()))
    network.eval()
    with torch.no_grad():
        for rows in torch.from_numpy(data).split(BATCH):
            network(rows)
    handle.remove()
    network.train()
    return torch.cat(seen).numpy()


def hashing(data):
    begin = process_time()
    for one in torch.from_numpy(data).reshape(len(data), -1).view(torch.uint8).numpy():
        xxh3_128_digest(one)
    return process_time() - begin


def compare(name, n, epochs):
    _, make, head, rows = NETWORKS[name]
    torch.manual_seed(0)
    network, data = make(), rows(n)
    labels = torch.randint(CLASSES, (n,)).numpy()
    ready = features(network, head, data)
    freezing = lambda: t_clbk("unfreeze", starting_weights=select_prefix(head), frozen_mode="eval")  # noqa: E731
    _, alone = timed(deepcopy(network.get_submodule(head)), ready, labels, epochs=3 * epochs)
    plain, usual = timed(deepcopy(network), data, labels, freezing(), epochs=epochs)
    with Stopwatch([(CachedParts, "begin_epoch"), (Answer, "compute")]).running() as checks:
        cached, ours = timed(
            deepcopy(network), data, labels, freezing(), t_clbk("frozen_cache"), epochs=epochs, stopwatch=checks
        )
    for one, other in zip(cached.module_.parameters(), plain.module_.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    epoch = np.subtract(ours.seconds_[1:], ours.counted_[1:]).min()
    plain_epoch, limit = min(usual.seconds_[1:]), 3 * min(alone.seconds_[1:]) + hashing(data)
    share, n_bytes = np.mean(ours.counted_[1:]) / plain_epoch, max(cached.history[:, "cache_bytes"])
    figures = {
        "plain freezing": (epoch, plain_epoch, "s", f"the checks take {share:.1%} of a plain epoch"),
        "3 heads and hashing": (
            epoch,
            limit,
            "s",
            f"{limit:.3g} s; the head alone takes {min(alone.seconds_[1:]):.3g} s",
        ),
        "plain, when it is filled": (ours.seconds_[0], plain_epoch, "s", ""),
        "the features, in bytes": (n_bytes / 1e6, ready.nbytes / 1e6, "MB", ""),
    }
    case = f"{name}, {n} rows"
    return [
        row("i", case, other, pd.Series([one]), pd.Series([two]), LIMITS.get(other, nan), unit, note)
        for other, (one, two, unit, note) in figures.items()
    ]


def measure(n=256, epochs=4):
    available = [name for name, (package, *_) in NETWORKS.items() if find_spec(package)]
    return table([one for name in available for one in compare(name, n, epochs)])
