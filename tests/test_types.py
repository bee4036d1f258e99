"""What a user's type checkers say: nothing of right calls, something of each wrong one."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

RIGHT = """
from typing import Any

import pandas as pd
import torch
from skorch import NeuralNetClassifier  # type: ignore[import-untyped]
from torch import nn

import mlr3torch_py as m
from mlr3torch_py import MLP, CallbackSetUnfreeze, Freezer, Plateau, TorchCallback, select_all, select_last, t_clbk

network: nn.Module = MLP(4, 3, neurons=(8, 8))
net = NeuralNetClassifier(MLP, module__d_in=4, module__d_out=3)

schedule = m.gradual_unfreezing(network, every=2, unit="batch", lr_decay=2.6, among=m.select_trainable())
value: m.Schedule = m.gradual_unfreezing(every=2, level="stage")
CallbackSetUnfreeze(schedule=value)
m.chain_thaw(net, unit="epoch", groups=[select_last(1), select_all()])
m.head_first(network, 2)

frame = pd.DataFrame({"epoch": [2], "weights": [select_all()]})
columns = {"epoch": [2, 3], "weights": [select_all(), select_last(1)], "action": ["unfreeze", "freeze"]}
records = [{"epoch": 2, "weights": select_all()}, {"when": Plateau(), "weights": select_last(1)}]
tables: list[m.Table] = [frame, columns, records, [frame, columns], [records, frame]]
for table in tables:
    CallbackSetUnfreeze(select_all(), table, frozen_mode="eval", frozen_norm=None)
CallbackSetUnfreeze(m.select_name("0.weight") | ~m.select_type(nn.Linear), [{"batch": 3, "weights": select_all()}])
CallbackSetUnfreeze(**schedule)
names: list[str] = CallbackSetUnfreeze(select_all(), frozen_dropout="train").state_dict()["trainable"]
Freezer(["0.weight"], name_starts_with=["0", ["3", "6"]], until_epoch=3, frozen_norm="eval").weight = 2.5

keys: list[str] = t_clbk()
unfreeze: CallbackSetUnfreeze = t_clbk("unfreeze", starting_weights=select_all(), unfreeze=columns).callback
freezer: Freezer = t_clbk("freezer", id="body", names=["0.weight"], frozen_norm="eval", weight=3).callback.set_params()
rates: Any = t_clbk("lr_step", step_size=2).callback.simulate(5)
by_key: TorchCallback = t_clbk("unfreeze", **schedule)
by_value: TorchCallback = t_clbk("unfreeze", schedule=value)
name = "freezer"
several = [by_key, t_clbk(name, names="0.bias"), t_clbk("freezer_1", names="0.bias"), *m.t_clbks(["history", name])]
several += [t_clbk("lr_one_cycle", max_lr=(0.1, 0.2), anneal_strategy="linear"), t_clbk("lr_lambda", lr_lambda=abs)]
several += [t_clbk("lr_reduce_on_plateau", mode="max", monitor="valid_acc"), t_clbk("early_stopping", patience=2)]
several += [t_clbk("checkpoint", path="run", freq=1, resume=True), t_clbk("tb", path=lambda: "logs")]
several += [t_clbk("freeze_audit", on_change="warn", sample=3), t_clbk("frozen_cache", modules=["0"], max_bytes=10)]
several += [m.as_torch_callback("history"), m.as_torch_callback(Freezer("0.bias"), id="body")]
several += m.as_torch_callbacks(["history", Freezer("0.bias"), by_key, Freezer]) + m.as_torch_callbacks(None)
several += [m.as_lr_scheduler(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)]
rates = m.as_lr_scheduler(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2)).callback.simulate(3)
again: Freezer = m.as_torch_callback(Freezer("0.bias"), clone=True).generate()


class Mine(m.CallbackSet):
    def __init__(self, every: int, much: float = 1.0) -> None:
        self.every = every
        self.much = much

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        if self.ctx is not None and self.ctx.epoch % self.every == 0:
            self.ctx.terminate = True


m.mlr3torch_callbacks.add("mine", Mine)
several += [t_clbk("mine", every=2, much=0.5), m.mlr3torch_callbacks.get("mine", every=1)]
Made: type[m.CallbackSet] = m.callback_set("Made", on_epoch_end=lambda self: None)
several += [m.torch_callback("said", on_epoch_begin=lambda self: None), TorchCallback("made", Made())]
NeuralNetClassifier(MLP, callbacks=[*several, m.CallbackSetFreezeAudit("raise")])

plan: m.FreezePlan = m.freeze_plan(net, max_epochs=3, batches_per_epoch=2)
shares: pd.DataFrame = m.freeze_plan(network, callbacks=several).to_frame()
names = m.trainable_names(network) + m.trainable_names(net) + select_last(2).expand(network) + select_all()(["a"])

plain: dict[str, Any] = m.to_dict(select_all()) | m.to_dict(Freezer("0.bias")) | m.to_dict(by_key) | m.to_dict(frame)
plain |= m.to_dict(Plateau()) | m.to_dict(columns)
several_plain: list[dict[str, Any]] = m.to_dict([Freezer("0.bias"), t_clbk("history")])
select: m.Select = m.from_dict(plain)
callbacks: list[m.CallbackSet] = m.from_dict(several_plain)
"""

WRONG = """
CallbackSetUnfreeze(select_all(), frozen_norm="evl")
CallbackSetUnfreeze(select_all(), frozen_dropout="off")
CallbackSetUnfreeze(select_all(), frozen_mode="none")
CallbackSetUnfreeze(select_all(), frozen_mode=None)
CallbackSetUnfreeze(select_all(), unfreeze=3)
CallbackSetUnfreeze(select_all(), unfreeze="epoch")
CallbackSetUnfreeze(select_all(), unfreeze=select_all())
CallbackSetUnfreeze(select_all(), frozen="eval")
CallbackSetUnfreeze("0.weight")
CallbackSetUnfreeze(select_all)
Freezer("0.weight", frozen_mode="evaluation")
Freezer("0.weight", until=3)
Freezer(3)
Freezer("0.weight").no_such_attribute
CallbackSetFreezeAudit("ignore")
CallbackSetEarlyStopping(patience="3")
gradual_unfreezing("no network")
gradual_unfreezing(nn.Linear)
gradual_unfreezing(network, unit="step")
chain_thaw(network, groups=select_all())
head_first(network, epochs="2")
freeze_plan("net")
trainable_names("net")
select_type("Linear")
select_first("head")
Plateau(patience="3")
to_dict(3)
from_dict(3)
from_dict("data")
t_clbk(3)
t_clbk("unfreeze").callback.no_such_attribute
t_clbks(3)
as_torch_callback(3)
as_lr_scheduler("StepLR")
callback_set("Made", on_epoch_end=3)
mlr3torch_callbacks.add("mine", 3)
"""
HEAD = "from torch import nn\n\nfrom mlr3torch_py import *\n\nnetwork = MLP(4, 3)\n"


def script(folder, name, text):
    file = folder / f"{name}.py"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    return folder, script(folder, "right", RIGHT), script(folder, "wrong", HEAD + WRONG)


def wrong_lines():
    lines = (HEAD + WRONG).splitlines()
    return dict(enumerate(lines[HEAD.count("\n") + 1 :], start=HEAD.count("\n") + 2))


def by_mypy(folder, *files):
    """Return the lines with an error, per file."""
    command = [sys.executable, "-m", "mypy", "--strict", "--output", "json", "--no-incremental", *map(str, files)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [{one["line"]: one["message"] for one in found if one["file"] == file.name} for file in files]


def by_basedpyright(folder, *files):
    """Return the lines with an error, per file."""
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson", *map(str, files)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found = [one for one in json.loads(done.stdout)["generalDiagnostics"] if one["severity"] == "error"]
    return [
        {one["range"]["start"]["line"] + 1: one["message"] for one in found if one["file"].endswith(file.name)}
        for file in files
    ]


@pytest.mark.parametrize("checker", [by_mypy, by_basedpyright])
def test_right_calls_pass_a_users_type_checker_and_each_wrong_one_is_reported(scripts, checker):
    right, wrong = checker(*scripts)
    assert right == {}
    assert {line: wrong_lines()[line] for line in wrong_lines().keys() - wrong.keys()} == {}


def test_nearly_all_public_names_have_a_type(tmp_path):
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson"]
    command += ["--verifytypes", "mlr3torch_py", "--ignoreexternal"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["typeCompleteness"]["completenessScore"] >= 0.97
