"""Networks of torchvision, timm and transformers: what is frozen stays, bit for bit, and the rest trains."""

import copy
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from mlr3torch_py import CallbackSetUnfreeze, freeze_plan, select_all, select_prefix, t_clbk
from tests.helpers import iris_net, moved, weights

pytestmark = [pytest.mark.slow, pytest.mark.real_networks]

IMAGES = np.random.default_rng(0).normal(size=(18, 3, 32, 32)).astype("float32")
TEXTS = np.random.default_rng(0).integers(0, 50, (18, 6))
LABELS = np.arange(18) % 3


class Texts(nn.Module):
    """A language model of transformers, unmodified, and a head on the mean over its tokens."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, 3)

    def forward(self, x):
        return self.head(self.encoder(x).last_hidden_state.mean(1))


def bert():
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return Texts(BertModel(BertConfig(vocab_size=50, **sizes), add_pooling_layer=False))


def gpt2():
    from transformers import GPT2Config, GPT2Model

    return Texts(GPT2Model(GPT2Config(vocab_size=50, n_positions=8, n_embd=32, n_layer=2, n_head=2, use_cache=False)))


def torchvision(name, **params):
    def make():
        from torchvision import models

        return getattr(models, name)(num_classes=3, **params)

    return make


def timm(name, **params):
    def make():
        import timm

        return timm.create_model(name, num_classes=3, **params)

    return make


# The library, the network, its inputs, and the path of its head.
NETWORKS = {
    "resnet18": ("torchvision", torchvision("resnet18"), IMAGES, "fc"),
    "mobilenet_v3_small": ("torchvision", torchvision("mobilenet_v3_small"), IMAGES, "classifier.3"),
    "efficientnet_b0": ("torchvision", torchvision("efficientnet_b0"), IMAGES, "classifier"),
    "convnext_tiny": ("torchvision", torchvision("convnext_tiny"), IMAGES, "classifier.2"),
    "swin_t": ("torchvision", torchvision("swin_t"), IMAGES, "head"),
    "vit of timm": (
        "timm",
        timm("vit_tiny_patch16_224", img_size=32, depth=2, drop_path_rate=0.5, attn_drop_rate=0.5, drop_rate=0.5),
        IMAGES,
        "head",
    ),
    "BERT": ("transformers", bert, TEXTS, "head"),
    "GPT-2": ("transformers", gpt2, TEXTS, "head"),
}
networks = pytest.mark.parametrize(
    ("make", "data", "head"),
    [
        pytest.param(*case, id=name, marks=pytest.mark.skipif(not find_spec(library), reason=f"needs {library}"))
        for name, (library, *case) in NETWORKS.items()
    ],
)


def trained(network, data, *callbacks, max_epochs=2):
    torch.manual_seed(0)
    params = {"optimizer": torch.optim.Adam, "lr": 0.001, "batch_size": 6, "max_epochs": max_epochs}
    return iris_net(*callbacks, module=network, **params).fit(data, LABELS)


def buffers(network):
    return {name: tensor.clone() for name, tensor in network.named_buffers()}


@networks
def test_what_is_frozen_stays_and_then_everything_trains(make, data, head):
    network = make()
    freezing = CallbackSetUnfreeze(select_prefix(head), {"epoch": [3], "weights": [select_all()]}, frozen_mode="eval")
    plan = freeze_plan(network, callbacks=[freezing], batches_per_epoch=3, max_epochs=3)
    before = copy.deepcopy(network.state_dict())
    net = trained(network, data, freezing, max_epochs=2)
    in_head = {name for name in weights(net) if name.startswith(head)}
    assert moved(before, network.state_dict()) == in_head
    assert [phase.trainable for phase in plan.phases] == [in_head, set(weights(net))]
    halfway, statistics = weights(net), buffers(network)
    net.partial_fit(data, LABELS)
    assert moved(halfway, weights(net)) == set(halfway)
    assert bool(moved(statistics, buffers(network))) == any(name.endswith("running_mean") for name in statistics)


@networks
def test_the_cache_keeps_something_and_the_weights_are_those_without_it(make, data, head):
    freezing = CallbackSetUnfreeze(select_prefix(head), frozen_mode="eval")
    network = make()
    plainly = trained(copy.deepcopy(network), data, freezing, max_epochs=3)
    cached = trained(network, data, freezing, t_clbk("frozen_cache"), max_epochs=3)  # in the second, some are compared
    assert cached.history[-1, "cache_hits"] >= len(data)
    assert cached.history[-1, "cache_misses"] == 0
    for one, other in zip(weights(plainly).values(), weights(cached).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
