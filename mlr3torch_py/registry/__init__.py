"""Make callbacks by key, and convert to them."""

from mlr3torch_py.registry.by_key import t_clbk, t_clbks
from mlr3torch_py.registry.dictionary import CallbackDictionary, mlr3torch_callbacks

__all__ = ["CallbackDictionary", "mlr3torch_callbacks", "t_clbk", "t_clbks"]
