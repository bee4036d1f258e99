"""One call of ``fit`` with checkpoints: what it is resumed from, and what is captured of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Hashable, Iterator, Mapping
from typing import Any, Final

from mlr3torch_py.checkpoint.attributes import Attributes, hash_of, left_out_by_optimizers
from mlr3torch_py.checkpoint.contents import LARGE, Checkpoint, check_part
from mlr3torch_py.checkpoint.data_record import same_data, split_of
from mlr3torch_py.checkpoint.layout import (
    RESTRUCTURED,
    check_callbacks,
    check_fits,
    differences,
    restructured,
    state_dicts,
    structure_of,
)
from mlr3torch_py.checkpoint.loadable import check_loadable
from mlr3torch_py.checkpoint.net_state import (
    capture,
    object_states,
    restore_callbacks,
    restore_flags,
    restore_flags_by_hand,
    restore_history,
    restore_parts,
    restore_rest,
    was_stopped,
)
from mlr3torch_py.checkpoint.objects import different_objects, objects_of
from mlr3torch_py.checkpoint.parts import (
    consolidation_of,
    generators_of,
    gradients,
    has_state_dict,
    is_stateful,
    optimizers_of,
    searched,
    stateful_objects,
)
from mlr3torch_py.checkpoint.place import Start
from mlr3torch_py.checkpoint.sealed_files import DamagedFileError
from mlr3torch_py.checkpoint.settings import check_settings, settings_of
from mlr3torch_py.names import listed
from mlr3torch_py.network.holdings import walk
from mlr3torch_py.network.randomness import random_states, set_random_states, unreadable
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.context import ContextTorch
from mlr3torch_py.training.order import own_callbacks
from mlr3torch_py.training.processes import are_several, in_all_processes, on_main_process
from mlr3torch_py.training.stages import is_staged
from mlr3torch_py.warn import warn

__all__ = ["Session"]

_OF_MAIN: Final = "which differ between the processes: when resumed, all have those of the main one"


class Session:
    """One call of ``fit`` of a net that keeps checkpoints.

    Parameters
    ----------
    net : skorch.NeuralNet
    ctx : ContextTorch
    start : Start
        Where it starts.
    data : mapping
        What `record_of` returned.

    Attributes
    ----------
    call : dict
        Its number ``n`` within the run, the epochs before it, ``begin``, and its last, ``until``.
    unsaved : Checkpoint or None
        The last complete epoch, until it is written.

    Raises
    ------
    ValueError
        If the run was started with other data.
    """

    def __init__(self, net: Net, ctx: ContextTorch, start: Start, data: Mapping[str, Any]) -> None:
        self.net = net
        self.unsaved: Checkpoint | None = None
        self.call: dict[str, Any] = dict(start.call)
        self._ctx = ctx
        self._start = start
        self._data = data
        self._split: Any = None
        self._settings: dict[str, Any] = {}
        self._described: dict[str, dict[str, Any]] = {}
        self._states_of_call: Mapping[str, Any] | None = None
        self._pending = start.checkpoint
        self._named: set[str] = set()
        self._attributes = Attributes()
        self._structure: dict[str, Any] = {}  # when training began
        self._in_use: tuple[dict[str, Any], dict[str, Any]] = {}, {}  # generators when training began, and last seen
        self._last_prepared = 0
        self._is_first = True
        self._large: tuple[Hashable, Mapping[str, Any]] = (), {}  # versions and states of callbacks
        state = {} if start.checkpoint is None else start.checkpoint.state
        records = [state["data"]] if "data" in state else [] if start.run is None else [start.run["data"]]
        if not all(same_data(record, data) for record in records):
            raise ValueError(
                "`path`: the run in it was started with other data; give each training its own folder, for example by "
                "a function that returns a new one"
            )

    def begin(self) -> bool:
        """Let callbacks see the history that is resumed when they begin; return whether there is one."""
        net, checkpoint = self.net, self._pending
        if checkpoint is not None or self._start.run is not None:
            self._ctx.is_resumed, self._ctx.epochs_before = True, self._start.epochs_before
            self._ctx.total_epochs = self._start.epochs_before + self._ctx.asked_epochs
        if checkpoint is None:
            return False
        check_callbacks(net, checkpoint)
        restore_callbacks(net, checkpoint)
        restore_history(net, checkpoint)
        if not differences(net, checkpoint):
            restore_parts(net, checkpoint)
            restore_flags(net, checkpoint)
        return True

    def restore(self) -> dict[str, Any]:
        """Restore the net once all callbacks have begun, and return the facts of the run."""
        net, checkpoint, start = self.net, self._pending, self._start
        self._settings, self._described = settings_of(net), objects_of(net)
        if checkpoint is not None:
            self._restore_net(checkpoint)
            self._states_of_call = checkpoint.state["random_of_call"]
        here = generators_of(net)
        if checkpoint is None and self.call["n"] > 1:
            self._states_of_call = random_states(here)
        self.call["begin"] = len(net.history) if self.call["begin"] is None else self.call["begin"]
        self.call["until"] = (
            self.call["begin"] if checkpoint is None else start.epochs_before
        ) + self._ctx.asked_epochs
        first = self._states_of_call or (start.run and start.run["random"])
        if first is not None:
            set_random_states(here, first)
        return {
            "id": start.run_id,
            "begin": self.call["begin"],
            "random": first or random_states(here),
            "data": self._data,
        }

    def begin_epochs(self, dataset_train: Any, dataset_valid: Any) -> None:
        """Restore the random states, and name what cannot be kept, before the first epoch."""
        self._split = split_of(dataset_train, dataset_valid)
        checkpoint, self._pending = self._pending, None
        self._start = self._start._replace(checkpoint=None)  # which is as large as the net
        if checkpoint is not None:
            kept = checkpoint.state.get("split")
            if kept is not None and kept != self._split:
                raise ValueError(
                    "`train_split`: the run was started with other rows for validation, on which it would now train; "
                    "give the same split, or another folder"
                )
            self._set_random(checkpoint, dataset_train)
        if not self._consolidations():  # before which there is no state to look at
            parts = state_dicts(self.net)
            on_main_process(self.net, lambda: _check_loadable(parts, optimizers_of(self.net)))
            self._structure = structure_of(self.net, parts)
        self._in_use = self._generators(dataset_train), {}
        self._attributes.watch(self.net)
        self._name_what_is_lost(dataset_train)

    def prepare(self) -> None:
        """Get ready for the state of an epoch to be captured, in all processes.

        Persistent workers are restarted, whose random states nobody can read, so that a resumed run has the same.
        """
        self._last_prepared = len(self.net.history)
        for consolidate in self._consolidations():
            consolidate()
        for loader in self._ctx.loaders:
            if getattr(loader, "_iterator", None) is not None:
                loader._iterator = None

    def name_differing_gradients(self) -> None:
        """Name pending gradients of which each process has its own, as under ``no_sync``; all processes call this."""
        if not are_several(self.net):
            return
        hashes = in_all_processes(self.net, hash_of(gradients(self.net)))
        if len(set(hashes)) > 1:
            self._warn_of([f"the pending gradients, {_OF_MAIN} (take a step at the end of each epoch)"])

    def end_epochs(self) -> None:
        """Leave the random states as the end of the call had them, if nothing was left to train."""
        checkpoint, self._pending = self._pending, None
        if checkpoint is not None:
            self._set_random(checkpoint, getattr(next(iter(self._ctx.loaders), None), "dataset", None))

    def capture(self, n_rows: int, *, is_due: bool) -> None:
        """Capture the state at the end of an epoch, given the number of rows of the history that are kept."""
        net = self.net
        if self._is_first:  # since some are made when they are first used
            self._warn_of(self._unreadable(self._ctx.dataset_train) + left_out_by_optimizers(net))
        self._is_first = False
        generators = self._generators(self._ctx.dataset_train)
        self._warn_of(self._made_late(generators))
        changed, lost = self._attributes.changed(net)
        self._warn_of([f"{place}, whose kind no file can hold" for place in lost] + self._lost_of_callbacks())
        more = {
            "random": random_states(generators),
            "random_of_call": self._states_of_call,
            "run": self._start.run_id,
            "call": self.call,
            "data": self._data,
            "split": self._split,
            "settings": self._settings,
            "described": self._described,
        }
        checkpoint = self._with_structure(self._with_large(capture(net, more, changed, n_rows)))
        self.unsaved = checkpoint if is_due else checkpoint.copied()

    def prepare_unseen(self) -> bool:
        """Prepare for a complete epoch at whose end another callback has stopped training before the checkpoint's turn.

        Returns
        -------
        bool
            Whether there is one.
        """
        is_unseen = self._ctx.ended_epoch == len(self.net.history) > self._last_prepared
        if is_unseen and isinstance(sys.exception(), Exception) and self._consolidations():
            return False  # an error may be in this process alone, so that no other would help to collect the state
        if is_unseen:
            self.prepare()
        return is_unseen

    def _consolidations(self) -> list[Callable[[], None]]:
        return [found for one in optimizers_of(self.net).values() if (found := consolidation_of(one)) is not None]

    def _check_settings(self, kept: Mapping[str, Any], *, is_finished: bool) -> None:
        described = kept.get("described")
        objects = [] if described is None else different_objects(described, self._described)
        check_settings(kept["settings"], self._settings, objects, is_finished=is_finished)

    def _restore_net(self, checkpoint: Checkpoint) -> None:
        net = self.net
        self._ctx.terminate |= self._start.is_over or was_stopped(net, checkpoint)
        is_over = self._ctx.terminate or checkpoint.epoch >= self._ctx.total_epochs
        check_fits(net, checkpoint, self._ctx)
        if "settings" in checkpoint.state:  # those of the main process, since samplers have the number of their own
            on_main_process(net, lambda: self._check_settings(checkpoint.state, is_finished=is_over))
        restore_history(net, checkpoint)
        restore_parts(net, checkpoint)
        restore_flags_by_hand(net, checkpoint)
        missing = restore_rest(net, checkpoint, self._attributes)
        self._restore_large(checkpoint)
        if missing:
            warn(
                f"the checkpoint holds a state of {listed(missing)}, which the net lacks; give the net what it had "
                "when the run was started"
            )

    def _with_large(self, checkpoint: Checkpoint) -> Checkpoint:
        """Add the large states of callbacks, as the same object if they have the same versions."""
        callbacks = {name: one for name, one in own_callbacks(self.net).items() if is_staged(one)}
        states = {name: state for name, one in callbacks.items() if (state := one.large_state()) is not None}
        versions = tuple((name, state.version) for name, state in states.items())
        if versions != self._large[0]:
            self._large = versions, {name: state.read() for name, state in states.items()}
        return checkpoint._replace(parts={**checkpoint.parts, LARGE: self._large[1]}) if states else checkpoint

    def _with_structure(self, checkpoint: Checkpoint) -> Checkpoint:
        """Add what has changed in the structure of the net since training began, and warn of what is new."""
        changed = restructured(self._structure, structure_of(self.net, checkpoint.parts)) if self._structure else {}
        new = [place for place in changed if place not in self._named]
        self._named.update(new)
        if new:
            warn(
                f"the structure of the net has changed while it trains: its {listed(new, most=3)}; a new net lacks "
                "that, so it cannot be resumed from this checkpoint or later ones; change the network "
                "before training, or train in one go"
            )
        return checkpoint._replace(state={**checkpoint.state, RESTRUCTURED: changed}) if changed else checkpoint

    def _restore_large(self, checkpoint: Checkpoint) -> None:
        callbacks = own_callbacks(self.net)
        for name, state in checkpoint.parts.get(LARGE, {}).items():
            if is_staged(callback := callbacks.get(name)):
                try:
                    callback.load_large_state(state)
                except Exception as error:  # of whatever kind: a file may hold anything
                    raise DamagedFileError(
                        f"the checkpoint of epoch {checkpoint.epoch} holds a state of the callback {name!r} that "
                        f"cannot be read: {error!r}; restore its files, or delete them to resume from the epoch before"
                    ) from error

    def _generators(self, dataset_train: Any) -> dict[str, Any]:
        return generators_of(self.net, dataset_train, self._ctx.loaders)

    def _set_random(self, checkpoint: Checkpoint, dataset_train: Any) -> None:
        found, kept = self._generators(dataset_train), checkpoint.state["random"]
        set_random_states(found, kept)
        missing = [name for name in {**found, **kept} if (name in found) != (name in kept)]
        missing = [name for name in missing if not name.startswith(("cuda", "callbacks_."))]
        if missing and "run" in checkpoint.state:
            warn(
                f"the random states of {listed(missing)} are not those of the run that is resumed; give the net and "
                "its data the same generators"
            )

    def _name_what_is_lost(self, dataset_train: Any) -> None:
        lost = self._unreadable(dataset_train) + self._lost_of_callbacks() + self._differing(dataset_train)
        lost += [f"{place}, whose state_dict() no file can hold" for place in object_states(self.net)[1]]
        self._warn_of(lost)
        if any(getattr(one, "persistent_workers", False) and one.num_workers for one in self._ctx.loaders):
            warn(
                "the checkpoint restarts persistent workers after each epoch, since it cannot read their random "
                "states; so the net does not train as without it, but as with persistent_workers=False: give that"
            )

    def _differing(self, dataset_train: Any) -> list[str]:
        """Name the random states that differ between processes."""
        if not are_several(self.net):
            return []
        states = random_states(self._generators(dataset_train))
        first, *others = in_all_processes(self.net, states)
        unseeded = ("numpy", "python", "cuda")  # which begin differently in each process, or belong to one device
        own = [name for name in first if not name.startswith(unseeded)]
        different = [name for name in own if any(one.get(name) != first[name] for one in others)]
        return [f"the random states of {listed(different)}, {_OF_MAIN}"] if different else []

    def _made_late(self, found: dict[str, Any]) -> list[str]:
        """Name the generators that callbacks without a state made in training and keep, unlike those of one epoch."""
        (first, last), callbacks = self._in_use, own_callbacks(self.net)
        self._in_use = first, found
        stateless = tuple(f"callbacks_.{name}." for name, one in callbacks.items() if not is_stateful(one))
        return [
            f"{name}, a generator that is made while the net trains: make it in initialize() or on_train_begin()"
            for name, one in found.items()
            if name.startswith(stateless) and one is last.get(name) and id(one) not in map(id, first.values())
        ]

    def _lost_of_callbacks(self) -> list[str]:
        return [lost for one in own_callbacks(self.net).values() if is_staged(one) for lost in one.lost_on_resume]

    def _unreadable(self, dataset_train: Any) -> list[str]:
        skip, roots = searched(self.net, dataset_train, self._ctx.loaders)
        lost = [place for place in unreadable(*skip, **roots) if not place.startswith("callbacks_.")]
        of_data = walk({"dataset_train": dataset_train}, [*skip, *stateful_objects(self.net).values()])
        with_state = [place for place, one in of_data if isinstance(one, Iterator) and has_state_dict(one)]
        return [f"{place}, whose state cannot be read: keep a seed or an index instead" for place in lost] + [
            f"{place}, since it asks nothing in a data set for its state_dict()" for place in with_state
        ]

    def _warn_of(self, lost: list[str]) -> None:
        new = [one for one in lost if one not in self._named]
        self._named.update(new)
        if new:
            warn(
                f"a resumed run will differ from one that never stopped, since a checkpoint cannot keep {listed(new)}; "
                "let the state_dict() of the network or of a callback hold it, as plain values and tensors, or train "
                "in one go"
            )


def _check_loadable(parts: Mapping[str, Mapping[str, Any]], optimizers: Container[str]) -> None:
    for name, part in Checkpoint.of(0, parts, {}).parts.items():
        check_loadable(name, part, is_early=True)
        try:
            check_part(part, is_optimizer=name in optimizers)
        except Exception as error:  # as when it is read
            raise TypeError(
                f"the state dict of `{name}` could not be read again ({error!r}); return a dict, and for an optimizer "
                "one with a dict as `state` and a list of groups with their `params` as `param_groups`, if it has these"
            ) from error
