"""Code order: what runs when, read off the code of a forward pass."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mlr3torch_py.network.blocks import find_blocks
from mlr3torch_py.network.code_order import code_order
from mlr3torch_py.network.flow import flow_of


class Parts(nn.Module):
    """Holds its modules in another order than the one in which they run."""

    def __init__(self):
        super().__init__()
        self.head, self.norm, self.body = nn.Linear(8, 2), nn.LayerNorm(8), nn.Linear(8, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.embed = nn.Linear(4, 8)


class Nested(Parts):
    def forward(self, x):
        return self.head(self.norm(self.body(self.embed(x))))


class InMethods(Parts):
    def forward(self, x):
        features = self.features(x)
        return self.head(features)

    def features(self, x):
        return self.norm(self.body(self.embed(x)))


class ByTheParent(Nested):
    def forward(self, x):
        return torch.softmax(super().forward(x), dim=-1)


class InLoops(Parts):
    def forward(self, x):
        found = [self.body(one) for one in self.embed(x)]
        for layer in self.layers:
            found = [layer(one) for one in found]
        return self.head(self.norm(torch.stack(found)))


class WithConditions(Parts):
    def forward(self, x):
        x = x.to(self.layers[0].weight.dtype) if len(self.layers) else x.to(self.head.weight.dtype)
        if self.head is not None and isinstance(self.norm, nn.Module):
            x = self.embed(x)
        x = x if self.body is None else self.body(x)
        return (self.head if x.ndim else self.norm)(self.norm(x))


class Backbone(Parts):
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class BesideMethods(Parts):
    def forward(self, x):
        self.body.register_buffer("n", torch.tensor(len(x)))
        return self.head.forward(self.body(self.embed(x)))


class ByName(Parts):
    def forward(self, x):
        x = getattr(self, "embed")(x)  # noqa: B009
        return self.head(self.norm(x))


class ByWeight(Parts):
    def forward(self, x):
        x = self.embed(x.to(self.head.weight.dtype).reshape(-1, self.head.weight.shape[0]))
        return nn.functional.linear(self.body(x), self.head.weight)


class ByLocalNames(Parts):
    def forward(self, x):
        def last(x):
            return head(self.norm(x))

        head, body, embed = self.head, self.body, self.embed
        return last(body(embed(x)))


class HandedOver(Parts):
    def forward(self, x):
        x = checkpoint(self.body, checkpoint(self.embed, x, use_reentrant=False), use_reentrant=False)
        return checkpoint(self.head, self.norm(x), use_reentrant=False)


class MethodsInALoop(Parts):
    def forward(self, x):
        for step in (self.features, self.classify):
            x = step(x)
        return x

    def classify(self, x):
        return self.head(x)

    def features(self, x):
        return self.norm(self.body(self.embed(x)))


class ForwardOfItsOwn(Parts):
    def __init__(self):
        super().__init__()
        self.forward = self.run

    def run(self, x):
        return self.head(self.norm(self.body(self.embed(x))))


@pytest.mark.parametrize(
    ("cls", "order"),
    [
        (Nested, ["embed", "body", "norm", "head"]),
        (InMethods, ["embed", "body", "norm", "head"]),
        (ByTheParent, ["embed", "body", "norm", "head"]),
        (InLoops, ["embed", "body", "layers", "norm", "head"]),
        (WithConditions, ["embed", "body", "norm", "head"]),
        (BesideMethods, ["embed", "body", "head"]),
        (ByName, ["embed", "norm", "head"]),
        (ByWeight, ["embed", "body", "head"]),
        (ByLocalNames, ["embed", "body", "norm", "head"]),
        (HandedOver, ["embed", "body", "norm", "head"]),
        (MethodsInALoop, ["embed", "body", "norm", "head"]),
        (ForwardOfItsOwn, ["embed", "body", "norm", "head"]),
        (Parts, []),
        (nn.Sequential, []),
    ],
)
def test_children_come_in_the_order_in_which_the_code_uses_them(cls, order):
    assert code_order(cls()) == order


class Margin(nn.Module):
    """Embeds patches as a transformer does, and compares what comes out with one vector per class."""

    def __init__(self):
        super().__init__()
        self.classes = nn.Parameter(torch.randn(2, 8))
        self.token, self.scale = nn.Parameter(torch.zeros(1, 8)), nn.Parameter(torch.ones(()))
        self.embed, self.body = nn.Linear(4, 8), Backbone()

    def forward(self, x):
        x = self.body(self.embed(x.to(self.classes.dtype)) + self.token)
        return nn.functional.linear(x, self.classes) * self.scale.exp()


class ByIndex(Margin):
    def forward(self, x):
        embed, body = self.children()
        return body(embed(x) + self.token) @ self.classes.T * self.scale


class Backwards(Margin):
    def forward(self, x):
        return self.body(self.embed(x @ self.classes) + self.token) * self.scale


@pytest.mark.parametrize("batch", [None, torch.zeros(2, 4)])
def test_parameters_that_the_code_uses_after_all_layers_are_the_head(batch):
    blocks = [set(block.names) for block in find_blocks(Margin(), None if batch is None else flow_of(Margin(), batch))]
    assert blocks[0] == {"token", "embed.weight", "embed.bias"}
    assert blocks[-1] == {"classes", "scale"}
    assert code_order(Margin()) == ["embed", "token", "body", "classes", "scale"]


class UnderALocalName(Margin):
    def forward(self, x):
        classes, scale = nn.functional.normalize(self.classes), self.scale
        classes = classes / 2
        return self.body(self.embed(x) + self.token) @ classes.T * scale


def test_a_parameter_is_used_where_a_local_name_for_it_is():
    assert code_order(UnderALocalName()) == ["embed", "token", "body", "classes", "scale"]
    assert find_blocks(UnderALocalName())[-1].names == {"classes", "scale"}


def test_parameters_that_only_scale_what_the_last_layer_returns_belong_to_it():
    blocks = [set(block.names) for block in find_blocks(Backwards())]
    assert {"token", "classes", "embed.weight"} < blocks[0]
    assert {"scale"} < blocks[-1]


def test_parameters_are_in_the_first_block_where_the_code_does_not_tell():
    assert {"classes", "scale", "token", "embed.weight"} < find_blocks(ByIndex())[0].names


def test_parameters_behind_a_head_of_several_layers_belong_to_it():
    class Embedding(Margin):
        def __init__(self):
            super().__init__()
            self.neck = nn.Linear(8, 8)

        def forward(self, x):
            return self.neck(self.body(self.embed(x) + self.token)) @ self.classes.t()

    assert find_blocks(Embedding())[-1].names == {"neck.weight", "neck.bias", "classes"}


def test_code_without_a_source_says_nothing():
    names = {}
    exec("def forward(self, x):\n    return self.head(self.body(x))", names)
    network = type("Made", (Parts,), {"forward": names["forward"]})()
    assert code_order(network) == []
    assert [sorted(block.main)[0].partition(".")[0] for block in find_blocks(network)] == [
        *("head", "body", "layers", "layers", "embed")
    ]


def test_a_head_that_stands_before_its_backbone_is_the_head():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier, self.backbone = nn.Linear(8, 2), Backbone()

        def forward(self, x):
            x = x.to(self.classifier.weight.device).to(self.backbone.head.weight.dtype)
            return self.classifier(self.backbone(x))

    assert sorted(find_blocks(Classifier())[-1].names) == ["classifier.bias", "classifier.weight"]


class Layer(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.own, self.shared = nn.Linear(8, 8), shared

    def forward(self, x):
        return self.own(self.shared(x))


class Sharing(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.first, self.shared = nn.Linear(8, 2), nn.Linear(4, 8), nn.Linear(8, 8)
        self.second, self.third = Layer(self.shared), Layer(self.shared)

    def forward(self, x):
        return self.head(self.third(self.second(self.first(x))))


def test_what_the_code_does_not_name_stays_before_what_follows_it():
    blocks = [sorted(block.names) for block in find_blocks(Sharing())]
    assert [names[0].partition(".")[0] for names in blocks] == ["first", "second", "second", "head"]
    assert {"shared.weight", "second.shared.weight", "third.own.weight"} < set(blocks[2])
