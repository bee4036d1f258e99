"""Which parameters: selectors and their algebra."""

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
    select_type,
)

__all__ = [
    "Select",
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
]
