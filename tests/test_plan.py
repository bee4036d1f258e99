import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlr3torch_py import select_all, select_first, select_name, select_none
from mlr3torch_py.plan import Plan, as_select, read_table

NAMES = ["a", "b", "c", "d"]
some = st.sets(st.sampled_from(NAMES)).map(lambda names: select_name(sorted(names)))
moments = st.integers(0, 12)


@st.composite
def tables(draw):
    unit = draw(st.sampled_from(["epoch", "batch"]))
    at = draw(st.lists(moments, unique=True, max_size=5))
    return {unit: at, "weights": [draw(some) for _ in at]}


def plan_of(starting, table):
    return Plan.resolve(starting, read_table(table), NAMES)


@given(some, tables(), moments, moments)
def test_a_name_trains_from_its_first_row_on(starting, table, epoch, batch):
    now = epoch if "epoch" in table else batch
    at = table.get("epoch", table.get("batch"))
    expected = set(starting(NAMES)).union(
        *(weights(NAMES) for time, weights in zip(at, table["weights"], strict=True) if 1 <= time <= now)
    )
    assert plan_of(starting, table).trainable(epoch, batch) == expected


@given(some, tables(), moments, moments, st.randoms())
def test_the_order_of_rows_does_not_matter(starting, table, epoch, batch, random):
    frame = pd.DataFrame(table)
    shuffled = frame.iloc[random.sample(range(len(frame)), len(frame))]
    assert plan_of(starting, shuffled).trainable(epoch, batch) == plan_of(starting, table).trainable(epoch, batch)


@given(some, tables(), moments)
def test_nothing_changes_before_the_next_batch_that_the_plan_names(starting, table, batch):
    plan = plan_of(starting, table)
    following = plan.next_batch(batch)
    now = plan.trainable(0, batch)
    assert following > batch
    for later in range(batch + 1, 14):
        if later < following:
            assert plan.trainable(0, later) == now
    if math.isfinite(following):
        assert plan.at("batch", int(following)) is plan.to_come(0, batch)[0]


@given(some, tables(), moments)
def test_what_an_event_says_is_new_is_what_changes(starting, table, moment):
    plan = plan_of(starting, table)
    for unit in ("epoch", "batch"):
        event = plan.at(unit, moment + 1)
        clock = {"epoch": 0, "batch": 0}
        gained = plan.trainable(**clock | {unit: moment + 1}) - plan.trainable(**clock | {unit: moment})
        assert gained == (event.new if event else frozenset())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"epoch": [1], "batch": [1], "weights": [select_all()]}, "both `epoch` and `batch`: drop one"),
        ({"weights": [select_all()]}, "neither `epoch` nor `batch`: add one"),
        ({"epoch": [1]}, r"columns \['epoch'\] and no `weights`"),
        ({"epoch": [1.5], "weights": [select_all()]}, "row 0 has epoch 1.5; give a whole number"),
        ({"epoch": [math.inf], "weights": [select_all()]}, "row 0 has epoch inf; give a whole number"),
        ({"epoch": [1, -1], "weights": [select_all()] * 2}, "row 1 has epoch -1; epochs count from 1"),
        ({"batch": [-2], "weights": [select_all()]}, "row 0 has batch -2; batches count from 1"),
        ({"epoch": [2, 3, 2], "weights": [select_all()] * 3}, r"rows 0 and 2 both have epoch 2; .* `\|`"),
        ({"epoch": [1, None], "weights": [select_all()] * 2}, "row 1 has no epoch; every row needs one"),
        ({"epoch": [math.nan], "weights": [select_all()]}, "row 0 has no epoch"),
        ({"batch": ["a"], "weights": [select_all()]}, r"row 0 has batch 'a' \(str\); give a whole number"),
        ({"epoch": [True], "weights": [select_all()]}, r"row 0 has epoch True \(bool\)"),
        (
            {"epoch": [1], "weights": ["0.weight"]},
            r"row 0, column `weights`, is '0.weight' .*select_name\('0.weight'\)",
        ),
        ({"epoch": [1], "weights": [["a", "b"]]}, r"write select_name\(\['a', 'b'\]\)"),
        ({"epoch": [1], "weights": [select_all]}, r"call it: select_all\(...\)"),
        ({"epoch": [1], "weights": [None]}, "must be a selector: such as"),
        ({"epoch": 1, "weights": select_all()}, "give every column a list of the same length"),
        ({"epoch": [1, 2], "weights": [select_all()]}, "give every column a list of the same length"),
        (1, r"`unfreeze` is 1 \(int\); it must be a pandas DataFrame"),
        ([1], r"`unfreeze` is \[1\]"),
        ("epoch", "`unfreeze` is 'epoch'"),
        (pd.DataFrame([[1, 2, select_all()]], columns=["epoch", "epoch", "weights"]), "`epoch` is there 2 times"),
    ],
)
def test_a_bad_table_is_refused_with_column_row_value_and_remedy(table, message):
    with pytest.raises((TypeError, ValueError), match=message):
        read_table(table)


@pytest.mark.parametrize(
    "table",
    [
        {"epoch": [2], "weights": [select_all()]},
        {"epoch": (2.0,), "weights": (select_all(),), "note": ["kept"]},
        [{"epoch": 2, "weights": select_all()}],
        pd.DataFrame({"epoch": np.array([2], dtype="int8"), "weights": [select_all()]}, index=["x"]),
        pd.DataFrame({"epoch": pd.array([2], dtype="Int64"), "weights": [select_all()]}),
        pd.DataFrame({"epoch": np.array([2], dtype="float32"), "weights": [select_all()]}),
    ],
)
def test_a_table_comes_in_several_forms(table):
    (row,) = read_table(table)
    assert (row.unit, row.at, row.weights) == ("epoch", 2, select_all())


@pytest.mark.parametrize("table", [None, pd.DataFrame(), {}, [], {"epoch": [], "weights": []}])
def test_a_table_may_be_empty(table):
    assert read_table(table) == ()


def test_a_missing_name_is_reported_with_its_place():
    with pytest.raises(ValueError, match="`starting_weights`: `param_names` names 'x'"):
        plan_of(select_name("x"), None)
    with pytest.raises(ValueError, match="`unfreeze`: row 1: `param_names` names 'x'"):
        plan_of(select_all(), {"epoch": [1, 2], "weights": [select_all(), select_name("x")]})


def test_a_selector_of_places_needs_the_network():
    with pytest.raises(ValueError, match="`starting_weights`: .*needs a network"):
        plan_of(select_first(1), None)


def test_a_selector_is_taken_as_it_is():
    select = select_none()
    assert as_select("`starting_weights`", select) is select
