"""Why a module cannot be cached."""

from __future__ import annotations

__all__ = ["NotCacheableError"]


class NotCacheableError(Exception):
    """A module that cannot be cached as it is.

    Parameters
    ----------
    reason : str
    remedy : str
        What a user could do about it.
    may_depend_on_mode : bool
        Whether the module might be cached in eval mode.
    may_fit_below : bool
        Whether its children might be cached nevertheless.
    """

    def __init__(
        self, reason: str, remedy: str = "", *, may_depend_on_mode: bool = False, may_fit_below: bool = True
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.may_depend_on_mode = may_depend_on_mode
        self.may_fit_below = may_fit_below
