"""Callbacks that log their stages, and an error to raise in them."""

from mlr3torch_py import torch_callback
from mlr3torch_py.training.stages import HOOK_OF_STAGE

STAGES = list(HOOK_OF_STAGE)


class BoomError(Exception):
    pass


def boom(ctx):
    raise BoomError


def logs(name, log, weight=0, **acts):
    """Make a callback that logs each stage with the clock that it sees; an act is a function of ctx, by stage."""

    def logging_at(stage):
        def function(self):
            ctx = self.ctx
            log.append([name, stage, ctx.epoch, ctx.step, ctx.global_step])
            if stage in acts:
                acts[stage](ctx)

        return function

    return torch_callback(name, weight=weight, **{f"on_{stage}": logging_at(stage) for stage in STAGES})


def stages_of(log):
    return [(name, stage) for name, stage, *_ in log]


def record_half(net):
    net.history.record("own_loss", 0.5)
