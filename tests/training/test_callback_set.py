"""CallbackSet: deriving classes from it, and its weight."""

import math
import pickle

import pytest
from sklearn.base import clone
from skorch.dataset import ValidSplit

from mlr3torch_py import CallbackSet, CallbackSetEarlyStopping, select_all, t_clbk, torch_callback
from tests.helpers import X, iris_net, y


class Seen(CallbackSet):
    """A class with hooks of skorch and stages that skorch lacks, which calls no super()."""

    def initialize(self):
        self.seen_ = []
        return self

    def on_train_begin(self, net, **kwargs):
        self.seen_.append("begin")

    def on_batch_begin(self, net, batch=None, training=None, **kwargs):
        self.seen_.append("train" if training else "valid")

    def on_batch_valid_begin(self, net, batch=None, **kwargs):
        assert len(batch[0]) == 50
        self.seen_.append("valid_begin")

    def on_exit(self, net, **kwargs):
        self.seen_.append("exit")


def test_a_class_needs_no_super_and_gets_all_stages():
    net = iris_net(("seen", Seen()), max_epochs=1, train_split=ValidSplit(3, stratified=True)).fit(X, y)
    assert dict(net.callbacks_)["seen"].seen_ == ["begin", "train", "train", "valid_begin", "valid", "exit"]
    assert Seen().stages == ["begin", "batch_begin", "batch_valid_begin", "exit"]
    assert CallbackSet().stages == []


def test_it_prints_the_parameters_that_differ_from_the_defaults():
    assert repr(CallbackSetEarlyStopping(patience=3)) == "CallbackSetEarlyStopping(patience=3)"


def test_a_callback_is_stateless_unless_it_says_otherwise():
    assert CallbackSet().state_dict() is None
    CallbackSet().load_state_dict(None)
    with pytest.raises(ValueError, match="`state` is {'a': 1}, but Seen has no state"):
        Seen().load_state_dict({"a": 1})


@pytest.mark.parametrize("taken", ["weight", "ctx"])
def test_a_parameter_may_not_have_the_name_of_what_every_callback_has(taken):
    scope = {}
    exec(f"def initialize(self, {taken}): pass", scope)
    with pytest.raises(TypeError, match=f"CallbackSetA has the parameter '{taken}', which every callback has already"):
        torch_callback("a", initialize=scope["initialize"])
    with pytest.raises(TypeError, match=f"Mine has the parameter '{taken}'"):
        type("Mine", (CallbackSet,), {"__init__": scope["initialize"]})


@pytest.mark.parametrize("weight", [math.nan, "1", True])
def test_a_weight_is_a_number(weight):
    with pytest.raises((TypeError, ValueError), match="`weight` is .*; give a number, or math.inf to run last"):
        CallbackSet().weight = weight
    with pytest.raises(TypeError, match="`weight` is"):
        CallbackSet().weight = None
    with pytest.raises((TypeError, ValueError), match="`weight` is"):
        torch_callback("a", weight=weight, on_begin=print)


def test_a_weight_survives_clone_and_pickle():
    made = t_clbk("unfreeze", weight=3, starting_weights=select_all())
    assert (made.weight, made.callback.weight) == (3, 3)
    net = clone(iris_net(made, ("pair", made.generate()), audited=False))
    assert [callback.weight for _, callback in net.callbacks] == [3, 3]
    assert pickle.loads(pickle.dumps(made)).weight == 3
    assert t_clbk("early_stopping").weight == 1000


class Lost(CallbackSet):
    def __init__(self, word="default"):
        self.text = word


class Bundle(CallbackSet):
    def __init__(self, **words):
        self.words = words


class PassesOn(CallbackSetEarlyStopping):
    """Stores what it names, and leaves the rest to its base."""

    def __init__(self, word="default", **kwargs):
        super().__init__(**kwargs)
        self.word = word


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (Lost("hello"), r"`word` of Lost is not stored by its constructor, .*; write self\.word = word"),
        (Bundle(word="hello"), r"`\*\*words` of Bundle names no parameters, .*; name each"),
    ],
)
def test_a_parameter_that_a_copy_would_lose_is_refused_before_training(callback, message):
    with pytest.raises(TypeError, match=message):
        iris_net(("lost", callback)).fit(X, y)
    with pytest.raises(TypeError, match=message):
        clone(callback)


def test_parameters_may_be_passed_on_to_the_base():
    copied = clone(PassesOn("hello", patience=3))
    assert (copied.word, copied.patience) == ("hello", 3)
    assert "patience=3" in repr(copied)


def takes_itself(self):
    pass


def takes_batch(self, net, batch):
    pass


def generate(self, net, **kwargs):
    yield net


async def wait(self, net, **kwargs):
    pass


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"on_epoch_end": takes_itself}, r"`on_epoch_end` .* write def on_epoch_end\(self, net, \*\*kwargs\)"),
        (
            {"on_exit": takes_itself},
            r"`on_exit` of Mine is called with the net, but .* write def on_exit\(self, net",
        ),
        (
            {"on_batch_end": takes_batch},
            "is called with the net, batch=, training=, loss=, y_pred=, but",
        ),
        ({"on_epoch_end": generate}, "a call of `on_epoch_end` of Mine does not run its body; leave out `yield`"),
        ({"on_exit": wait}, "a call of `on_exit` of Mine does not run its body"),
        ({"weight": "1"}, "`weight` of Mine is '1'; give a number"),
        ({"default_weight": None}, "`default_weight` of Mine is None; give a number"),
        ({"packages": 3}, "`packages` is 3; give a name or a list of names"),
    ],
)
def test_a_class_that_would_fail_in_training_is_refused_when_it_is_defined(members, message):
    with pytest.raises(TypeError, match=message):
        type("Mine", (CallbackSet,), members)


@pytest.mark.parametrize(
    ("elsewhere", "here"),
    [
        ("on_train_batch_end", "on_batch_end"),
        ("on_train_epoch_start", "on_epoch_begin"),
        ("on_step_end", "on_batch_end"),
        ("on_fit_end", "on_train_end"),
        ("on_validation_batch_start", "on_batch_valid_begin"),
    ],
)
def test_a_hook_of_another_library_is_refused_with_the_one_of_here(elsewhere, here):
    with pytest.raises(TypeError, match=f"`{elsewhere}` of Mine .*; call the method {here}$"):
        type("Mine", (CallbackSet,), {elsewhere: takes_itself})


def test_one_package_may_be_a_string():
    assert type("Mine", (CallbackSet,), {"packages": "pandas"}).packages == ("pandas",)
