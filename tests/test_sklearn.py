"""Nets with the callback in scikit-learn: pipelines, clones, pickles and grid searches."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlr3torch_py import (
    MLP,
    CallbackSetUnfreeze,
    select_all,
    select_last,
    select_name,
    select_none,
    select_prefix,
    t_clbk,
    trainable_names,
)
from tests.helpers import Trace, X, iris_net, y

ALL = ["0.weight", "0.bias", "3.weight", "3.bias", "6.weight", "6.bias"]
HEAD = ["6.weight", "6.bias"]
TABLE = pd.DataFrame({"epoch": [2, 3], "weights": [select_prefix("3"), select_all()]})
SCHEDULE = [HEAD] * 3 + [ALL[2:]] * 3 + [ALL] * 6


def callback(form):
    if form == "t_clbk":
        return t_clbk("unfreeze", starting_weights=select_last(1), unfreeze=TABLE)
    return ("unfreeze", CallbackSetUnfreeze(select_last(1), TABLE))


forms = pytest.mark.parametrize("form", ["t_clbk", "pair"])


def trained_batches(net):
    return dict(net.callbacks_)["trace"].batches_


@forms
def test_a_pipeline_trains_by_the_schedule(form):
    net = iris_net(callback(form), ("trace", Trace()))
    pipeline = make_pipeline(StandardScaler(), net).fit(X, y)
    assert trained_batches(pipeline[-1]) == SCHEDULE
    assert pipeline.predict(X).shape == (150,)
    pipeline.set_params(neuralnetclassifier__callbacks__unfreeze__unfreeze=None).fit(X, y)
    assert trainable_names(pipeline[-1].module_) == HEAD


@forms
@pytest.mark.parametrize("fitted", [False, True])
def test_a_clone_trains_by_the_same_schedule_and_takes_no_state_along(form, fitted):
    net = iris_net(callback(form), ("trace", Trace()))
    if fitted:
        net.fit(X, y)
        dict(net.callbacks_)["unfreeze"].load_state_dict({"trainable": ["0.bias"]})
    cloned = clone(net)
    assert cloned.callbacks[0][0] == "unfreeze"
    assert cloned.callbacks[0][1] is not net.callbacks[0][1]
    cloned.fit(X, y)
    assert trained_batches(cloned) == SCHEDULE


@forms
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_fitted_net_survives_copies(form, copied):
    net = iris_net(callback(form), ("trace", Trace())).fit(X, y)
    again = copied(net)
    np.testing.assert_array_equal(again.predict_proba(X), net.predict_proba(X))
    assert trainable_names(again.module_) == ALL
    assert dict(again.callbacks_)["unfreeze"].state_dict() == {"trainable": ALL}
    again.fit(X, y)
    assert trained_batches(again) == SCHEDULE * 2


@forms
def test_parameters_are_set_before_and_after_construction(form):
    net = iris_net(callback(form), ("trace", Trace()), callbacks__unfreeze__starting_weights=select_name("6.bias"))
    net.fit(X, y)
    assert trained_batches(net)[0] == ["6.bias"]
    net.set_params(callbacks__unfreeze__starting_weights=select_name("0.bias"), callbacks__unfreeze__unfreeze=None)
    net.fit(X, y)
    assert trained_batches(net)[12:] == [["0.bias"]] * 12


@forms
def test_the_callback_can_be_removed(form):
    net = iris_net(callback(form), ("trace", Trace())).set_params(callbacks__unfreeze=None).fit(X, y)
    assert trained_batches(net) == [ALL] * 12


def test_parameters_that_are_set_later_count_from_the_next_call_on():
    net = iris_net(callback("t_clbk"), ("trace", Trace()), max_epochs=1).fit(X, y)
    net.set_params(callbacks__unfreeze__unfreeze={"epoch": [2], "weights": [select_name("0.bias")]})
    net.partial_fit(X, y)
    assert trained_batches(net) == [HEAD] * 3 + [["0.bias", *HEAD]] * 3


def test_a_required_parameter_may_be_set_late_but_must_be_set():
    net = iris_net(t_clbk("unfreeze"), ("trace", Trace()))
    with pytest.raises(ValueError, match="`starting_weights` of CallbackSetUnfreeze was never set"):
        net.fit(X, y)
    net.set_params(callbacks__unfreeze__starting_weights=select_last(1)).fit(X, y)
    assert trained_batches(net) == [HEAD] * 12


# A module instance and rows in a fixed order make every fit of a search the same, in any process.
ORDER = np.random.RandomState(0).permutation(150)


def searched(callback, grid, max_epochs):
    net = iris_net(callback, module=MLP(4, 3, neurons=(8, 8)), lr=0.3, max_epochs=max_epochs)
    return GridSearchCV(net, grid, cv=3, n_jobs=2, error_score="raise").fit(X[ORDER], y[ORDER])


@pytest.mark.slow
@forms
def test_a_grid_search_goes_over_schedules(form):
    fewer = pd.DataFrame({"epoch": [2, 4], "weights": [select_prefix("3"), select_name("0.bias")]})
    starts = [select_last(1), select_none() | select_name("6.bias")]
    grid = [
        {"callbacks__unfreeze__starting_weights": starts, "callbacks__unfreeze__unfreeze": [TABLE, fewer, None]},
        {"callbacks__unfreeze": [None]},
    ]
    search = searched(callback(form), grid, 8)
    scores = search.cv_results_["mean_test_score"]
    assert list(search.cv_results_["param_callbacks__unfreeze__starting_weights"][:6:3]) == starts
    assert len(scores) == 7
    assert scores[5] < scores[3]  # a bias alone, and all but its first epochs


@pytest.mark.slow
def test_the_best_schedule_of_a_search_is_the_one_that_is_trained():
    grid = {"callbacks__unfreeze__starting_weights": [select_none() | select_name("6.bias"), select_all()]}
    search = searched(t_clbk("unfreeze"), grid, 30)
    bias_only, everything = search.cv_results_["mean_test_score"]
    assert everything > bias_only
    assert trainable_names(search.best_estimator_.module_) == ALL


@pytest.mark.slow
def test_errors_of_worker_processes_are_raised():
    net = iris_net(t_clbk("unfreeze", starting_weights=select_name("0.wieght")))
    with pytest.raises(ValueError, match="did you mean '0.weight'"):
        cross_val_score(net, X, y, cv=2, n_jobs=2, error_score="raise")


@forms
def test_a_net_shows_itself_in_a_notebook(form):
    net = iris_net(callback(form)).fit(X, y)
    assert "select_last(1)" in repr(clone(net).callbacks[0])
    assert "NeuralNetClassifier" in net._repr_html_()
