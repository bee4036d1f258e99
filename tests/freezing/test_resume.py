"""Every way of stopping and going on: what trains later is what would have trained without the stop."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skorch.callbacks import Callback, Checkpoint, LoadInitState
from skorch.history import DistributedHistory, History

from mlr3torch_py import CallbackSetUnfreeze, select_all, select_last, select_name, select_none, select_prefix
from mlr3torch_py.training.clock import moment_of
from tests.helpers import Trace, X, iris_net, y

BY_EPOCH = {"epoch": [3, 5], "weights": [select_prefix("3"), select_all()]}
BY_BATCH = {"batch": [5, 14], "weights": [select_prefix("3"), select_all()]}
schedules = pytest.mark.parametrize("table", [BY_EPOCH, BY_BATCH], ids=["epoch", "batch"])


def net_of(table, trace, *more, **params):
    return iris_net(("unfreeze", CallbackSetUnfreeze(select_last(1), table)), ("trace", trace), *more, **params)


def uninterrupted(table, epochs=6):
    trace = Trace()
    net_of(table, trace, max_epochs=epochs).fit(X, y)
    return trace.batches_


@schedules
def test_partial_fit_again_and_again(table):
    trace = Trace()
    net = net_of(table, trace, max_epochs=1)
    for _ in range(6):
        net.partial_fit(X, y)
    assert trace.batches_ == uninterrupted(table)


@schedules
def test_warm_start(table):
    trace = Trace()
    net = net_of(table, trace, max_epochs=2, warm_start=True)
    for _ in range(3):
        net.fit(X, y)
    assert trace.batches_ == uninterrupted(table)


@schedules
def test_a_second_fit_without_warm_start_begins_anew(table):
    trace = Trace()
    net = net_of(table, trace, max_epochs=6).fit(X, y)
    net.fit(X, y)
    assert trace.batches_ == uninterrupted(table) * 2


@pytest.mark.sample(4)
@schedules
@pytest.mark.parametrize("epochs", [1, 3, 4])
def test_pickle_and_go_on(table, epochs):
    net = net_of(table, Trace(), max_epochs=epochs).fit(X, y)
    net = pickle.loads(pickle.dumps(net)).set_params(max_epochs=6 - epochs)
    net.partial_fit(X, y)
    assert dict(net.callbacks_)["trace"].batches_ == uninterrupted(table)


@schedules
def test_parameters_and_history_in_files(table, tmp_path):
    files = {"f_params": tmp_path / "p", "f_optimizer": tmp_path / "o", "f_history": tmp_path / "h.json"}
    net_of(table, Trace(), max_epochs=3).fit(X, y).save_params(**files)
    trace = Trace()
    net = net_of(table, trace, max_epochs=3).initialize()
    net.load_params(**files)
    net.partial_fit(X, y)
    assert trace.batches_ == uninterrupted(table)[9:]


@pytest.mark.sample(3)
@schedules
@pytest.mark.parametrize("position", ["before", "behind"])
def test_checkpoint_and_load_init_state(table, position, tmp_path):
    def run(epochs):
        trace = Trace()
        unfreeze = CallbackSetUnfreeze(select_last(1), table)
        checkpoint = Checkpoint(monitor=None, dirname=tmp_path)
        others = [checkpoint, LoadInitState(checkpoint)]
        callbacks = [*others, unfreeze] if position == "behind" else [unfreeze, *others]
        net = iris_net(*callbacks, trace, max_epochs=epochs).fit(X, y)
        return trace.batches_, net.history[-epochs:, "event_unfreeze"]

    (batches, events), (later_batches, later_events) = run(3), run(3)
    assert batches + later_batches == uninterrupted(table)
    assert events + later_events == net_of(table, Trace(), max_epochs=6).fit(X, y).history[:, "event_unfreeze"]


class Interrupts(Callback):
    """Ctrl-C at a moment: before or after the nth training batch."""

    def __init__(self, batch, hook="on_batch_end"):
        self.batch = batch
        self.hook = hook

    def initialize(self):
        self.seen_ = 0
        return self

    def on_batch_begin(self, net, training=None, **kwargs):
        if training:
            self.seen_ += 1
            self._act("on_batch_begin")

    def on_batch_end(self, net, training=None, **kwargs):
        if training:
            self._act("on_batch_end")

    def _act(self, hook):
        if hook == self.hook and self.seen_ == self.batch:
            raise KeyboardInterrupt


@pytest.mark.sample(3)
@pytest.mark.parametrize("hook", ["on_batch_begin", "on_batch_end"])
@pytest.mark.parametrize("batch", [1, 4, 8, 9])
def test_keyboard_interrupt_in_the_middle_of_an_epoch(batch, hook):
    """The count of batches continues where it stopped; the broken epoch counts as one."""
    trace = Trace()
    net = net_of(BY_BATCH, trace, Interrupts(batch, hook), max_epochs=3).fit(X, y)
    finished = batch if hook == "on_batch_end" else batch - 1
    assert moment_of(net.history).batch == finished
    net.set_params(max_epochs=6)
    net.partial_fit(X, y)
    assert trace.batches_ == uninterrupted(BY_BATCH, 9)[: finished + 18]

    trace = Trace()
    net = net_of(BY_EPOCH, trace, Interrupts(batch, hook), max_epochs=3).fit(X, y)
    epoch = len(net.history)
    net.set_params(max_epochs=6)
    net.partial_fit(X, y)
    expected = uninterrupted(BY_EPOCH, 9)
    assert trace.batches_ == expected[:finished] + expected[3 * epoch : 3 * epoch + 18]


@pytest.mark.slow
@settings(max_examples=20)
@given(
    unit=st.sampled_from(["epoch", "batch"]),
    at=st.lists(st.integers(1, 14), unique=True, max_size=4),
    picks=st.lists(st.sampled_from(["0.weight", "0.bias", "3.weight", "3.bias"]), min_size=4, max_size=4, unique=True),
    stops=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    pickled=st.booleans(),
)
@pytest.mark.usefixtures("no_schedule_warnings")
def test_resuming_anywhere_equals_never_stopping(unit, at, picks, stops, pickled):
    table = {unit: at, "weights": [select_name(pick) for pick in picks[: len(at)]]}
    net = net_of(table, Trace())
    for epochs in stops:
        net.set_params(max_epochs=epochs)
        net.partial_fit(X, y)
        if pickled:
            net = pickle.loads(pickle.dumps(net))
    assert dict(net.callbacks_)["trace"].batches_ == uninterrupted(table, sum(stops))


class Fails(Interrupts):
    """An error instead of Ctrl-C."""

    def _act(self, hook):
        try:
            super()._act(hook)
        except KeyboardInterrupt:
            raise ZeroDivisionError from None


PARTS = ["0.weight", "0.bias", "3.weight", "3.bias"]
rows = st.lists(
    st.tuples(st.integers(1, 12), st.sampled_from(PARTS), st.sampled_from(["unfreeze", "freeze"])),
    unique_by=lambda row: row[0],
    max_size=4,
)


def played(by_epoch, by_batch, epochs):
    """What trains at each finished batch, from the definition: epoch by epoch, batch by batch."""
    trainable, expected = {"6.weight", "6.bias"}, []
    epoch_rows, batch_rows = ({at: row for at, *row in rows} for rows in (by_epoch, by_batch))

    def act(row):
        if row is not None:
            name, action = row
            (trainable.add if action == "unfreeze" else trainable.discard)(name)

    for epoch in range(1, max(epochs) + 1):
        act(epoch_rows.get(epoch))
        for _ in range(epochs.count(epoch)):
            act(batch_rows.get(len(expected) + 1))
            expected.append(sorted(trainable))
    return expected


@pytest.mark.slow
@settings(max_examples=40)
@given(
    by_epoch=rows,
    by_batch=rows,
    batch=st.integers(1, 8),
    hook=st.sampled_from(["on_batch_begin", "on_batch_end"]),
    kind=st.sampled_from([Interrupts, Fails]),
    size=st.sampled_from([150, 120, 40]),
)
@pytest.mark.usefixtures("no_schedule_warnings")
def test_epochs_that_break_off_and_epochs_of_other_lengths_keep_the_schedule(
    by_epoch, by_batch, batch, hook, kind, size
):
    tables = [
        {
            unit: [row[0] for row in rows],
            "weights": [select_name(row[1]) for row in rows],
            "action": [r[2] for r in rows],
        }
        for unit, rows in (("epoch", by_epoch), ("batch", by_batch))
    ]
    trace = Trace()
    net = net_of(tables, trace, kind(batch, hook), max_epochs=3)
    try:
        net.fit(X, y)
    except ZeroDivisionError:
        assert kind is Fails
    net.partial_fit(X[:size], y[:size])
    assert [sorted(names) for names in trace.batches_] == played(by_epoch, by_batch, trace.epochs_)


def test_a_state_alone_starts_the_clock_at_one():
    trained = CallbackSetUnfreeze(select_last(1), BY_EPOCH)
    iris_net(trained, max_epochs=3).fit(X, y)
    trace = Trace()
    resumed = CallbackSetUnfreeze(select_none(), {"epoch": [2], "weights": [select_name("0.bias")]})
    resumed.load_state_dict(trained.state_dict())
    iris_net(resumed, trace, max_epochs=2).fit(X, y)
    state = ["3.weight", "3.bias", "6.weight", "6.bias"]
    assert trace.batches_ == [state] * 3 + [["0.bias", *state]] * 3


def test_the_clock_reads_every_kind_of_row():
    history = History(
        [
            {"train_batch_count": 3, "batches": [{"train_loss": 1.0}, {"valid_loss": 1.0}]},
            {"batches": [{"train_loss": 1.0}, {"valid_loss": 1.0}, {}]},
            {"epoch": 3},
        ]
    )
    assert moment_of(history).batch == 4
    assert moment_of(History()).batch == 0


def test_the_clock_counts_one_rank_of_a_distributed_history():
    store = torch.distributed.HashStore()
    ranks = [DistributedHistory(store=store, rank=rank, world_size=2) for rank in range(2)]
    for history in ranks:
        history.new_epoch()
    for loss in (0.1, 0.2, 0.3):
        for history in ranks:
            history.new_batch()
            history.record_batch("train_loss", loss)
        for history in ranks:
            history.sync()
    assert len(ranks[0][-1]["batches"]) == 6
    assert [moment_of(history).batch for history in ranks] == [3, 3]


def test_what_another_table_changes_at_the_first_epoch_of_a_call_is_an_event():
    net = iris_net(("unfreeze", CallbackSetUnfreeze(select_last(1))), max_epochs=2, batch_size=150).fit(X, y)
    net.set_params(callbacks__unfreeze__starting_weights=select_all()).partial_fit(X, y, epochs=1)
    net.set_params(callbacks__unfreeze__starting_weights=select_name("6.bias")).partial_fit(X, y, epochs=1)
    net.partial_fit(X, y, epochs=1)
    assert net.history[:, "event_unfrozen"] == [
        *[None, None, "+ 0.weight, 0.bias, 3.weight, 3.bias"],
        *["- {0,3}, 6.weight (5 tensors)", None],
    ]
    assert net.history[:, "event_unfreeze"] == [False, False, True, True, False]
    assert net.history[:, "n_trainable"] == [12, 12, 39, 3, 3]
