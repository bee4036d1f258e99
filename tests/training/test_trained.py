"""The format in which a history says what trained when."""

from hypothesis import given
from hypothesis import strategies as st

from mlr3torch_py.training.trained import RATE, change, packed, spans_of

PART = st.sampled_from(["a", "b1", "b2", "0", "1", "2", "{0,1}", "x{2", "weight"])
NAMES = st.lists(st.lists(PART, min_size=1, max_size=3).map(".".join), min_size=1, max_size=8, unique=True)


@given(names=NAMES, data=st.data())
def test_what_is_packed_is_read_again(names, data):
    flags = data.draw(st.lists(st.lists(st.booleans(), min_size=len(names), max_size=len(names)), min_size=1))
    entries = [packed(flag, i, None if i else names) for i, flag in enumerate(flags)]
    row = {"n_trainable": 1, "train_batch_count": len(flags), "trainable_from_batch_count": entries}
    spans = list(spans_of([row, {"n_trainable": 1, "train_batch_count": 2}]))
    wanted = [{name for name, is_trainable in zip(names, flag, strict=True) if is_trainable} for flag in flags]
    assert [span.trainable for span in spans] == [*wanted, wanted[-1]]
    assert [list(span.batches) for span in spans] == [
        *([batch] for batch in range(1, len(flags) + 1)),
        [len(flags) + 1, len(flags) + 2],
    ]
    assert all(span.names == tuple(names) for span in spans)


def test_changes_are_told_in_few_words():
    bert = [f"encoder.layer.{i}.{part}.{name}" for i in range(12) for part in "abc" for name in ("weight", "bias")]
    assert change(bert[:2], [], bert) == "+ encoder.layer.0.a (2 tensors)"
    assert change(bert[6:18], bert[:1], bert) == "+ encoder.layer.{1,2} (12 tensors), - encoder.layer.0.a.weight"
    assert change(bert[::2], [], bert).endswith(" (36 tensors)")
    assert len(change(bert[::2], [], bert)) < 60
    assert change([], [], bert) == ""


def test_a_change_of_a_very_wide_network_is_short_too():
    wide = [f"{i}.weight" for i in range(10_000)]
    assert change(wide[:5_000], [], wide) == "+ {0..49} and more (5000 tensors)"


def test_the_rates_of_groups_are_told_from_other_keys():
    assert all(map(RATE.fullmatch, ["lr_0", "lr_12_x0.1", "lr_opt_g_0", "lr_opt_g_0_x1e-05"]))
    assert not any(map(RATE.fullmatch, ["lr", "event_lr", "lr_", "lr_best", "lr_mean", "train_lr_0"]))
