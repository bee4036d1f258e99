"""What a call takes is known once the device has done it."""

import math

from mlr3torch_py.cache.passes.stopwatch import Pace


class Queued:
    """A call that a device may still be computing."""

    def __init__(self, seconds, is_done=False):
        self.seconds_on_device, self.is_done = seconds, is_done


def test_the_fastest_call_that_is_done_counts_and_only_the_first_is_waited_for():
    pace, second = Pace(), Queued(1.0)
    assert math.isinf(pace.seconds_per_row)
    pace.note(Queued(8.0), 4)
    pace.note(second, 4)
    pace.note(Queued(9.0, is_done=True), 1)
    assert pace.seconds_per_row == 2
    second.is_done = True
    assert pace.seconds_per_row == 0.25


def test_what_was_known_before_stands_until_a_call_is_done():
    pace = Pace(3.0)
    pace.note(Queued(1.0), 1)
    assert pace.seconds_per_row == 3
