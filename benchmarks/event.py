"""(b) An event, that is deciding and writing all flags, against a bare loop that writes them."""

from copy import deepcopy

from benchmarks.hook import begin_epoch, net_with
from benchmarks.rounds import in_turns, per_call, row, table
from mlr3torch_py import CallbackSetUnfreeze, select_all, select_prefix

LIMITS = {10_000: 3}


def measure(weights=(10, 100, 1_000, 10_000), rounds=31):
    return table(rows_of(n, rounds) for n in weights)


def rows_of(n_weights, rounds):
    """Two batches with an event, which free and freeze all weights but those of a layer, over loops that do so."""
    flips = {"batch": [1, 2], "weights": [select_all() - select_prefix("0")] * 2, "action": ["unfreeze", "freeze"]}
    unfreeze = CallbackSetUnfreeze(select_prefix("0"), flips)
    net = net_with(unfreeze, n_weights)
    alone = deepcopy(net.module_)
    begin_epoch(net, unfreeze)

    def events():
        unfreeze.engine_.batch, unfreeze.engine_.due = 0, 1
        unfreeze.on_batch_begin(net, training=True)
        unfreeze.on_batch_begin(net, training=True)

    def loops():
        for trainable in (True, False):
            for name, tensor in alone.named_parameters():
                if not name.startswith("0."):
                    tensor.requires_grad = trainable
                    tensor.grad = None

    number = max(1, 10_000 // n_weights)
    microseconds = in_turns({"ours": per_call(events, number), "loop": per_call(loops, number)}, rounds)
    case = f"two events, {n_weights:,} weights"
    return row("b", case, "bare loop", microseconds["ours"], microseconds["loop"], LIMITS.get(n_weights, float("nan")))
