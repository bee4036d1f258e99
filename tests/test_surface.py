"""What a user sees at the prompt: names, completions, tracebacks and the log."""

import logging
import traceback

import pytest

import mlr3torch_py
from mlr3torch_py import (
    CallbackSet,
    CallbackSetUnfreeze,
    freeze_plan,
    gradual_unfreezing,
    log_to_console,
    mlr3torch_callbacks,
    select_all,
    select_last,
    select_name,
    t_clbk,
)
from tests.helpers import X, iris_net, y

INTERNALS = {"engine_", "plans_", "held", "before_begin", "make_plans", "owner_", "given_", "weight_"}


def test_the_package_shows_what_it_exports_and_nothing_else():
    assert dir(mlr3torch_py) == sorted(mlr3torch_py.__all__)


def test_a_callback_shows_its_parameters_and_hooks_but_no_internals():
    shown = [name for name in dir(CallbackSetUnfreeze(select_last(1))) if not name.startswith("_")]
    assert {"starting_weights", "unfreeze", "state_dict", "on_epoch_end", "on_exit", "ctx", "weight"} <= set(shown)
    assert {"after_begin", "belongs_to"} <= set(shown)
    assert INTERNALS.isdisjoint(shown)
    assert len(shown) <= 35


@pytest.mark.parametrize(("key", "name"), [("checkpoint", "path_"), ("early_stopping", "best_weights_")])
def test_attributes_that_are_documented_are_shown(key, name):
    params = {"path": ".", "freq": 1} if key == "checkpoint" else {}
    assert name in dir(t_clbk(key, **params).callback)


def test_a_callback_of_ones_own_shows_its_attributes_and_methods():
    class Mine(CallbackSet):
        """Counts."""

        def __init__(self, every=1):
            self.every = every

        def count(self):
            return 0

    assert {"every", "count"} <= set(dir(Mine()))


def test_keys_complete_in_brackets():
    assert mlr3torch_callbacks._ipython_key_completions_() == t_clbk()
    assert mlr3torch_callbacks["unfreeze"].id == "unfreeze"
    with pytest.raises(KeyError, match="did you mean 'unfreeze'"):
        mlr3torch_callbacks["unfreez"]


def visible(error):
    """The frames of the package in all tracebacks of an error that IPython and pytest would show."""
    found = []
    while error is not None:
        found += [
            frame.f_code.co_name
            for frame, _ in traceback.walk_tb(error.__traceback__)
            if frame.f_globals["__name__"].startswith("mlr3torch_py") and "__tracebackhide__" not in frame.f_locals
        ]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def fit(*callbacks, **params):
    return lambda: iris_net(*callbacks, **params).fit(X, y)


class Raises(CallbackSet):
    def on_epoch_end(self, net, **kwargs):
        raise RuntimeError("a mistake of the user's")


MISTAKES = {
    "a misspelt weight": fit(t_clbk("unfreeze", starting_weights=select_name("0.wieght"))),
    "a parameter that was never set": fit(t_clbk("unfreeze")),
    "nothing trains": fit(t_clbk("freezer", names=["0.weight", "0.bias", "3.weight", "3.bias", "6.weight", "6.bias"])),
    "a callback of the user's": fit(Raises()),
    "an unknown key": lambda: t_clbk("unfreez"),
    "a wrong parameter": lambda: t_clbk("progress", digits=0),
    "a wrong table": lambda: t_clbk("unfreeze", unfreeze={"epoch": [-1], "weights": [select_all()]}),
    "a schedule that does not fit": lambda: gradual_unfreezing(every=0),
    "a plan without a net": lambda: freeze_plan(3),
    "a pattern of a single string": lambda: select_all()("0.weight"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_shows_at_most_three_frames_of_ours(mistake):
    with pytest.raises(Exception) as caught:
        MISTAKES[mistake]()
    assert len(visible(caught.value)) <= 3, visible(caught.value)


def test_the_log_is_printed_to_stdout(capsys):
    logger = logging.getLogger("mlr3torch_py")
    before = logger.level, list(logger.handlers)
    try:
        log_to_console()
        log_to_console()
        table = {"epoch": [2], "weights": [select_all()]}
        iris_net(CallbackSetUnfreeze(select_last(1), table), max_epochs=2).fit(X, y)
        out, err = capsys.readouterr()
        assert out.count("unfreezing at epoch 2: 0.weight, 0.bias") == 1
        assert err == ""
        log_to_console(None)
        iris_net(CallbackSetUnfreeze(select_last(1), table), max_epochs=2).fit(X, y)
        assert capsys.readouterr().out == ""
    finally:
        logger.setLevel(before[0])
        logger.handlers[:] = before[1]
