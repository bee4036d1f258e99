import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlr3torch_py import Plateau, select_all, select_first, select_name, select_none
from mlr3torch_py.schedule.plan import Plan
from mlr3torch_py.schedule.rates import factors_at
from mlr3torch_py.schedule.steps import Moment
from mlr3torch_py.schedule.table import read_table

NAMES = ["a", "b", "c", "d"]
some = st.sets(st.sampled_from(NAMES)).map(lambda names: select_name(sorted(names)))
moments = st.integers(0, 12)


@st.composite
def tables(draw, units=("epoch", "batch"), actions=("unfreeze",)):
    unit = draw(st.sampled_from(units))
    at = draw(st.lists(moments, unique=True, max_size=5))
    return {unit: at, "weights": [draw(some) for _ in at], "action": [draw(st.sampled_from(actions)) for _ in at]}


BOTH = ("unfreeze", "freeze")
mixed = st.tuples(tables(("epoch",), BOTH), tables(("batch",), BOTH)).map(list)


def plan_of(starting, table):
    return Plan.resolve(starting, read_table(table), NAMES)


def at(epoch=0, batch=0, per_epoch=3):
    """A moment of a training with three batches an epoch."""
    return Moment(epoch, batch, tuple(1 + per_epoch * i for i in range(epoch)))


@given(some, tables(), moments, moments)
def test_a_name_trains_from_its_first_row_on(starting, table, epoch, batch):
    now = epoch if "epoch" in table else batch
    times = table.get("epoch", table.get("batch"))
    expected = set(starting(NAMES)).union(
        *(weights(NAMES) for time, weights in zip(times, table["weights"], strict=True) if 1 <= time <= now)
    )
    assert plan_of(starting, table).trainable(at(epoch, batch)) == expected


@given(some, tables(actions=BOTH), moments, moments, st.randoms())
def test_the_order_of_rows_does_not_matter(starting, table, epoch, batch, random):
    frame = pd.DataFrame(table)
    shuffled = frame.iloc[random.sample(range(len(frame)), len(frame))]
    now = at(epoch, batch)
    assert plan_of(starting, shuffled).trainable(now) == plan_of(starting, table).trainable(now)


@given(some, mixed, st.integers(1, 6), st.integers(1, 3))
def test_at_one_moment_rows_of_the_epoch_act_before_rows_of_the_batch(starting, both, epoch, in_epoch):
    """The definition, played through batch by batch."""
    by_epoch, by_batch = ({row.time: row for row in read_table(table)} for table in both)
    expected = set(starting(NAMES))
    for batch in range(1, 3 * (epoch - 1) + in_epoch + 1):
        began = [by_epoch.get((batch + 2) // 3)] if batch % 3 == 1 else []
        for row in filter(None, [*began, by_batch.get(batch)]):
            selected = set(row.weights(NAMES))
            expected = expected | selected if row.action == "unfreeze" else expected - selected
    assert plan_of(starting, both).trainable(at(epoch, batch)) == expected


@given(some, mixed, moments)
def test_nothing_changes_before_the_next_batch_that_the_plan_names(starting, table, batch):
    plan = plan_of(starting, table)
    following = plan.next_batch(batch)
    assert following > batch
    for later in range(batch, 14):
        if later < following:
            assert plan.trainable(at(4, later)) == plan.trainable(at(4, batch))


@given(some, mixed, moments, moments)
def test_asking_twice_gives_the_same(starting, table, epoch, batch):
    plan = plan_of(starting, table)
    assert plan.trainable(at(epoch, batch)) == plan.trainable(at(epoch, batch))
    assert plan.held(at(epoch, batch)) == set(NAMES) - plan.trainable(at(epoch, batch))


def test_a_row_that_changes_nothing_is_found():
    table = {
        "epoch": [1, 2, 3, 4],
        "weights": [select_name("b"), select_name("a"), select_name("c"), select_name("c")],
        "action": ["unfreeze", "unfreeze", "freeze", "unfreeze"],
    }
    plan = plan_of(select_name("a"), table)
    assert [step.row.position for step in plan.no_ops()] == [1, 2]
    assert plan_of(select_name("a"), [table, {"batch": [1], "weights": [select_all()]}]).no_ops() == []


def test_what_is_still_to_come_is_in_order():
    plateau = Plateau()
    tables = [
        {"epoch": [4, 2], "weights": [select_all()] * 2},
        {"batch": [9, 3], "weights": [select_all()] * 2},
        {"when": [plateau], "weights": [select_all()]},
    ]
    plan = plan_of(select_none(), tables)
    assert [step.row.time for step in plan.pending(at(2, 5))] == [4, 9, plateau]
    assert [step.row.time for step in plan.resolved({4: 2}).pending(Moment(4, 9))] == []


def test_a_condition_acts_at_the_epoch_at_which_it_came():
    tables = [
        {"when": [Plateau()], "weights": [select_name("a")]},
        {"batch": [5], "weights": [select_name("a")], "action": ["freeze"]},
    ]
    plan = plan_of(select_name("b"), tables)
    for fired, expected in [({}, {"b"}), ({0: 2}, {"b"}), ({0: 3}, {"a", "b"}), ({0: 4}, {"b"})]:
        assert plan.resolved(fired).trainable(Moment(3, 7, (1, 4, 7))) == expected


def test_where_an_epoch_had_no_batch_the_later_epoch_acts_later():
    table = {"when": [Plateau(), Plateau()], "weights": [select_name("a")] * 2, "action": ["freeze", "unfreeze"]}
    plan = plan_of(select_none(), table)
    assert plan.resolved({0: 3, 1: 2}).trainable(Moment(3, 4, (1, 4, 4))) == set()
    assert plan.resolved({0: 2, 1: 3}).trainable(Moment(3, 4, (1, 4, 4))) == {"a"}


def test_a_loaded_state_acts_before_the_rows_of_its_epoch():
    table = {"epoch": [2], "weights": [select_name("a")], "action": ["freeze"]}
    plan = plan_of(select_name("b"), table)
    for epoch, expected in [(1, {"b", "c"}), (2, {"b", "c"}), (3, {"a", "b", "c"})]:
        assert plan.resolved({}, (epoch, frozenset("ac"))).trainable(Moment(3, 7, (1, 4, 7))) == expected


def test_two_actions_at_one_time_may_not_touch_the_same_weight():
    table = {"epoch": [2, 2], "weights": [select_name("a"), select_name("b")], "action": ["unfreeze", "freeze"]}
    assert plan_of(select_name("b"), table).trainable(at(2)) == {"a"}
    table["weights"][1] = select_all()
    with pytest.raises(ValueError, match=r"row 0 \(epoch 2: .*row 1 \(epoch 2: freeze .* opposite things to a;"):
        plan_of(select_name("b"), table)


@pytest.mark.parametrize(
    ("scores", "holds"),
    [
        ([], False),
        ([1.0], False),
        ([1.0, 0.9, 0.9, 0.95], True),
        ([1.0, 0.9, 0.95, 0.8], False),
        ([1.0, math.nan, 1.1, math.nan, 1.2], True),
        ([math.nan, 1.0, math.nan, math.nan, 1.1], False),
        ([1.0, 0.9, 0.8], False),
    ],
)
def test_a_plateau_is_a_number_of_epochs_without_a_better_score(scores, holds):
    assert Plateau("valid_loss", patience=2).holds(scores) is holds
    assert Plateau("valid_acc", patience=2, lower_is_better=False).holds([-score for score in scores]) is holds


def test_numbers_become_plain_ones():
    assert repr(Plateau(patience=np.int64(2), no_later_than=3.0)) == repr(Plateau(patience=2, no_later_than=3))


def test_an_improvement_must_exceed_min_delta():
    assert Plateau(patience=2, min_delta=0.25).holds([1.0, 0.75, 0.75])
    assert not Plateau(patience=2, min_delta=0.25).holds([1.0, 0.875, 0.625])


@pytest.mark.parametrize(
    "arguments",
    [
        {"monitor": 3},
        {"patience": 0},
        {"patience": 1.5},
        {"patience": True},
        {"min_delta": -1},
        {"min_delta": "x"},
        {"lower_is_better": "max"},
        {"no_later_than": 0},
        {"no_later_than": "x"},
    ],
)
def test_a_wrong_argument_of_a_plateau_is_named(arguments):
    (argument,) = arguments
    with pytest.raises((TypeError, ValueError), match=f"`{argument}`"):
        Plateau(**arguments)


def test_a_missing_name_is_reported_with_its_place():
    with pytest.raises(ValueError, match="`starting_weights`: `param_names` names 'x'"):
        plan_of(select_name("x"), None)
    with pytest.raises(ValueError, match="`unfreeze`: row 1: `param_names` names 'x'"):
        plan_of(select_all(), {"epoch": [1, 2], "weights": [select_all(), select_name("x")]})


def test_a_selector_of_places_needs_the_network():
    with pytest.raises(ValueError, match="`starting_weights`: .*needs a network"):
        plan_of(select_first(1), None)


@given(some, mixed, moments, moments, st.sets(st.sampled_from(NAMES)))
def test_a_plan_without_some_names_says_the_same_of_the_others(starting, table, epoch, batch, names):
    plan = plan_of(starting, table)
    assert plan.without(frozenset(names)).trainable(at(epoch, batch)) == plan.trainable(at(epoch, batch)) - names


@given(some, some, moments, moments, st.sets(st.sampled_from(NAMES)))
def test_a_plan_keeps_what_another_one_says_of_some_names(starting, other, epoch, batch, names):
    table = {"epoch": [2], "weights": [select_name("a")]}
    one, another = plan_of(starting, table), plan_of(other, table)
    now = at(epoch, batch)
    kept = one.keeping(another, frozenset(names))
    assert kept.trainable(now) == (one.trainable(now) - names) | (another.trainable(now) & names)


def test_a_row_on_one_name_of_a_tied_tensor_that_trains_by_another_changes_nothing():
    table = {"epoch": [2, 3], "weights": [select_name("b"), select_name("c")]}
    plan = plan_of(select_name("a"), table)
    assert plan.no_ops() == []
    assert [step.row.position for step in plan.no_ops(sharing=[["a", "b"]])] == [0]


def test_the_factor_of_the_first_row_comes_first_also_when_its_condition_is_met_late():
    tables = [
        {"when": [Plateau()], "weights": [select_name("a")], "lr_mult": [0.1]},
        {"epoch": [2], "weights": [select_name("a")], "lr_mult": [0.5]},
    ]
    plan = plan_of(select_none(), tables)
    for one in (plan, plan.resolved({0: 5})):
        assert factors_at([one], Moment(), dict.fromkeys(NAMES, 0))[0].at(1) == 0.1
