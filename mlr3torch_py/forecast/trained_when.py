"""trained_when: which parameters were trainable in which epochs and batches of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from mlr3torch_py.arguments import check_choice, check_text
from mlr3torch_py.forecast.probe import split_pipeline
from mlr3torch_py.frames import short_traceback
from mlr3torch_py.names import listed
from mlr3torch_py.protocols import History, NetOfUser, PipelineOfUser
from mlr3torch_py.training.trained import governed_modules, known_names, spans_of
from mlr3torch_py.values import shown

__all__ = ["history_of", "module_in", "trained_when"]


@short_traceback
def trained_when(
    net: NetOfUser | PipelineOfUser | History | Sequence[Mapping[str, Any]],
    by: Literal["epoch", "batch"] = "epoch",
    *,
    module: str | None = None,
) -> pd.DataFrame:
    """Tabulate which parameters trained when, from a history alone.

    Parameters
    ----------
    net : skorch.NeuralNet, sklearn.pipeline.Pipeline, skorch.history.History or list of dict
        A net that was trained with a freezing callback, or has loaded the history of one; a pipeline that ends in one;
        or a history.
    by : {"epoch", "batch"}
        Whether the table has a column for each epoch, which is the default, or for each training batch.
    module : str, optional
        The module of the net, by the name that freezing callbacks have as `module`. It need not be given if the history
        tells of one module only.

    Returns
    -------
    pandas.DataFrame
        One row for each `parameter`, in the order of the network. By epoch, one column for each `epoch`, True where the
        parameter was trainable in at least one of its batches. By batch, one column for each `epoch` and training
        `batch`, both counted from 1 over the whole life of the net.

    Raises
    ------
    TypeError
        If `net` is none of these.
    ValueError
        If `by` or `module` is wrong, or the history does not say what trained.

    See Also
    --------
    freeze_plan : The same before training.
    plot_history : The same as a picture, with scores and learning rates.

    Notes
    -----
    The history has the names of what was unfrozen (+) and frozen (-) in an epoch as `event_unfrozen`, shortened, and
    for this function `trainable_from_batch_count`, in the epochs in which something changed. Flags that were set by
    hand count from the next epoch on. Epochs without a batch or without a freezing callback are left out, and so are
    epochs that earlier versions have trained. A tied tensor has a row for each of its names. Where a network was
    replaced by another one, a parameter does not train in the epochs in which it did not exist.

    Examples
    --------
    >>> from mlr3torch_py import gradual_unfreezing, t_clbk
    >>> unfreeze = t_clbk("unfreeze", schedule=gradual_unfreezing(every=2))
    >>> net = iris_net(module__neurons=(8,), max_epochs=3, callbacks=[unfreeze]).fit(X, y)
    >>> trained_when(net)
    epoch          1      2     3
    parameter
    0.weight   False  False  True
    0.bias     False  False  True
    3.weight    True   True  True
    3.bias      True   True  True
    >>> net.history[:, "event_unfrozen"]
    [None, None, '+ 0.weight, 0.bias']
    """
    check_choice("by", by, ("epoch", "batch"))
    rows, n_ranks = history_of(net)
    spans = list(spans_of(rows, n_ranks, module_in(rows, module)))
    if not spans:
        raise ValueError(
            "`net` has no history that says what trained; train it with a freezing callback, such as t_clbk('unfreeze')"
        )
    names = known_names(spans)
    trained = np.array([[name in span.trainable for span in spans] for name in names])
    index = pd.Index(names, name="parameter")
    if by == "batch":
        lengths = [len(span.batches) for span in spans]
        batches = [(span.epoch, batch) for span in spans for batch in span.batches]
        columns = pd.MultiIndex.from_tuples(batches, names=["epoch", "batch"])
        return pd.DataFrame(np.repeat(trained, lengths, axis=1), index, columns)
    epochs, starts = np.unique([span.epoch for span in spans], return_index=True)
    return pd.DataFrame(np.logical_or.reduceat(trained, starts, axis=1), index, pd.Index(epochs, name="epoch"))


def module_in(rows: Sequence[Mapping[str, Any]], module: str | None) -> str:
    """Return the module that is asked for, or the only one of which a history tells what was unfrozen.

    Raises
    ------
    TypeError, ValueError
        If it does not tell of that module, or of several and none is asked for.
    """
    known = list(dict.fromkeys(name for row in rows for name in governed_modules(row)))
    if module is not None and (check_text("module", module, "the name of a module") in known or not known):
        return module
    if module is None and len(known) < 2:
        return known[0] if known else "module"
    raise ValueError(f"`module` is {module!r}, but the history tells of {listed(map(repr, known))}; give one of them")


def history_of(net: Any) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of a history, and how many processes have written its batches.

    Raises
    ------
    TypeError
        If `net` is no net, pipeline or history.
    """
    subject = split_pipeline(net)[1]
    is_net = not isinstance(subject, type) and hasattr(subject, "initialized_")
    history = subject.history if is_net else subject
    if is_net and history is None:
        return [], 1
    rows = history.to_list() if hasattr(type(history), "to_list") else history
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise TypeError(
            f"`net` is {shown(net)}; give a net of skorch that was trained with a freezing callback, or its history"
        )
    return rows, getattr(history, "world_size", 1)
