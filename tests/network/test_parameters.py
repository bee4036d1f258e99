import copy
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from mlr3torch_py.network.parameters import Flags, freeze, n_trainable, trainable_names
from mlr3torch_py.network.unwrap import bare, named_modules, named_parameters
from tests.helpers import Nested


class HasChildCalledModule(nn.Module):
    """Its names begin with `module.` although nothing wraps it."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 2)
        self._orig_mod = nn.Linear(2, 2)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, checkpoint_wrapper, lambda m: torch.compile(nn.DataParallel(m))]
)
def test_wrappers_leave_no_trace_in_the_names(wrap):
    network = Nested(blocks=2)
    names = [name for name, _ in network.named_parameters()]
    inner = Nested(blocks=2)
    inner.encoder[0] = wrap(inner.encoder[0])
    assert list(named_parameters(wrap(network))) == names
    assert list(named_parameters(inner)) == names
    assert [path for path, _ in named_modules(inner)] == [path for path, _ in network.named_modules()]
    assert bare(wrap(network)) is network


def test_a_distributed_wrapper_leaves_no_trace_in_the_names(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
        assert list(named_parameters(wrapped)) == ["weight", "bias"]
    finally:
        torch.distributed.destroy_process_group()


def test_a_child_that_is_called_like_a_wrapper_keeps_its_name():
    network = HasChildCalledModule()
    assert list(named_parameters(network)) == [name for name, _ in network.named_parameters()]


def test_a_tied_tensor_has_all_its_names_and_is_frozen_only_when_all_are_held():
    network = Tied()
    assert list(named_parameters(network)) == ["embed.weight", "head.weight"]
    freeze(network, {"embed.weight"})
    assert trainable_names(network) == ["embed.weight", "head.weight"]
    freeze(network, {"embed.weight", "head.weight"})
    assert trainable_names(network) == []
    freeze(network, {"head.weight"})
    assert network.embed.weight.requires_grad
    assert n_trainable(network) == 12


def test_lazy_parameters_can_be_frozen_before_they_have_a_shape():
    network = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    freeze(network, {"0.weight"})
    assert n_trainable(network) == 4
    network(torch.ones(2, 5))
    assert trainable_names(network) == ["0.bias", "1.weight", "1.bias"]
    assert n_trainable(network) == 7


def test_integer_parameters_are_passed_over():
    network = nn.Linear(2, 2)
    network.steps = nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)
    freeze(network, {"steps", "weight"}, governed={"steps", "weight", "bias"})
    freeze(network, set())
    assert trainable_names(network) == ["weight", "bias"]


def test_a_module_without_parameters_is_fine():
    freeze(nn.ReLU(), {"weight"})
    assert trainable_names(nn.ReLU()) == []
    assert n_trainable(nn.ReLU()) == 0


def test_freezing_drops_the_gradient_and_keeps_those_of_the_others():
    network = nn.Linear(2, 1)
    network(torch.ones(1, 2)).sum().backward()
    freeze(network, {"weight"})
    assert network.weight.grad is None
    assert network.bias.grad is not None


def test_a_flag_set_by_hand_stays_unless_it_is_governed_or_its_answer_changes():
    network = Nested()
    network.embed.weight.requires_grad = False
    freeze(network, {"head.weight"})
    assert "embed.weight" not in trainable_names(network)
    network.head.weight.requires_grad = True
    freeze(network, {"head.weight", "head.bias"})
    assert "head.weight" in trainable_names(network)
    freeze(network, {"head.weight"}, governed=named_parameters(network).keys())
    assert set(named_parameters(network)) - set(trainable_names(network)) == {"head.weight"}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_what_we_froze_is_remembered_through_copies_and_freed_later(copied):
    network = Nested()
    network.embed.bias.requires_grad = False
    freeze(network, {"head.weight", "embed.weight"})
    again = copied(network)
    freeze(again, set())
    assert set(named_parameters(again)) - set(trainable_names(again)) == {"embed.bias"}
    assert again.state_dict().keys() == network.state_dict().keys()


def test_flags_go_back_to_what_they_were():
    network = Nested()
    network.embed.bias.requires_grad = False
    freeze(network, {"head.weight"})
    flags = Flags.of(network)
    freeze(network, {"head.bias"}, governed=named_parameters(network).keys())
    flags.restore(network)
    assert set(named_parameters(network)) - set(trainable_names(network)) == {"embed.bias", "head.weight"}
    freeze(network, set())
    assert set(named_parameters(network)) - set(trainable_names(network)) == {"embed.bias"}


def test_a_shared_module_has_all_its_names():
    linear = nn.Linear(2, 2)
    network = nn.Sequential(linear, nn.ReLU(), linear)
    assert [path for path, _ in named_modules(network)] == ["", "0", "1", "2"]
    assert list(named_parameters(network)) == ["0.weight", "0.bias", "2.weight", "2.bias"]
