"""Warnings point at the line of the user that led to them."""

import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from mlr3torch_py import CallbackSetUnfreeze, select_prefix, t_clbk
from mlr3torch_py.warn import warn
from tests.helpers import Nested, X, iris_net, y

WAYS = {
    "a net": lambda net: net.fit(X, y),
    "a pipeline": lambda net: make_pipeline(FunctionTransformer(), net).fit(X, y),
    "a search": lambda net: GridSearchCV(net, {"lr": [0.1]}, cv=2).fit(X, y),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_warning_in_training_points_at_the_call_of_fit(way):
    freezing = CallbackSetUnfreeze(~select_prefix("encoder"))
    net = iris_net(freezing, t_clbk("frozen_cache"), module=Nested, audited=False)
    with pytest.warns(UserWarning, match="frozen_cache: not caching 'encoder'") as said:
        WAYS[way](net)
    line = WAYS[way].__code__.co_firstlineno
    assert {(one.filename, one.lineno) for one in said} == {(__file__, line)}


def test_without_a_line_of_the_user_the_outermost_one_is_taken():
    scope = {"__name__": "mlr3torch_py.somewhere", "warn": warn}
    exec(compile("def call(): warn('a word')", "library.py", "exec"), scope)
    with pytest.warns(UserWarning, match="a word") as said:
        scope["call"]()
    assert said[0].filename == __file__
