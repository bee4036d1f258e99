import enum
import json
from collections import Counter, OrderedDict, defaultdict, namedtuple

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

from mlr3torch_py import torch_callback
from mlr3torch_py.checkpoint.folder import CheckpointFolder
from mlr3torch_py.checkpoint.portable import from_portable, to_portable
from tests.checkpoint.runs import bits, checkpoint, files, run
from tests.helpers import X, iris_net, y


class Level(enum.IntEnum):
    LOW = 1


class Name(str):
    pass


Pair = namedtuple("Pair", "a b")

EXACT = [None, True, 1, 2.5, "text", [1, [2]], (1, ("a",)), {1, 2}, frozenset({"a"}), {"a": {"b": None}}]
EXACT += [{1: "a", (2, "b"): [3]}, {"__type__": "tuple", "value": [1]}, OrderedDict(b=1, a=(2,)), Counter("aab")]


def there_and_back(value):
    tensors = {}
    written = json.loads(json.dumps(to_portable(value, "x", tensors)))
    return from_portable(written, tensors)


@pytest.mark.parametrize("value", EXACT, ids=repr)
def test_value_and_type_come_back(value):
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int8(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (Level.LOW, 1),
        (Name("a"), "a"),
    ],
    ids=repr,
)
def test_subclasses_of_numbers_and_texts_become_plain(value, expected):
    back = there_and_back([value])[0]
    assert back == expected
    assert type(back) is type(expected)


@pytest.mark.parametrize(
    "value",
    [
        Pair(1, 2),
        defaultdict(list, a=[1]),
        b"bytes",
        1j,
        range(3),
        object(),
        int,
        np.longdouble(1),
        np.datetime64("2020-01-01"),
        np.array(["text"]),
        np.ma.masked_array([1], [True]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_and_tensors_cannot_hold_is_refused_with_its_place(value):
    with pytest.raises(TypeError, match=r"^state\.deep\.1 is of type \w+, which a checkpoint cannot keep; use None"):
        to_portable({"deep": [0, value]}, "state", {})


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "complex64"])
def test_arrays_keep_their_type_and_shape(dtype):
    array = np.arange(4).reshape(2, 2).astype(dtype)
    back = there_and_back((array, array[0]))
    assert back[0].dtype == array.dtype
    assert back[0].tolist() == array.tolist()
    assert back[1].tolist() == array[0].tolist()


def test_tensors_are_detached_and_kept_under_their_places():
    tensors = {}
    weight = torch.nn.Parameter(torch.ones(2))
    written = to_portable({"a": [weight], "a.0": weight * 2}, "x", tensors)
    assert list(tensors) == ["x.a.0", "x.a.0'"]
    assert not any(tensor.requires_grad for tensor in tensors.values())
    assert from_portable(written, tensors)["a.0"].tolist() == [2.0, 2.0]


def test_a_state_that_no_file_can_hold_is_refused_by_name(tmp_path):
    def state(self):
        return {"rates": {"now": lambda: 3}}

    def load(self, state):
        pass

    with pytest.raises(TypeError, match="^callbacks.odd.state.rates.now is of type function, which"):
        run(tmp_path, 1, torch_callback("odd", state_dict=state, load_state_dict=load))
    assert files(tmp_path) == []


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

    net = iris_net(checkpoint(tmp_path, freq=10), Records(), callbacks__print_log=None)
    with pytest.raises(TypeError, match="history.0.odd is of type .*, which a checkpoint cannot keep"):
        net.fit(X, y)
    assert len(net.history) == 1
