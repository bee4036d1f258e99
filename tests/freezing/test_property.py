"""Any network, any schedule, any replacement: at each step exactly those tensors and statistics move that must."""

import copy
import warnings
from fnmatch import fnmatchcase

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from skorch.callbacks import Callback
from torch import nn
from torch.nn.parameter import is_lazy

from mlr3torch_py import CallbackSetUnfreeze, Freezer, select_glob
from mlr3torch_py.network.unwrap import bare
from tests.helpers import X, iris_net, y

EPOCHS, BATCHES, WIDTH = 4, 2, 4
ROWS = slice(0, 150, 4)


class Integers(nn.Linear):
    """A layer with a parameter that can never train."""

    def __init__(self):
        super().__init__(WIDTH, WIDTH)
        self.steps = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)


class Fixed(nn.Linear):
    """A layer of which a part comes in frozen."""

    def __init__(self):
        super().__init__(WIDTH, WIDTH)
        self.bias.requires_grad = False


KINDS = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "norm": lambda: nn.BatchNorm1d(WIDTH),
    "lazy": lambda: nn.LazyLinear(WIDTH),
    "nested": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.BatchNorm1d(WIDTH)),
    "integers": Integers,
    "fixed": Fixed,
}


class Network(nn.Module):
    """Blocks `b0`, `b1` and so on, some of them tied or shared, and `head`."""

    def __init__(self, kinds, tied, shared):
        super().__init__()
        for i, kind in enumerate(kinds):
            self.add_module(f"b{i}", KINDS[kind]())
        self.head = nn.Linear(WIDTH, 3)
        for i, j in tied:
            tie(self, i, j)
        for i, j in shared:
            share(self, i, j)

    def forward(self, x):
        for name, block in self.named_children():
            x = x if name == "head" else x + torch.tanh(block(x))
        return self.head(x)


def blocks(network):
    """The blocks by their names, each under all of them."""
    return {name: block for name, block in network._modules.items() if name != "head"}


def chosen(network, i, *, linear=True):
    """The name of a block, counted round, that has a weight of its own."""
    names = [name for name, block in blocks(network).items() if isinstance(block, nn.Linear) or not linear]
    return names[i % len(names)] if names else None


def tie(network, i, j):
    one, other = chosen(network, i), chosen(network, j)
    if one != other and not is_lazy(blocks(network)[one].weight) and not is_lazy(blocks(network)[other].weight):
        blocks(network)[one].weight = blocks(network)[other].weight


def share(network, i, j):
    one, other = chosen(network, i, linear=False), chosen(network, j, linear=False)
    network.add_module(one, blocks(network)[other])


def add(network, i, j):
    network.add_module(f"b{len(blocks(network)) + 7}", KINDS[list(KINDS)[i % len(KINDS)]]())


def parameter(network, i, j):
    if name := chosen(network, i):
        block = blocks(network)[name]
        if not is_lazy(block.weight):
            block.weight = nn.Parameter(block.weight.detach() + 0.1, requires_grad=j % 2 == 0)


def layer(network, i, j):
    network.add_module(chosen(network, i, linear=False), KINDS[list(KINDS)[j % len(KINDS)]]())


PARTS = {"tie": tie, "share": share, "add": add, "parameter": parameter, "layer": layer}


def free(tensors):
    """Let nothing come in frozen, as a Freezer leaves what it does not select as it is."""
    for tensor in tensors:
        tensor.requires_grad = tensor.is_floating_point()


def optimizer_of(network, leave_out):
    """Hold all parameters but those of some blocks."""
    tensors = {id(tensor): tensor for tensor in network.parameters()}
    for name, block in blocks(network).items():
        if name in leave_out:
            for tensor in block.parameters():
                tensors.pop(id(tensor), None)
    return torch.optim.SGD(tensors.values(), lr=0.1)


class Replaces(Callback):
    """Replaces parts at the end of epochs, and the module or the optimizer after any batch."""

    def __init__(self, parts, wholes, comes_in_frozen):
        self.parts = parts
        self.wholes = wholes
        self.comes_in_frozen = comes_in_frozen

    def on_batch_end(self, net, training=None, **kwargs):
        if training:
            batch = (len(net.history) - 1) * BATCHES + len(net.history[-1]["batches"])
            for _, what, leave_out in (one for one in self.wholes if one[0] == batch):
                if what == "module":
                    net.module_ = copy.deepcopy(bare(net.module_))
                elif what == "wrapper":
                    net.module_ = nn.DataParallel(net.module_)
                net.optimizer_ = optimizer_of(bare(net.module_), leave_out)

    def on_epoch_end(self, net, **kwargs):
        network = bare(net.module_)
        for _, what, i, j, is_told in (one for one in self.parts if one[0] == len(net.history)):
            before = set(map(id, network.parameters()))
            PARTS[what](network, i, j)
            if not self.comes_in_frozen:
                free(tensor for tensor in network.parameters() if id(tensor) not in before)
            if is_told:
                held = {id(tensor) for group in net.optimizer_.param_groups for tensor in group["params"]}
                if new := [tensor for tensor in network.parameters() if id(tensor) not in held]:
                    net.optimizer_.add_param_group({"params": new})


PATTERNS = ["b*", "*.bias", "*.weight", "b0.*", "b1.*", "b2.*", "b3.*", "b9.*", "b2.weight", "b*.0.*", "nothing"]


def matching(pattern, names):
    return {name for name in names if fnmatchcase(name, pattern) and not name.startswith("head.")}


class Table:
    """What a CallbackSetUnfreeze does beside training the head: rows of (unit, time, pattern, action)."""

    def __init__(self, starting, rows):
        self.starting = starting
        self.rows = rows

    def callback(self, mode):
        tables = []
        for unit in {row[0] for row in self.rows}:
            rows = [row for row in self.rows if row[0] == unit]
            weights = [select_glob(pattern) - select_glob("head.*") for _, _, pattern, _ in rows]
            actions = [action for _, _, _, action in rows]
            tables.append({unit: [time for _, time, _, _ in rows], "weights": weights, "action": actions})
        starting = select_glob(self.starting) | select_glob("head.*")
        return CallbackSetUnfreeze(starting, tables or None, frozen_mode=mode)

    def free(self, names, batch):
        """The names that are not held, counted batch by batch from the beginning."""
        free = matching(self.starting, names)
        for now in range(1, batch + 1):
            is_first = (now - 1) % BATCHES == 0
            times = [("epoch", (now - 1) // BATCHES + 1)] * is_first + [("batch", now)]
            for pattern, action in (row[2:] for time in times for row in self.rows if row[:2] == time):
                selected = matching(pattern, names)
                free = free | selected if action == "unfreeze" else free - selected
        return free | {name for name in names if name.startswith("head.")}


class Held:
    """What a Freezer does: a prefix, and the epoch and the batch until which it is held."""

    def __init__(self, prefix, until_epoch, until_step):
        self.prefix = prefix
        self.until_epoch = until_epoch
        self.until_step = until_step

    def callback(self, mode):
        ends = {"until_epoch": self.until_epoch, "until_step": self.until_step}
        return Freezer(name_starts_with=self.prefix, frozen_mode=mode, **ends)

    def free(self, names, batch):
        ends = [((batch - 1) // BATCHES + 1, self.until_epoch), (batch, self.until_step)]
        if any(end is not None and now > end for now, end in ends):
            return set(names)
        return {name for name in names if not name.startswith(self.prefix)}


class Watch(Callback):
    """Compares all tensors before and after each step with what the schedules say of them."""

    def __init__(self, schedules, mode):
        self.schedules = schedules
        self.mode = mode
        self.n_moved_ = 0

    def on_batch_begin(self, net, training=None, **kwargs):
        if training:
            named = list(bare(net.module_).named_parameters(remove_duplicate=False))
            old = [("", tensor) for group in net.optimizer_.param_groups for tensor in group["params"]]
            self.tensors_ = {id(tensor): tensor for _, tensor in [*named, *old]}
            self.names_ = {}
            for name, tensor in named:
                self.names_.setdefault(id(tensor), []).append(name)
            norms = [one for one in bare(net.module_).modules() if isinstance(one, nn.BatchNorm1d)]
            self.norms_ = [(one, one.num_batches_tracked.clone()) for one in norms]
            self.before_ = {key: None if is_lazy(one) else one.detach().clone() for key, one in self.tensors_.items()}

    def on_grad_computed(self, net, **kwargs):
        self.gradients_ = {key: one.grad.clone() for key, one in self.tensors_.items() if one.grad is not None}

    def on_batch_end(self, net, training=None, **kwargs):
        if not training:
            return
        batch = (len(net.history) - 1) * BATCHES + len(net.history[-1]["batches"])
        names = {name for group in self.names_.values() for name in group}
        free_by = [schedule.free(names, batch) for schedule in self.schedules]
        free = names.intersection(*free_by)
        held = {id(tensor) for group in net.optimizer_.param_groups for tensor in group["params"]}
        for key, tensor in self.tensors_.items():
            trains = bool(free.intersection(self.names_.get(key, ()))) and tensor.is_floating_point()
            assert trains == tensor.requires_grad or key not in self.names_, self.names_.get(key)
            if self.before_[key] is not None:
                self.check(tensor, key, trains and key in held)
        for norm, n_before in self.norms_:
            groups = [self.names_[id(tensor)] for tensor in norm.parameters()]
            is_frozen = not any(free.intersection(group) for group in groups)
            is_held = any(not one.intersection(group) for one in free_by for group in groups)
            is_pinned = self.mode == "eval" and is_frozen and is_held
            assert (norm.num_batches_tracked == n_before) == is_pinned, groups

    def check(self, tensor, key, must):
        expected, gradient = self.before_[key], self.gradients_.get(key)
        if must and gradient is not None:
            expected = expected.add(gradient, alpha=-0.1)
            self.n_moved_ += bool(gradient.any())
        assert torch.equal(tensor, expected), f"{self.names_.get(key)}, to be trained: {must}"


def rows(unit, last):
    row = st.tuples(
        st.just(unit), st.integers(1, last), st.sampled_from(PATTERNS), st.sampled_from(["unfreeze", "freeze"])
    )
    return st.lists(row, max_size=3, unique_by=lambda one: one[1])


tables = st.builds(
    lambda starting, epochs, batches: Table(starting, [*epochs, *batches]),
    st.sampled_from(PATTERNS),
    rows("epoch", EPOCHS),
    rows("batch", EPOCHS * BATCHES),
)
freezers = st.builds(
    Held, st.sampled_from(["b0.", "b1.", "b"]), st.none() | st.integers(0, 3), st.none() | st.integers(0, 7)
)
pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=2)
networks = st.builds(Network, st.lists(st.sampled_from(sorted(KINDS)), min_size=2, max_size=4), pairs, pairs)
indices = st.integers(0, 9)
parts = st.lists(
    st.tuples(st.integers(1, EPOCHS - 1), st.sampled_from(sorted(PARTS)), indices, indices, st.booleans()), max_size=4
)
left_out = st.sets(st.sampled_from(["b0", "b1", "b2"]), max_size=2)
wholes = st.lists(
    st.tuples(st.integers(1, EPOCHS * BATCHES - 1), st.sampled_from(["module", "optimizer", "wrapper"]), left_out),
    max_size=2,
    unique_by=lambda one: one[0],
)


@pytest.mark.slow
@settings(max_examples=250)
@given(
    network=networks,
    schedules=st.lists(tables | freezers, min_size=1, max_size=2),
    mode=st.sampled_from(["train", "eval"]),
    replaced=parts,
    remade=wholes,
    stop=st.integers(1, EPOCHS),
)
@example(  # before the next call a frozen tensor gets another name
    network=Network(["fixed", "fixed"], [], []),
    schedules=[Held("b1.", None, None)],
    mode="train",
    replaced=[(1, "add", 0, 0, False), (1, "share", 0, 1, False), (1, "layer", 1, 0, False)],
    remade=[],
    stop=1,
)
def test_after_each_step_exactly_what_must_move_has_moved(network, schedules, mode, replaced, remade, stop):
    comes_in_frozen = any(isinstance(schedule, Table) for schedule in schedules)
    if not comes_in_frozen:
        free(network.parameters())
    callbacks = [schedule.callback(mode) for schedule in schedules]
    watch, replaces = Watch(schedules, mode), Replaces(replaced, remade, comes_in_frozen)
    net = iris_net(*callbacks, watch, replaces, module=network, audited=False, batch_size=19)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for epochs in (stop, EPOCHS - stop):
            net.set_params(max_epochs=epochs)
            net.partial_fit(X[ROWS], y[ROWS])
    assert len(net.history) == EPOCHS
    assert watch.n_moved_ >= 2 * EPOCHS * BATCHES
