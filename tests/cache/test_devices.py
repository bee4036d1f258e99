"""What a process with one GPU has stored, another one finds with its own; no GPU is needed to see that."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from mlr3torch_py.cache.identity.code import Code
from mlr3torch_py.cache.identity.portable import portable_hash
from mlr3torch_py.cache.rows.call import Call
from mlr3torch_py.cache.rows.output import OutputSpec
from mlr3torch_py.cache.storage.layout import Layout
from mlr3torch_py.cache.trials.admission import Request

CPU, ONE, OTHER = map(torch.device, ("cpu", "cuda:0", "cuda:1"))


def key_of(tmp_path, *inputs, weights=None, **settings):
    """The key of the rows of a layer, for rows on some devices, and its own weights on one."""
    pytest.importorskip("lmdb")
    from mlr3torch_py.cache.storage.disk import opened
    from mlr3torch_py.cache.storage.shelf import Shelf

    with FakeTensorMode():
        module = nn.ReLU()
        module.weight = nn.Parameter(torch.empty(4, device=inputs[0] if weights is None else weights))
        call = Call(tuple(torch.empty(5, 4, device=device) for device in inputs), settings)
    stage = SimpleNamespace(module=module, digest="digest", code=Code.of(module), name="layer", is_link=False)
    request = Request(call, "", layout=((call.pattern, (b"\1", True, None)), call.shared))
    return Shelf(opened(tmp_path, 10**6), module)._key(request, stage)


def test_rows_are_found_by_the_kind_of_the_device(tmp_path):
    known = key_of(tmp_path, ONE)
    assert key_of(tmp_path, OTHER) == known
    assert key_of(tmp_path, CPU) != known
    assert key_of(tmp_path, ONE, OTHER) != key_of(tmp_path, ONE, ONE) == key_of(tmp_path, OTHER, OTHER)
    assert key_of(tmp_path, ONE, weights=OTHER) != known
    assert key_of(tmp_path, ONE, device=ONE) == key_of(tmp_path, OTHER, device=OTHER)
    assert key_of(tmp_path, ONE, device=ONE) != key_of(tmp_path, ONE, device=OTHER)


def layout_with(*devices):
    spec = OutputSpec.of([torch.empty(5, 3) for _ in devices], 5)
    rows = [row._replace(device=device) for row, device in zip(spec.tensors, devices, strict=True)]
    layout = Layout("layout")
    layout._spec = replace(spec, tensors=tuple(rows))
    return layout


def test_rows_come_back_on_the_device_of_whoever_reads_them():
    written = layout_with(ONE, CPU).described_outputs(ONE)
    read = Layout("other")
    read.recall_outputs(written, OTHER)
    assert [row.device for row in read.spec.tensors] == [OTHER, CPU]


def test_outputs_on_another_device_than_the_input_stay_there():
    for here in (ONE, CPU):
        read = Layout("other")
        read.recall_outputs(layout_with(OTHER).described_outputs(here), here)
        assert [row.device for row in read.spec.tensors] == [OTHER]


def test_a_module_that_notes_its_device_is_the_same_on_another_one():
    assert (
        portable_hash({"device": ONE}, {}) == portable_hash({"device": OTHER}, {}) != portable_hash({"device": CPU}, {})
    )
