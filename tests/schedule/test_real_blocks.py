"""The blocks of networks of well-known libraries are those that docs/blocks.md lists."""

import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mlr3torch_py import network_blocks
from mlr3torch_py.patterns import patterns
from tests.schedule.real_networks import NETWORKS

pytestmark = [pytest.mark.slow, pytest.mark.real_networks]

PAGE = Path(__file__).parents[2] / "docs" / "blocks.md"
LISTED = {
    cells[0]: cells[1:]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and (cells := [cell.strip() for cell in line.strip("|").split("|")])[0] in NETWORKS
}
LIBRARIES = {"sentence-transformers": "sentence_transformers", "PEFT": "peft"}


def needed(name):
    first = name.split()[0]
    return "timm" if "timm" in name else LIBRARIES.get(first, first if first.islower() else "torch")


networks = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(not find_spec(needed(name)), reason=f"needs {needed(name)}"))
        for name in NETWORKS
    ],
)


def made(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the libraries
        return NETWORKS[name]()


def row(network):
    """Return the cells of the page for a network: how many blocks and stages, and their names."""
    cells = []
    for level in ("layer", "stage"):
        names = network_blocks(network, level=level)["name"]
        cells += [
            str(len(names)),
            ", ".join(f"`{one}`" for one in patterns(name.replace(", ", " + ") for name in names)),
        ]
    return cells


@networks
def test_the_blocks_are_those_that_the_page_lists(name):
    assert row(made(name)) == LISTED[name]


@networks
def test_every_tensor_is_in_one_block(name):
    network = made(name)
    table = network_blocks(network)
    held = [tensor for block in table["holds"] for tensor in block.expand(network)]
    assert sorted(held) == sorted(name for name, _ in network.named_parameters(remove_duplicate=False))
    assert table["tensors"].sum() == len(list(network.parameters()))


IDS = {"input_ids": torch.ones(2, 6, dtype=torch.long)}
BATCHES = {
    "torchvision densenet121": torch.zeros(2, 3, 64, 64, device="meta"),
    "torchvision googlenet": torch.zeros(2, 3, 64, 64, device="meta"),
    "torchvision deeplabv3_resnet50": torch.zeros(2, 3, 64, 64, device="meta"),
    "timm deit_tiny_distilled": torch.zeros(2, 3, 224, 224, device="meta"),
    "timm swin_tiny": torch.zeros(2, 3, 224, 224, device="meta"),
    "transformers BERT classifier": IDS,
    "transformers DistilBERT classifier": IDS,
    "transformers GPT-2 LM": IDS,
    "transformers Llama LM": IDS,
    "transformers T5": IDS | {"decoder_input_ids": torch.ones(2, 4, dtype=torch.long)},
    "PEFT LoRA": IDS,
    "braindecode EEGNet": torch.zeros(2, 4, 200),
    "LSTM": torch.ones(2, 5, dtype=torch.long),
    "U-Net": torch.zeros(2, 3, 16, 16),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(not find_spec(needed(name)), reason=f"needs {needed(name)}"))
        for name in BATCHES
    ],
)
def test_a_batch_finds_the_same_blocks(name):
    network = made(name)
    assert repr(network_blocks(network, BATCHES[name])) == repr(network_blocks(network))


@pytest.mark.skipif(not find_spec("skada"), reason="needs skada")
def test_a_batch_finds_the_heads_of_a_network_that_branches_inside_of_its_backbone():
    network = made("skada DANN")
    names = network_blocks(network, torch.zeros(4, 1, 100))["name"].tolist()
    assert names == ["base_module_.feature_extractor", "base_module_.fc, domain_classifier_"]
