"""The timeline of plans, against plans that are asked at every batch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlr3torch_py import select_all, select_name, select_none
from mlr3torch_py.schedule.steps import Moment
from mlr3torch_py.schedule.timeline import UNKNOWN_LENGTH, timeline
from tests.schedule.test_plan import NAMES, mixed, plan_of, some


@given(st.lists(st.tuples(some, mixed), min_size=1, max_size=2), st.integers(1, 4), st.integers(1, 8), st.data())
def test_between_two_moments_of_the_timeline_nothing_changes(tables, per_epoch, last_epoch, data):
    plans = [plan_of(*table) for table in tables]
    begin = data.draw(st.integers(1, last_epoch))
    since = Moment(begin, per_epoch * (begin - 1), tuple(1 + per_epoch * i for i in range(begin)))
    stretches = list(timeline(plans, per_epoch, since=since, last_epoch=last_epoch))
    assert stretches[0].moment == Moment(begin, since.batch + 1, since.firsts)
    for batch in range(since.batch + 1, per_epoch * last_epoch + 1):
        epoch = (batch - 1) // per_epoch + 1
        now = Moment(epoch, batch, tuple(1 + per_epoch * i for i in range(epoch)))
        held = [stretch.held for stretch in stretches if stretch.moment.batch <= batch][-1]
        assert held == set().union(*(plan.held(now) for plan in plans))


def test_epochs_of_unknown_length_keep_their_order():
    plan = plan_of(select_none(), {"epoch": [4, 2], "weights": [select_name("a"), select_name("b")]})
    stretches = timeline([plan], UNKNOWN_LENGTH)
    assert [(moment.epoch, sorted(held)) for moment, held in stretches] == [
        (1, NAMES),
        (2, ["a", "c", "d"]),
        (4, ["c", "d"]),
    ]


@pytest.mark.parametrize(("last_epoch", "n"), [(1, 1), (2, 2), (3, 2), (4, 3)])
def test_it_ends_with_the_last_epoch(last_epoch, n):
    plan = plan_of(select_none(), {"epoch": [2, 4], "weights": [select_all()] * 2})
    assert len(list(timeline([plan], 5, last_epoch=last_epoch))) == n
