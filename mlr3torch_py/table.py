"""The former place of `read_table`, for code that still imports it from here."""

from mlr3torch_py.schedule.table import read_table

__all__ = ["read_table"]
