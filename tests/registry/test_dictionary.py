"""The dictionary of callbacks, and t_clbk."""

import copy
import pickle

import pytest
from sklearn.base import clone

from mlr3torch_py import (
    CallbackSetHistory,
    CallbackSetUnfreeze,
    callback_set,
    mlr3torch_callbacks,
    select_all,
    select_last,
    t_clbk,
    t_clbks,
    trainable_names,
)
from mlr3torch_py.registry.dictionary import CallbackDictionary
from mlr3torch_py.training.callback_set import CallbackSet
from tests.helpers import X, golden, iris_net, y


class Custom(CallbackSet):
    label = "Mine"
    default_weight = 3

    def __init__(self, factor, path="."):
        self.factor = factor
        self.path = path


def test_an_unknown_key_is_named_with_the_nearest():
    with pytest.raises(KeyError, match="`key` is 'unfreez', which no callback has; did you mean 'unfreeze'"):
        t_clbk("unfreez")
    with pytest.raises(KeyError, match="`key` is 3, which no callback has; choose from"):
        t_clbk(3)
    with pytest.raises(KeyError, match=r"`key` is \['unfreeze'\], which no callback has"):
        t_clbk(["unfreeze"])


def test_a_wrong_parameter_is_refused_at_once():
    with pytest.raises(
        TypeError, match="callback 'unfreeze' has no parameter 'starting_weight'; did you mean 'starting_weights'"
    ):
        t_clbk("unfreeze", starting_weight=select_all())
    with pytest.raises(TypeError, match="`starting_weights` is '0.weight'"):
        t_clbk("unfreeze", starting_weights="0.weight")
    with pytest.raises(ValueError, match="`unfreeze`: row 0 has epoch -1"):
        t_clbk("unfreeze", unfreeze={"epoch": [-1], "weights": [select_all()]})


@pytest.mark.parametrize("copied", [clone, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_what_t_clbk_makes_can_be_copied(copied):
    made = t_clbk("unfreeze", starting_weights=select_last(1))
    again = copied(made)
    assert again.id == "unfreeze"
    assert repr(again) == repr(made)
    assert again.callback is not made.callback


def test_a_parameter_that_is_not_set_stays_so_through_copies():
    for copied in (clone, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))):
        with pytest.raises(ValueError, match="never set"):
            copied(t_clbk("unfreeze")).callback.require_params()


def test_generate_makes_callbacks_that_share_nothing():
    made = t_clbk("unfreeze", starting_weights=select_last(1))
    made.callback.load_state_dict({"trainable": ["a"]})
    fresh = made.generate()
    assert isinstance(fresh, CallbackSetUnfreeze)
    assert fresh.state_dict() == {"trainable": []}


def test_several_callbacks_come_by_a_list_of_keys():
    assert [made.id for made in t_clbks(["unfreeze"])] == ["unfreeze"]
    with pytest.raises(TypeError, match=r"give a list of keys, or use t_clbk\('unfreeze'\)"):
        t_clbks("unfreeze")
    with pytest.raises(TypeError, match="`keys` is 5"):
        t_clbks(5)


def test_without_a_key_all_keys_are_listed():
    assert t_clbk() == t_clbks() == mlr3torch_callbacks.keys()
    with pytest.raises(TypeError, match="`id`, `lr_mult` came without a `key`; give the key first"):
        t_clbk(id="encoder", lr_mult=2)


def test_two_callbacks_of_one_kind_have_names_of_their_own():
    first, second = t_clbk("freezer_1", names="0.weight"), t_clbk("freezer", id="encoder", names="0.bias")
    assert (first.id, second.id) == ("freezer_1", "encoder")
    assert [made.id for made in t_clbks(["unfreeze_1", "unfreeze_12", "lr_step_3"])] == [
        "unfreeze_1",
        "unfreeze_12",
        "lr_step_3",
    ]
    net = iris_net(first, second, callbacks__encoder__until_epoch=1, max_epochs=1).fit(X, y)
    assert trainable_names(net.module_) == ["3.weight", "3.bias", "6.weight", "6.bias"]
    net.partial_fit(X, y)
    assert "0.bias" in trainable_names(net.module_)


@pytest.mark.parametrize("key", ["freezer_", "freezer_1_2", "freezer_x", "_1", "1"])
def test_only_a_number_may_follow_a_key(key):
    with pytest.raises(KeyError, match="`key` is .*, which no callback has"):
        t_clbk(key)


def test_a_key_that_ends_in_a_number_goes_before_a_number_after_a_key():
    dictionary = CallbackDictionary()
    dictionary.add("custom", Custom)
    dictionary.add("custom_1", CallbackSetUnfreeze)
    assert isinstance(dictionary.get("custom_1").callback, CallbackSetUnfreeze)
    assert isinstance(dictionary.get("custom_2").callback, Custom)


def test_an_id_must_fit_into_a_parameter_name():
    with pytest.raises(TypeError, match="`id` is 'a b'"):
        t_clbk("freezer", id="a b")


@pytest.mark.parametrize("first", [t_clbk("history"), ("history", CallbackSetHistory())], ids=["made", "pair"])
def test_two_callbacks_with_one_name_are_refused_with_the_remedy(first):
    net = iris_net(first, t_clbk("history"))
    with pytest.raises(ValueError, match="two callbacks with the name 'history'; give each its own, .*id='<name>'"):
        net.initialize()


def test_it_is_a_dictionary():
    assert "unfreeze" in mlr3torch_callbacks
    assert "nothing" not in mlr3torch_callbacks
    assert list(mlr3torch_callbacks) == mlr3torch_callbacks.keys()
    assert len(mlr3torch_callbacks) == len(mlr3torch_callbacks.keys())
    assert "unfreeze" in repr(mlr3torch_callbacks)


def test_callbacks_of_others_can_be_added():
    dictionary = CallbackDictionary()
    assert list(dictionary.to_frame()) == ["key", "label", "weight", "params", "required"]
    dictionary.add("custom", Custom)
    made = dictionary.get("custom", factor=2)
    assert (made.id, made.callback.factor, made.callback.path) == ("custom", 2, ".")
    assert str(made.callback) == "<Custom>\n* Stages: "
    assert dictionary.to_frame().to_dict("records") == [
        {"key": "custom", "label": "Mine", "weight": 3, "params": ["factor", "path"], "required": ["factor"]}
    ]


def test_a_required_parameter_of_any_callback_must_come():
    dictionary = CallbackDictionary()
    dictionary.add("custom", Custom)
    with pytest.raises(ValueError, match="`factor` of Custom was never set"):
        iris_net(dictionary.get("custom")).fit(X, y)


@pytest.mark.parametrize("key", [3, "", "a b", "a__b"])
def test_a_key_must_fit_into_a_parameter_name(key):
    with pytest.raises(TypeError, match="`key`"):
        CallbackDictionary().add(key, Custom)


@pytest.mark.parametrize("taken", ["key", "id"])
def test_a_parameter_of_t_clbk_may_not_be_one_of_the_callback(taken):
    scope = {}
    exec(f"def initialize(self, {taken}): pass", scope)
    with pytest.raises(TypeError, match=rf"CallbackSetA has the parameter '{taken}', which t_clbk\(\) has already"):
        CallbackDictionary().add("a", callback_set("CallbackSetA", initialize=scope["initialize"]))


@pytest.mark.parametrize("generator", [Custom(1), int, None])
def test_only_callback_classes_can_be_added(generator):
    with pytest.raises(TypeError, match="`generator`"):
        CallbackDictionary().add("custom", generator)


@pytest.mark.parametrize(
    "net_with",
    [
        lambda callback: iris_net(("schedule", callback)),
        lambda callback: iris_net(t_clbk("unfreeze"), callbacks__unfreeze=callback),
        lambda callback: iris_net(t_clbk("unfreeze")).set_params(callbacks__unfreeze=callback),
    ],
    ids=["pair", "argument", "set_params"],
)
def test_a_pair_in_the_place_of_a_callback_is_refused_with_the_remedy(net_with):
    made = t_clbk("unfreeze", starting_weights=select_last(1))
    with pytest.raises(TypeError, match=r"or its second part: t_clbk\('unfreeze', \.\.\.\)\.callback$"):
        net_with(made).fit(X, y)
    assert trainable_names(net_with(made.callback).fit(X, y).module_) == ["6.weight", "6.bias"]


IN_R = golden("registry")["callbacks"]


@pytest.mark.parametrize("entry", IN_R, ids=[entry["key"] for entry in IN_R])
def test_the_dictionary_agrees_with_r(entry):
    row = mlr3torch_callbacks.to_frame().set_index("key").loc[entry["key"]]
    assert row["label"] == entry["label"]
    assert row["weight"] == float(entry["weight"])
    wanted = [name for name in entry["params"] if name != "verbose"]  # which torch's schedulers no longer have
    assert [name for name in row["params"] if name in wanted] == wanted
    optional_here = {"unfreeze": {"unfreeze"}, "tb": {"log_train_loss"}}.get(entry["key"], set())
    assert set(row["required"]) == set(entry["required"]) - optional_here
