"""Checkpoints: which files there are, what they hold, and that a run that is resumed equals one that never stopped."""

import copy
import json
import os
import pickle
import random
import re
import resource
import signal
import tempfile
import warnings
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, LoadInitState, LRScheduler
from skorch.callbacks import Checkpoint as SkorchCheckpoint
from skorch.callbacks import Freezer as SkorchFreezer
from skorch.dataset import ValidSplit
from skorch.history import DistributedHistory
from torch import nn
from torch.utils.data import Dataset as TorchDataset

from mlr3torch_py import (
    MLP,
    CallbackSetHistory,
    CallbackSetUnfreeze,
    mlr3torch_callbacks,
    select_all,
    select_last,
    select_prefix,
    t_clbk,
    torch_callback,
)
from mlr3torch_py.checkpoint import folder as checkpoint_folder
from mlr3torch_py.checkpoint.folder import CheckpointFolder
from tests import killed
from tests.helpers import Stops, Trace, X, golden, iris_net, moved, selector, table, weights, y

GOLDEN = golden("checkpoint")


def checkpoint(path, freq=1, resume=False, **params):
    return t_clbk("checkpoint", path=path, freq=freq, resume=resume, **params)


def run(path, epochs, *callbacks, freq=1, resume=False, **params):
    return iris_net(checkpoint(path, freq, resume), *callbacks, max_epochs=epochs, batch_size=150, **params).fit(X, y)


def files(path):
    return sorted(file.name for file in Path(path).iterdir() if not file.name.startswith("."))


def in_r(names):
    return sorted(name.replace(".rds", ".json") for name in names)


@pytest.mark.parametrize("case", GOLDEN["files"], ids=lambda case: f"{case['epochs']} by {case['freq']}")
def test_there_are_the_files_of_r(case, tmp_path):
    run(tmp_path, case["epochs"], freq=case["freq"])
    assert files(tmp_path) == in_r(case["files"])


class CrashError(Exception):
    pass


class Crashes(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == self.epoch:
            raise CrashError("crash")


def changes(trace, first_batch):
    return [
        {"epoch": epoch, "batch_in_epoch": (batch - 1) % 3 + 1, "global_batch": batch, "trainable": names}
        for i, (batch, epoch, names) in enumerate(
            zip(range(first_batch, 1 + 10**6), trace.epochs_, trace.batches_, strict=False)
        )
        if i == 0 or names != trace.batches_[i - 1]
    ]


@pytest.mark.usefixtures("no_schedule_warnings")
@pytest.mark.parametrize("case", GOLDEN["resume"])
def test_after_a_crash_the_same_weights_train_as_in_r(case, tmp_path):
    crash, traces = case["crash_at_begin_of_epoch"], {}
    for name in ("interrupted", "resumed"):
        traces[name] = Trace()
        unfreeze = CallbackSetUnfreeze(selector(case["starting_weights"]), table(case["unfreeze"]))
        crashes = [Crashes(crash)] if name == "interrupted" else []
        net = iris_net(
            ("unfreeze", unfreeze),
            traces[name],
            *crashes,
            checkpoint(tmp_path, resume=True),
            max_epochs=case["epochs"],
            batch_size=case["batch_size"],
        )
        if crashes:
            with pytest.raises(CrashError, match=case[name]["error"]):
                net.fit(X, y)
        else:
            net.fit(X, y)
        first = 1 if crashes else 3 * (crash - 1) + 1
        assert changes(traces[name], first) == case[name]["changes"]
        assert first + len(traces[name].batches_) - 1 == case[name]["last_global_batch"]
    before, after = traces["interrupted"].batches_, traces["resumed"].batches_
    whole = Trace()
    whole.batches_, whole.epochs_ = before + after, traces["interrupted"].epochs_ + traces["resumed"].epochs_
    assert changes(whole, 1) == case["uninterrupted"]["changes"]


SITUATIONS = {case["id"]: case for case in GOLDEN["situations"]}


def check_epochs(situation, net, path):
    case = SITUATIONS[situation]
    assert len(net.history) == case["epochs_after"]
    if "files" in case:
        assert files(path) == in_r(case["files"])


def test_a_finished_run_trains_nothing_and_is_a_fitted_net(tmp_path):
    first = run(tmp_path, 3)
    net = run(tmp_path, 3, resume=True)
    check_epochs("already_finished", net, tmp_path)
    assert not moved(weights(first), weights(net))
    assert (net.predict(X) == first.predict(X)).all()


def test_fewer_epochs_than_there_are_is_an_error(tmp_path):
    run(tmp_path, 3)
    with pytest.raises(ValueError, match="`max_epochs` is 2, but the checkpoint is of epoch 3"):
        run(tmp_path, 2, resume=True)


def test_a_fresh_run_into_a_used_folder_is_refused(tmp_path):
    run(tmp_path, 3)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(FileExistsError, match="`path`: .* holds the checkpoints of another run; .*`resume=True`"):
        run(tmp_path, 5)
    assert before == {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}


def test_more_epochs_go_on(tmp_path):
    run(tmp_path, 3)
    check_epochs("continue", run(tmp_path, 5, resume=True), tmp_path)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_files_of_others_is_refused(resume, tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(FileExistsError, match="`path`: .* holds thesis.txt; give a folder that is empty"):
        run(tmp_path, 1, resume=resume)
    assert files(tmp_path) == ["thesis.txt"]


def test_resuming_from_a_folder_without_checkpoints_begins(tmp_path):
    check_epochs("empty_resume", run(tmp_path / "new", 2, resume=True), tmp_path)
    check_epochs("empty_resume", run(tmp_path / "other", 2, resume=tmp_path / "other"), tmp_path)


def test_resuming_from_a_folder_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="`resume`: there is no folder .*/no"):
        run(tmp_path / "new", 2, resume=tmp_path / "no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="`resume`: .*/empty holds no complete checkpoint"):
        run(tmp_path / "new", 2, resume=tmp_path / "empty")


def test_a_checkpoint_that_lacks_a_file_is_skipped_with_a_warning(tmp_path):
    run(tmp_path, 3)
    (tmp_path / "optimizer3.pt").unlink()
    with pytest.warns(UserWarning, match="the checkpoint of epoch 3 lacks optimizer3.pt; it is skipped"):
        net = run(tmp_path, 4, resume=True)
    check_epochs("half_written", net, tmp_path)


def test_a_state_without_its_callback_is_ignored_with_a_warning(tmp_path):
    run(tmp_path, 1, t_clbk("history"))
    with pytest.warns(UserWarning, match="holds a state of the callback 'history', which the net lacks"):
        run(tmp_path, 2, resume=True)


def test_a_state_of_another_class_is_an_error(tmp_path):
    run(tmp_path, 1, ("x", CallbackSetHistory()))
    net = iris_net(checkpoint(tmp_path, resume=True), ("x", CallbackSetUnfreeze(select_last(1)))).initialize()
    before = weights(net)
    with pytest.raises(
        ValueError, match="a state of CallbackSetHistory for the callback 'x', which is of CallbackSetU"
    ):
        net.partial_fit(X, y)
    assert not moved(before, weights(net))
    assert len(net.history) == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"freq": 0}, "`freq` is 0; epochs count from 1"),
        ({"freq": True}, "`freq` is True"),
        ({"freq": 1.5}, "`freq` is 1.5"),
        ({"path": 3}, "`path` is 3"),
        ({"resume": None}, "`resume` is None"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error):
    with pytest.raises((TypeError, ValueError), match=error):
        t_clbk("checkpoint", **arguments)


def test_path_and_freq_are_required():
    frame = mlr3torch_callbacks.to_frame().set_index("key")
    assert frame.loc["checkpoint", "required"] == ["path", "freq"]
    assert frame.loc["checkpoint", "weight"] == np.inf
    with pytest.raises(ValueError, match="`freq` of CallbackSetCheckpoint was never set"):
        iris_net(t_clbk("checkpoint", path="x")).fit(X, y)
    assert not Path("x").exists()


# What is equal after a stop


def final(folder, net):
    """All that must be equal: the weights of the net, and its last checkpoint without durations."""
    checkpoint = CheckpointFolder(folder).read(len(net.history))
    contents = checkpoint.contents()
    for row in contents["history"]:
        del row["dur"]
    return bits({"net": net.module_.state_dict(), **checkpoint.parts, **contents})


def bits(value):
    """The same value with lists for tensors, which == can compare."""
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list):
        return [bits(item) for item in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The runs that were never stopped: what they end with, and at which calls one can kill them."""
    done = {}
    for job in killed.jobs():
        folder = tmp_path_factory.mktemp("whole")
        net, killer = killed.train(folder, job)
        assert len(net.history) >= 3
        done[job] = final(folder, net), killer
    return done


def test_two_runs_that_are_not_stopped_are_equal(uninterrupted, tmp_path):
    """Else the comparison says nothing."""
    for job, (expected, _) in uninterrupted.items():
        assert final(tmp_path / job, killed.net_of(tmp_path / job, job).fit(X, y)) == expected


@pytest.mark.parametrize("n", range(20))
def test_a_run_that_is_killed_at_any_moment_and_resumed_equals_one_that_never_stopped(
    n, uninterrupted, processes, tmp_path
):
    job = list(uninterrupted)[n % len(uninterrupted)]
    expected, killer = uninterrupted[job]
    draw = random.Random(n)
    kill_at = draw.choice(killer.in_writing) if n >= 14 else draw.randrange(killer.calls)
    process = processes.Process(target=killed.train, args=(tmp_path, job, kill_at))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*it is skipped", category=UserWarning)
        net = killed.net_of(tmp_path, job).fit(X, y)
    assert final(tmp_path, net) == expected


@pytest.mark.parametrize("job", [job for job in killed.jobs() if job != "batches"])  # one cycle is of one length
@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_that_stops_early_and_goes_on_with_more_epochs_equals_one(job, stop, uninterrupted, tmp_path):
    killed.net_of(tmp_path, job, max_epochs=stop).fit(X, y)
    assert final(tmp_path, killed.net_of(tmp_path, job).fit(X, y)) == uninterrupted[job][0]


@pytest.mark.parametrize("longer", [3, 5])
def test_one_cycle_refuses_a_resumed_run_of_another_length(longer, tmp_path):
    with pytest.raises(CrashError):
        run(tmp_path, 4, t_clbk("lr_one_cycle", max_lr=0.1), Crashes(3))
    net = iris_net(checkpoint(tmp_path, resume=True), t_clbk("lr_one_cycle", max_lr=0.1), max_epochs=longer)
    with pytest.raises(ValueError, match="the cycle was made for 4 steps, .* comes to"):
        net.set_params(batch_size=150).fit(X, y)


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
    assert len(CheckpointFolder(tmp_path / "broken").read(2).state["history"]) == 2
    resumed = net_of(tmp_path / "broken").fit(X, y)
    assert final(tmp_path / "broken", resumed) == final(tmp_path / "whole", whole)


def test_nothing_is_kept_of_a_run_that_stops_in_its_first_epoch(tmp_path):
    iris_net(checkpoint(tmp_path, freq=10), Stops(KeyboardInterrupt, 2)).fit(X, y)
    assert files(tmp_path) == ["run.json"]
    assert len(run(tmp_path, 2).history) == 2


def test_a_net_that_trained_on_after_an_interrupt_resumes(tmp_path):
    """The broken epoch counts as one, and its batches too."""
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


# The files


def in_another(processes, function, *arguments):
    """Run a function in another process and return the message of the error that it ends by."""
    messages = processes.SimpleQueue()
    child = processes.Process(target=tell_error, args=(messages, function, arguments))
    child.start()
    child.join()
    return messages.get()


def tell_error(messages, function, arguments):
    try:
        function(*arguments)
    except Exception as error:
        messages.put(f"{type(error).__name__}: {error}")
    else:
        messages.put("no error")


def disk_is_full(folder):
    """Stands for a full disk: no file may be longer than 2,000 bytes, of which a network of this size needs more."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
    run(folder, 3, resume=True)


def test_a_full_disk_is_an_error_that_leaves_older_checkpoints_intact(processes, tmp_path):
    run(tmp_path, 1)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    message = in_another(processes, disk_is_full, tmp_path)
    assert f"OSError: `path`: the checkpoint of epoch 2 could not be written to {tmp_path}: " in message
    assert before == {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    assert [file.name for file in tmp_path.iterdir() if file.name.endswith(".tmp")] == []
    assert len(run(tmp_path, 3, resume=True).history) == 3


def as_nobody(folder):
    net = iris_net(checkpoint(folder)).initialize()
    if os.geteuid() == 0:
        os.seteuid(65534)
    net.partial_fit(X, y)


def test_a_folder_that_cannot_be_written_to_is_an_error_before_training(processes):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        message = in_another(processes, as_nobody, folder)
        assert message.startswith(f"OSError: `path`: nothing can be written to {folder}: ")
        assert files(folder) == []


def trains_slowly(folder, began):
    def tell(self):
        began.set()
        signal.pause()

    iris_net(checkpoint(folder), torch_callback("tell", on_epoch_end=tell)).fit(X, y)


def test_two_runs_into_one_folder_are_refused_until_the_first_is_dead(processes, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_folder, "LOCK_TIMEOUT", 0)
    began = processes.Event()
    child = processes.Process(target=trains_slowly, args=(tmp_path, began))
    child.start()
    began.wait()
    net = iris_net(checkpoint(tmp_path, resume=True)).initialize()
    before = weights(net)
    with pytest.raises(RuntimeError, match="`path`: another run is writing to .*; give each run a folder of its own"):
        net.partial_fit(X, y)
    assert not moved(before, weights(net))
    child.kill()
    child.join()
    assert len(net.partial_fit(X, y).history) == 4


def test_two_runs_of_one_process_are_refused_too(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_folder, "LOCK_TIMEOUT", 0)
    refused = []

    def begin_another(self):
        with pytest.raises(RuntimeError, match="another run is writing"):
            run(tmp_path, 1, resume=True)
        refused.append(True)

    run(tmp_path, 2, torch_callback("other", on_epoch_end=begin_another))
    assert refused == [True, True]
    assert len(run(tmp_path, 3, resume=True).history) == 3


def test_the_folder_is_free_again_after_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_folder, "LOCK_TIMEOUT", 0)
    with pytest.raises(CrashError):
        run(tmp_path, 3, Crashes(2))
    with pytest.raises(ValueError, match="`max_epochs`"):
        run(tmp_path, 0, resume=True)
    assert len(run(tmp_path, 3, resume=True).history) == 3


def resealed(path, change):
    """Change a file of JSON, and make its own hash right again."""
    content = json.loads(path.read_text())
    del content["sha256"]
    change(content)
    path.write_text(json.dumps({"sha256": checkpoint_folder._hash_of_json(content), **content}))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit in the network": (lambda d: flip(d / "network2.pt"), "network2.pt is not what was written"),
    "half an optimizer": (lambda d: os.truncate(d / "optimizer2.pt", 99), "optimizer2.pt is not what was written"),
    "half a state": (lambda d: os.truncate(d / "state2.json", 99), "state2.json cannot be read"),
    "an empty state": (lambda d: os.truncate(d / "state2.json", 0), "state2.json cannot be read"),
    "another rate": (
        lambda d: (d / "state2.json").write_text((d / "state2.json").read_text().replace("0.1", "0.2")),
        "state2.json is not what was written",
    ),
    "a list": (lambda d: (d / "state2.json").write_text("[]"), "state2.json cannot be read"),
    "a newer format": (
        lambda d: resealed(d / "state2.json", lambda content: content.update(format=2)),
        "state2.json has the format 2; this version reads 1, so update it",
    ),
    "half a run": (lambda d: os.truncate(d / "run.json", 99), "run.json cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_an_error_and_no_step_back(damage, tmp_path):
    act, message = DAMAGES[damage]
    run(tmp_path, 2, t_clbk("lr_step", step_size=1, gamma=0.1))
    act(tmp_path)
    net = iris_net(checkpoint(tmp_path, resume=True), t_clbk("lr_step", step_size=1)).initialize()
    before = weights(net)
    with pytest.raises(ValueError, match=message):
        net.partial_fit(X, y)
    assert not moved(before, weights(net))
    assert len(net.history) == 0


class Evil:
    def __reduce__(self):
        return print, ("evil",)


def test_loading_runs_no_code_from_the_file(tmp_path, capsys):
    run(tmp_path, 1)
    torch.save({"0.weight": Evil()}, tmp_path / "network1.pt")
    digest = checkpoint_folder._hash(tmp_path / "network1.pt")
    resealed(tmp_path / "state1.json", lambda content: content["files"]["network1.pt"].update(sha256=digest))
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        run(tmp_path, 2, resume=True)
    assert "evil" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("params", "differs"),
    [
        ({"module__neurons": (3, 4)}, r"module.3.weight \(\(4, 3\) here, \(3, 3\) there\), module.3.bias"),
        ({"module__neurons": (3,)}, r"module.6.bias \(nothing here, \(3,\) there\)"),
        ({"optimizer": torch.optim.Adam}, r"differs in optimizer \(Adam here, SGD there\);"),
        ({"optimizer__param_groups": [("0.*", {"lr": 1.0})]}, r"optimizer.group 1 \(4 here, nothing there\)"),
    ],
)
def test_a_checkpoint_of_another_network_is_an_error(params, differs, tmp_path):
    run(tmp_path, 1)
    net = iris_net(checkpoint(tmp_path, resume=True), **params).initialize()
    before = weights(net)
    with pytest.raises(ValueError, match="the checkpoint of epoch 1 is of another network or optimizer") as error:
        net.partial_fit(X, y)
    assert re.search(differs, str(error.value))
    assert not moved(before, weights(net))


def test_a_state_that_no_file_can_hold_is_refused_by_name(tmp_path):
    def state(self):
        return {"rates": {"now": lambda: 3}}

    def load(self, state):
        pass

    with pytest.raises(TypeError, match="^callbacks.odd.state.rates.now is of type function, which"):
        run(tmp_path, 1, torch_callback("odd", state_dict=state, load_state_dict=load))
    assert files(tmp_path) == []


def test_a_stateful_callback_behind_the_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`callbacks`: 'history' would run after the checkpoint, whose weight"):
        run(tmp_path, 1, t_clbk("history", weight=np.inf))
    assert not (tmp_path / "run.json").exists()
    iris_net(t_clbk("history", weight=np.inf), checkpoint(tmp_path)).fit(X, y)


def test_states_of_all_kinds_come_back_as_they_were(tmp_path):
    kept = {
        "tensors": [torch.ones(2), {"deep": torch.zeros(1, dtype=torch.int8)}],
        "tuple": (1, (2.5, None)),
        "by number": {1: "a", (2, 3): "b"},
        "by number and text": {1: torch.ones(1), "1": torch.zeros(1)},
        "counter": Counter([1, 1]),
        "set": {1, 2},
        "nan": [float("inf"), np.float32(0.1), np.int64(3), np.bool_(True)],
        "__type__": "text",
    }
    loaded = []

    def state(self):
        return kept

    def load(self, state):
        loaded.append(state)

    for epochs in (1, 2):
        odd = torch_callback("odd", state_dict=state, load_state_dict=load)
        run(tmp_path, epochs, odd, resume=True)
    assert bits(loaded[0]) == bits(kept)
    assert type(loaded[0]["counter"]) is Counter
    assert torch.equal(loaded[0]["by number and text"][1], torch.ones(1))


def test_what_is_written_does_not_grow_with_epochs_times_batches(tmp_path):
    iris_net(checkpoint(tmp_path), max_epochs=6, batch_size=2).fit(X, y)
    sizes = [(tmp_path / f"state{n}.json").stat().st_size for n in range(1, 7)]
    growth = np.diff(sizes)
    assert max(growth) < 300
    history = CheckpointFolder(tmp_path).read(6).state["history"]
    assert [len(row["batches"]) for row in history] == [0] * 5 + [75]
    assert [row["train_batch_count"] for row in history] == [75] * 6


def test_skorch_can_load_the_files(tmp_path):
    net = run(tmp_path, 2)
    again = iris_net().initialize()
    again.load_params(f_params=tmp_path / "network2.pt", f_optimizer=tmp_path / "optimizer2.pt")
    assert not moved(weights(net), weights(again))


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


# Where nets are used


def test_fit_and_partial_fit_go_on_in_their_own_folder(tmp_path):
    made = []

    def folder():
        made.append(tmp_path / str(len(made)))
        return made[-1]

    net = run(folder, 2)
    net.partial_fit(X, y)
    assert len(made) == 1
    assert "network4.pt" in files(made[0])
    net.fit(X, y)
    assert len(made) == 2
    assert files(made[1])[:2] == ["network1.pt", "network2.pt"]


def test_a_pickled_net_goes_on_in_its_folder(tmp_path):
    net = pickle.loads(pickle.dumps(run(tmp_path, 2)))
    net.partial_fit(X, y)
    assert "network4.pt" in files(tmp_path)
    old = pickle.loads(pickle.dumps(net))
    net.partial_fit(X, y)
    with pytest.raises(FileExistsError, match="holds the checkpoint of epoch 6, but the net is at epoch 4"):
        old.partial_fit(X, y)


def test_a_run_may_go_on_from_another_folder(tmp_path):
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


class Folders:
    """A function that can be pickled: a new folder for each call."""

    def __init__(self, root):
        self.root = root

    def __call__(self):
        return tempfile.mkdtemp(dir=self.root)


def test_every_fit_of_a_grid_search_has_its_own_folder(tmp_path):
    net = iris_net(checkpoint(Folders(tmp_path)), max_epochs=2)
    pipeline = make_pipeline(StandardScaler(), net)
    grid = {"neuralnetclassifier__lr": [0.1, 0.2]}
    search = GridSearchCV(pipeline, grid, n_jobs=2, cv=2).fit(X, y)
    assert len(list(tmp_path.iterdir())) == 5
    assert all("network2.pt" in files(folder) for folder in tmp_path.iterdir())
    assert search.best_estimator_.score(X, y) > 0


def test_one_folder_for_many_fits_is_refused(tmp_path):
    net = iris_net(checkpoint(tmp_path), max_epochs=1)
    clone(net).fit(X, y)
    with pytest.raises(FileExistsError, match="another run"):
        clone(net).fit(X, y)


@pytest.mark.parametrize("search", [False, True])
def test_a_folder_that_is_resumed_is_refused_for_other_data(search, tmp_path):
    """Else the second fold of a cross-validation would be scored by a network that has seen it."""
    net = iris_net(checkpoint(tmp_path, resume=True), max_epochs=2)
    rows = np.random.default_rng(0).permutation(150)
    if search:
        search = GridSearchCV(net, {"lr": [0.1]}, cv=2, error_score="raise")
        with pytest.raises(ValueError, match="`path`: the run in .* was begun with other data; give each training a"):
            search.fit(X[rows], y[rows])
    else:
        clone(net).fit(X, y)
        with pytest.raises(ValueError, match="was begun with other data"):
            clone(net).fit(X, y[::-1].copy())


def test_a_foreign_run_json_is_left_alone(tmp_path):
    (tmp_path / "run.json").write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="run.json cannot be read"):
        run(tmp_path, 1)
    assert (tmp_path / "run.json").read_text() == '{"mine": 1}'


class InterruptedOnce(nn.Linear):
    """Ctrl-C while its state is saved, at a given time."""

    def __init__(self, at):
        super().__init__(4, 3)
        self.at = at
        self.saved = 0

    def state_dict(self, *args, **kwargs):
        return Interrupting(super().state_dict(*args, **kwargs), self)


class Interrupting(dict):
    def __init__(self, state, module):
        super().__init__(state)
        self.module = module

    def __reduce__(self):
        self.module.saved += 1
        if self.module.saved == self.module.at:
            raise KeyboardInterrupt
        return OrderedDict, (list(self.items()),)


@pytest.mark.parametrize(("freq", "at", "kept"), [(1, 2, 2), (3, 3, 3)])
def test_ctrl_c_while_a_checkpoint_is_written_loses_no_epoch(freq, at, kept, tmp_path):
    net = iris_net(checkpoint(tmp_path, freq=freq), module=InterruptedOnce(at), max_epochs=3, audited=False)
    net.fit(X, y)
    assert CheckpointFolder(tmp_path).newest() == kept
    assert [file.name for file in tmp_path.glob(".*.tmp")] == []


class Noisy(nn.Module):
    """Noise from generators of its own, one of them in a part."""

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


def resumed_equals_whole(tmp_path, net_of, data=(X, y), crash=3):
    torch.manual_seed(0)
    whole = net_of(tmp_path / "whole").fit(*data())
    torch.manual_seed(0)
    with pytest.raises(CrashError):
        net_of(tmp_path / "kept", Crashes(crash)).fit(*data())
    resumed = net_of(tmp_path / "kept").fit(*data())
    return final(tmp_path / "kept", resumed) == final(tmp_path / "whole", whole)


def test_generators_of_modules_and_data_go_on(tmp_path):
    def noisy(path, *more):
        return iris_net(checkpoint(path, resume=True), *more, module=Noisy)

    def augmented(path, *more):
        return iris_net(checkpoint(path, resume=True), *more)

    assert resumed_equals_whole(tmp_path / "module", noisy, lambda: (X, y))
    assert resumed_equals_whole(tmp_path / "data", augmented, lambda: (Augmented(), None))


def test_what_skorch_froze_stays_frozen(tmp_path):
    def net_of(path, *more):
        return iris_net(checkpoint(path, resume=True), *more, SkorchFreezer("0.*", at=1))

    assert resumed_equals_whole(tmp_path, net_of, lambda: (X, y))


def test_the_default_policy_of_skorchs_scheduler_is_kept(tmp_path):
    def net_of(path, *more):
        return iris_net(checkpoint(path, resume=True), *more, LRScheduler())

    assert resumed_equals_whole(tmp_path, net_of, lambda: (X, y))


def test_a_second_call_that_breaks_off_resumes_with_its_own_split(tmp_path):
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


def test_a_run_that_broke_off_in_its_first_epoch_has_the_same_split_and_numbers_again(tmp_path):
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


def test_arrays_and_tensors_with_a_graph_may_stand_in_the_history(tmp_path):
    class Records(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.history.record("matrix", np.eye(2, dtype="float32"))
            net.history.record("norm", sum(weight.norm() for weight in net.module_.parameters()))

    run(tmp_path, 3, Records(), freq=2, callbacks__print_log=None)
    row = CheckpointFolder(tmp_path).read(3).contents()["history"][0]
    assert row["matrix"].dtype == np.float32
    assert (row["matrix"] == np.eye(2)).all()
    assert row["norm"].ndim == 0


@pytest.mark.parametrize("value", [object(), np.array([object()]), np.longdouble(1)])
def test_what_no_file_can_hold_in_the_history_is_refused_at_the_first_epoch(value, tmp_path):
    class Records(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.history.record("odd", value)

    net = iris_net(checkpoint(tmp_path, freq=10), Records())
    with pytest.raises(TypeError, match="history.0.odd is of type .*, which a checkpoint cannot keep"):
        net.fit(X, y)
    assert len(net.history) == 1


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
    with pytest.raises(TypeError, match="the state dictionary of `module` holds more than tensors and plain values"):
        run(tmp_path / "odd", 1, module=Extra(Evil()))
    assert files(tmp_path / "odd") == ["run.json"]


def test_a_state_that_does_not_load_leaves_no_callback_loaded(tmp_path):
    run(tmp_path, 2, ("unfreeze", CallbackSetUnfreeze(select_all())), t_clbk("early_stopping", monitor="train_loss"))
    unfreeze = CallbackSetUnfreeze(select_last(1))
    net = iris_net(checkpoint(tmp_path, resume=True), ("unfreeze", unfreeze), t_clbk("early_stopping"))
    with pytest.raises(ValueError, match="`state` is of the score 'train_loss'"):
        net.fit(X, y)
    assert unfreeze.state_dict() == {"trainable": []}


def test_another_history_that_is_loaded_over_the_checkpoint_is_refused(tmp_path):
    keep = SkorchCheckpoint(monitor=None, dirname=tmp_path / "skorch")
    iris_net(keep, max_epochs=2).fit(X, y)
    run(tmp_path / "ours", 3)
    with pytest.raises(ValueError, match="LoadInitState, has loaded a history of 2 epochs over the"):
        run(tmp_path / "ours", 5, LoadInitState(keep), resume=True)


def test_a_folder_without_run_json_resumes_with_a_warning(tmp_path):
    run(tmp_path, 2)
    (tmp_path / "run.json").unlink()
    with pytest.warns(UserWarning, match="lacks run.json, so a random validation split is drawn anew"):
        net = run(tmp_path, 3, resume=True)
    assert len(net.history) == 3
    assert "run.json" in files(tmp_path)


def test_what_a_killed_run_left_is_removed(tmp_path):
    (tmp_path / ".network1.pt.tmp").write_text("half")
    run(tmp_path, 1)
    assert list(tmp_path.glob(".*.tmp")) == []


def test_a_net_that_is_pickled_while_it_trains_takes_no_checkpoint_along(tmp_path):
    def save(self):
        copies.append(pickle.loads(pickle.dumps(self.ctx.callbacks["checkpoint"])))

    copies = []
    run(tmp_path, 2, torch_callback("save", on_exit=save), freq=9)
    assert copies[0].unsaved_ is None
    assert copies[0].folder_.path == tmp_path


def test_an_old_copy_of_a_net_does_not_overwrite_what_came_later(tmp_path):
    net = run(tmp_path, 1)
    old = pickle.dumps(net)
    net.partial_fit(X, y)
    with pytest.raises(FileExistsError, match="holds the checkpoint of epoch 2, but the net is at epoch 1"):
        pickle.loads(old).partial_fit(X, y)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # from tracing the criterion
def test_files_of_a_compiled_net_fit_one_that_is_not(tmp_path):
    net = run(tmp_path, 1, module=nn.Linear(4, 3), compile=True, compile__backend="eager")
    assert set(torch.load(tmp_path / "network1.pt")) == {"weight", "bias"}
    assert not hasattr(run(tmp_path, 2, module=nn.Linear(4, 3), resume=True).module_, "_orig_mod")
    assert hasattr(net.module_, "_orig_mod")


def test_a_home_folder_and_a_function_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run("~/kept", 1)
    assert "network1.pt" in files(tmp_path / "kept")
    with pytest.raises(TypeError, match="`path`: <function .* returned None; it must return a folder"):
        run(lambda: None, 1)


def test_the_same_data_in_another_layout_is_the_same(tmp_path):
    columns = np.stack([y, y], axis=1)
    net = iris_net(checkpoint(tmp_path, resume=True), max_epochs=1)
    clone(net).fit(X, columns[:, 0])
    net.set_params(max_epochs=2)
    assert len(net.fit(torch.tensor(X), columns[:, 0].copy()).history) == 2


def test_a_distributed_history_stays_one(tmp_path):
    def net_of(path, *more):
        history = DistributedHistory(store=torch.distributed.HashStore(), rank=0, world_size=1)
        return iris_net(checkpoint(path, resume=True), *more, history=history)

    assert resumed_equals_whole(tmp_path, net_of, lambda: (X, y))
    assert isinstance(net_of(tmp_path / "kept").fit(X, y).history, DistributedHistory)


def test_that_a_run_goes_on_is_logged(tmp_path, caplog):
    run(tmp_path, 2)
    with caplog.at_level("INFO", logger="mlr3torch_py"):
        run(tmp_path, 2, resume=True)
    assert f"the run in {tmp_path} goes on after epoch 2; 0 are left" in caplog.text


def test_a_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="`path`: .*file is a file; give a folder"):
        run(tmp_path / "file", 1)
