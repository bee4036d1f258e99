import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_validate

from mlr3torch_py.checkpoint.data_record import record_of, same_data
from tests.checkpoint.runs import checkpoint, net_of_format_1, unpack_format_1
from tests.helpers import X, iris_net, y


@pytest.mark.parametrize("search", [False, True])
def test_a_folder_that_is_resumed_is_refused_for_other_data(search, tmp_path):
    """Otherwise a network would be scored on a fold that it was trained on."""
    net = iris_net(checkpoint(tmp_path, resume=True), max_epochs=2)
    rows = np.random.default_rng(0).permutation(150)
    if search:
        search = GridSearchCV(net, {"lr": [0.1]}, cv=2, error_score="raise")
        with pytest.raises(ValueError, match="`path`: the run in .* was started with other data; give each"):
            search.fit(X[rows], y[rows])
    else:
        clone(net).fit(X, y)
        with pytest.raises(ValueError, match="was started with other data"):
            clone(net).fit(X, y[::-1].copy())


def test_the_same_data_in_another_layout_is_the_same(tmp_path):
    columns = np.stack([y, y], axis=1)
    net = iris_net(checkpoint(tmp_path, resume=True), max_epochs=1)
    clone(net).fit(X, columns[:, 0])
    net.set_params(max_epochs=2)
    assert len(net.fit(torch.tensor(X), columns[:, 0].copy()).history) == 2


def test_a_run_whose_targets_an_older_version_has_hashed_is_resumed(tmp_path, caplog):
    unpack_format_1(tmp_path)
    with caplog.at_level("INFO", logger="mlr3torch_py"):
        net = net_of_format_1(tmp_path, max_epochs=3).fit(X, y)
    assert len(net.history) == 3
    assert "only the number of rows is compared" in caplog.text


def test_a_run_of_an_older_version_is_refused_for_another_number_of_rows(tmp_path):
    unpack_format_1(tmp_path)
    with pytest.raises(ValueError, match="was started with other data"):
        net_of_format_1(tmp_path, max_epochs=3).fit(X[:100], y[:100])


ROWS = np.zeros((3, 1))
SAME = {
    "a view": (np.arange(6)[::2], np.array([0, 2, 4])),
    "a tensor": (torch.tensor([0, 1, 2]), np.arange(3)),
    "a series": (pd.Series([0, 1, 2], index=[7, 8, 9]), np.arange(3)),
    "texts": (["a", "b", "c"], ["a", "b", "c"]),
    "texts as objects": (np.array(["a", "b", "".join("c")], dtype=object), np.array(["a", "b", "c"], dtype=object)),
    "several outputs": ({"a": np.arange(3), "b": ["x"]}, {"a": np.arange(3), "b": ["x"]}),
    "objects of one's own": ([object()] * 3, [object()] * 3),
    "of several lengths": ([[0], [0, 1], []], [[0], [0, 1], []]),
    "with a gradient": (torch.ones(3, requires_grad=True), np.ones(3, "float32")),
    "sets": (np.array([{"d", "a"}, 1, 2]), np.array([{"a", "d"}, 1, 2])),
    "none": (None, None),
}
OTHER = {
    "order": ([0, 1, 2], [2, 1, 0]),
    "a value": ([0, 1, 2], [0, 1, 3]),
    "the type": ([0, 1, 2], [0.0, 1.0, 2.0]),
    "the shape": ([0, 1, 2], [[0], [1], [2]]),
    "texts": (["a", "b", "c"], ["a", "b", "d"]),
    "texts as objects": (np.array(["a", None, 3], dtype=object), np.array(["a", None, 4], dtype=object)),
    "several outputs": ({"a": np.arange(3)}, {"a": np.arange(1, 4)}),
    "dates": (np.array(["2020", "2021", "2022"], "M8[D]"), np.array(["2020", "2021", "2023"], "M8[D]")),
    "given at all": (None, [0, 1, 2]),
    "of several lengths": ([[0], [0, 1], []], [[1], [1, 0], []]),
    "arrays of several widths": ((np.zeros(3), np.zeros((3, 2))), (np.zeros(3), np.ones((3, 2)))),
    "bfloat16": (torch.zeros(3).bfloat16(), torch.ones(3).bfloat16()),
    "bfloat16 in a dict": ({"a": torch.zeros(3).bfloat16()}, {"a": torch.ones(3).bfloat16()}),
    "with a gradient": (torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)),
    "sparse": (torch.eye(3).to_sparse(), (2 * torch.eye(3)).to_sparse()),
    "sparse of scipy": (csr_matrix(np.eye(3)), csr_matrix(2 * np.eye(3))),
    "nested": tuple(torch.nested.nested_tensor([torch.ones(n), torch.ones(1)], layout=torch.jagged) for n in (2, 3)),
    "sets": (np.array([{"d", "a"}, 1, 2]), np.array([{"a", "c"}, 1, 2])),
    "a table with dates": tuple(pd.DataFrame({"a": [0], "day": pd.to_datetime([day])}) for day in ("2020", "2021")),
}


def read_back(record):
    return json.loads(json.dumps(record))


@pytest.mark.parametrize("one", SAME)
def test_the_same_targets_are_the_same_data(one):
    before, now = SAME[one]
    assert same_data(read_back(record_of(ROWS, before)), record_of(ROWS, now))


@pytest.mark.parametrize("one", OTHER)
def test_other_targets_are_other_data(one):
    before, now = OTHER[one]
    assert not same_data(read_back(record_of(ROWS, before)), record_of(ROWS, now))


KINDS = {
    "an array": lambda X: X,
    "a tensor": lambda X: torch.tensor(X, requires_grad=True),
    "a table": pd.DataFrame,
    "a table with dates": lambda X: pd.DataFrame({"a": X[:, 0], "day": pd.to_datetime(X[:, 1], unit="D")}),
    "sparse": csr_matrix,
    "bfloat16": lambda X: torch.tensor(X).bfloat16(),
    "a dict": lambda X: {"X": X, "inner": {"labels": torch.tensor(X[:, 0])}},
    "arrays of several widths": lambda X: (X[:, :1], X),
    "texts of several lengths": lambda X: [["a"] * int(n) for n in X[:, 0]],
}


@pytest.mark.parametrize("targets", [None, y])
@pytest.mark.parametrize("kind", KINDS)
def test_all_values_are_compared_with_and_without_targets(kind, targets):
    before, same, other = (record_of(KINDS[kind](x), targets) for x in (X, X.copy(), X[::-1].copy()))
    assert same_data(read_back(before), same)
    assert not same_data(read_back(before), other)


def test_the_folds_of_sorted_targets_are_other_data(tmp_path):
    """Their targets are equal, so each fold would be given the network of the first one."""
    net = iris_net(checkpoint(tmp_path, resume=True), max_epochs=1)
    with pytest.raises(ValueError, match="was started with other data"):
        cross_validate(net, X, y, cv=2, error_score="raise")


def test_a_record_of_an_older_version_has_no_values_to_compare():
    record = record_of(X, y)
    older = {key: record[key] for key in ("rows", "targets")}
    assert same_data(older, record_of(X + 1, y))
    assert not same_data(older, record_of(X, y[::-1]))
    unread = {"rows": None, "targets": None}  # of targets that version could not read
    assert same_data(unread, record_of(X, torch.tensor(y).bfloat16()))


def test_of_large_values_some_rows_are_hashed(monkeypatch):
    monkeypatch.setattr("mlr3torch_py.checkpoint.data_record._MOST_BYTES", 8 * 75)
    rows = np.arange(150.0)
    for kind in (lambda one: one, torch.tensor, pd.Series, lambda one: {"a": pd.DataFrame({"a": one})}):
        record = record_of(kind(rows), y)
        assert same_data(record, record_of(kind(rows.copy()), y))
        assert not same_data(record, record_of(kind(rows + 1), y))
        assert same_data(record, record_of(kind(rows + (rows == 1)), y))


def test_the_order_of_the_keys_of_a_dict_is_no_difference():
    assert same_data(record_of({"a": X, "b": y}, None), record_of({"b": y, "a": X}, None))


def test_other_rows_are_other_data():
    assert not same_data(record_of(ROWS, [0, 1]), record_of(ROWS[:2], [0, 1]))
