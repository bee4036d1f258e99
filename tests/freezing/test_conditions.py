"""Rows that wait for a score to stop improving."""

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skorch.history import History

from mlr3torch_py import CallbackSetUnfreeze, Plateau, Select, select_all, select_last, select_prefix
from mlr3torch_py.select import selector
from tests.helpers import Score, Trace, X, iris_net, y
from tests.parallel import in_processes

HEAD = ["6.weight", "6.bias"]
MORE = ["3.weight", "3.bias", *HEAD]
ALL = ["0.weight", "0.bias", *MORE]


def run(table, scores, max_epochs=None, **params):
    trace = Trace()
    unfreeze = CallbackSetUnfreeze(select_last(1), table)
    net = iris_net(
        ("unfreeze", unfreeze), ("score", Score(scores)), ("trace", trace), batch_size=150, **params
    ).set_params(max_epochs=max_epochs or len(scores))
    return net, trace


def two(patience=1, **params):
    plateau = Plateau("score", patience=patience, **params)
    return {"when": [plateau, plateau], "weights": [select_prefix("3"), select_all()]}


def test_rows_come_one_after_the_other_when_the_score_stops_improving():
    net, trace = run(two(), [0.9, 0.8, 0.8, 0.9, 0.7, 0.7, 0.7])
    net.fit(X, y)
    assert trace.batches_ == [HEAD] * 3 + [MORE] * 3 + [ALL]
    assert net.history[:, ("event_unfreeze_row0", "event_unfreeze_row1", "event_unfreeze")] == [
        *[(False, False, False)] * 3,
        (True, False, True),
        *[(False, False, False)] * 2,
        (False, True, True),
    ]


def test_a_row_comes_no_later_than_it_says():
    net, trace = run(two(patience=3, no_later_than=3), [0.9, 0.8, 0.7, 0.6])
    net.fit(X, y)
    assert trace.batches_ == [HEAD] * 2 + [ALL] * 2


def test_a_condition_may_freeze_and_stand_beside_times():
    table = [
        {"epoch": [2], "weights": [select_all()]},
        {"when": [Plateau("score", 1)], "weights": [select_prefix("0", "3")], "action": ["freeze"]},
    ]
    net, trace = run(table, [0.5, 0.4, 0.4, 0.4])
    net.fit(X, y)
    assert trace.batches_ == [HEAD, ALL, ALL, HEAD]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`monitor` is 'score', which is NaN")
@settings(max_examples=30)
@given(
    scores=st.lists(st.sampled_from([0.1, 0.2, 0.3, float("nan")]), min_size=2, max_size=8),
    patience=st.integers(1, 3),
    stop=st.integers(1, 7),
    way=st.sampled_from(["partial_fit", "pickle", "history"]),
)
def test_resuming_anywhere_equals_never_stopping(scores, patience, stop, way):
    stop = min(stop, len(scores) - 1)
    whole, whole_trace = run(two(patience), scores)
    whole.fit(X, y)
    net, trace = run(two(patience), scores, stop)
    net.fit(X, y)
    if way == "pickle":
        net = pickle.loads(pickle.dumps(net))
        trace = dict(net.callbacks_)["trace"]
    if way == "history":
        again, again_trace = run(two(patience), scores)
        again.initialize()
        again.history = History(net.history.to_list())
        again_trace.batches_ = trace.batches_
        net, trace = again, again_trace
    net.set_params(max_epochs=len(scores) - stop)
    net.partial_fit(X, y)
    assert trace.batches_ == whole_trace.batches_


def test_the_callback_that_records_a_score_knows_which_are_better():
    net, trace = run(two(), [0.1, 0.2, 0.3, 0.3])
    net.set_params(callbacks__score__lower_is_better=False).fit(X, y)
    assert trace.batches_ == [HEAD] * 4
    net, trace = run(two(lower_is_better=True), [0.1, 0.2, 0.3, 0.3])
    net.set_params(callbacks__score__lower_is_better=False).fit(X, y)
    assert trace.batches_ == [HEAD] * 2 + [MORE] * 2


def test_a_score_of_unknown_direction_is_minimised_with_one_warning():
    net, trace = run(two(), [0.1, 0.2, 0.3, 0.3])
    net.set_params(callbacks__score__lower_is_better=None)
    with pytest.warns(UserWarning, match=r"give Plateau\('score', lower_is_better=...\)") as said:
        net.fit(X, y)
    assert len(said) == 1
    assert trace.batches_ == [HEAD] * 2 + [MORE] * 2


def test_a_later_condition_looks_only_at_the_epochs_since_the_one_before_it():
    first, second = Plateau("score", 1), Plateau("score", 2)
    table = {"when": [first, second], "weights": [select_prefix("3"), select_all()]}
    net, trace = run(table, [0.5, 0.6, 0.6, 0.6, 0.6, 0.6])
    net.fit(X, y)
    assert trace.batches_ == [HEAD] * 2 + [MORE] * 3 + [ALL]


class Gaps(Score):
    """Leaves epochs without a score."""

    def on_epoch_end(self, net, **kwargs):
        score = self.scores[len(net.history) - 1]
        if score != "left out":
            net.history.record("score", score)


def test_an_epoch_without_a_score_is_no_evaluation():
    trace = Trace()
    unfreeze = CallbackSetUnfreeze(select_last(1), {"when": [Plateau("score", 2)], "weights": [select_all()]})
    net = iris_net(unfreeze, Gaps(["left out", 0.5, None, 0.6, "left out", None, 0.7, 0.1]), trace)
    net.set_params(batch_size=150, max_epochs=8).fit(X, y)
    assert trace.batches_ == [HEAD] * 7 + [ALL]


def test_a_score_that_is_nan_is_warned_of_once_and_does_not_count():
    trace = Trace()
    unfreeze = CallbackSetUnfreeze(select_last(1), {"when": [Plateau("score", 2)], "weights": [select_all()]})
    net = iris_net(unfreeze, Score([0.5, math.nan, math.nan, 0.6, 0.7, 0.1]), trace, batch_size=150, max_epochs=6)
    with pytest.warns(UserWarning, match="`monitor` is 'score', which is NaN in epoch 2") as caught:
        net.fit(X, y)
    assert len(caught) == 1
    assert trace.batches_ == [HEAD] * 5 + [ALL]


def test_a_name_that_changes_does_not_decide_again():
    net, trace = run(two(), [0.9, 0.9, 0.9, 0.9], 2)
    net.fit(X, y)
    other = iris_net(
        ("renamed", CallbackSetUnfreeze(select_last(1), two())), Score([0.9] * 4), trace, batch_size=150, max_epochs=2
    ).initialize()
    other.history = History(net.history.to_list())
    other.partial_fit(X, y)
    whole, whole_trace = run(two(), [0.9] * 4)
    whole.fit(X, y)
    assert trace.batches_ == whole_trace.batches_


def patient(weights):
    return {"when": Plateau("score", patience=50), "weights": weights}


@pytest.mark.parametrize(
    ("rows", "trainable"),
    [
        ([patient(select_prefix("0"))], HEAD),
        ([patient(select_prefix("0")), patient(select_prefix("3"))], MORE),
        ([patient(select_prefix("3"))], MORE),
        ([patient(select_prefix("3")) | {"action": "freeze"}], HEAD),
    ],
)
def test_a_condition_that_was_met_counts_for_the_row_that_does_the_same(rows, trainable):
    net, trace = run({"when": [Plateau("score", 1)], "weights": [select_prefix("3")]}, [0.9] * 4, 3)
    net.fit(X, y)
    assert trace.batches_ == [HEAD] * 2 + [MORE]
    net.set_params(callbacks__unfreeze__unfreeze=rows).partial_fit(X, y, epochs=1)
    assert trace.batches_[3:] == [trainable]


@pytest.mark.parametrize("names", ["ba", "xa", "ax", "a", "y", "yb"])
def test_a_condition_that_was_met_counts_whatever_stands_beside_its_callback(names):
    def one(name):
        waits = name in "bx"
        weights = select_prefix("3" if waits else "0")
        table = {"when": [Plateau("score", 50 if waits else 1)], "weights": [weights], "action": ["freeze"]}
        return name, CallbackSetUnfreeze(select_all(), table)

    trace, score = Trace(), Score([0.9] * 4)
    net = iris_net(one("a"), one("b"), score, trace, batch_size=150, max_epochs=3).fit(X, y)
    assert trace.batches_ == [ALL] * 2 + [MORE]
    other = iris_net(*map(one, names), score, trace, batch_size=150, max_epochs=1).initialize()
    other.history = History(net.history.to_list())
    other.partial_fit(X, y)
    assert trace.batches_[3:] == [MORE]


@selector
class ByRule(Select):
    """Prints its function with an address."""

    rule: object

    def matches(self, names, module=None):
        return {name for name in names if self.rule(name)}


def test_a_condition_is_recognised_by_what_it_selects_where_its_selector_prints_otherwise():
    def rule():
        return ByRule(lambda name: name.startswith("3"))

    net, trace = run({"when": [Plateau("score", 1)], "weights": [rule()]}, [0.9] * 4, 3)
    net.fit(X, y)
    net.set_params(callbacks__unfreeze__unfreeze=[patient(rule())]).partial_fit(X, y, epochs=1)
    assert trace.batches_ == [HEAD] * 2 + [MORE] * 2


def test_of_rows_that_do_the_same_the_first_have_come():
    plateau = Plateau("score", 1)
    weights, actions = [select_prefix("3")] * 3, ["unfreeze", "freeze", "unfreeze"]
    table = {"when": [plateau] * 3, "weights": weights, "action": actions}
    net, trace = run(table, [0.9] * 7, 4)
    net.fit(X, y).partial_fit(X, y, epochs=3)
    whole, whole_trace = run(table, [0.9] * 7)
    whole.fit(X, y)
    assert trace.batches_ == whole_trace.batches_ == [HEAD] * 2 + [MORE] * 2 + [HEAD] * 2 + [MORE]


def test_two_callbacks_decide_for_themselves():
    a = CallbackSetUnfreeze(select_prefix("3", "6"), {"when": [Plateau("score", 1)], "weights": [select_all()]})
    b = CallbackSetUnfreeze(select_prefix("0", "6"), {"when": [Plateau("score", 2)], "weights": [select_all()]})
    trace = Trace()
    net = iris_net(("a", a), ("b", b), Score([0.9] * 5), trace, batch_size=150, max_epochs=5).fit(X, y)
    assert trace.batches_ == [HEAD] * 2 + [["0.weight", "0.bias", *HEAD]] + [ALL] * 2
    assert net.history[:, "event_unfreeze_row0"] == [False, False, True, False, False]
    assert net.history[:, "event_unfreeze2_row0"] == [False, False, False, True, False]


def test_an_epoch_that_is_refused_does_not_count():
    net, _ = run({"when": [Plateau("trian_loss")], "weights": [select_all()]}, [0.9] * 3)
    for _ in range(2):
        with pytest.raises(ValueError, match="`monitor` is 'trian_loss'"):
            net.partial_fit(X, y)
    assert len(net.history) == 0


def test_a_second_fit_decides_anew():
    net, trace = run(two(), [0.9, 0.9, 0.9])
    net.fit(X, y)
    net.fit(X, y)
    assert trace.batches_[:3] == trace.batches_[3:]


def test_a_score_that_nobody_records_is_an_error_with_the_nearest():
    net, _ = run({"when": [Plateau("trian_loss")], "weights": [select_all()]}, [0.9, 0.9])
    with pytest.raises(ValueError, match="`monitor` is 'trian_loss', .* did you mean 'train_loss'"):
        net.fit(X, y)


def run_in_rank(scores):
    net, trace = run(two(), scores[torch.distributed.get_rank()])
    net.fit(X, y)
    return trace.batches_


@pytest.mark.slow
def test_processes_that_train_nets_of_their_own_decide_for_themselves(tmp_path):
    scores = [[0.9, 0.8, 0.8, 0.8], [0.9, 0.9, 0.9, 0.9]]
    main, other = in_processes(tmp_path, run_in_rank, scores)
    assert main == [HEAD] * 3 + [MORE]
    assert other == [HEAD] * 2 + [MORE] * 2
