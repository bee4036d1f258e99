"""The training callbacks of R's mlr3torch, for skorch."""

from mlr3torch_py.callbacks.unfreeze import CallbackSetUnfreeze
from mlr3torch_py.mlp import MLP
from mlr3torch_py.parameters import trainable_names
from mlr3torch_py.registry import TorchCallback, mlr3torch_callbacks, t_clbk, t_clbks
from mlr3torch_py.select import (
    Select,
    select_all,
    select_first,
    select_glob,
    select_grep,
    select_invert,
    select_last,
    select_name,
    select_none,
    select_prefix,
    select_type,
)
from mlr3torch_py.table import Plateau

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "CallbackSetUnfreeze",
    "Plateau",
    "Select",
    "TorchCallback",
    "mlr3torch_callbacks",
    "select_all",
    "select_first",
    "select_glob",
    "select_grep",
    "select_invert",
    "select_last",
    "select_name",
    "select_none",
    "select_prefix",
    "select_type",
    "t_clbk",
    "t_clbks",
    "trainable_names",
]
