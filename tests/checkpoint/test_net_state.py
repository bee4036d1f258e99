import re
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, LoadInitState, LRScheduler
from skorch.callbacks import Checkpoint as SkorchCheckpoint
from skorch.callbacks import Freezer as SkorchFreezer
from skorch.history import DistributedHistory
from torch import nn
from torch.nn.utils.prune import l1_unstructured
from torch.utils.data import Dataset as TorchDataset

from mlr3torch_py import CallbackSetHistory, CallbackSetUnfreeze, select_all, select_last, t_clbk
from tests.checkpoint.runs import CrashError, Crashes, Evil, checkpoint, files, final, resumed_equals_whole, run
from tests.helpers import Trace, X, iris_net, moved, weights, y


def test_a_state_without_its_callback_is_ignored_with_a_warning(tmp_path):
    run(tmp_path, 1, t_clbk("history"))
    with pytest.warns(UserWarning, match="holds a state of the callback 'history', which the net lacks; add it"):
        run(tmp_path, 2, resume=True)


def test_a_state_of_another_class_is_an_error(tmp_path):
    run(tmp_path, 1, ("x", CallbackSetHistory()))
    net = iris_net(checkpoint(tmp_path, resume=True), ("x", CallbackSetUnfreeze(select_last(1)))).initialize()
    before = weights(net)
    with pytest.raises(
        ValueError, match="a state of CallbackSetHistory for the callback 'x', but that is now of CallbackSetU"
    ):
        net.partial_fit(X, y)
    assert not moved(before, weights(net))
    assert len(net.history) == 0


@pytest.mark.parametrize(
    ("params", "differs"),
    [
        ({"module__neurons": (3, 4)}, r"module.3.weight \(\(4, 3\) here, \(3, 3\) there\), module.3.bias"),
        ({"module__neurons": (3,)}, r"module.6.bias \(nothing here, \(3,\) there\)"),
        ({"optimizer": torch.optim.Adam}, r"with a different optimizer \(Adam here, SGD there\);"),
        ({"optimizer__param_groups": [("0.*", {"lr": 1.0})]}, r"optimizer.group 1 \(4 here, nothing there\)"),
    ],
)
def test_a_checkpoint_of_another_network_is_an_error(params, differs, tmp_path):
    run(tmp_path, 1)
    net = iris_net(checkpoint(tmp_path, resume=True), **params).initialize()
    before = weights(net)
    with pytest.raises(ValueError, match="`path`: the checkpoint .* is of another network or optimizer") as error:
        net.partial_fit(X, y)
    assert re.search(differs, str(error.value))
    assert not moved(before, weights(net))


class InEpoch2(Callback):
    """Changes the network when the second epoch begins."""

    def __init__(self, change):
        self.change = change

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 2:
            self.change(net)


def replaces_activation(net):
    net.module_[1] = nn.Tanh()


def prunes(net):
    l1_unstructured(net.module_[0], "weight", amount=0.5)


def adds_group(net):
    net.optimizer_.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


@pytest.mark.parametrize(
    ("change", "warned_of", "differs"),
    [
        (replaces_activation, "its class of module.1", r"class of module.1 \(ReLU here, Tanh there\)"),
        (prunes, "its module.0.weight, module.0.weight_orig, ", r"module.0.weight_mask \(nothing here, "),
        (adds_group, "its optimizer.group 1", r"optimizer.group 1 \(nothing here, 1 there\)"),
    ],
)
def test_a_network_that_changes_its_structure_in_training_cannot_be_resumed(change, warned_of, differs, tmp_path):
    change = InEpoch2(change)
    with (
        pytest.warns(UserWarning, match=f"structure of the net has changed while it trains: {warned_of}") as warned,
        pytest.raises(CrashError),
    ):
        run(tmp_path, 4, Crashes(4), ("change", change))
    assert sum("structure of the net" in str(one.message) for one in warned) == 1
    with pytest.raises(ValueError, match=f"{differs}.*or change the network before training"):
        run(tmp_path, 4, ("change", change), resume=True)


def test_a_network_with_its_new_structure_is_resumed(tmp_path):
    with pytest.warns(UserWarning, match="structure of the net has changed"):
        run(tmp_path, 2, ("change", InEpoch2(replaces_activation)))
    net = iris_net(checkpoint(tmp_path, resume=True), max_epochs=3, batch_size=150).initialize()
    replaces_activation(net)
    assert len(net.partial_fit(X, y).history) == 3


class Refuses(Callback):
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        raise ValueError("this state is not mine")


def test_a_state_that_does_not_load_leaves_no_callback_loaded(tmp_path):
    run(tmp_path, 2, ("unfreeze", CallbackSetUnfreeze(select_all())), ("refuses", Refuses()))
    unfreeze = CallbackSetUnfreeze(select_last(1))
    net = iris_net(checkpoint(tmp_path, resume=True), ("unfreeze", unfreeze), ("refuses", Refuses()))
    with pytest.raises(ValueError, match="this state is not mine"):
        net.fit(X, y)
    assert unfreeze.state_dict() == {"trainable": []}


class Lacks(Callback):
    """Goes wrong in loading whenever that is."""

    def initialize(self):
        self.n = 0
        return self

    def on_epoch_end(self, net, **kwargs):
        self.n += 1

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        self.m = self.absent


def test_a_state_that_does_not_load_after_training_has_begun_either_is_an_error(tmp_path):
    run(tmp_path, 2, ("lacks", Lacks()))
    with pytest.raises(AttributeError, match="absent"):
        run(tmp_path, 3, ("lacks", Lacks()), resume=True)


def test_what_load_init_state_loads_over_a_resumed_run_does_not_stay(tmp_path):
    keep = SkorchCheckpoint(monitor=None, dirname=tmp_path / "skorch")
    iris_net(keep, max_epochs=2).fit(X, y)
    with pytest.raises(CrashError):
        run(tmp_path / "ours", 3, LoadInitState(keep), Crashes(5))
    net = run(tmp_path / "ours", 3, LoadInitState(keep), resume=True)
    whole = run(tmp_path / "whole", 3, LoadInitState(keep))
    assert len(net.history) == 5
    assert not moved(weights(net), weights(whole))


def test_a_run_is_resumed_after_load_init_state_has_loaded_part_of_it(tmp_path):
    def train(folder, *more):
        keep = SkorchCheckpoint(monitor=None, dirname=tmp_path / folder / "skorch")
        ours = checkpoint(tmp_path / folder / "ours", resume=True)
        torch.manual_seed(0)
        return iris_net(keep, LoadInitState(keep), ours, *more, max_epochs=4, module__p=0.3).fit(X, y)

    whole = train("whole")
    with pytest.raises(CrashError):
        train("kept", Crashes(3))
    assert not moved(weights(train("kept")), weights(whole))


def test_a_history_of_another_run_is_named_where_a_run_cannot_be_resumed(tmp_path):
    keep = SkorchCheckpoint(monitor=None, dirname=tmp_path / "skorch")
    run(tmp_path / "ours", 3)
    iris_net(keep, max_epochs=2).fit(X, y)
    ours = checkpoint(tmp_path / "ours", resume=True)
    with pytest.raises(FileExistsError, match="another run than the history of the net, whose 2 epochs LoadInitState"):
        iris_net(LoadInitState(keep), ours, max_epochs=4).fit(X, y)


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, scores, y):
        return nn.functional.cross_entropy(scores * self.scale, y)


class TwoModules(NeuralNetClassifier):
    def initialize_module(self):
        super().initialize_module()
        self.offset_ = nn.Linear(4, 3)
        return self

    def infer(self, x, **fit_params):
        return super().infer(x, **fit_params) + self.offset_(x)


def test_criteria_and_further_modules_are_kept(tmp_path):
    params = {"criterion": Weighted, "cls": TwoModules, "optimizer__momentum": 0.9}
    run(tmp_path, 2, **params)
    assert "criterion-2.pt" in files(tmp_path)
    assert "offset-2.pt" in files(tmp_path)
    resumed = run(tmp_path, 4, resume=True, **params)
    torch.manual_seed(0)
    whole = run(tmp_path / "whole", 4, **params)
    assert final(tmp_path, resumed) == final(tmp_path / "whole", whole)


class Extra(nn.Linear):
    def __init__(self, extra):
        super().__init__(4, 3)
        self.extra = extra

    def get_extra_state(self):
        return self.extra() if callable(self.extra) else self.extra

    def set_extra_state(self, state):
        self.loaded = state


def test_extra_states_of_modules(tmp_path):
    grown = []

    def grow():
        grown.append(1.0)
        return torch.tensor(grown)

    run(tmp_path / "grows", 1, module=Extra(grow))
    net = run(tmp_path / "grows", 2, module=Extra(grow), resume=True)
    assert len(net.module_.loaded) >= 1


class TurnsInto(Callback):
    """Changes the extra state of the module at the second epoch."""

    def __init__(self, extra):
        self.extra = extra

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 2:
            net.module_.extra = self.extra


def test_an_extra_state_that_no_file_can_hold_is_named_before_the_first_step(tmp_path):
    trace = Trace()
    with pytest.raises(TypeError, match=r"the state dict of `module` holds _extra_state.deep.1 of type Evil, which a"):
        run(tmp_path, 1, trace, module=Extra({"deep": (1, Evil())}))
    assert trace.batches_ == []
    assert files(tmp_path) == ["run.json"]


@pytest.mark.filterwarnings("ignore:.* cannot keep module.extra:UserWarning")
def test_an_extra_state_that_no_file_can_hold_any_more_is_not_written(tmp_path):
    with pytest.raises(TypeError, match="the state dict of `module` holds _extra_state of type Evil"):
        run(tmp_path, 3, TurnsInto(Evil()), module=Extra(1))
    assert run(tmp_path, 2, module=Extra(1), resume=True).module_.loaded == 1


OF_NUMPY = {"best": np.float32(0.1), "seen": [np.arange(3)], "name": np.str_("iris"), "pair": (np.int64(1), 2)}


def test_numbers_and_arrays_of_numpy_in_an_extra_state_are_kept_as_they_are(tmp_path):
    run(tmp_path, 3, TurnsInto(OF_NUMPY), module=Extra(1))
    torch.load(tmp_path / "network3.pt", weights_only=True)
    loaded = run(tmp_path, 4, module=Extra(1), resume=True).module_.loaded
    assert repr(loaded) == repr(OF_NUMPY)


class Decays(Callback):
    def on_epoch_begin(self, net, **kwargs):
        for group in net.optimizer_.param_groups:
            group["lr"] = np.float32(0.1) if len(net.history) == 2 else group["lr"] * 0.7


@pytest.mark.parametrize("params", [{"lr": np.float64(0.1)}, {"optimizer__momentum": np.float32(0.9)}])
def test_numbers_of_numpy_in_an_optimizer_resume_bit_for_bit(params, tmp_path):
    def net_of(folder, *callbacks):
        return iris_net(checkpoint(folder, resume=True), Decays(), *callbacks, batch_size=150, **params)

    assert resumed_equals_whole(tmp_path, net_of)


class OddGroups(torch.optim.SGD):
    def state_dict(self):
        return super().state_dict() | {"param_groups": {0: self.param_groups[0]["lr"]}}


def test_a_state_of_an_optimizer_that_no_run_could_read_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(TypeError, match="the state dict of `optimizer` could not be read again .* of type dict"):
        run(tmp_path, 1, optimizer=OddGroups)
    assert not any(name.endswith(".pt") for name in files(tmp_path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # from tracing the criterion
def test_files_of_a_compiled_net_fit_one_that_is_not(tmp_path):
    net = run(tmp_path, 1, module=nn.Linear(4, 3), compile=True, compile__backend="eager")
    assert set(torch.load(tmp_path / "network1.pt")) == {"weight", "bias"}
    assert not hasattr(run(tmp_path, 2, module=nn.Linear(4, 3), resume=True).module_, "_orig_mod")
    assert hasattr(net.module_, "_orig_mod")


class Noisy(nn.Module):
    """Adds noise from a generator that a child module holds."""

    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.generator = torch.Generator().manual_seed(5)

        def forward(self, x):
            return x + 0.1 * torch.randn(x.shape, generator=self.generator)

    def __init__(self):
        super().__init__()
        self.part = self.Part()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(self.part(x))


class Augmented(TorchDataset):
    def __init__(self):
        self.rng = np.random.default_rng(7)

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i] + self.rng.normal(scale=0.1, size=4).astype("float32"), y[i]


@pytest.mark.slow
def test_generators_of_modules_and_data_are_restored(tmp_path):
    def noisy(path, *more):
        return iris_net(checkpoint(path, resume=True), *more, module=Noisy)

    def augmented(path, *more):
        return iris_net(checkpoint(path, resume=True), *more)

    assert resumed_equals_whole(tmp_path / "module", noisy)
    assert resumed_equals_whole(tmp_path / "data", augmented, lambda: (Augmented(), None))


def test_what_skorch_froze_stays_frozen(tmp_path):
    def net_of(path, *more):
        return iris_net(checkpoint(path, resume=True), *more, SkorchFreezer("0.*", at=1))

    assert resumed_equals_whole(tmp_path, net_of)


def test_the_default_policy_of_skorchs_scheduler_is_kept(tmp_path):
    def net_of(path, *more):
        return iris_net(checkpoint(path, resume=True), *more, LRScheduler())

    assert resumed_equals_whole(tmp_path, net_of)


def test_a_distributed_history_stays_one(tmp_path):
    def net_of(path, *more):
        history = DistributedHistory(store=torch.distributed.HashStore(), rank=0, world_size=1)
        return iris_net(checkpoint(path, resume=True), *more, history=history)

    assert resumed_equals_whole(tmp_path, net_of)
    assert isinstance(net_of(tmp_path / "kept").fit(X, y).history, DistributedHistory)


def test_an_object_that_answers_every_attribute_has_no_state_to_keep(tmp_path):
    spy = Mock()
    run(tmp_path, 2, ("spy", spy), t_clbk("unfreeze", starting_weights=select_last(1)), t_clbk("freeze_audit"))
    assert spy.on_epoch_end.call_count == 2
    assert not spy.state_dict.called
    run(tmp_path, 3, ("spy", spy), t_clbk("unfreeze", starting_weights=select_last(1)), resume=True)
    assert not spy.load_state_dict.called
