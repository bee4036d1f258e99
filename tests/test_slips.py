"""Slips that people make: each does what was meant, or the message says what to write."""

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import nn

from mlr3torch_py import (
    MLP,
    CallbackSet,
    CallbackSetHistory,
    CallbackSetUnfreeze,
    Freezer,
    as_torch_callbacks,
    callback_set,
    freeze_plan,
    from_dict,
    gradual_unfreezing,
    plot_history,
    select_all,
    select_grep,
    select_last,
    select_prefix,
    t_clbk,
    torch_callback,
    trainable_names,
)
from tests.helpers import X, iris_net, y

SCHEDULE = gradual_unfreezing(MLP(4, 3, neurons=(3, 3)))


@pytest.mark.parametrize("callback", [t_clbk("history"), CallbackSetHistory()])
def test_a_single_callback_needs_no_list(callback):
    net = iris_net(max_epochs=2).set_params(callbacks=callback)
    assert len(net.fit(X, y).history) == 2
    names = [name for name, _ in net.callbacks_]
    assert names[-2:] in (["history", "print_log"], ["CallbackSetHistory", "print_log"])


def test_a_list_config_of_callbacks_is_a_list():
    config = OmegaConf.create([Freezer("0.weight"), t_clbk("history").callback], flags={"allow_objects": True})
    assert [callback.id for callback in as_torch_callbacks(config)] == ["freezer", "history"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: iris_net(SCHEDULE).fit(X, y),
            r"`callbacks` has a schedule .*\*\*schedule",
        ),
        (lambda: t_clbk("unfreeze", unfreeze=SCHEDULE), r"`unfreeze` is a whole schedule; .*\*\*schedule"),
        (lambda: t_clbk("unfreeze", starting_weights=SCHEDULE), r"`starting_weights` is .*\*\*schedule"),
        (lambda: select_prefix(["a", "b"]), r"`prefixes` is a list; .*: select_prefix\('a', 'b'\)"),
        (lambda: plot_history(iris_net()), "`net` has no history .*; train it first"),
        (lambda: plot_history(MLP(4, 3)), "`net` is MLP.* give a net of skorch|`net` is <mlr3torch_py.MLP>"),
        (lambda: trainable_names(iris_net()), r"`module` is .*after net\.initialize\(\)"),
        (lambda: freeze_plan(iris_net(), X=5), "`X` and `y` cannot be split"),
        (lambda: freeze_plan(MLP(4, 3), callbacks=t_clbk("history")), "`callbacks` holds 'history'; give a list"),
        (lambda: iris_net(t_clbk("unfreeze", **SCHEDULE), callbacks__unfreeze__unfreez=3).fit(X, y), "mean 'unfreeze'"),
        (lambda: iris_net(t_clbk("unfreeze")).fit(X, y), "callbacks__unfreeze__starting_weights"),
    ],
)
def test_the_message_says_what_to_write(call, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_score_that_is_missing_in_a_stage_is_explained():
    asks = torch_callback("asks", on_epoch_end=lambda self: self.ctx.last_scores_valid["acc"])
    with pytest.raises(KeyError, match="no valid score 'acc'"):
        iris_net(asks, train_split=None).fit(X, y)


@pytest.mark.parametrize(
    ("method", "hook"),
    [
        ("on_begin", "on_train_begin"),
        ("on_end", "on_train_end"),
        ("on_after_backward", "on_grad_computed"),
        ("on_epch_end", "on_epoch_end"),
        ("on_epoch_start", "on_epoch_begin"),
        ("on_validation_end", "on_valid_end"),
    ],
)
def test_a_method_that_looks_like_a_stage_is_refused_with_the_right_name(method, hook):
    with pytest.raises(TypeError, match=f"`{method}` of Mine is no hook of skorch, .*; call the method {hook}"):
        type("Mine", (CallbackSet,), {method: print})
    with pytest.raises(TypeError, match=f"`{method}` of Mine"):
        callback_set("Mine", public={method: print})


@pytest.mark.parametrize("name", ["join", "monitors", "renew", "after_update", "stages", "numbers", "ctx", "given_"])
def test_a_name_that_every_callback_has_already_is_refused(name):
    with pytest.raises(TypeError, match=f"Mine defines '{name}', which every callback has already; give it another"):
        type("Mine", (CallbackSet,), {name: print})
    with pytest.raises(TypeError, match=f"`public` has '{name}', which every callback has already; give it another"):
        torch_callback("mine", public={name: print})
    with pytest.raises(TypeError, match=f"Mine has the parameter '{name}', which every callback has already"):
        exec(f"class Mine(CallbackSet):\n    def __init__(self, {name}=1): self.{name} = {name}", dict(globals()))


@pytest.mark.parametrize("name", ["weight", "state_dict", "load_state_dict"])
def test_an_argument_of_its_own_is_refused_within_public(name):
    with pytest.raises(TypeError, match=f"`public` has '{name}', which is an argument of its own; give `{name}`"):
        callback_set("Mine", public={name: print})


def test_other_methods_and_inherited_hooks_are_left_alone():
    class Mine(CallbackSet):
        on_change = "raise"

        def on_cuda(self):
            """No stage."""

        def on_epoch_end(self, net, **kwargs):
            """A stage."""

    class Derived(Mine):
        pass

    assert Derived().stages == ["epoch_end"]


def test_trainable_names_takes_a_net():
    net = iris_net(Freezer("0.weight")).fit(X, y)
    assert (
        trainable_names(net) == trainable_names(net.module_) == ["0.bias", "3.weight", "3.bias", "6.weight", "6.bias"]
    )


def test_the_plan_of_a_pipeline_is_that_of_its_net():
    net = iris_net(t_clbk("unfreeze", **SCHEDULE), max_epochs=3, batch_size=30)
    doubled = FunctionTransformer(lambda rows: np.hstack([rows[:, :2], rows[:, :2]]).astype("float32"))
    pipeline = make_pipeline(StandardScaler(), doubled, net)
    plan = freeze_plan(pipeline, X=X, y=y)
    assert str(plan) == str(freeze_plan(net, X=X, y=y))
    assert not hasattr(pipeline[0], "mean_")
    assert str(freeze_plan(make_pipeline(net))) == str(freeze_plan(net))
    figure = plot_history(pipeline.fit(X, y))
    assert len(figure.axes) == 2
    with pytest.raises(ValueError, match="`X` and `y` cannot be transformed by the pipeline"):
        freeze_plan(pipeline, X=np.array([["a"]]), y=y)


def nested(depth):
    select = select_all()
    for _ in range(depth):
        select = ~select
    return select


def test_selectors_may_be_nested_within_reason():
    assert nested(50)(["0.weight"]) == ["0.weight"]
    deep, repeated = nested(3000), select_all()
    for _ in range(40):
        repeated = ~(repeated & ~repeated)
    with pytest.raises(ValueError, match="`select` nests more than .* or repeats them too often"):
        repeated(["0.weight"])
    for call in (lambda: deep(["0.weight"]), lambda: deep.expand(MLP(4, 3))):
        with pytest.raises(ValueError, match="`select` nests more than 100 selectors"):
            call()
    with pytest.raises(ValueError, match="`starting_weights` nests more than 100 selectors in each other"):
        iris_net(CallbackSetUnfreeze(deep)).fit(X, y)


@pytest.mark.slow
def test_a_pattern_has_a_limit_of_time():
    endless = select_grep("(a|aa)+$")
    with pytest.raises(
        ValueError, match=r"`pattern` is '\(a\|aa\)\+\$', which takes more than 2 s to match; leave out"
    ):
        endless(["a" * 100 + "b"] * 10)
    with pytest.raises(ValueError, match="`pattern` is .* does not compile"):
        select_grep("(" * 10_000 + ")" * 10_000)


def test_foreign_data_is_refused_however_it_is_nested():
    cycle = {"fn": "invert"}
    cycle["select"] = cycle
    many = ["x"]
    for _ in range(100):
        many = [many] * 10
    deep = {"fn": "all"}
    for _ in range(5000):
        deep = {"fn": "invert", "select": deep}
    repeated = {"fn": "name", "param_names": many}
    for data in (cycle, deep, repeated, range(10**12), {"callback": "unfreeze", "params": {"unfreeze": cycle}}):
        with pytest.raises(ValueError, match="`data` is nested more than 200 deep, or endless"):
            from_dict(data)


class Foreign:
    """A table of another library, as those of polars and Arrow."""

    def __repr__(self):
        return "shape: (1, 2)\n┌──┐\n└──┘"

    def to_pandas(self):
        return pd.DataFrame({"epoch": [2]})


def test_a_table_of_another_library_is_refused_with_the_conversion():
    with pytest.raises(
        TypeError, match=r"table\.to_dict\(as_series=False\) in polars, table\.to_pydict\(\) in Arrow"
    ) as e:
        t_clbk("unfreeze", starting_weights=select_last(1), unfreeze=Foreign())
    assert "\n" not in str(e.value)


def test_small_integers_of_numpy_do_not_overflow():
    freezer = Freezer(name_starts_with=["0.", "3."], start_epoch=np.uint8(3), unfreeze_every_n_epochs=np.uint8(254))
    assert trainable_names(iris_net(freezer, max_epochs=3).fit(X, y)) == ["6.weight", "6.bias"]
    assert gradual_unfreezing(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), lr_decay=np.int64(2))["unfreeze"][
        "lr_mult"
    ].tolist() == [0.5]
