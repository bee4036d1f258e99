"""skorch's printed table fits a terminal."""

import pickle
import re

import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import EpochScoring, LRScheduler, PrintLog
from torch import nn

from mlr3torch_py import gradual_unfreezing, t_clbk
from mlr3torch_py.training.printed import shortened


class Block(nn.Module):
    def __init__(self, parts):
        super().__init__()
        for name in parts:
            self.add_module(name, nn.Linear(4, 4))

    def forward(self, x):
        for part in self.children():
            x = part(x)
        return x


class ResNetLike(nn.Module):
    """Has the names of torchvision's ResNet, as a backbone."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential()
        self.backbone.add_module("conv1", nn.Linear(4, 4, bias=False))
        self.backbone.add_module("bn1", nn.LayerNorm(4))
        for i in range(1, 5):
            layer = nn.Sequential(Block(["conv1", "bn1", "conv2", "bn2"]), Block(["conv1", "bn1", "downsample"]))
            self.backbone.add_module(f"layer{i}", layer)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.backbone(x))


class BertLike(nn.Module):
    """Has the names of a BERT of transformers."""

    def __init__(self):
        super().__init__()
        self.embeddings = Block(["word_embeddings", "position_embeddings", "token_type_embeddings"])
        self.encoder = nn.Module()
        parts = ["attention_query", "attention_key", "attention_value", "intermediate_dense", "output_dense"]
        self.encoder.layer = nn.ModuleList(Block(parts) for _ in range(12))
        self.classifier = nn.Linear(4, 3)

    def forward(self, x):
        x = self.embeddings(x)
        for layer in self.encoder.layer:
            x = layer(x)
        return self.classifier(x)


class LongName(nn.Module):
    def __init__(self):
        super().__init__()
        self.a_module_whose_name_alone_is_longer_than_what_is_left_in_the_table = nn.Linear(4, 4)
        self.another_module_whose_name_alone_is_longer_than_what_is_left_of_it = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for part in self.children():
            x = part(x)
        return x


def trained(network, schedule=None, **params):
    X, y = torch.randn(30, 4), torch.arange(30) % 3
    schedule = schedule or gradual_unfreezing(every=1)
    rate = LRScheduler("StepLR", step_size=3, gamma=0.123456, event_name="event_lr")
    callbacks = [t_clbk("unfreeze", schedule=schedule), t_clbk("frozen_cache"), ("rate", rate)]
    params = {"verbose": 1, "max_epochs": 15, "callbacks": callbacks, **params}
    return NeuralNetClassifier(network, criterion=nn.CrossEntropyLoss, **params).fit(X, y)


@pytest.mark.parametrize("network", [ResNetLike, BertLike, LongName])
def test_every_row_fits_and_is_aligned_whatever_the_names_are(network, capsys):
    net = trained(network)
    lines = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out).splitlines()
    assert len(lines) == 17
    assert re.findall(r"\w+", lines[0]) == [
        *("epoch", "cache_hits", "n_trainable", "train_loss", "valid_acc", "valid_loss", "lr", "unfrozen", "dur")
    ]
    (width,) = {*map(len, lines)}
    assert width <= 100
    told = [text for text in net.history[:, "event_unfrozen"] if text]
    assert len(told) >= 2
    assert not any("..." in text for text in told)
    assert max(map(len, told)) > 16


def test_names_are_whole_where_the_scores_alone_do_not_fit(capsys):
    scores = [(name, EpochScoring("accuracy", name=f"{name}_of_the_validation_data")) for name in ("one", "other")]
    net = trained(ResNetLike, max_epochs=6, callbacks=[t_clbk("unfreeze", schedule=gradual_unfreezing()), *scores])
    lines = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out).splitlines()
    (width,) = {*map(len, lines)}
    assert width > 100
    told = [text for text in net.history[:, "event_unfrozen"] if text]
    assert all(any(text in line for line in lines) for text in told)


def test_after_training_and_in_copies_skorchs_printer_is_as_it_was(capsys):
    lines = []
    net = trained(ResNetLike, max_epochs=3, verbose=0, callbacks__print_log=PrintLog(sink=lines.append))
    printer = next(one for _, one in net.callbacks_ if isinstance(one, PrintLog))
    assert "table" not in vars(printer)
    assert max(len(re.sub(r"\x1b\[\d+m", "", line)) for line in lines) <= 100
    copy = pickle.loads(pickle.dumps(trained(ResNetLike, max_epochs=2)))
    capsys.readouterr()
    copy.partial_fit(torch.randn(30, 4), torch.arange(30) % 3)
    assert capsys.readouterr().out


def test_both_directions_stay_in_a_shortened_change():
    text = shortened("+ encoder.layer.11 (4 tensors), - embeddings.words (5 tensors)", 24)
    assert text.startswith("+ enc")
    assert ", - " in text
    assert len(text) <= 24
    assert shortened("+ encoder.layer.{0..11} (192 tensors)", 8) == "+ e...1}"
