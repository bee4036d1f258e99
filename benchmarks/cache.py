"""(e) An epoch with frozen_cache, against one with plain freezing, full training, and training the head alone.

A network of a frozen part and a linear head is trained on rows that come again in each epoch, shuffled. The head alone
is a head of the same kind that is trained on what the frozen part gives, computed beforehand. Figures are CPU seconds
of an epoch; the first one, in which the cache is filled, is left out. The note says how much memory the cache takes.

Two rows need transformers: BERT of the size of MiniLM, unmodified, whose last hidden state is kept for each token. Its
head takes the mean over the tokens; the second row leaves that to be computed beforehand, too.
"""

from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from math import nan
from statistics import median
from time import process_time

import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from torch import nn

from benchmarks.rounds import in_turns, row, table
from mlr3torch_py import select_prefix, t_clbk

LIMITS = {"plain freezing": 1 / 8, "the head alone": 2}
BERT_LIMIT = 3
BATCH, EPOCHS = 64, 4


class Headed(nn.Module):
    """A part to freeze, and a head."""

    def __init__(self, features, width):
        super().__init__()
        self.features = features
        self.head = head(width)

    def forward(self, x):
        return self.head(self.features(x))


def head(width):
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 10))


def cnn(n_convolutions=2):
    """Two blocks of convolutions with BatchNorm for images of 32 x 32, and the width of what they give."""
    layers = []
    for width_in, width_out in pairwise((3, 32, 64)):
        for a, b in pairwise((width_in, *[width_out] * n_convolutions)):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers), 64 * 8 * 8


class Encoder(nn.Module):
    """A small transformer, which gives the mean over the tokens."""

    def __init__(self, n_layers):
        super().__init__()
        self.embed = nn.Embedding(1000, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)

    def forward(self, tokens):
        return self.layers(self.embed(tokens)).mean(1)


def transformer(n_layers=2):
    return Encoder(n_layers), 64


class MeanOfTokens(nn.Module):
    """The head of BERT."""

    def __init__(self):
        super().__init__()
        self.classify = head(384)

    def forward(self, tokens):
        return self.classify(tokens.mean(1))


class Bert(nn.Module):
    """BERT of the size of MiniLM, with its default dropout, and a head."""

    def __init__(self):
        from transformers import BertConfig, BertModel

        super().__init__()
        sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
        self.encoder = BertModel(BertConfig(vocab_size=1000, **sizes))
        self.head = MeanOfTokens()

    def forward(self, x):
        return self.head(self.encoder(x).last_hidden_state)


def images(n):
    return torch.randn(n, 3, 32, 32)


def texts(n):
    return torch.randint(1000, (n, 32))


class Seconds(Callback):
    """CPU seconds from the end of an epoch to that of the next, and those of them that a stopwatch counts."""

    def __init__(self, stopwatch=None):
        self.stopwatch = stopwatch

    def on_train_begin(self, net, **kwargs):
        self.seconds_, self.counted_, self.begin_ = [], [], self.now()

    def on_epoch_end(self, net, **kwargs):
        begin, self.begin_ = self.begin_, self.now()
        self.seconds_.append(self.begin_[0] - begin[0])
        self.counted_.append(self.begin_[1] - begin[1])

    def now(self):
        return process_time(), self.stopwatch.seconds if self.stopwatch else 0


def trained(module, data, labels, *callbacks, batch=BATCH, epochs=EPOCHS, **params):
    torch.manual_seed(0)
    return NeuralNetClassifier(
        module,
        criterion=nn.CrossEntropyLoss,
        lr=0.01,
        batch_size=batch,
        max_epochs=epochs,
        train_split=None,
        iterator_train__shuffle=True,
        verbose=0,
        callbacks=[*callbacks, Seconds()],
        **params,
    ).fit(data, labels)


def of_an_epoch(net):
    return median(dict(net.callbacks_)["Seconds"].seconds_[1:])


def compare(case, part, data, rounds, limits=None):
    """The rows of one network and one size of data; full training is among them where there are limits."""
    torch.manual_seed(0)
    labels, peak = torch.randint(10, (len(data),)), []
    features, width = part()
    with torch.no_grad():
        ready = torch.cat([features.eval()(rows) for rows in data.split(BATCH)])
    freezing = partial(
        t_clbk, "unfreeze", starting_weights=select_prefix("head"), frozen_norm="eval", frozen_dropout="eval"
    )

    def cached():
        net = trained(Headed(*part()), data, labels, freezing(), t_clbk("frozen_cache"))
        peak.append(max(net.history[:, "cache_bytes"]))
        return of_an_epoch(net)

    ways = {
        "frozen_cache": cached,
        "plain freezing": lambda: of_an_epoch(trained(Headed(*part()), data, labels, freezing())),
        "the head alone": lambda: of_an_epoch(trained(head(width), ready, labels)),
    }
    if limits:
        ways["full training"] = lambda: of_an_epoch(trained(Headed(*part()), data, labels))
    seconds = in_turns(ways, rounds)
    ours, *others = ways
    note = f"the cache takes {peak[-1] / 1e6:.0f} MB"
    limits = limits or {}
    return [row("e", case, other, seconds[ours], seconds[other], limits.get(other, nan), "s", note) for other in others]


def compare_bert(data, rounds, batch=32):
    """The rows of BERT, if transformers is there."""
    if find_spec("transformers") is None:
        return []
    torch.manual_seed(0)
    labels, peak, network = torch.randint(10, (len(data),)), [], Bert().eval()
    with torch.no_grad():
        ready = torch.cat([network.encoder(rows).last_hidden_state for rows in data.split(batch)])

    def cached():
        freezing = t_clbk("unfreeze", starting_weights=select_prefix("head"), frozen_mode="eval")
        net = trained(Bert(), data, labels, freezing, t_clbk("frozen_cache"), batch=batch)
        peak.append(max(net.history[:, "cache_bytes"]))
        return of_an_epoch(net)

    ways = {
        "frozen_cache": cached,
        "the head alone": lambda: of_an_epoch(trained(MeanOfTokens(), ready, labels, batch=batch)),
        "a linear layer on precomputed means": lambda: of_an_epoch(
            trained(head(384), ready.mean(1), labels, batch=batch)
        ),
    }
    seconds, case = in_turns(ways, rounds), f"BERT of the size of MiniLM, {len(data):,} texts of {data.shape[1]} tokens"
    ours, *others = ways
    limits, note = {"the head alone": BERT_LIMIT}, f"the cache takes {peak[-1] / 1e6:.0f} MB"
    return [row("e", case, other, seconds[ours], seconds[other], limits.get(other, nan), "s", note) for other in others]


def measure(small=256, usual=1024, large=4096, rounds=5):
    return table(
        [
            *compare(f"CNN, {usual:,} images", cnn, images(usual), rounds, LIMITS),
            *compare(f"CNN, {small:,} images", cnn, images(small), rounds),
            *compare(f"CNN, {large:,} images", cnn, images(large), 1),
            *compare(f"CNN of half the depth, {usual:,} images", partial(cnn, 1), images(usual), rounds),
            *compare(f"transformer, {usual:,} texts", transformer, texts(usual), rounds, {"the head alone": nan}),
            *compare(f"transformer of 6 layers, {usual:,} texts", partial(transformer, 6), texts(usual), rounds),
            *compare_bert(texts(usual)[:, :16], rounds),
        ]
    )
