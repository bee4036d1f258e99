"""Which parts of a network are cached."""

import warnings

import pytest
import torch
from torch import nn

from mlr3torch_py.cache.parts import CachedParts
from tests.cache.helpers import ROWS, Pair, cached, counts, frozen, told


def test_a_module_that_is_never_called_is_replaced_by_its_children():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = frozen(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
            self.head = nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.encoder[1](self.encoder[0](x)))

    network = Network()
    parts = cached(network)
    network(ROWS)
    assert parts.settle()
    network(ROWS), network(ROWS)
    assert counts(parts) == (12, 12)
    parts = cached(network, "encoder")
    network(ROWS)
    assert not parts.settle()
    parts.close()
    assert parts.never_called == ["encoder"]


class Encoder(nn.Module):
    """A model in something around it, which computes a given function of the model and the input."""

    def __init__(self, compute):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
        self.compute = compute

    def forward(self, given):
        return self.compute(self, given)


class Network(nn.Module):
    """Encoders one after the other, and a head."""

    def __init__(self, *encoders, given=lambda x: x, taken=lambda output: output):
        super().__init__()
        self.encoders = nn.ModuleList(map(frozen, encoders))
        self.head = nn.Linear(3, 1)
        self.given, self.taken = given, taken

    def forward(self, x):
        return self.head(sum(self.taken(encoder(self.given(x))) for encoder in self.encoders))


def writing(encoder, features):  # as sentence-transformers does
    features["embedding"] = encoder.model(features["x"])
    return features


def in_place(encoder, x):
    return encoder.model(x.clone()) + 0 * x.add_(0).sum()


def counting(encoder, x):
    encoder.n_calls = getattr(encoder, "n_calls", 0) + 1
    return encoder.model(x)


def remembering(encoder, x):
    encoder.last = encoder.model(x)
    return encoder.last


def noisy(encoder, x):
    return encoder.model(x) + torch.rand(1)


def centred(encoder, x):
    return encoder.model(x) - encoder.model(x).mean()


UNFIT = {
    "writes into its dict": {"encoder": writing, "given": lambda x: {"x": x}, "taken": lambda out: out["embedding"]},
    "writes into its input": {"encoder": in_place, "given": torch.clone},
    "counts its calls": {"encoder": counting},
    "remembers its output": {"encoder": remembering},
    "returns an object": {"encoder": lambda encoder, x: Pair(encoder.model(x)), "taken": lambda pair: pair.first},
    "takes an object": {"encoder": lambda encoder, pair: encoder.model(pair.first), "given": Pair},
    "returns another number of rows": {
        "encoder": lambda encoder, x: encoder.model(x)[None],
        "taken": lambda out: out[0],
    },
    "is random in eval mode": {"encoder": noisy},
    "mixes the rows": {"encoder": centred},
}


@pytest.mark.parametrize("kind", UNFIT)
def test_below_a_module_that_cannot_be_cached_its_children_are(kind):
    compute, rest = UNFIT[kind]["encoder"], {key: value for key, value in UNFIT[kind].items() if key != "encoder"}
    network = Network(Encoder(compute), **rest)
    parts, messages = cached(network), []
    for i in range(4):
        network(ROWS + i)
        messages += told(parts)
    assert list(parts.modules) == ["encoders.0.model"]
    assert messages == []
    parts.refresh()  # at an event
    network(ROWS + 3)
    assert counts(parts)[0] >= 12


def test_modules_asked_for_by_name_are_not_replaced_by_their_children():
    network = Network(Encoder(counting))
    parts, messages = cached(network, "encoders.0"), []
    for _ in range(3):
        network(ROWS)
        messages += told(parts)
    (message,) = messages
    assert message.startswith("frozen_cache: not caching 'encoders.0': a call changes the 'n_calls' of its Encoder")
    assert not parts.modules


class Deep(nn.Module):
    """Takes an object at each level but the last."""

    def __init__(self, depth):
        super().__init__()
        self.inner = Deep(depth - 1) if depth else nn.Linear(4, 3)
        self.depth = depth

    def forward(self, given):
        return self.inner(given if self.depth else given.first)


def test_children_are_tried_down_to_what_fits():
    network = Network(Deep(3), given=Pair)
    parts = cached(network)
    for _ in range(6):
        network(ROWS)
        parts.settle()
    assert list(parts.modules) == ["encoders.0.inner.inner.inner.inner"]
    assert counts(parts) == (12, 12)


def test_several_modules_with_one_cause_are_named_in_one_warning():
    layers = [nn.Dropout(), nn.BatchNorm1d(4), nn.LayerNorm(4), nn.Dropout()]
    network = nn.Sequential(*(frozen(nn.Sequential(nn.Linear(4, 4), layer)) for layer in layers), nn.Linear(4, 1))
    parts, messages = cached(network), []
    for _ in range(5):
        network(ROWS)
        messages += told(parts)
    (message,) = messages
    assert message.startswith(
        "frozen_cache: not caching '0', '3', '1': in training mode it draws random numbers, or in training mode a call "
    )
    assert message.endswith("; freeze it with frozen_mode='eval'")


def nothing(*given):
    pass


def test_another_cause_is_another_warning():
    network = nn.Sequential(*(frozen(nn.Sequential(nn.Linear(4, 4))) for _ in range(3)), nn.Linear(4, 1))
    network[0].append(nn.Dropout())
    network[1][0].register_forward_hook(nothing)
    parts = cached(network)
    network(ROWS)
    parts_told = told(parts)
    network(ROWS)
    messages = parts_told + told(parts)
    assert [message.partition(": it")[0].partition(": in")[0] for message in messages] == [
        "frozen_cache: not caching '1.0'",
        "frozen_cache: not caching '0'",
    ]


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = frozen(nn.Linear(4, 4)), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(x)


def biases_alone():
    network = frozen(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)))
    network[0].bias.requires_grad_(True)
    network[1].bias.requires_grad_(True)
    return network


NOTHING = {
    "a gradient": (
        lambda: nn.Sequential(nn.Linear(4, 4), frozen(nn.Linear(4, 1))),
        "not caching '1': its input requires",
    ),
    "no room": (
        lambda: nn.Sequential(frozen(nn.Linear(4, 4)), nn.Linear(4, 1)),
        "'0': no row of it fits into 10 bytes",
    ),
    "never called": (Unused, "not caching 'encoder': it is never called"),
    "none as a whole": (biases_alone, "no module is frozen as a whole, those of TorchScript left out"),
    "scripted": (
        lambda: nn.Sequential(torch.jit.trace(frozen(nn.Linear(4, 4)), ROWS), nn.Linear(4, 1)),
        "no module is frozen as a whole, those of TorchScript left out",
    ),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
@pytest.mark.parametrize("why", NOTHING)
def test_where_nothing_is_cached_in_an_epoch_it_says_so_once(why):
    network, message = NOTHING[why]
    network = network()
    parts = cached(network, max_bytes=10 if why == "no room" else 10**6)
    for epoch in range(3):
        parts.begin_epoch()
        parts.refresh()
        network(ROWS)
        parts.settle()
        with warnings.catch_warnings(record=True, action="always") as said:
            assert parts.end_epoch().hits == 0
        if epoch == 0:
            (one,) = said
            assert message in str(one.message)
            assert str(one.message).endswith("; so nothing is cached")
            assert one.filename == __file__
        else:
            assert not said


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = frozen(nn.Linear(4, 4)), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.encoder(x))


class Noisy(Plain):
    """Calls a frozen layer with its weights and with others, too."""

    def forward(self, x):
        others = {name: weight * 1.1 for name, weight in self.encoder.named_parameters()}
        return self.head(torch.func.functional_call(self.encoder, others, (x,)) + self.encoder(x))


def double(network):
    network.encoder.weight.data.mul_(2)


@pytest.mark.parametrize(
    ("network", "change", "expected"), [(Noisy, nothing, 1), (Plain, double, 2), (Plain, nothing, None)]
)
def test_rows_that_are_forgotten_again_and_again_are_told_once(network, change, expected):
    network = network()
    parts, epochs = cached(network), []
    for epoch in range(5):
        change(network)
        parts.begin_epoch()
        parts.refresh(retry_rejected=False)
        network(ROWS)
        parts.settle()
        with warnings.catch_warnings(record=True, action="always") as said:
            parts.end_epoch()
        epochs += [epoch for one in said if "since the 'weight' of its Linear changes" in str(one.message)]
        assert len(said) == (epoch == expected)
    assert epochs == ([] if expected is None else [expected])


def test_where_nothing_is_frozen_nothing_is_said():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    network.register_parameter("table", nn.Parameter(torch.arange(3), requires_grad=False))  # never trains
    parts = cached(network)
    network(ROWS)
    parts.settle()
    assert counts(parts) == (0, 0)


def test_modules_without_hits_are_dropped_until_an_event():
    network = nn.Sequential(frozen(nn.Linear(4, 4)), nn.Linear(4, 1))
    for names, bytes_left in (((), 0), (("0",), 1)):
        parts = cached(network, *names)
        for _ in range(2):
            parts.begin_epoch()
            network(torch.randn(12, 4))
            parts.end_epoch()
        assert (parts.budget.used > 0) == bytes_left
        parts.refresh(retry_rejected=False)
        assert ("_compiled_call_impl" in vars(network[0])) == bytes_left
        parts.refresh()
        assert "_compiled_call_impl" in vars(network[0])
        parts.close()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["encodr"], "`modules` has 'encodr', which the network lacks; did you mean 'encoder'"),
        (["*"], "`modules` has '\\*', which the network lacks; choose from 'en"),
        (["encoder.1"], "`modules` has 'encoder.1', which has no parameters and so is never frozen"),
        (["blocks"], "`modules` has 'blocks', a ModuleList, which is never called; name its elements"),
    ],
)
def test_names_must_be_modules_that_can_be_cached(names, message):
    network = nn.ModuleDict(
        {"encoder": nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "blocks": nn.ModuleList([nn.Linear(2, 2)])}
    )
    with pytest.raises(ValueError, match=message):
        CachedParts(network, names)
