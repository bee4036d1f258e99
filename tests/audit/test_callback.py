"""The audit: what it sees, when it speaks, and what it says."""

import warnings

import pytest
import torch
import torch.nn.utils.prune
from skorch.callbacks import EarlyStopping, Unfreezer
from skorch.callbacks import Freezer as FreezerOfSkorch
from torch import nn

from mlr3torch_py import CallbackSetUnfreeze, Freezer, select_all, select_last, select_prefix, t_clbk, torch_callback
from tests.helpers import Stops, X, iris_net, moved, weights, y
from tests.network.test_bits import Opaque, Packed
from tests.network.test_evaluation import EVAL, Buffers, Normed, moving

TABLE = {"epoch": [2], "weights": [select_prefix("3")]}


def audited(*callbacks, on_change="raise", sample=None, table=TABLE, **params):
    audit = t_clbk("freeze_audit", on_change=on_change, sample=sample)
    return iris_net(*callbacks, CallbackSetUnfreeze(select_last(1), table), audit, **params)


def acts_at(batch, act):
    """A callback that does something to the network at the end of a training batch."""

    def on_batch_end(self):
        if self.ctx.global_step == batch:
            act(self.ctx.network)

    return torch_callback("acts", on_batch_end=on_batch_end)


@torch.no_grad()
def write(network):
    network.get_parameter("0.bias")[1] += 1e-7


def unfreeze_by_hand(network):
    network.get_parameter("0.bias").requires_grad = True


def give_gradient(network):
    weight = network.get_parameter("0.weight")
    weight.grad = torch.ones_like(weight)


CAUSES = {
    "written": (write, {}, "0.bias changed while frozen, in batches {}: something wrote into it, such as a callback, "),
    "by hand": (unfreeze_by_hand, {}, "0.bias changed while frozen, in batches {}: something set its requires_grad"),
    "gradient": (give_gradient, {}, "0.weight changed while frozen, in batches {}: something gave it a gradient, by"),
}


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize(("batch", "batches"), [(1, "1 to 3"), (5, "4 to 6")])
def test_a_change_is_found_at_the_end_of_its_epoch(cause, batch, batches):
    act, params, message = CAUSES[cause]
    if cause == "gradient":
        params = {"module__p": 0.0}
        act = keep_gradient
    with pytest.raises(RuntimeError) as error:
        audited(acts_at(batch, act), max_epochs=2, **params).fit(X, y)
    assert str(error.value).startswith(message.format(batches))


def keep_gradient(network):
    """A gradient that comes back before every step, as an old hook of a user would give it."""
    weight = network.get_parameter("0.weight")
    network.get_parameter("6.bias").register_hook(lambda _: setattr(weight, "grad", torch.ones_like(weight)))


def test_buffers_of_layers_that_are_held_are_watched():
    def train(network):
        del vars(network.first[1])["train"]

    net = audited(acts_at(1, train), table=None, module=Normed, max_epochs=2)
    net.set_params(callbacks__CallbackSetUnfreeze__frozen_norm="eval")
    with pytest.raises(RuntimeError, match="first.1.running_mean, .* changed .* ran in training mode"):
        net.fit(X, y)


def test_it_can_warn_instead_and_goes_on():
    net = audited(acts_at(1, write), on_change="warn", max_epochs=2)
    with pytest.warns(UserWarning, match="0.bias changed while frozen, in batches 1 to 3"):
        net.fit(X, y)
    assert len(net.history) == 2


def test_a_sample_sees_some_values():
    def write_first(network):
        network.get_parameter("0.weight").data[0, 0] += 1

    def write_last(network):
        network.get_parameter("0.weight").data[-1, -1] += 1

    with pytest.raises(RuntimeError, match="0.weight"):
        audited(acts_at(1, write_first), sample=1).fit(X, y)
    audited(acts_at(1, write_last), sample=1).fit(X, y)
    with pytest.raises(RuntimeError, match="0.weight"):
        audited(acts_at(1, write_last), sample=12).fit(X, y)


def test_nan_equals_itself_and_zero_has_a_sign():
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    module[0].register_parameter("spare", nn.Parameter(torch.tensor([float("nan"), 0.0])))

    def flip(network):
        network[0].spare.data[1] *= -1

    audited(module=module, table=None).fit(X, y)
    with pytest.raises(RuntimeError, match="0.spare"):
        audited(acts_at(2, flip), module=module, table=None).fit(X, y)


def test_tensors_of_any_stride_and_kind_are_compared():
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    module[0].column = nn.Parameter(torch.randn(5, 3)[:, 0])
    module[0].one = nn.Parameter(torch.ones(1).expand(5))
    module[0].part = nn.Parameter(torch.randn(8)[1:])
    module[0].conjugate = nn.Parameter(torch.ones(2, dtype=torch.complex64).conj())
    module[0].sparse = nn.Parameter(torch.eye(2).to_sparse())

    audited(module=module, table=None).fit(X, y)
    for name, value in ("column", 2), ("part", 3), ("part", 6):

        def write_it(network, name=name, value=value):
            getattr(network[0], name).data[value] += 1

        with pytest.raises(RuntimeError, match=f"0.{name}"):
            audited(acts_at(2, write_it), module=module, table=None).fit(X, y)


def test_a_weight_that_disappears_is_named():
    def prune(network):
        torch.nn.utils.prune.random_unstructured(network.get_submodule("0"), "weight", 0.5)

    with pytest.raises(RuntimeError, match="0.weight changed .*: the network no longer has a tensor of that name"):
        audited(acts_at(1, prune)).fit(X, y)


def test_better_weights_that_are_put_back_at_the_end_are_no_change():
    table = {"epoch": [2], "weights": [select_prefix("0")], "action": ["freeze"]}
    stops = EarlyStopping("train_loss", patience=2, load_best=True, lower_is_better=False, threshold_mode="abs")
    unfreeze = CallbackSetUnfreeze(select_all(), table)
    net = iris_net(unfreeze, t_clbk("freeze_audit"), stops, max_epochs=9).fit(X, y)
    assert 1 < len(net.history) < 9


class HalfUsed(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Linear(4, 3)
        self.idle = nn.Linear(4, 3)
        self.rare = nn.Linear(4, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.used(x) + (self.rare(x) if self.calls % 3 == 0 else 0)


def test_a_trainable_weight_that_never_gets_a_gradient_is_warned_of():
    net = audited(table={"epoch": [1], "weights": [select_all()]}, module=HalfUsed, max_epochs=2)
    with pytest.warns(UserWarning, match=r"^idle.weight, idle.bias never got a gradient in batches 1 to 6, though"):
        net.fit(X, y)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_training_that_breaks_off_gives_no_false_alarm(batch):
    net = audited(Stops(KeyboardInterrupt, batch), max_epochs=3).fit(X, y)
    net.partial_fit(X, y)
    with pytest.raises(ZeroDivisionError):
        audited(Stops(ZeroDivisionError, batch)).fit(X, y)


def test_it_has_nothing_to_say_without_freezing():
    net = iris_net(t_clbk("freeze_audit")).initialize()
    before = weights(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.partial_fit(X, y)
    assert moved(before, weights(net)) == before.keys()


def test_what_was_frozen_by_hand_is_watched_too():
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    module[0].requires_grad_(False)

    def write_it(network):
        network[0].weight.data += 1

    with pytest.raises(RuntimeError, match="0.weight changed while frozen"):
        iris_net(Freezer(["1.bias"]), t_clbk("freeze_audit"), acts_at(2, write_it), module=module).fit(X, y)


def test_held_layers_and_their_release_pass():
    table = {"epoch": [2, 3], "weights": [select_prefix("second"), select_all()]}
    trace = Buffers()
    unfreeze = CallbackSetUnfreeze(select_last(1), table, **EVAL)
    iris_net(unfreeze, trace, t_clbk("freeze_audit"), module=Normed, max_epochs=3).fit(X, y)
    assert moving(trace) == [[]] * 3 + [["second.1"]] * 3 + [["first.1", "second.1"]] * 3


@pytest.mark.parametrize(
    "arguments", [{"on_change": "stop"}, {"sample": 0}, {"sample": 1.5}, {"sample": True}], ids=str
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises((TypeError, ValueError), match=f"`{next(iter(arguments))}` is "):
        t_clbk("freeze_audit", **arguments)


def frozen_until(net):
    report = dict(net.callbacks_)["freeze_audit"].report()
    assert not report["moved"].any()
    return dict(zip(report["name"], report["frozen_to"], strict=True))


def test_what_skorch_freezes_and_releases_passes():
    callbacks = [FreezerOfSkorch("0.*"), Unfreezer("0.*", at=3), t_clbk("freeze_audit")]
    assert frozen_until(iris_net(*callbacks, max_epochs=4).fit(X, y)) == {"0.weight": 2, "0.bias": 2}


@pytest.mark.parametrize(("batch", "until"), [(1, 1), (4, 1), (7, 2)])
def test_what_is_frozen_and_released_by_hand_passes(batch, until):
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    module[0].requires_grad_(False)
    by_hand = acts_at(batch, lambda network: network[0].requires_grad_(True))
    net = iris_net(Freezer(["1.bias"]), t_clbk("freeze_audit"), by_hand, module=module).fit(X, y)
    assert frozen_until(net) == {"0.weight": until, "0.bias": until, "1.bias": len(net.history)}


def test_what_is_released_and_frozen_again_by_hand_has_changed():
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    module[0].requires_grad_(False)
    by_hand = torch_callback("acts", on_batch_end=lambda self: module[0].requires_grad_(self.ctx.global_step == 1))
    with pytest.raises(RuntimeError, match="0.weight, 0.bias changed while frozen, in batches 1 to 3"):
        iris_net(Freezer(["1.bias"]), t_clbk("freeze_audit"), by_hand, module=module).fit(X, y)


@pytest.mark.parametrize("sample", [None, 3])
@pytest.mark.parametrize("kind", [Packed, Opaque])
def test_weights_of_a_class_that_decides_about_its_operations(kind, sample):
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    packed = kind(torch.arange(16, dtype=torch.int8).reshape(4, 4), torch.tensor(0.1))
    network[0].weight = nn.Parameter(packed, requires_grad=False)
    audit, rescales = t_clbk("freeze_audit", sample=sample), torch_callback("rescales", on_epoch_end=rescale)
    net = iris_net(Freezer("0.bias"), audit, rescales, module=network, max_epochs=2)
    if kind is Opaque:
        net.fit(X, y)
        assert dict(net.callbacks_)["freeze_audit"].report()["name"].tolist() == ["0.bias"]
    else:
        with pytest.raises(RuntimeError, match="0.weight changed while frozen"):
            net.fit(X, y)


def rescale(self):
    self.ctx.network[0].weight.scale.mul_(2)
