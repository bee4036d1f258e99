"""Rows as tensors and plain values, from which a process takes them that resumes a run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlr3torch_py.cache.identity.portable import NotPortableError
from mlr3torch_py.cache.storage.layout import Layout
from mlr3torch_py.cache.storage.store import Budget

logger: logging.Logger = logging.getLogger("mlr3torch_py")

__all__ = ["Keeper", "Recalled", "packed", "recalled"]


class Keeper(Protocol):
    """What has rows: a cached module, or what a checkpoint holds of one."""

    seconds_per_row: float

    @property
    def identity(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def layouts(self) -> Iterable[Layout]: ...


@dataclass
class Recalled:
    """What a checkpoint holds of a cached module, until the module is called.

    Parameters
    ----------
    identity : str
        What tells the module from others of the network, in each process.
    digest : str
        What the module was; see `CachedStage.digest`.
    seconds_per_row : float
    by_digest : dict
        The layouts of its calls.
    """

    identity: str
    digest: str
    seconds_per_row: float
    by_digest: dict[str, Layout] = field(default_factory=dict)

    @property
    def layouts(self) -> Iterable[Layout]:
        """The layouts of its calls."""
        return self.by_digest.values()

    def drop(self) -> None:
        """Forget all rows."""
        for layout in self.layouts:
            layout.drop()


def packed(stages: Iterable[Keeper]) -> dict[str, Any]:
    """Return tensors and plain values of which `recalled` makes the rows of stages.

    Rows are left out if files cannot hold them or what they are made by, and those that are made of these.
    """
    kept, owners = {}, {}
    for stage in stages:
        with suppress(NotPortableError):
            kept[stage.identity] = stage.digest, stage.seconds_per_row
            owners.update(dict.fromkeys(stage.layouts, stage.identity))
    layouts: dict[str, Any] = {}
    for layout in sorted(owners, key=lambda one: one.number):
        if all(parent.digest in layouts for parent in layout.parents):
            with suppress(NotPortableError):
                layouts[layout.digest] = owners[layout], layout.packed()
    return {"stages": kept, "layouts": layouts}


def recalled(packed: Mapping[str, Any], digests: Mapping[str, str | None], budget: Budget) -> dict[str, Recalled]:
    """Make the stages of what `packed` returned, by identity.

    Parameters
    ----------
    packed : mapping
    digests : mapping
        What the stages of this process are; None if that is not known yet. Others are left out.
    budget : Budget
    """
    found = {identity: Recalled(identity, *one) for identity, one in packed["stages"].items()}
    fitting = {key: one for key, one in found.items() if key in digests and digests[key] in {None, one.digest}}
    for identity in found.keys() & digests.keys() - fitting.keys():
        logger.info(
            "frozen_cache: the rows of %s are computed again, as its weights, settings or code differ", identity
        )
    made: dict[str, Layout] = {}
    for digest, (identity, one) in packed["layouts"].items():
        parents = [made[parent] for parent in one["parents"] if parent in made]
        if identity in fitting and len(parents) == len(one["parents"]):
            with suppress(RuntimeError, AssertionError):  # if this machine lacks the device
                made[digest] = fitting[identity].by_digest[digest] = Layout.unpacked(digest, one, parents, budget)
    return fitting
