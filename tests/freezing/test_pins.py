"""Whatever asks for its mode: fixed while it is pinned, itself again afterwards and in every copy."""

import copy
import pickle

import pytest
import torch
from skorch.callbacks import Callback, Checkpoint
from torch import nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver, disable_observer
from torch.optim.swa_utils import AveragedModel, update_bn

from mlr3torch_py import CallbackSetUnfreeze, select_all, select_prefix
from mlr3torch_py.network.evaluation import Pins, overruled_pins, pinned_modules
from tests.freezing.modes import KINDS, NORMALISATION, Network, Probe, buffers, is_fixed, modes, scripted, traced
from tests.helpers import KEEPS_INSTANCE_NORM, Stops, X, iris_net, moved, y

# Torch pickles neither scripted nor parametrized modules.
PICKLED = [kind for kind in KINDS if "scripted" not in kind and "parametrization" not in kind]
kinds = pytest.mark.parametrize("kind", KINDS)


def head_only(table=None, **options):
    return CallbackSetUnfreeze(select_prefix("head"), table, **options or {"frozen_mode": "eval"})


def released(epoch):
    return head_only({"epoch": [epoch], "weights": [select_all()]})


@kinds
def test_pinned_it_does_not_change_by_a_bit_and_its_output_is_fixed(kind):
    network, probe = Network(KINDS[kind]()), Probe()
    before = buffers(network)
    net = iris_net(head_only(), probe, module=network, max_epochs=2).fit(X, y)
    assert probe.is_fixed_ == [True] * 6
    assert not moved(before, buffers(net.module_))


@kinds
def test_unpinned_it_works_as_in_r(kind):
    probe = Probe()
    iris_net(head_only(frozen_mode="train"), probe, module=Network(KINDS[kind]()), max_epochs=1, audited=False).fit(
        X, y
    )
    assert probe.is_fixed_ == [False] * 3


@pytest.mark.sample(3)
@kinds
@pytest.mark.parametrize("option", ["frozen_norm", "frozen_dropout"])
def test_one_of_the_two_options_pins_normalisation_or_all_else(kind, option):
    probe = Probe()
    body = KINDS[kind]()
    iris_net(head_only(**{option: "eval"}), probe, module=Network(body), max_epochs=1, audited=False).fit(X, y)
    assert probe.is_fixed_ == [(option == "frozen_norm") is (kind in NORMALISATION)] * 3


class Copies(Callback):
    """Copies the network when an epoch begins, and lets the random numbers begin with it."""

    def __init__(self, epoch, copied=copy.deepcopy):
        self.epoch = epoch
        self.copied = copied

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == self.epoch:
            self.copy_ = self.copied(net.module_)
            torch.manual_seed(1)


def state(network):
    return {**weights_of(network), **buffers(network)}


def weights_of(network):
    return {name: tensor.detach().clone() for name, tensor in network.named_parameters()}


@pytest.mark.sample(3)
@kinds
def test_released_by_a_row_it_trains_as_without_us(kind):
    copies, probe = Copies(2, state), Probe()
    net = iris_net(released(2), copies, probe, module=Network(KINDS[kind]()), max_epochs=2).fit(X, y)
    assert probe.is_fixed_ == [True] * 3 + [False] * 3
    network = Network(KINDS[kind]())
    network.load_state_dict(copies.copy_)
    twin = iris_net(Copies(1, state), Probe(), module=network, max_epochs=1, audited=False).fit(X, y)
    assert not moved(state(twin.module_), state(net.module_))
    assert modes(twin.module_) == modes(net.module_)


def check_has_no_pins(network):
    assert not pinned_modules(network)
    assert all("train" not in vars(one) for one in network.train().modules())
    assert all(modes(network))
    assert not is_fixed(network.body)
    assert not any(modes(network.eval()))


@pytest.mark.sample(5)
@kinds
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_deepcopy_has_no_pins_and_trains_on_its_own(kind, epoch):
    copies, probe = Copies(epoch), Probe()
    net = iris_net(head_only(), copies, module=Network(KINDS[kind]()), max_epochs=2).fit(X, y)
    before = weights_of(net.module_)
    check_has_no_pins(copies.copy_)
    again = iris_net(CallbackSetUnfreeze(select_all()), probe, module=copies.copy_, max_epochs=1).fit(X, y)
    assert probe.is_fixed_ == [False] * 3
    assert not moved(before, weights_of(net.module_))
    assert all(one.requires_grad for one in again.module_.parameters())


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", PICKLED)
def test_a_pickle_has_no_pins(kind):
    copies = Copies(2, pickle.dumps)
    iris_net(head_only(), copies, module=Network(KINDS[kind]()), max_epochs=2).fit(X, y)
    check_has_no_pins(pickle.loads(copies.copy_))


@pytest.mark.sample(3)
@kinds
def test_an_averaged_network_has_no_pins(kind):
    copies = Copies(2, AveragedModel)
    net = iris_net(head_only(), copies, module=Network(KINDS[kind]()), max_epochs=2).fit(X, y)
    copies.copy_.update_parameters(net.module_)
    assert all(modes(copies.copy_.train()))
    check_has_no_pins(copies.copy_.module)


@pytest.mark.parametrize("kind", [kind for kind in NORMALISATION if "Batch" in kind and "scripted" not in kind])
def test_an_averaged_network_gets_its_statistics_from_update_bn(kind):
    copies = Copies(2, AveragedModel)
    net = iris_net(head_only(), copies, module=Network(KINDS[kind]()), max_epochs=2).fit(X, y)
    without = copy.deepcopy(copies.copy_.module)
    for one in without.modules():  # as it is without us
        vars(one).pop("train", None)
    for network in (copies.copy_, without):
        update_bn([torch.tensor(X)], network)
    assert not moved(buffers(without), buffers(copies.copy_.module))
    assert moved(buffers(net.module_), buffers(without))


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", PICKLED)
def test_a_net_that_a_checkpoint_has_pickled_pins_again_when_it_goes_on(kind, tmp_path):
    if "InstanceNorm" in kind and not KEEPS_INSTANCE_NORM:
        pytest.skip("InstanceNorm of this torch changes its statistics in eval mode")
    keep = Checkpoint(monitor=None, f_pickle="net.pkl", dirname=tmp_path)
    probe = ("probe", Probe())
    iris_net(("unfreeze", released(3)), probe, keep, module=Network(KINDS[kind]()), max_epochs=1).fit(X, y)
    net = pickle.loads((tmp_path / "net.pkl").read_bytes())
    check_has_no_pins(net.module_)
    before = buffers(net.module_)
    net.partial_fit(X, y)
    assert not moved(before, buffers(net.module_))
    net.partial_fit(X, y)
    assert dict(net.callbacks_)["probe"].is_fixed_ == [True] * 6 + [False] * 3
    assert not pinned_modules(net.module_)


@pytest.mark.parametrize("inside", [False, True])
def test_a_part_that_was_traced_keeps_its_mode_so_that_normalisation_in_training_mode_is_refused(inside):
    def network_of(mode):
        part = traced(mode, nn.BatchNorm1d(4))
        return Network(nn.Sequential(part) if inside else part)

    network = network_of(mode=False)
    before = copy.deepcopy(network.body.state_dict())
    iris_net(head_only(), module=network, max_epochs=1).fit(X, y)
    assert not moved(before, network.body.state_dict())
    network = network_of(mode=True)
    before = copy.deepcopy(network.state_dict())
    path = "'body.0'" if inside else "'body'"
    with pytest.raises(ValueError, match=f"{path} cannot be kept in eval mode, since torch.jit.trace has fixed"):
        iris_net(head_only(), module=network, audited=False).fit(X, y)
    assert not moved(before, network.state_dict())
    assert not pinned_modules(network)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4, track_running_stats=False), nn.Dropout()], ids=str)
@pytest.mark.parametrize("mode", [False, True])
def test_a_part_that_was_traced_without_statistics_is_not_refused(layer, mode):
    network = Network(traced(mode, layer))
    before = copy.deepcopy(network.state_dict())
    net = iris_net(head_only(), module=network, max_epochs=1).fit(X, y)
    assert moved(before, net.module_.state_dict()) == {"head.weight", "head.bias"}


def test_an_observer_of_torch_ao_does_not_ask_for_its_mode_so_that_the_audit_warns_of_it():
    body = nn.Sequential(nn.Linear(4, 4), FakeQuantize(MovingAverageMinMaxObserver))
    with pytest.warns(UserWarning, match=r"body.1.activation_post_process.min_val.* even in eval mode"):
        iris_net(head_only(), module=Network(body), max_epochs=1).fit(X, y)
    body.apply(disable_observer)
    iris_net(head_only(), module=Network(body), max_epochs=1).fit(X, y)


def test_a_scripted_part_without_a_mode_is_passed_over():
    body = nn.Sequential(nn.Linear(4, 4), scripted(nn.BatchNorm1d(4).eval(), frozen=True))
    assert not hasattr(body[1], "training")
    net = iris_net(head_only(), module=Network(body), max_epochs=1).fit(X, y)
    assert not pinned_modules(net.module_)


class Quantized(nn.Module):
    """A layer of integers, and dropout."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, dtype=torch.int8), requires_grad=False)
        self.dropout = nn.Dropout()

    def forward(self, x):
        return self.dropout(x * self.weight)


def test_a_module_of_integers_goes_with_the_layers_around_it():
    probe = Probe()
    network = Network(nn.Sequential(nn.Linear(4, 4), Quantized()))
    iris_net(head_only(), probe, module=network, max_epochs=1).fit(X, y)
    assert probe.is_fixed_ == [True] * 3
    iris_net(CallbackSetUnfreeze(select_all(), frozen_mode="eval"), probe, module=network, max_epochs=1).fit(X, y)
    assert probe.is_fixed_[3:] == [False] * 3


def test_a_network_that_is_trained_in_the_middle_of_its_own_training_stays_pinned():
    class TrainsAnother(Callback):
        def on_epoch_begin(self, net, **kwargs):
            iris_net(head_only(), module=net.module_, max_epochs=1).fit(X, y)

    probe = Probe()
    net = iris_net(head_only(), TrainsAnother(), probe, module=Network(KINDS["Dropout"]()), max_epochs=2).fit(X, y)
    assert probe.is_fixed_ == [True] * 6
    assert not pinned_modules(net.module_)


class Unequal(nn.Sequential):
    """Leaves its normalisation in eval mode, as networks for detection do."""

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


def switched_off(part):
    """Put a part in eval mode for good, as code for frozen encoders does."""
    part.eval()
    part.train = lambda mode=True: part  # noqa: ARG005


def plain():
    return Network(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.ReLU()))


def part_switched_off():
    network = plain()
    switched_off(network.body)
    return network


def layer_switched_off():
    network = plain()
    switched_off(network.body[1])
    return network


def overridden():
    return Network(Unequal(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.ReLU()))


def in_eval_mode():
    return plain().eval()


class StopsIn(Callback):
    """An error, or Ctrl-C, in a hook."""

    def __init__(self, hook, error):
        setattr(self, hook, self.stop)
        self.error = error

    def stop(self, *args, **kwargs):
        raise self.error


WAYS_OUT = {
    "end": [],
    "error in a batch": [Stops(ZeroDivisionError, 2)],
    "Ctrl-C in the first batch": [Stops(KeyboardInterrupt, 1)],
    "Ctrl-C in a batch": [Stops(KeyboardInterrupt, 2)],
    "error when training begins": [StopsIn("on_train_begin", ZeroDivisionError)],
    "Ctrl-C when training begins": [StopsIn("on_train_begin", KeyboardInterrupt)],
    "error when an epoch begins": [StopsIn("on_epoch_begin", ZeroDivisionError)],
    "Ctrl-C when an epoch ends": [StopsIn("on_epoch_end", KeyboardInterrupt)],
    "error when training ends": [StopsIn("on_train_end", ZeroDivisionError)],
    "Ctrl-C when training ends": [StopsIn("on_train_end", KeyboardInterrupt)],
}


def trained(make, way_out, *callbacks):
    network = make()
    net = iris_net(*callbacks, *copy.deepcopy(WAYS_OUT[way_out]), module=network, max_epochs=2, audited=False)
    try:
        net.fit(X, y)
    except (ZeroDivisionError, KeyboardInterrupt):
        assert way_out != "end"
    return network


@pytest.mark.sample(7)
@pytest.mark.parametrize("options", [{"frozen_mode": "eval"}, {"frozen_norm": "eval"}, {"frozen_dropout": "eval"}])
@pytest.mark.parametrize("way_out", WAYS_OUT)
@pytest.mark.parametrize("make", [plain, in_eval_mode, part_switched_off, layer_switched_off, overridden])
def test_modes_are_given_back_as_without_us_on_every_way_out(make, way_out, options):
    expected = trained(make, way_out)
    network = trained(make, way_out, head_only(**options))
    assert modes(network) == modes(expected)
    assert not pinned_modules(network)
    for mode in (True, False):
        assert modes(network.train(mode)) == modes(expected.train(mode))
    assert ["train" in vars(one) for one in network.modules()] == ["train" in vars(one) for one in expected.modules()]


@pytest.mark.parametrize("make", [plain, part_switched_off, layer_switched_off, overridden])
def test_what_a_user_keeps_in_eval_mode_stays_there_when_it_is_released(make):
    expected, seen = make().train(), []

    class Looks(Callback):
        def on_batch_end(self, net, **kwargs):
            seen.append(modes(net.module_))

    iris_net(released(2), Looks(), module=make(), max_epochs=2).fit(X, y)
    assert seen[3:] == [modes(expected)] * 3


def test_a_mode_that_is_set_while_it_is_pinned_counts_afterwards():
    class Evaluates(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.module_.eval()
            assert not any(modes(net.module_))
            net.module_.train()
            assert modes(net.module_)[:2] == [True, False]
            net.module_.body[1].eval()

    network = plain()
    iris_net(head_only(), Evaluates(), module=network, max_epochs=1).fit(X, y)
    assert [network.training, *(one.training for one in network.body)] == [True, True, False, True, True]


class WithArguments(nn.Sequential):
    """Takes more than a mode, as networks with a switch for their normalisation do."""

    def train(self, mode=True, freeze_norm=False):
        super().train(mode)
        self[1].train(mode and not freeze_norm)
        return self


def test_a_train_method_gets_all_of_its_arguments():
    class Calls(Callback):
        def on_epoch_end(self, net, **kwargs):
            copies.append(copy.deepcopy(net.module_))
            for network in (net.module_, copies[0]):
                network.body.train(True, freeze_norm=True)
                network.body.train(freeze_norm=True)

    copies = []
    network = Network(WithArguments(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()))
    iris_net(head_only(), Calls(), module=network, max_epochs=1).fit(X, y)
    for one in (network, *copies):
        assert [layer.training for layer in one.body] == [True, False, True]


class Writes(Network):
    """Sets the modes below it on its own."""

    def train(self, mode=True):
        for one in self.modules():
            one.training = mode
        return self


class WritesBelow(nn.Sequential):
    """Sets the mode of its normalisation on its own, and trains the rest by its usual method."""

    def train(self, mode=True):
        super().train(mode)
        self[1].training = mode
        return self


def writes_below():
    return Network(WritesBelow(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.ReLU()))


@pytest.mark.parametrize(
    ("make", "overruled"),
    [(lambda: Writes(plain().body), "'body', 'body.0', 'body.1', 'body.2', 'body.3'"), (writes_below, "'body.1'")],
)
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_train_method_that_overrules_the_pins_is_refused(make, overruled, is_training, epoch):
    network = make()
    network.train(is_training)
    before, modes_before = copy.deepcopy(network.state_dict()), modes(network)
    table = {"epoch": [1, epoch], "weights": [select_all(), ~select_prefix("head")], "action": ["unfreeze", "freeze"]}
    net = iris_net(head_only(table if epoch > 1 else None, frozen_mode="eval"), module=network, audited=False)
    with pytest.raises(ValueError, match=f"{overruled} cannot be kept in eval mode, since the `train` method"):
        net.fit(X, y)
    assert not pinned_modules(network)
    if epoch == 1:
        assert not moved(before, network.state_dict())
        assert modes(network) == modes_before
        assert all(tensor.requires_grad for tensor in network.parameters())


def test_looking_for_it_changes_no_modes():
    network = in_eval_mode()
    network.head.train()
    network.train = lambda mode=True: nn.Module.train(network, mode)
    before, pins = modes(network), Pins()
    pins.set([network.body[1]])
    assert not overruled_pins(network)
    assert modes(network) == before
    pins.set([])
    assert modes(network) == before


def test_a_released_train_method_is_the_one_that_was_there():
    network = layer_switched_off()
    own = vars(network.body[1])["train"]
    iris_net(head_only(), module=network, max_epochs=1).fit(X, y)
    assert vars(network.body[1])["train"] is own
