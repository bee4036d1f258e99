import pytest

from benchmarks import event, growth, hook, plan
from benchmarks.__main__ import markdown, shown
from benchmarks.rounds import COLUMNS


@pytest.mark.slow
def test_benchmarks_have_common_columns():
    frames = [
        hook.measure(weights=(10,), rows=(1, 2), past_epochs=(1,), rounds=1),
        event.measure(weights=(10,), rounds=1),
        growth.measure(many=20, rounds=1),
        plan.measure(come=(1,), many=20, rounds=1),
    ]
    for frame in frames:
        assert list(frame.columns) == COLUMNS
        assert (frame["ratio"] > 0).all()
        assert markdown(shown(frame)).count("\n") == len(frame) + 1
