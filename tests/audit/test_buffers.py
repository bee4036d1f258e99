"""The audit of parts that are frozen as a whole: buffers that move, pinned or not, and the option that stops them."""

import warnings

import pytest
import torch
from torch import nn

from mlr3torch_py import CallbackSet, CallbackSetUnfreeze, Freezer, select_all, select_last, select_prefix, t_clbk
from tests.freezing.modes import LateNorm, OwnNorm
from tests.helpers import X, iris_net, y
from tests.network.test_evaluation import Normed

SCRIPTING = pytest.mark.filterwarnings("ignore:`torch.jit.script")


class Codebook(nn.Module):
    """Vector quantisation whose codes follow what they are used for, replaced and not written."""

    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.randn(5, 4))

    def forward(self, x):
        nearest = torch.cdist(x, self.codes).argmin(1)
        if self.training:
            self.codes = self.codes.index_add(0, nearest, 0.01 * (x - self.codes[nearest]).detach())
        return x + (self.codes[nearest] - x).detach()


class Observer(nn.Module):
    """Keeps the range of what passes, without a parameter, as in training for quantisation."""

    def __init__(self):
        super().__init__()
        self.register_buffer("largest", torch.tensor(0.0), persistent=False)

    def forward(self, x):
        if self.training:
            self.largest.copy_(torch.maximum(self.largest, x.detach().abs().max()))
        return x


class Counter(nn.Module):
    """Counts its calls, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls += 1
        return x * self.weight


def old_spectral_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (DeprecationWarning, FutureWarning))
        return nn.utils.spectral_norm(nn.Linear(4, 4))


def behind(*modules):
    return lambda: nn.Sequential(nn.Linear(4, 4), *(module() for module in modules))


BODIES = {
    "BatchNorm": (behind(lambda: nn.BatchNorm1d(4)), "1.running_mean"),
    "BatchNorm without weights": (behind(lambda: nn.BatchNorm1d(4, affine=False)), "1.running_var"),
    "scripted BatchNorm": (lambda: torch.jit.script(behind(lambda: nn.BatchNorm1d(4))()), "1.running_mean"),
    "old spectral_norm": (old_spectral_norm, "weight_u"),
    "spectral_norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), "parametrizations.weight.0._u"),
    "own normalisation": (behind(OwnNorm), "1.mean"),
    "codebook": (behind(Codebook), "1.codes"),
    "observer": (behind(Observer), "1.largest"),
}


def net_of(body, *callbacks, audit=None, freezing=None, **options):
    network = nn.Sequential(body, nn.Tanh(), nn.Linear(4, 3))
    freezing = CallbackSetUnfreeze(select_last(1), None, **options) if freezing is None else freezing
    return iris_net(*callbacks, freezing, audit or t_clbk("freeze_audit"), module=network, max_epochs=3)


def warnings_of(net):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        net.fit(X, y)
    return [str(one.message) for one in said if one.category is UserWarning]


def reported(net):
    return dict(net.callbacks_)["freeze_audit"].report().set_index("name")


@pytest.mark.sample(5)
@SCRIPTING
@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("options", [{}, {"frozen_norm": "eval"}, {"frozen_dropout": "eval"}], ids=str)
def test_what_moves_in_a_frozen_part_is_warned_of_once_with_the_option_that_stops_it(kind, options):
    make, buffer = BODIES[kind]
    is_norm = "BatchNorm" in kind or kind == "own normalisation"
    is_stopped = bool(options) and is_norm is ("frozen_norm" in options)
    net = net_of(make(), **options)
    said = warnings_of(net)
    assert reported(net).loc[f"0.{buffer}", "moved"] == (not is_stopped)
    if is_stopped:
        assert said == []
    else:
        (message,) = said
        assert f"0.{buffer}" in message
        assert " moved in a frozen part, in batches 1 to 3: the network's own forward writes it; " in message
        condition = "to keep it as it is" if is_norm else "if it does so in training mode only"
        assert message.endswith(f'; {condition}, set frozen_mode="eval" of CallbackSetUnfreeze')


@SCRIPTING
@pytest.mark.parametrize("kind", BODIES)
def test_nothing_moves_and_nothing_is_said_with_the_option(kind):
    make, buffer = BODIES[kind]
    net = net_of(make(), frozen_mode="eval")
    assert warnings_of(net) == []
    report = reported(net)
    assert not report["moved"].any()
    assert report.loc[f"0.{buffer}", "comparisons"] == 3


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"frozen_mode": "eval", "frozen_norm": "train"}, 'leave out frozen_norm="train" of CallbackSetUnfreeze'),
        ({"frozen_norm": "train"}, 'set frozen_mode="eval" and leave out frozen_norm="train" of CallbackSetUnfreeze'),
        ({"frozen_dropout": "train"}, 'set frozen_mode="eval" of CallbackSetUnfreeze'),
    ],
    ids=str,
)
def test_no_option_is_recommended_that_is_set(options, advice):
    (message,) = warnings_of(net_of(BODIES["BatchNorm"][0](), **options))
    assert message.endswith(f"to keep it as it is, {advice}")


def test_a_part_that_no_callback_holds_needs_one():
    body = BODIES["own normalisation"][0]().requires_grad_(False)
    (message,) = warnings_of(net_of(body, freezing=Freezer("2.bias")))
    assert message.startswith("0.1.mean moved in a frozen part")
    assert message.endswith('hold its part by a Freezer with frozen_mode="eval", since no callback of the net does')
    assert warnings_of(net_of(body, freezing=Freezer(name_starts_with="0", frozen_mode="eval"))) == []


def test_the_callback_that_holds_the_part_is_named():
    both = [Freezer(name_starts_with="0"), CallbackSetUnfreeze(select_all())]
    (message,) = warnings_of(net_of(BODIES["observer"][0](), both[1], freezing=both[0]))
    assert message.endswith('set frozen_mode="eval" of Freezer')


@pytest.mark.parametrize("options", [{}, {"frozen_mode": "eval"}, {"frozen_dropout": "eval"}], ids=str)
def test_the_advice_for_what_writes_in_eval_mode_too_leads_to_no_error(options):
    (message,) = warnings_of(net_of(behind(Counter)(), **options))
    advice = (
        'writes it even in eval mode, so that frozen_mode="eval" does not stop it'
        if options
        else 'writes it; if it does so in training mode only, set frozen_mode="eval" of CallbackSetUnfreeze'
    )
    assert message == f"0.1.calls moved in a frozen part, in batches 1 to 3: the network's own forward {advice}"


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_table_that_is_made_anew_for_longer_rows_is_compared_as_it_is_then(mode):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))
            self.register_buffer("table", torch.zeros(2, 1), persistent=False)

        def forward(self, x):
            if len(self.table) < len(x):
                self.table = torch.arange(len(x)).cos()[:, None]
            return x * self.weight + self.table[: len(x)]

    class Writes(CallbackSet):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 2:
                net.module_[0].table += 1

    net = net_of(Positions(), frozen_mode=mode)
    assert warnings_of(net) == []
    assert reported(net).loc["0.table", ["comparisons", "moved"]].tolist() == [3, True]
    if mode == "eval":
        net.set_params(callbacks=[*net.callbacks, Writes()])
        with pytest.raises(RuntimeError, match=r"0\.table changed while frozen, in batches 7 to 9: .*something wrote"):
            net.fit(X, y)


def test_a_pinned_norm_whose_pin_something_removes_is_an_error():
    class Unpins(CallbackSet):
        default_weight = 999

        def on_batch_begin(self, net, training=None, **kwargs):
            net.module_[0][1].train = lambda *_: None
            net.module_[0][1].training = True

    net = net_of(BODIES["BatchNorm"][0](), Unpins(), frozen_mode="eval")
    with pytest.raises(RuntimeError, match="0.1.running_mean, .*: its module ran in training mode, since "):
        net.fit(X, y)


def test_where_eval_mode_does_not_help_it_is_not_recommended():
    body = behind(Counter)().eval()
    body.train = lambda *_: body
    (message,) = warnings_of(net_of(body))
    assert message.endswith('writes it even in eval mode, so that frozen_mode="eval" does not stop it')


class ByGradient(OwnNorm):
    """Keeps its statistics in a plain tensor, and moves them wherever gradients are computed, as in some textbooks."""

    def __init__(self):
        super().__init__()
        del self.mean
        self.mean = torch.zeros(1, 4)
        self.last = None

    def forward(self, x):
        if torch.is_grad_enabled():
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0, keepdim=True)
        self.last = x.detach()
        return (x - self.mean) * self.weight


def test_statistics_in_plain_attributes_are_warned_of_and_other_tensors_there_are_not():
    for options in ({}, {"frozen_mode": "eval"}):
        (message,) = warnings_of(net_of(behind(ByGradient)(), **options))
        assert message.startswith("0.1.mean moved in a frozen part, in batches 1 to 3: the network's own forward")


@pytest.mark.parametrize("kind", ["declared", "new", "plain"])
def test_statistics_that_the_first_forward_pass_makes_are_compared_from_then_on(kind):
    net = net_of(behind(lambda: LateNorm(kind))())
    (message,) = warnings_of(net)
    assert message.startswith("0.1.mean moved in a frozen part, in batches 4 to 6: the network's own forward writes it")
    assert reported(net).loc["0.1.mean"].tolist() == [1, 3, 2, True]


@pytest.mark.parametrize("kind", ["declared", "new", "plain"])
def test_statistics_that_the_first_forward_pass_makes_are_pinned_from_then_on(kind):
    net = net_of(behind(lambda: LateNorm(kind))(), frozen_norm="eval")
    assert warnings_of(net) == []
    if kind == "declared":
        assert net.module_[0][1].mean is None
    else:
        assert not reported(net).loc["0.1.mean", "moved"]


class Listing(OwnNorm):
    """Keeps its statistics in a list."""

    def __init__(self):
        super().__init__()
        self.statistics = [0, torch.zeros(4)]

    def forward(self, x):
        if self.training:
            self.statistics = [self.statistics[0] + 1, self.statistics[1].lerp(x.detach().mean(0), 0.1)]
        return (x - self.statistics[1]) * self.weight


def test_statistics_in_a_list_are_compared_and_pinned():
    (message,) = warnings_of(net_of(behind(Listing)()))
    assert message.startswith("0.1.statistics[1] moved in a frozen part")
    net = net_of(behind(Listing)(), frozen_norm="eval")
    assert warnings_of(net) == []
    assert not reported(net).loc["0.1.statistics[1]", "moved"]


def test_each_part_is_compared_as_long_as_it_is_frozen():
    table = {"epoch": [2, 3], "weights": [select_prefix("second"), select_all()]}
    audit = t_clbk("freeze_audit")
    net = iris_net(CallbackSetUnfreeze(select_last(1), table), audit, module=Normed, max_epochs=3)
    (message,) = warnings_of(net)
    assert "first.1.running_mean" in message
    assert "second.1.running_mean" in message
    report = reported(net)
    spans = report.loc[["first.1.running_mean", "second.1.running_mean"], ["frozen_from", "frozen_to", "comparisons"]]
    assert spans.to_numpy().tolist() == [[1, 2, 2], [1, 1, 1]]
    assert report["moved"].to_dict() == {name: "1.running" in name or "tracked" in name for name in report.index}


def test_parts_that_train_in_part_may_move():
    net = net_of(BODIES["BatchNorm"][0](), freezing=Freezer(["0.0.weight", "0.1.weight"]))
    assert warnings_of(net) == []
    assert list(reported(net).index) == ["0.0.weight", "0.1.weight"]


def test_a_module_with_nothing_but_integers_is_not_frozen():
    body = Observer()
    body.steps = nn.Parameter(torch.tensor([3]), requires_grad=False)
    net = iris_net(
        Freezer("1.bias"), t_clbk("freeze_audit"), module=nn.Sequential(body, nn.Linear(4, 4), nn.Linear(4, 3))
    )
    assert warnings_of(net) == []
    assert list(reported(net).index) == ["0.steps", "1.bias"]


def test_a_buffer_that_a_trainable_part_shares_may_move():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = OwnNorm(), OwnNorm()
            self.second.mean = self.first.mean
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.second(self.first(x)))

    net = iris_net(Freezer("first.weight", frozen_mode="eval"), t_clbk("freeze_audit"), module=Shared)
    assert warnings_of(net) == []
    assert list(reported(net).index) == ["first.weight"]


def test_it_is_said_again_in_the_next_training():
    net = net_of(BODIES["own normalisation"][0]())
    assert len(warnings_of(net)) == len(warnings_of(net)) == 1
