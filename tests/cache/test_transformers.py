"""A frozen encoder of transformers, as it is, is cached whole."""

import pytest
import torch
from torch import nn

from mlr3torch_py import select_prefix, t_clbk
from mlr3torch_py.cache.callback import CallbackSetFrozenCache
from tests.cache.helpers import hits
from tests.helpers import iris_net, weights

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXTS = torch.randint(100, (150, 6), generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(150) % 3


class Bert(nn.Module):
    """BERT with its default dropout, and a head."""

    def __init__(self):
        super().__init__()
        self.encoder = transformers.BertModel(transformers.BertConfig(vocab_size=100, **SIZES))
        self.head = nn.Linear(32, 3)

    def forward(self, X):
        return self.head(self.encoder(X).last_hidden_state.mean(1))


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.auto_model = transformers.BertModel(transformers.BertConfig(vocab_size=100, **SIZES))

    def forward(self, features):
        features["embeddings"] = self.auto_model(**features).last_hidden_state
        return features


class SentenceEncoder(Bert):
    """An encoder that writes into the dict that it is given, as those of sentence-transformers do."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(Embedding())

    def forward(self, X):
        features = {"input_ids": X, "attention_mask": torch.ones_like(X)}
        return self.head(self.encoder(features)["embeddings"].mean(1))


def train(module, *cache, **params):
    torch.manual_seed(0)
    freezing = t_clbk("unfreeze", starting_weights=select_prefix("head"), frozen_mode="eval")
    return iris_net(freezing, *cache, module=module, batch_size=32, iterator_train__shuffle=True, **params).fit(
        TEXTS, LABELS
    )


@pytest.mark.parametrize(("module", "path"), [(Bert, "encoder"), (SentenceEncoder, "encoder.0.auto_model")])
def test_the_encoder_is_cached_and_the_weights_are_those_without_the_cache(module, path):
    cached = []

    class Cache(CallbackSetFrozenCache):
        def on_epoch_end(self, net, **kwargs):
            super().on_epoch_end(net, **kwargs)
            cached.append(list(self.cached_.modules))

    plain, net = train(module), train(module, Cache())
    assert cached == [[path]] * 4
    assert hits(net)[2:] == [150, 150]
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(net)[name], tensor, rtol=0, atol=1e-5)


def test_in_training_mode_the_remedy_is_frozen_mode():
    net = iris_net(t_clbk("unfreeze", starting_weights=select_prefix("head")), t_clbk("frozen_cache"), module=Bert)
    with pytest.warns(UserWarning, match="not caching 'encoder': in training mode it draws.* with frozen_mode='eval'"):
        net.fit(TEXTS, LABELS)
    assert sum(hits(net)) == 0
