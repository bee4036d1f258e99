import copy

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit

from mlr3torch_py import MLP, CallbackSetUnfreeze, select_all, select_last, select_prefix, t_clbk, torch_callback
from mlr3torch_py.checkpoint.folder import CheckpointFolder
from tests.checkpoint.runs import CrashError, Crashes, checkpoint, files, final, resumed_equals_whole, run
from tests.helpers import Stops, Trace, X, iris_net, moved, weights, y


@pytest.mark.sample(3)
@pytest.mark.parametrize("error", [KeyboardInterrupt, CrashError])
@pytest.mark.parametrize("freq", [1, 10])
def test_the_end_is_the_last_complete_epoch(error, freq, tmp_path):
    def net_of(path, *more):
        return iris_net(checkpoint(path, freq, resume=True), *more, iterator_train__shuffle=True, module__p=0.2)

    torch.manual_seed(0)
    whole = net_of(tmp_path / "whole").fit(X, y)
    torch.manual_seed(0)
    broken = net_of(tmp_path / "broken", Stops(error, 8))
    if error is KeyboardInterrupt:
        broken.fit(X, y)
    else:
        with pytest.raises(CrashError):
            broken.fit(X, y)
    newest = CheckpointFolder(tmp_path / "broken").newest()
    assert newest == 2
    assert len(CheckpointFolder(tmp_path / "broken").read(2).contents()["history"]) == 2
    resumed = net_of(tmp_path / "broken").fit(X, y)
    assert final(tmp_path / "broken", resumed) == final(tmp_path / "whole", whole)


@pytest.mark.parametrize("crash", [2, 5])
def test_a_run_that_is_given_its_epochs_by_fit_resumes_to_the_last_of_them(tmp_path, crash):
    def net_of(folder, *more):
        return iris_net(checkpoint(folder, resume=True), t_clbk("lr_one_cycle", max_lr=0.1), *more, max_epochs=2)

    torch.manual_seed(0)
    whole = net_of(tmp_path / "whole").fit(X, y, epochs=6)
    torch.manual_seed(0)
    with pytest.raises(CrashError):
        net_of(tmp_path / "kept", Crashes(crash)).fit(X, y, epochs=6)
    resumed = net_of(tmp_path / "kept").fit(X, y, epochs=6)
    assert len(resumed.history) == 6
    assert final(tmp_path / "kept", resumed) == final(tmp_path / "whole", whole)
    again = net_of(tmp_path / "kept").fit(X, y, epochs=6)
    assert not moved(weights(resumed), weights(again))
    with pytest.raises(ValueError, match="`max_epochs` is 2, but the checkpoint is of epoch 6"):
        net_of(tmp_path / "kept").fit(X, y)
    with pytest.raises(ValueError, match="`epochs` is 5, but the checkpoint is of epoch 6"):
        net_of(tmp_path / "kept").fit(X, y, epochs=5)


def test_nothing_is_kept_of_a_run_that_stops_in_its_first_epoch(tmp_path):
    iris_net(checkpoint(tmp_path, freq=10), Stops(KeyboardInterrupt, 2)).fit(X, y)
    assert files(tmp_path) == ["run.json"]
    assert len(run(tmp_path, 2).history) == 2


def test_a_net_that_trained_on_after_an_interrupt_resumes(tmp_path):
    """The interrupted epoch and its batches count."""
    table = {"batch": [6, 14], "weights": [select_prefix("3"), select_all()]}

    def net_of(*more, **params):
        return iris_net(
            checkpoint(tmp_path, resume=True), ("unfreeze", CallbackSetUnfreeze(select_last(1), table)), *more, **params
        )

    trace = Trace()
    net = net_of(("trace", trace), Stops(KeyboardInterrupt, 4), max_epochs=3).fit(X, y)
    net.set_params(max_epochs=1)
    net.partial_fit(X, y)
    assert len(net.history) == 3
    net_of(("trace", trace), max_epochs=6).fit(X, y)
    start, middle = ["6.weight", "6.bias"], ["3.weight", "3.bias", "6.weight", "6.bias"]
    rest = [name for name, _ in net.module_.named_parameters()]
    assert trace.batches_ == [start] * 5 + [middle] * 8 + [rest] * 3


def start(self, *args, **kwargs):
    self.n_ = 0


def step(self, net=None, training=True, **kwargs):
    if training:
        self.n_ += 1
        for group in (net or self.ctx.net).optimizer_.param_groups:
            group["lr"] = 0.01 * self.n_


STATE = {
    "state_dict": lambda self: {"n": self.n_},
    "load_state_dict": lambda self, state: vars(self).update(n_=state["n"]),
}


def warmup_of_skorch():
    return type("Warmup", (Callback,), {"on_train_begin": start, "on_batch_begin": step, **STATE})()


def warmup_of_functions():
    return torch_callback("warmup", on_begin=start, on_batch_begin=step, **STATE)


@pytest.mark.parametrize("warmup", [warmup_of_skorch, warmup_of_functions])
def test_a_state_that_its_callback_sets_back_when_training_begins_is_kept(warmup, tmp_path):
    def net_of(folder, *more):
        return iris_net(warmup(), checkpoint(folder, resume=True), *more)

    assert resumed_equals_whole(tmp_path, net_of)


@pytest.mark.parametrize("longer", [3, 5])
def test_one_cycle_refuses_a_resumed_run_of_another_length(longer, tmp_path):
    with pytest.raises(CrashError):
        run(tmp_path, 4, t_clbk("lr_one_cycle", max_lr=0.1), Crashes(3))
    net = iris_net(checkpoint(tmp_path, resume=True), t_clbk("lr_one_cycle", max_lr=0.1), max_epochs=longer)
    with pytest.raises(ValueError, match="the cycle was made for 4 steps, .* comes to"):
        net.set_params(batch_size=150).fit(X, y)


def test_a_run_may_resume_from_another_folder(tmp_path):
    torch.manual_seed(0)
    run(tmp_path / "a", 2, train_split=ValidSplit(0.2), iterator_train__shuffle=True)
    net = run(tmp_path / "b", 4, resume=tmp_path / "a", train_split=ValidSplit(0.2), iterator_train__shuffle=True)
    assert "network2.pt" not in files(tmp_path / "b")
    assert "network4.pt" in files(tmp_path / "b")
    assert "network3.pt" not in files(tmp_path / "a")
    again = run(tmp_path / "a", 4, resume=True, train_split=ValidSplit(0.2), iterator_train__shuffle=True)
    assert final(tmp_path / "a", again) == final(tmp_path / "b", net)


def test_a_run_that_early_stopping_had_ended_stays_ended(tmp_path):
    def stopping():
        return t_clbk("early_stopping", patience=1, min_delta=9.0, monitor="train_loss", restore_best_weights=True)

    first = run(tmp_path, 9, stopping())
    assert len(first.history) == 2
    with pytest.warns(UserWarning, match="`train_loss` had stopped improving in an earlier call"):
        net = run(tmp_path, 9, stopping(), resume=True)
    assert len(net.history) == 2
    assert not moved(weights(first), weights(net))
    assert (net.predict(X) == first.predict(X)).all()


def test_the_context_counts_the_whole_run(tmp_path):
    seen = []

    def look(self):
        seen.append((self.ctx.epoch, self.ctx.global_step, self.ctx.total_epochs))

    run(tmp_path, 2, torch_callback("look", on_epoch_end=look))
    run(tmp_path, 4, torch_callback("look", on_begin=look, on_epoch_end=look), resume=True)
    assert seen == [(1, 1, 2), (2, 2, 2), (2, 2, 4), (3, 3, 4), (4, 4, 4)]


def test_skorch_callbacks_that_had_begun_begin_again_with_the_history(tmp_path):
    class Begins(Callback):
        def on_train_begin(self, net, **kwargs):
            begins.append(len(net.history))

    for epochs in (2, 4):
        begins = []
        iris_net(Begins(), checkpoint(tmp_path, resume=True), max_epochs=epochs).fit(X, y)
    assert begins == [0, 2]


def test_a_second_call_that_is_interrupted_resumes_with_its_own_split(tmp_path):
    def train(path, *more, resume=False):
        net = iris_net(checkpoint(path, resume=True), *more, train_split=ValidSplit(0.2), max_epochs=4 if resume else 2)
        net.fit(X, y)
        return net if resume else net.partial_fit(X, y)

    np.random.seed(3)
    torch.manual_seed(0)
    whole = train(tmp_path / "whole")
    np.random.seed(3)
    torch.manual_seed(0)
    with pytest.raises(CrashError):
        train(tmp_path / "kept", Crashes(4))
    resumed = train(tmp_path / "kept", resume=True)
    assert final(tmp_path / "kept", resumed) == final(tmp_path / "whole", whole)


def test_a_run_that_was_interrupted_in_its_first_epoch_has_the_same_split_and_numbers_again(tmp_path):
    def net_of(path, *more):
        params = {"train_split": ValidSplit(0.2), "iterator_train__shuffle": True}
        return iris_net(checkpoint(path, resume=True), *more, module=copy.deepcopy(module), **params)

    module = MLP(4, 3, neurons=(3,), p=0.3)
    ends = []
    for folder, seeds in (("whole", [1]), ("kept", [1, 99])):
        for seed in seeds:
            torch.manual_seed(seed)
            np.random.seed(seed)
            more = [Stops(CrashError, 2)] if seeds[-1] != seed else []
            net = net_of(tmp_path / folder, *more)
            if more:
                with pytest.raises(CrashError):
                    net.fit(X, y)
        ends.append(final(tmp_path / folder, net.fit(X, y)))
    assert ends[0] == ends[1]


def test_resuming_is_logged(tmp_path, caplog):
    run(tmp_path, 2)
    with caplog.at_level("INFO", logger="mlr3torch_py"):
        run(tmp_path, 2, resume=True)
    assert f"resuming {tmp_path} after epoch 2 of 2" in caplog.text


def test_a_verbose_net_says_what_is_resumed_and_what_is_finished(tmp_path, capsys):
    lines = []
    for epochs in (2, 4, 4):
        iris_net(checkpoint(tmp_path, resume=True, sink=lines.append), max_epochs=epochs).fit(X, y)
    assert lines == [
        f"Resumed {tmp_path} after epoch 2, 2 left.",
        f"Resumed {tmp_path} after epoch 4, which was the last one: finished already, nothing to train.",
    ]
    iris_net(checkpoint(tmp_path, resume=True), max_epochs=4, verbose=1).fit(X, y)
    assert capsys.readouterr().out == lines[1] + "\n"
