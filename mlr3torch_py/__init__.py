"""The training callbacks of R's mlr3torch, for skorch.

Examples in docstrings use the iris data as ``X`` and ``y``, and a small net for it that prints nothing::

    from sklearn.datasets import load_iris
    from skorch import NeuralNetClassifier
    from torch import nn

    from mlr3torch_py import *

    X, y = load_iris(return_X_y=True)
    X = X.astype("float32")

    def iris_net(**params):
        defaults = {"criterion": nn.CrossEntropyLoss, "module__d_in": 4, "module__d_out": 3, "verbose": 0}
        return NeuralNetClassifier(MLP, **(defaults | params))
"""

from mlr3torch_py.audit.callback import CallbackSetFreezeAudit
from mlr3torch_py.cache.callback import CallbackSetFrozenCache
from mlr3torch_py.cache.storage.stored import FrozenStore, frozen_store
from mlr3torch_py.callbacks.early_stopping import CallbackSetEarlyStopping
from mlr3torch_py.callbacks.history import CallbackSetHistory
from mlr3torch_py.callbacks.lr_scheduler import CallbackSetLRScheduler
from mlr3torch_py.callbacks.on_plateau import CallbackSetLRSchedulerReduceOnPlateau
from mlr3torch_py.callbacks.one_cycle import CallbackSetLRSchedulerOneCycle
from mlr3torch_py.callbacks.progress import CallbackSetProgress
from mlr3torch_py.callbacks.tensorboard import CallbackSetTB
from mlr3torch_py.checkpoint.callback import CallbackSetCheckpoint
from mlr3torch_py.checkpoint.check_resume import check_resume
from mlr3torch_py.checkpoint.resume_report import ResumeReport
from mlr3torch_py.forecast.freeze_plan import freeze_plan
from mlr3torch_py.forecast.history_picture import plot_history
from mlr3torch_py.forecast.network_picture import plot_network
from mlr3torch_py.forecast.network_summary import network_summary
from mlr3torch_py.forecast.report import FreezePlan
from mlr3torch_py.forecast.trained_when import trained_when
from mlr3torch_py.freezing.freezer import Freezer
from mlr3torch_py.freezing.unfreeze import CallbackSetUnfreeze
from mlr3torch_py.log import log_to_console
from mlr3torch_py.mlp import MLP
from mlr3torch_py.network.parameters import trainable_names
from mlr3torch_py.registry.by_key import t_clbk, t_clbks
from mlr3torch_py.registry.conversion import as_lr_scheduler, as_torch_callback, as_torch_callbacks
from mlr3torch_py.registry.dictionary import mlr3torch_callbacks
from mlr3torch_py.registry.plain_data import from_dict, to_dict
from mlr3torch_py.registry.torch_callback import TorchCallback, torch_callback
from mlr3torch_py.schedule.blocks import network_blocks
from mlr3torch_py.schedule.plateau import Plateau
from mlr3torch_py.schedule.recipes import chain_thaw, gradual_unfreezing, head_first
from mlr3torch_py.schedule.table import Table
from mlr3torch_py.schedule.value import Schedule
from mlr3torch_py.select.functions import (
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
    select_trainable,
    select_type,
)
from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.training.context import ContextTorch
from mlr3torch_py.training.from_functions import callback_set
from mlr3torch_py.version import __version__ as __version__

__all__ = [
    "MLP",
    "CallbackSet",
    "CallbackSetCheckpoint",
    "CallbackSetEarlyStopping",
    "CallbackSetFreezeAudit",
    "CallbackSetFrozenCache",
    "CallbackSetHistory",
    "CallbackSetLRScheduler",
    "CallbackSetLRSchedulerOneCycle",
    "CallbackSetLRSchedulerReduceOnPlateau",
    "CallbackSetProgress",
    "CallbackSetTB",
    "CallbackSetUnfreeze",
    "ContextTorch",
    "FreezePlan",
    "Freezer",
    "FrozenStore",
    "Plateau",
    "ResumeReport",
    "Schedule",
    "Select",
    "Table",
    "TorchCallback",
    "as_lr_scheduler",
    "as_torch_callback",
    "as_torch_callbacks",
    "callback_set",
    "chain_thaw",
    "check_resume",
    "freeze_plan",
    "from_dict",
    "frozen_store",
    "gradual_unfreezing",
    "head_first",
    "log_to_console",
    "mlr3torch_callbacks",
    "network_blocks",
    "network_summary",
    "plot_history",
    "plot_network",
    "select_all",
    "select_first",
    "select_glob",
    "select_grep",
    "select_invert",
    "select_last",
    "select_name",
    "select_none",
    "select_prefix",
    "select_trainable",
    "select_type",
    "t_clbk",
    "t_clbks",
    "to_dict",
    "torch_callback",
    "trainable_names",
    "trained_when",
]


def __dir__() -> list[str]:
    """Leave out the modules, which happen to be attributes once they are imported."""
    return sorted(__all__)
