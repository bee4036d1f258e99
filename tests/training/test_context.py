"""What a callback sees of a training."""

import pytest
from skorch.callbacks import Checkpoint, LoadInitState
from skorch.dataset import ValidSplit

from mlr3torch_py import ContextTorch, torch_callback
from tests.helpers import X, iris_net, y
from tests.training.stages import logs, stages_of


def test_the_context_shows_the_training():
    seen = []

    def look(self):
        ctx = self.ctx
        assert isinstance(ctx, ContextTorch)
        seen.append(
            (ctx.epoch, ctx.step, ctx.global_step, ctx.total_epochs, len(ctx.dataset_train), len(ctx.dataset_valid))
        )
        assert ctx.network is ctx.net.module_
        assert ctx.optimizer is ctx.net.optimizer_
        assert ctx.loss is ctx.net.criterion_
        assert ctx.device == "cpu"
        assert (len(ctx.loader_train), len(ctx.loader_valid)) == (2, 1)
        assert ctx.last_scores_train == {"loss": ctx.net.history[-1, "train_loss"]}
        assert ctx.last_scores_valid == {
            "acc": ctx.net.history[-1, "valid_acc"],
            "loss": ctx.net.history[-1, "valid_loss"],
        }
        assert list(ctx.callbacks) == ["looks", "freeze_audit"]
        assert [len(y_hat) for y_hat in ctx.epoch_outputs] == [50]
        assert ctx.batch is None
        assert not ctx.is_starting

    def look_at_batch(self):
        ctx = self.ctx
        assert ctx.y_hat.shape == (50, 3)
        assert ctx.last_loss == ctx.net.history[-1, "batches", -1, "train_loss"]
        assert len(ctx.epoch_outputs) == ctx.step
        assert len(ctx.batch[0]) == 50

    def look_at_begin(self):
        assert self.ctx.is_starting
        assert self.ctx.loader_train is None
        assert self.ctx.loader_valid is None
        assert bool(self.ctx.last_scores_train) is (self.ctx.epoch > 0)

    looks = torch_callback(
        "looks",
        on_begin=look_at_begin,
        on_epoch_end=look,
        on_batch_end=look_at_batch,
        public={"keeps_outputs": True},
    )
    assert looks.callback.ctx is None
    net = iris_net(looks, max_epochs=2, train_split=ValidSplit(3, stratified=True)).fit(X, y)
    assert seen == [(1, 2, 2, 2, 100, 50), (2, 2, 4, 2, 100, 50)]
    net.partial_fit(X, y)
    assert seen[-1] == (4, 2, 8, 4, 100, 50)
    assert looks.callback.ctx is None


def test_the_last_loss_is_that_of_the_last_training_batch():
    losses = []

    def look(self):
        losses.append(self.ctx.last_loss)

    looks = torch_callback("looks", on_begin=look, on_batch_begin=look, on_batch_valid_end=look)
    net = iris_net(looks, max_epochs=2, train_split=ValidSplit(3, stratified=True)).fit(X, y)
    (first, second), (third, fourth) = (
        [batch["train_loss"] for batch in row["batches"] if "train_loss" in batch] for row in net.history
    )
    assert losses == [None, None, first, second, second, third, fourth]
    net.partial_fit(X, y)
    assert losses[7:9] == [fourth, fourth]


def test_outputs_are_recorded_only_if_a_callback_asks():
    def look(self):
        assert self.ctx.epoch_outputs == []
        assert not self.ctx.y_hat.requires_grad

    iris_net(torch_callback("look", on_batch_end=look), max_epochs=1).fit(X, y)


def test_counting_continues_from_a_loaded_history(tmp_path):
    seen = []

    def look(self):
        seen.append((self.ctx.epoch, self.ctx.step, self.ctx.global_step, self.ctx.total_epochs))

    for _ in range(2):
        checkpoint = Checkpoint(monitor=None, dirname=tmp_path)
        looks = torch_callback("looks", on_epoch_end=look)
        iris_net(looks, checkpoint, LoadInitState(checkpoint), max_epochs=2).fit(X, y)
    assert seen == [(1, 3, 3, 2), (2, 3, 6, 2), (3, 3, 9, 4), (4, 3, 12, 4)]


def test_terminate_lets_the_epoch_end_and_print(capsys):
    def stop(self):
        self.ctx.terminate = self.ctx.epoch == 2

    log = []
    stops = torch_callback("stops", on_batch_end=stop)
    net = iris_net(stops, logs("a", log, weight=9), verbose=1, max_epochs=5).fit(X, y)
    assert len(net.history) == 2
    assert stages_of(log)[-3:] == [("a", "epoch_end"), ("a", "end"), ("a", "exit")]
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == "2"


@pytest.mark.parametrize("stage", ["on_begin", "on_exit"])
def test_terminate_before_or_after_training_does_no_harm(stage):
    def stop(self):
        self.ctx.terminate = True

    net = iris_net(torch_callback("stops", **{stage: stop}), max_epochs=2).fit(X, y)
    assert len(net.history) == (0 if stage == "on_begin" else 2)


def test_a_name_of_r_is_answered_with_the_one_of_here():
    learner = torch_callback("learner", on_begin=lambda self: self.ctx.learner)
    with pytest.raises(AttributeError, match=r"`ctx` has no `learner` as in R; use `ctx\.net`"):
        iris_net(learner).fit(X, y)
    unknown = torch_callback("unknown", on_begin=lambda self: self.ctx.learners)
    with pytest.raises(AttributeError, match="'ContextTorch' object has no attribute 'learners'"):
        iris_net(unknown).fit(X, y)


@pytest.mark.parametrize("name", ["terminated", "terminat", "Terminate"])
def test_a_misspelt_terminate_is_refused(name):
    stops = torch_callback("stops", on_epoch_end=lambda self: setattr(self.ctx, name, True))
    with pytest.raises(AttributeError, match=f"`ctx` has no `{name}`, .*; did you mean `terminate`"):
        iris_net(stops).fit(X, y)
