"""Operations on placeholders, between modules, that are answered like calls of modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Any, Final

import torch
from torch import nn

from mlr3torch_py.cache.errors import NotCacheableError
from mlr3torch_py.cache.passes.functions import Operation, split
from mlr3torch_py.cache.passes.module import CachedModule
from mlr3torch_py.cache.passes.placeholder import Passes, Placeholder
from mlr3torch_py.cache.storage.packing import Recalled
from mlr3torch_py.cache.storage.store import Budget
from mlr3torch_py.network.evaluation import pinned_modules
from mlr3torch_py.network.normalisation import is_normalisation
from mlr3torch_py.network.unwrap import all_modules

__all__ = ["Operations"]

_Function = Callable[..., Any]
_MAX_KINDS: Final = 32


def _storage(tensor: torch.Tensor) -> tuple[int, torch.UntypedStorage | None]:
    """Return the storage of a tensor, after what identifies it; 0 and None if it has none."""
    try:
        storage = tensor.untyped_storage()
    except (NotImplementedError, RuntimeError, ValueError):  # sparse and lazy ones
        return 0, None
    return storage._cdata, storage


class _Applied(nn.Module):
    """An operation as a module."""

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.operation(*tensors)


class _CachedOperation(CachedModule):
    """An operation that is given placeholders, and tensors that stay the same until the next epoch."""

    def described(self, value: Any) -> Hashable:
        if not isinstance(value, torch.Tensor):
            return super().described(value)
        if value.is_inference() or value.is_conj() or value.is_neg():
            return None
        place = _storage(value)[0], value.storage_offset(), value.shape, value.stride(), value.dtype
        return value._version, *place

    def follow_changes(self) -> None:
        """Describe the tensors that it is given again; it has no state, and after training they count by content."""
        self._known.forget_answered()

    def keep(self) -> None:
        self.is_kept = True


class Operations:
    """The operations of a network that are links.

    Parameters
    ----------
    budget : Budget
    check : int
        See `CachedModule`.
    """

    def __init__(self, budget: Budget, check: int) -> None:
        self._budget, self._check = budget, check
        self._cached: dict[Operation, CachedModule | None] = {}  # None for those that cannot be
        self._n_kinds: Counter[Callable[..., Any]] = Counter()
        self._frozen: dict[int, torch.UntypedStorage] = {}
        self._recalled: dict[str, Recalled] = {}  # until they are called
        self._rejected: set[str] = set()
        self._are_kept = False

    @property
    def stages(self) -> Mapping[str, CachedModule]:
        """The operations whose calls are answered, by a name."""
        return {f"{one.name} {i}": one for i, one in enumerate(self._cached.values()) if one is not None}

    @property
    def recalled(self) -> Iterable[Recalled]:
        """What a checkpoint holds of operations that were not called since."""
        return self._recalled.values()

    @property
    def cached(self) -> Sequence[str]:
        """The identities of operations that are cached."""
        return sorted({*self._recalled, *(one.identity for one in self.stages.values())})

    @property
    def rejected(self) -> Sequence[str]:
        """The identities of operations that cannot be cached."""
        return sorted({*self._rejected, *(one.identity for one, cached in self._cached.items() if cached is None)})

    def recall(self, rejected: Iterable[str], rows: Iterable[Recalled]) -> None:
        """Take rows from a checkpoint, for each operation when it is called."""
        self._rejected = set(rejected)
        self._recalled = {one.identity: one for one in rows}

    def end_epoch(self, used_epochs: Set[int]) -> None:
        """Drop stale rows of operations that were not called; see `Table.end_epoch`."""
        for recalled in self.recalled:
            recalled.by_digest = {key: one for key, one in recalled.by_digest.items() if not one.is_dropped}
            for layout in recalled.layouts:
                layout.end_epoch(used_epochs)

    def follow(self, module: nn.Module) -> None:
        """Note which tensors of a network stay the same, so that operations may take them.

        Those are neither trainable nor statistics that training mode may move, which no version counter tells.
        """
        layers = all_modules(module)
        pinned = set(map(id, pinned_modules(module).values()))
        moving = [one for one in layers if id(one) not in pinned and is_normalisation(one)]
        statistics = {id(tensor) for one in moving for tensor in one._buffers.values()}
        tensors = [one for layer in layers for one in (*layer._parameters.values(), *layer._buffers.values())]
        storages = [(one, _storage(one)) for one in tensors if one is not None]
        others = {id_ for one, (id_, _) in storages if one.requires_grad or id(one) in statistics}
        self._frozen = {id_: storage for _, (id_, storage) in storages if id_ not in others and storage is not None}

    def keep(self) -> None:
        """Answer calls after training, too; see `CachedStage.keep`."""
        self._are_kept = True
        for one in self.stages.values():
            one.keep()

    def answer(
        self, passes: Passes, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Answer a call of a function; `NotImplemented` if it cannot be."""
        found = split(function, args, kwargs, Placeholder)
        if found is None:
            return NotImplemented
        operation, tensors = found
        if any(_storage(one)[0] not in self._frozen for one in tensors[operation.n_by_row :]):
            return NotImplemented
        if operation not in self._cached:
            self._cached[operation] = self._put_in_place(operation, passes)
        cached = self._cached[operation]
        return NotImplemented if cached is None else cached(*tensors)

    def close(self) -> None:
        """Forget all rows, and all operations."""
        for one in self.stages.values():
            one.remove()
        for recalled in self.recalled:
            recalled.drop()
        self._recalled.clear()
        self._rejected.clear()
        self._cached.clear()
        self._n_kinds.clear()
        self._frozen.clear()

    def _put_in_place(self, operation: Operation, passes: Passes) -> CachedModule | None:
        function = operation.function
        self._n_kinds[function] += 1
        recalled = self._recalled.pop(operation.identity, None)
        is_one_of_many = recalled is None and self._n_kinds[function] > _MAX_KINDS  # it may differ from call to call
        if is_one_of_many or operation.identity in self._rejected:
            return None
        reject = partial(self._reject, operation)
        try:
            cached = _CachedOperation(
                f"{function.__name__}()",
                _Applied(operation),
                self._budget,
                self._check,
                reject,
                passes=passes,
                is_link=True,
                identity=operation.identity,
            )
        except NotCacheableError:
            return None
        if recalled is not None:
            cached.recall(recalled)
        if self._are_kept:
            cached.keep()
        return cached

    def _reject(self, operation: Operation, error: NotCacheableError, fits_in_eval_mode: bool) -> None:
        """Call the function itself from now on; the user need not know."""
        if (cached := self._cached.get(operation)) is not None:
            cached.unstore()
            cached.remove()
        self._cached[operation] = None
