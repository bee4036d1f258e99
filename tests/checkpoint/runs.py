"""Trainings with a checkpoint, ways to interrupt them, and what must be equal afterwards."""

import base64
import hashlib
import json
import tempfile
import zlib
from pathlib import Path

import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

from mlr3torch_py import t_clbk
from mlr3torch_py.checkpoint.folder import CheckpointFolder
from tests.helpers import X, iris_net, y


def checkpoint(path, freq=1, resume=False, **params):
    return t_clbk("checkpoint", path=path, freq=freq, resume=resume, **params)


def run(path, epochs, *callbacks, freq=1, resume=False, **params):
    return iris_net(checkpoint(path, freq, resume), *callbacks, max_epochs=epochs, batch_size=150, **params).fit(X, y)


def files(path):
    return sorted(file.name for file in Path(path).iterdir() if not file.name.startswith("."))


class CrashError(Exception):
    pass


class Crashes(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == self.epoch:
            raise CrashError("crash")


class Folders:
    """A picklable function that returns a new folder at each call."""

    def __init__(self, root):
        self.root = root

    def __call__(self):
        return tempfile.mkdtemp(dir=self.root)


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return print, ("evil",)


def final(folder, net):
    """Return all that must be equal: the weights of the net, and its last checkpoint without durations."""
    checkpoint = CheckpointFolder(folder).read(len(net.history))
    contents = checkpoint.contents()
    for row in contents["history"]:
        del row["dur"]
    return bits({"net": net.module_.state_dict(), **checkpoint.parts, **contents})


def bits(value):
    """Replace tensors by lists, which == can compare."""
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list):
        return [bits(item) for item in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


def resumed_equals_whole(tmp_path, net_of, data=lambda: (X, y), crash=3):
    """Whether a run that crashes when an epoch begins, and is resumed, ends as one that never crashed."""
    torch.manual_seed(0)
    whole = net_of(tmp_path / "whole").fit(*data())
    torch.manual_seed(0)
    with pytest.raises(CrashError):
        net_of(tmp_path / "kept", Crashes(crash)).fit(*data())
    resumed = net_of(tmp_path / "kept").fit(*data())
    return final(tmp_path / "kept", resumed) == final(tmp_path / "whole", whole)


def seal_of(content):
    """Return the hash that a file of JSON holds of the rest of it."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def reseal(path, change):
    """Change a file of JSON, and its hash accordingly."""
    content = json.loads(path.read_text())
    del content["sha256"]
    change(content)
    path.write_text(json.dumps({"sha256": seal_of(content), **content}))


def unpack_format_1(folder):
    """Write the folder of an older version, which hashed targets by joblib: epoch 2 of `net_of_format_1`."""
    for name, content in json.loads((Path(__file__).parent / "format_1.json").read_text()).items():
        is_text = name.endswith(".json")
        (folder / name).write_bytes(content.encode() if is_text else zlib.decompress(base64.b64decode(content)))


def net_of_format_1(folder, **params):
    stopping = t_clbk("early_stopping", monitor="train_loss", patience=5, restore_best_weights=True)
    params = {"module": nn.Linear(4, 3), "batch_size": 150, "optimizer__momentum": 0.9} | params
    return iris_net(checkpoint(folder, resume=True), stopping, audited=False, **params)
