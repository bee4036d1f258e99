"""What `frozen_store` shows of a store, and what it drops."""

import pandas as pd
import pytest

from mlr3torch_py import frozen_store
from tests.cache.test_shelf import trained
from tests.helpers import X

pytest.importorskip("lmdb")


def test_it_lists_parts_with_their_rows_bytes_and_age(tmp_path):
    begin = pd.Timestamp.now(tz="UTC").floor("s")
    trained(tmp_path, X[:30])
    trained(tmp_path, X[:90], module__scale=2.0)
    parts = frozen_store(tmp_path).parts
    assert parts["name"].tolist() == ["'backbone' (Backbone)"] * 2
    assert sorted(parts["rows"]) == [30, 90]
    assert (parts["bytes"] > parts["rows"] * 5 * 4).all()
    assert parts["last_used"].between(begin, pd.Timestamp.now(tz="UTC").ceil("s")).all()


def test_it_prints_as_a_table_and_shows_itself_in_a_notebook(tmp_path):
    trained(tmp_path, X[:30])
    store = frozen_store(tmp_path)
    head, columns, row = repr(store).splitlines()
    assert head == f"frozen_store({str(tmp_path)!r}): 30 rows, {store.n_bytes:,} bytes on disk"
    assert columns.split() == ["name", "rows", "bytes", "last_used"]
    assert "'backbone' (Backbone)    30" in row
    assert "<td>30</td>" in store._repr_html_()


def test_pruning_by_bytes_drops_the_parts_that_were_used_longest_ago(tmp_path):
    trained(tmp_path, X[:30])
    trained(tmp_path, X[:90], module__scale=2.0)
    store = frozen_store(tmp_path)
    newest = store.parts["bytes"][0]
    dropped = store.prune(max_bytes=int(newest))
    assert dropped["rows"].tolist() == [30]
    assert store.parts["rows"].tolist() == [90]
    _, n_computed = trained(tmp_path, X[:90], module__scale=2.0)
    assert n_computed < 20
    _, n_computed = trained(tmp_path, X[:30])
    assert n_computed >= 30


def test_parts_that_were_used_of_late_stay(tmp_path):
    trained(tmp_path, X[:30])
    assert frozen_store(tmp_path).prune(unused_days=1).empty
    assert frozen_store(tmp_path).parts["rows"].tolist() == [30]
    assert frozen_store(tmp_path).prune(unused_days=0)["rows"].tolist() == [30]
    assert frozen_store(tmp_path).parts.empty


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "`unused_days` and `max_bytes` are missing; give at least one"),
        ({"unused_days": -1}, "`unused_days` is -1; give a number of days, at least 0"),
        ({"max_bytes": 0.5}, "`max_bytes` is 0.5; give a whole number of bytes"),
    ],
)
def test_wrong_arguments_drop_nothing(tmp_path, params, message):
    trained(tmp_path, X[:30])
    with pytest.raises((TypeError, ValueError), match=message):
        frozen_store(tmp_path).prune(**params)
    assert frozen_store(tmp_path).parts["rows"].tolist() == [30]


def test_a_folder_without_a_store_is_refused_and_stays_empty(tmp_path):
    with pytest.raises(ValueError, match="which holds no rows; give the folder that was given to t_clbk"):
        frozen_store(tmp_path / "wrong")
    assert not list(tmp_path.iterdir())
