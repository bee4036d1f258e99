"""Blocks: found from what repeats in the module tree, and from one forward pass."""

import copy

import pytest
import torch
from torch import nn

from mlr3torch_py.network.blocks import find_blocks
from mlr3torch_py.network.flow import flow_of
from mlr3torch_py.network.unwrap import named_parameters
from mlr3torch_py.patterns import cover, patterns
from tests.helpers import Block, Nested


def found(network, batch=None, level="layer"):
    names = list(named_parameters(network))
    blocks = find_blocks(network, None if batch is None else flow_of(network, batch), level)
    assert sorted(name for block in blocks for name in block.names) == sorted(names)
    return [" + ".join(patterns(cover(block.names, names))) for block in blocks]


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return x


class WithHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = Backbone(), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.backbone(x))


def test_a_backbone_is_opened_as_an_attribute_and_in_a_sequence():
    layers = ["embed", "layers.0", "layers.1", "layers.2"]
    assert found(WithHead()) == [*(f"backbone.{layer}" for layer in layers), "head"]
    assert found(nn.Sequential(Backbone(), nn.Linear(8, 2))) == [*(f"0.{layer}" for layer in layers), "1"]
    assert found(nn.Sequential(nn.Flatten(), WithHead()))[-1] == "1.head"


class RMSNorm(nn.Module):
    """A norm of nobody's library."""

    def __init__(self, width):
        super().__init__()
        self.normalized_shape = width  # a number, not a tuple as torch's
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.scale / x.square().mean(-1, keepdim=True).sqrt()


@pytest.mark.parametrize("norm", [RMSNorm, nn.LayerNorm, nn.BatchNorm1d, lambda n: nn.Sequential(RMSNorm(n))])
def test_a_norm_of_any_make_belongs_to_the_block_before(norm):
    head = nn.Sequential(norm(4), nn.Flatten(), nn.Linear(4, 2))
    assert len(found(nn.Sequential(norm(4), nn.Linear(4, 4), norm(4), nn.Linear(4, 4), head))) == 3
    blocks = find_blocks(nn.Sequential(nn.Linear(4, 4), head))
    assert sorted(blocks[-1].names) == ["1.2.bias", "1.2.weight"]


def test_a_norm_of_the_inputs_belongs_to_the_first_layer_but_not_to_the_head():
    assert found(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))) == ["{0,1}", "2"]
    assert found(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))) == ["0", "1"]


def test_a_norm_over_several_dimensions_is_a_norm():
    blocks = find_blocks(nn.Sequential(nn.Conv2d(1, 2, 3), nn.LayerNorm((2, 4, 4)), nn.Conv2d(2, 2, 3)))
    assert [len(block.names) for block in blocks] == [4, 2]


class Heads(nn.Module):
    """A trunk, and heads that take what it returns."""

    def __init__(self, *heads, as_list=False):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        if as_list:
            self.heads = nn.ModuleList(heads)
        else:
            for i, head in enumerate(heads):
                self.add_module(f"head_{'abc'[i]}", head)

    def forward(self, x):
        x = self.trunk(x)
        heads = self.heads if hasattr(self, "heads") else list(self.children())[1:]
        return torch.cat([head(x) for head in heads], 1)


def mlp_head(n):
    return nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, n))


@pytest.mark.parametrize("batch", [None, torch.zeros(2, 4)])
@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize(
    "heads", [lambda: (nn.Linear(8, 1), nn.Linear(8, 3), nn.Linear(8, 2)), lambda: (mlp_head(1), mlp_head(2))]
)
def test_heads_side_by_side_are_one_head(heads, as_list, batch):
    network = Heads(*heads(), as_list=as_list)
    blocks = find_blocks(network, None if batch is None else flow_of(network, batch))
    assert [len(block.names) for block in blocks[:-1]] == [2, 2]
    assert all(name.startswith("head") for name in blocks[-1].names)


def test_only_a_batch_tells_heads_as_wide_as_the_trunk_from_layers():
    network = Heads(nn.Linear(8, 8), nn.Linear(8, 8))
    assert found(network)[-1] == "head_b"
    assert found(network, torch.zeros(2, 4))[-1] == "head_a + head_b"


class Towers(nn.Module):
    """Two branches, each with a projection, as a model of images and texts has them."""

    def __init__(self, norm):
        super().__init__()
        self.images, self.texts = Backbone(), nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 8))
        self.image_head, self.text_head = nn.Linear(8, 4), nn.Linear(8, 4)
        self.image_norm, self.scale = norm(4), nn.Parameter(torch.ones(()))

    def forward(self, images, texts):
        images, texts = self.image_norm(self.image_head(self.images(images))), self.text_head(self.texts(texts))
        return images @ texts.T * self.scale.exp()


@pytest.mark.parametrize(("norm", "name"), [(lambda _: nn.Identity(), ""), (nn.LayerNorm, " + image_norm")])
def test_the_projections_of_two_towers_are_one_head(norm, name):
    towers = [*(f"images.{layer}" for layer in ("embed", "layers.0", "layers.1", "layers.2")), "texts.0", "texts.2"]
    blocks = found(Towers(norm), (torch.zeros(2, 4), torch.zeros(2, 6)))
    assert blocks == [*towers, f"scale + image_head + text_head{name}"]


def test_neighbours_in_different_branches_are_blocks_of_their_own():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = mlp_head(8), mlp_head(8)
            self.head = nn.Linear(16, 2)

        def forward(self, x):
            return self.head(torch.cat([self.one(x), self.two(x)], 1))

    assert found(Branches(), torch.zeros(2, 8)) == ["one.0", "one.2", "two.0", "two.2", "head"]


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(4, 2, 1)
        self.two = nn.Sequential(nn.Conv2d(4, 3, 1), nn.Conv2d(3, 2, 3, padding=1))

    def forward(self, x):
        return torch.cat([self.one(x), self.two(x)], 1)


class Branched(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.mixed = nn.Sequential(*(Inception() for _ in range(n)))
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.mixed(self.stem(x)).mean((2, 3)))


def test_a_module_that_runs_its_children_side_by_side_is_one_block():
    assert found(Branched(3)) == ["stem", "mixed.0", "mixed.1", "mixed.2", "fc"]
    assert found(Branched(1), torch.zeros(2, 3, 8, 8)) == ["stem", "mixed", "fc"]


class OutOfOrder(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.second, self.first = nn.Linear(6, 2), nn.Linear(8, 6), nn.Linear(4, 8)

    def forward(self, x):
        for name in ("first", "second", "head"):
            x = getattr(self, name)(x)
        return x


def test_a_batch_gives_the_order_in_which_blocks_run():
    assert found(OutOfOrder()) == ["head", "second", "first"]
    assert found(OutOfOrder(), torch.zeros(2, 4)) == ["first", "second", "head"]
    assert found(OutOfOrder(), {"x": torch.zeros(2, 4)}) == found(OutOfOrder(), (torch.zeros(2, 4).numpy(),))


class Stem(nn.Module):
    """A few layers in a list, as the patches of a transformer are embedded by."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x):
        return self.proj(x)


def deep_list(n):
    return nn.Sequential(*(Block(8) for _ in range(n)))


def test_a_small_list_before_a_deeper_one_is_no_backbone():
    network = nn.ModuleDict({"stem": Stem(), "blocks": deep_list(3), "norm": nn.LayerNorm(8), "head": nn.Linear(8, 2)})
    assert found(network) == ["stem.proj.0", "stem.proj.2", "blocks.0", "blocks.1", "blocks.2 + norm", "head"]


def test_a_neck_that_is_small_beside_its_backbone_is_part_of_the_head():
    parts = {"backbone": nn.Sequential(Backbone(), deep_list(8)), "neck": deep_list(2), "head": nn.Linear(8, 2)}
    assert found(nn.ModuleDict(parts))[-1] == "head"
    parts["backbone"] = Encoder(8)
    assert found(nn.ModuleDict(parts))[-1] == "neck + head"


class Encoder(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.layers = deep_list(n)

    def forward(self, x):
        return self.layers(x)


def test_layers_that_the_network_itself_holds_are_no_backbones():
    parts = {f"block{i}": Encoder(2) for i in range(3)}
    network = nn.ModuleDict({**parts, "last": nn.Linear(8, 6), "head": nn.Linear(6, 2)})
    assert found(network)[-2:] == ["last", "head"]


def test_a_norm_between_heads_side_by_side_leaves_them_one_head():
    parts = {"body": deep_list(2), "aux": nn.Linear(8, 3), "norm": nn.LayerNorm(8), "head": nn.Linear(8, 3)}
    assert found(nn.ModuleDict(parts)) == ["body.0", "body.1", "aux + norm + head"]


def test_a_tied_tensor_is_in_the_last_block_that_uses_it():
    network = nn.ModuleDict({"embed": nn.Embedding(9, 4), "body": nn.Linear(4, 4), "out": nn.Linear(4, 9)})
    network["out"].weight = network["embed"].weight
    assert found(network) == ["body", "embed + out"]
    layer = nn.Linear(4, 4)
    assert found(nn.Sequential(layer, nn.Linear(4, 4), layer)) == ["1", "{0,2}"]


def test_stages_are_opened_or_kept():
    network = nn.Sequential(*(nn.Sequential(*(Block(4) for _ in range(2))) for _ in range(3)), nn.Linear(4, 2))
    assert found(network) == [f"{i}.{j}" for i in range(3) for j in range(2)] + ["3"]
    assert found(network, level="stage") == ["0", "1", "2", "3"]
    assert found(Nested(4), level="stage") == ["embed", "encoder", "head"]


def test_layers_of_gates_are_a_chain():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Conv1d(4, 8, 3) for _ in range(3)])
            self.head = nn.Linear(4, 2)

    assert found(Gated()) == ["layers.0", "layers.1", "layers.2", "head"]


def test_embeddings_side_by_side_are_one_block():
    class Texts(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.positions = nn.Embedding(50, 8), nn.Embedding(10, 8)
            self.lstm = nn.LSTM(8, 8, num_layers=2)
            self.fc = nn.Linear(8, 2)

    assert [len(block.names) for block in find_blocks(Texts())] == [2, 8, 2]


def test_a_network_without_parameters_or_of_its_own_has_what_there_is():
    assert found(nn.ReLU()) == []
    assert [len(block.names) for block in find_blocks(nn.Linear(2, 1))] == [2]
    assert [len(block.names) for block in find_blocks(nn.LayerNorm(2))] == [2]
    assert len(find_blocks(nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d(), nn.Linear(3, 1)))) == 2
    parametrized = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    assert found(nn.Sequential(parametrized, nn.Linear(4, 2))) == ["0", "1"]


def test_watching_a_forward_pass_changes_nothing():
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    network[0].weight.requires_grad = False
    network[1].eval()
    state, rng = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    flow_of(network, torch.ones(8, 4))
    assert all(torch.equal(one, state[name]) for name, one in network.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert [module.training for module in network] == [True, False, True, True]
    assert [tensor.requires_grad for tensor in network.parameters()] == [False, *[True] * 5]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert all(tensor.grad is None for tensor in network.parameters())


def test_a_network_that_leaves_the_graph_still_tells_its_order():
    class ThroughNumpy(OutOfOrder):
        def forward(self, x):
            return super().forward(torch.as_tensor(self.first(x).numpy()[:, :4]))

    flow = flow_of(ThroughNumpy(), torch.zeros(2, 4))
    assert not flow.is_complete
    assert [path for path in flow.order if path] == ["first", "second", "head"]
    with pytest.raises(ValueError, match="`X` is no batch that the network can be called with"):
        flow_of(ThroughNumpy(), torch.zeros(2, 5))


def test_a_backbone_without_a_head_is_opened():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    network = nn.ModuleDict({"embed": nn.Embedding(9, 8), "encoder": encoder})
    assert found(network) == ["embed", *(f"encoder.layers.{i}" for i in range(3))]
    transformer = nn.Transformer(8, 2, 2, 2, 16, batch_first=True)
    assert [name.split(" + ")[0] for name in found(transformer)] == [
        f"{part}.layers.{i}" for part in ("encoder", "decoder") for i in range(2)
    ]


def test_layers_without_width_are_no_reason_to_fail():
    network = nn.ModuleDict({"a": nn.Linear(1, 4), "b": nn.Linear(4, 2)})
    network["a"].weight = nn.Parameter(torch.zeros(4, 0))
    network["b"].weight = nn.Parameter(torch.zeros(4, 0))
    assert found(network) == ["a", "b"]


def test_layers_side_by_side_with_nothing_before_them_are_no_heads():
    assert found(nn.ModuleDict({name: nn.Linear(4, 3) for name in "abc"})) == ["a", "b", "c"]
