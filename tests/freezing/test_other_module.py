"""Modules of a net beside ``module_``: callbacks that name one of them govern it, and nothing else."""

import pickle
import re
from copy import deepcopy

import pytest
import torch
from skorch import NeuralNet
from torch import nn

from mlr3torch_py import (
    CallbackSetUnfreeze,
    Freezer,
    Plateau,
    freeze_plan,
    from_dict,
    gradual_unfreezing,
    network_summary,
    plot_history,
    plot_network,
    select_all,
    select_last,
    select_none,
    select_prefix,
    t_clbk,
    to_dict,
    torch_callback,
    trainable_names,
    trained_when,
)
from tests.freezing.turns import (
    ALL,
    GAN,
    HEAD,
    REAL,
    Pair,
    batches,
    bits,
    fitted,
    gan,
    networks,
    same,
    take_turns,
    weights_of,
)


def both(**judge):
    """The generator's head trains first and all of it from batch 5 on; the discriminator's head for two epochs."""
    rows = {"batch": [5], "weights": [select_all()]}
    make = CallbackSetUnfreeze(select_last(1), rows, module="generator")
    freezer = Freezer(name_starts_with="0.", until_epoch=2, module="discriminator", **judge)
    return [("make", make), ("judge", freezer), t_clbk("freeze_audit")]


def by_hand():
    generator, discriminator = networks()
    make = torch.optim.Adam(generator.parameters(), lr=0.01)
    judge = torch.optim.SGD(discriminator.parameters(), lr=0.1, momentum=0.9)
    for i, batch in enumerate(batches()):
        generator[0].requires_grad_(i >= 4)
        discriminator[0].requires_grad_(i >= 6)
        take_turns(generator, discriminator, make, judge, batch)
    return bits(generator, discriminator)


@pytest.mark.parametrize("turned", [False, True])
def test_two_callbacks_govern_two_modules_as_a_loop_by_hand_does(turned):
    callbacks = both()
    net = fitted(gan(*(callbacks[1::-1] if turned else callbacks[:2]), callbacks[2]))
    assert same(weights_of(net), by_hand())


def test_the_history_tells_of_each_module_by_its_name():
    net = fitted(gan(*both()))
    keys = [f"{key}_{name}" for key in ("n_trainable", "event_unfrozen") for name in ("generator", "discriminator")]
    assert [[row[key] for row in net.history] for key in keys] == [
        [20, 32, 32, 32],
        [5, 5, 25, 25],
        [None, "+ 0.weight, 0.bias at batch 5", None, None],
        [None, None, "+ 0.weight, 0.bias", None],
    ]
    assert "n_trainable" not in net.history[-1]
    assert "event_unfreeze" not in net.history[-1]


class Watch:
    """What trains in either network at every batch."""

    def __init__(self):
        self.seen = []

    def callback(self):
        def look(this):
            net = this.ctx.net
            self.seen.append((trainable_names(net.generator_), trainable_names(net.discriminator_)))

        return torch_callback("watch", on_batch_end=look)


def test_a_plan_measures_the_module_that_is_governed():
    callback = ("judge", CallbackSetUnfreeze(select_prefix("0"), module="discriminator"))
    (phase,) = freeze_plan(gan(callback), REAL, module="discriminator", measure=True).measured.phases
    assert (phase.passed, phase.below) == ({"2.weight", "2.bias"}, ("0.weight", "0.bias"))


def test_progress_shows_the_share_of_all_modules_that_are_governed(capsys):
    fitted(gan(*both()[:2], t_clbk("progress")))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch")]
    assert [re.findall(r"trainable (\d+)%", line) for line in lines] == [["44"], ["65"], ["100"], ["100"]]
    assert not any("n_trainable" in line for line in lines)


@pytest.mark.parametrize("look", [network_summary, plot_network])
def test_a_net_without_the_main_module_is_not_drawn_and_told_what_could_be(look):
    with pytest.raises(TypeError, match="`net` is <.*GAN>; give one of its modules, such as `generator_`"):
        look(gan())


@pytest.mark.parametrize("beside", [[], [t_clbk("freezer", name_starts_with="2.")]])
def test_a_module_is_summarised_by_the_callbacks_that_govern_it(beside):
    judge = t_clbk("unfreeze", starting_weights=select_last(1), module="decoder", frozen_mode="eval")
    net = gan(judge, *beside, cls=Pair)
    decoder = network_summary(net, module="decoder").to_frame().set_index("path")
    assert (decoder.trains_from["0"], decoder.trains_from["2"]) == ("never", "epoch 1")
    assert (decoder.pinned["0"], decoder.pinned["2"]) == (True, False)
    main = network_summary(net).to_frame().set_index("path")
    assert not main.pinned.any()
    assert (main.trains_from["0"], main.trains_from["2"]) == (("epoch 1", "never") if beside else ("", ""))


@pytest.mark.parametrize("look", [network_summary, plot_network])
def test_a_module_to_look_at_must_be_there(look):
    with pytest.raises(ValueError, match="`module` is 'decodr'.*; give one of 'decoder', 'module'"):
        look(gan(cls=Pair), module="decodr")
    with pytest.raises(ValueError, match="`module` is 'decoder', but `net` is a network"):
        look(nn.Linear(2, 2), module="decoder")


def test_the_context_says_what_a_net_without_the_main_module_has():
    seen = []
    fitted(gan(torch_callback("look", on_begin=lambda self: seen.append(error_of(lambda: self.ctx.network)))))
    assert seen == ["GAN has no `module_`; what it has instead: `ctx.net.generator_`, `ctx.net.discriminator_`"]


def error_of(call):
    with pytest.raises(AttributeError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("key", ["lr_step", "lr_one_cycle", "lr_reduce_on_plateau"])
def test_schedulers_say_that_they_need_the_main_optimizer(key):
    params = {"lr_step": {"step_size": 1}, "lr_one_cycle": {"max_lr": 0.1}}.get(key, {})
    with pytest.raises(TypeError, match="schedules `optimizer_`, which GAN lacks; call the main optimizer so"):
        fitted(gan(t_clbk(key, **params)))


def test_the_flags_and_modes_of_the_other_modules_stay_as_they_are():
    class OneIsFrozen(GAN):
        def initialize_module(self):
            super().initialize_module()
            self.generator_[2].bias.requires_grad = False
            return self

    def note(self):
        modes.append([self.ctx.net.generator_[0].training, self.ctx.net.discriminator_[0].training])

    modes, watch = [], Watch()
    freezer = Freezer(name_starts_with="0.", module="discriminator", frozen_mode="eval")
    net = fitted(gan(freezer, watch.callback(), torch_callback("modes", on_batch_end=note), cls=OneIsFrozen))
    assert watch.seen == [(ALL[:3], HEAD)] * 12
    assert modes == [[True, False]] * 12
    assert net.discriminator_.train()[0].training


@pytest.mark.parametrize("turned", [False, True])
def test_one_optimizer_may_hold_modules_with_factors_of_their_own(turned):
    def rows(factor):
        return {"epoch": [1], "weights": [select_prefix("0")], "lr_mult": [factor]}

    callbacks = [
        ("encoder", CallbackSetUnfreeze(select_all(), rows(0.5))),
        ("decoder", CallbackSetUnfreeze(select_last(1), rows(0.25), module="decoder")),
    ]
    net = fitted(gan(*callbacks[:: -1 if turned else 1], cls=Pair, lr=0.1), REAL)
    decoder, encoder = networks()
    groups = [
        {"params": encoder[0].parameters(), "lr": 0.05},
        {"params": decoder[0].parameters(), "lr": 0.025},
        {"params": [*encoder[2].parameters(), *decoder[2].parameters()]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    for batch in batches():
        optimizer.zero_grad()
        nn.functional.mse_loss(decoder(encoder(batch).repeat(1, 2)), batch).backward()
        optimizer.step()
    assert same(bits(net.module_, net.decoder_), bits(encoder, decoder))
    rates = {key: value for key, value in net.history[-1, "batches", -1].items() if key.startswith("lr_")}
    assert rates == {"lr_0": 0.1, "lr_0_x0.5": 0.05, "lr_0_x0.25": 0.025}
    assert net.history[-1, ("n_trainable", "n_trainable_decoder")] == (25, 32)


@pytest.mark.parametrize("turned", [False, True])
def test_one_module_may_be_frozen_at_the_batch_at_which_the_other_is_released(turned):
    first = {"batch": [5], "weights": [select_all()], "action": ["freeze"]}
    second = {"batch": [5], "weights": [select_all()]}
    callbacks = [
        ("encoder", CallbackSetUnfreeze(select_all(), first)),
        ("decoder", CallbackSetUnfreeze(select_none(), second, module="decoder")),
    ]
    net = gan(*callbacks[:: -1 if turned else 1], cls=Pair).fit(REAL, REAL)
    assert net.history[:, ("n_trainable", "n_trainable_decoder")] == [(25, 0)] + [(0, 32)] * 3


def test_a_net_of_whose_modules_none_trains_is_refused_before_the_first_step():
    callbacks = [Freezer(name_starts_with=["0.", "2."], module=name) for name in ("module", "decoder")]
    net = gan(("encoder", callbacks[0]), ("decoder", callbacks[1]), cls=Pair).initialize()
    before = bits(net.module_, net.decoder_)
    with pytest.raises(ValueError, match=r"nothing trains at batch 1 .* Freezer: .* Freezer: "):
        net.partial_fit(REAL, REAL)
    assert same(bits(net.module_, net.decoder_), before)
    assert trainable_names(net.module_) == trainable_names(net.decoder_) == ALL
    assert len(net.history) == 0


def test_a_module_that_another_one_shares_is_governed_once():
    class Shared(Pair):
        def initialize_module(self):
            super().initialize_module()
            self.decoder_[2] = self.module_[0]
            return self

    one, other = Freezer(name_starts_with="0."), Freezer(name_starts_with="0.", module="decoder")
    gan(one, cls=Shared).fit(REAL, REAL)
    with pytest.raises(
        ValueError, match=r"`module`: '2.weight', '2.bias' of decoder_ are also in module_, and callbac"
    ):
        gan(one, ("other", other), cls=Shared).fit(REAL, REAL)


@pytest.mark.sample(4)
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_resumed_training_goes_on_as_if_it_had_not_stopped(tmp_path, epochs):
    def net(folder, **params):
        return gan(*both(), t_clbk("checkpoint", path=tmp_path / folder, freq=1, resume=True), **params)

    whole = weights_of(net("whole").fit(REAL))
    net("run", max_epochs=epochs).fit(REAL)
    resumed = net("run").fit(REAL)
    assert same(weights_of(resumed), whole)
    assert [row["n_trainable_discriminator"] for row in resumed.history] == [5, 5, 25, 25]
    again = pickle.loads(pickle.dumps(fitted(gan(*both(), max_epochs=epochs))))
    again.partial_fit(REAL, epochs=4 - epochs)
    assert trained_when(again, module="generator").equals(trained_when(resumed, module="generator"))


def test_the_audit_finds_what_moves_in_a_governed_module():
    def write(self):
        with torch.no_grad():
            self.ctx.net.discriminator_[0].bias += 1

    write_later = torch_callback("write", on_epoch_end=write)
    with pytest.raises(RuntimeError, match=r"^discriminator_\.0\.bias changed while frozen, in batches 4 to 4: someth"):
        fitted(gan(*both(), write_later))
    audit = t_clbk("freeze_audit")
    fitted(gan(*both()[:2], audit))
    report = audit.callback.report()
    assert list(zip(report["name"], report["frozen_from"], report["frozen_to"], strict=True)) == [
        ("generator_.0.weight", 1, 2),
        ("generator_.0.bias", 1, 2),
        ("discriminator_.0.weight", 1, 2),
        ("discriminator_.0.bias", 1, 2),
    ]
    assert not report["moved"].any()


def test_the_audit_finds_what_never_moves_in_a_governed_module():
    class Short(Pair):
        def infer(self, x, **fit_params):
            return self.decoder_[2](self.module_(x).repeat(1, 4))

    with pytest.warns(UserWarning, match=r"decoder_\.0\.weight, decoder_\.0\.bias never got a gradient in batches 1"):
        gan(CallbackSetUnfreeze(select_all(), module="decoder"), t_clbk("freeze_audit"), cls=Short).fit(REAL, REAL)


class Scaled(nn.Module):
    """A criterion with weights."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

    def forward(self, made, given):
        return ((made * self.scale + self.shift - given) ** 2).mean()


@pytest.mark.parametrize("step", [2, 3])
def test_the_optimizer_of_the_module_is_followed(step):
    def replace(self):
        if self.ctx.global_step == step:
            self.ctx.net.judge_ = torch.optim.SGD([*self.ctx.net.discriminator_.parameters()][:-1], lr=0.1)

    rows = {"epoch": [1], "weights": [select_all()], "lr_mult": [0.5]}
    callback = CallbackSetUnfreeze(select_all(), rows, module="discriminator")
    with pytest.warns(
        UserWarning, match="^discriminator_: parameters will not be trained .* optimizer holds them: 2.bia"
    ):
        net = fitted(gan(callback, torch_callback("replace", on_batch_end=replace)))
    assert [entry["lr_judge_0_x0.5"] for row in net.history for entry in row["batches"]] == [0.05] * 12


def test_a_criterion_with_weights_is_governed_by_its_name():
    net = NeuralNet(
        lambda: nn.Linear(4, 4),
        Scaled,
        callbacks=[Freezer("scale", until_epoch=2, module="criterion"), t_clbk("freeze_audit")],
        max_epochs=3,
        verbose=0,
    ).fit(REAL, REAL)
    assert net.history[:, "n_trainable_criterion"] == [4, 4, 8]
    assert not torch.equal(net.criterion_.scale, torch.ones(4))
    assert "n_trainable" not in net.history[-1]


@pytest.mark.parametrize(
    ("module", "kind", "message"),
    [
        (
            "discriminater",
            ValueError,
            "`module` is 'discriminater', which is no module of GAN; give one of 'generator', ",
        ),
        (
            "discriminator_",
            ValueError,
            "`module` is 'discriminator_', which .*; give one of 'generator', 'discriminato",
        ),
        ("", ValueError, "`module` is '', which is no module of GAN; give one of 'generator', 'discriminator'$"),
        ("judge", ValueError, "`module` is 'judge', which is no module of GAN; give one of"),
        ("criterion", ValueError, "`module` is 'criterion', which has no parameters; give one of 'generator', 'disc"),
        ("module", TypeError, "Freezer governs the parameters of `module_`, which GAN lacks; set `module` to one of"),
        (3, TypeError, "`module` is 3; give the name of a module of the net, such as 'discriminator'"),
        (None, TypeError, "`module` is None; give the name of a module"),
        (nn.Linear(1, 1), TypeError, "`module` is .*Linear.*; give the name of a module"),
        (["generator", "discriminator"], TypeError, "`module` is .*; give the name of a module"),
    ],
)
def test_what_is_no_module_of_the_net_is_refused_before_the_first_step(module, kind, message):
    net = gan(Freezer("0.bias", module=module)).initialize()
    before = weights_of(net)
    with pytest.raises(kind, match=message):
        net.partial_fit(REAL)
    assert same(weights_of(net), before)
    with pytest.raises(kind, match=message.replace("Freezer", "freeze_plan")):
        freeze_plan(net)


def test_what_is_no_name_is_refused_at_once_by_its_key():
    with pytest.raises(TypeError, match="`module` is 3; give the name of a module"):
        t_clbk("unfreeze", module=3)


def test_a_condition_counts_for_the_module_of_its_callback():
    def rows():
        return {"when": [Plateau("train_loss", patience=1, min_delta=9.0)], "weights": [select_all()]}

    callbacks = [
        (name, CallbackSetUnfreeze(select_last(1), rows(), module=name)) for name in ("discriminator", "generator")
    ]
    net = fitted(gan(*callbacks))
    for name, frozen, free in (("discriminator", 5, 25), ("generator", 20, 32)):
        assert net.history[:, f"n_trainable_{name}"] == [frozen, frozen, free, free]
        assert net.history[:, f"event_unfreeze_row0_{name}"] == [False, False, True, False]


def test_a_schedule_is_resolved_for_the_module():
    net = fitted(gan(t_clbk("unfreeze", schedule=gradual_unfreezing(every=2), module="discriminator")))
    assert list(trained_when(net).loc["0.weight"]) == [False, False, True, True]


@pytest.mark.parametrize("is_initialized", [False, True])
def test_the_plan_of_a_module(is_initialized):
    net = gan(*both())
    if is_initialized:
        net.initialize()
    plans = {name: freeze_plan(net, REAL, module=name) for name in ("generator", "discriminator")}
    assert [(phase.epoch, phase.batch) for phase in plans["generator"].phases] == [(1, 1), (2, 5)]
    assert [sorted(phase.trainable) for phase in plans["discriminator"].phases] == [sorted(HEAD), sorted(ALL)]
    with pytest.raises(
        ValueError, match="the callbacks govern 'generator', 'discriminator'; give one of them as `modu"
    ):
        freeze_plan(net)
    with pytest.raises(ValueError, match="`module` is 'judge', which is no module of GAN"):
        freeze_plan(net, module="judge")
    assert freeze_plan(gan(both()[1])).phases == freeze_plan(networks()[1], max_epochs=4, callbacks=[both()[1]]).phases
    criterion = NeuralNet(lambda: nn.Linear(4, 4), Scaled, callbacks=[Freezer("scale", module="criterion")])
    assert freeze_plan(criterion).phases[0].trainable == {"shift"}


def test_what_happened_to_a_module():
    net = fitted(gan(*both()))
    for source in (net, net.history.to_list()):
        table = trained_when(source, module="discriminator")
        assert list(table.loc["0.weight"]) == [False, False, True, True]
        with pytest.raises(ValueError, match="`module` is None, but the history tells of '.*', '.*'; give one of them"):
            trained_when(source)
    with pytest.raises(ValueError, match="`module` is 'judge', but the history tells of"):
        trained_when(net, module="judge")
    share = plot_history(net, module="discriminator").axes[-1].lines[0].get_ydata()
    assert (share[0], share[-1]) == (0.2, 1)


def test_the_progress_names_the_module(capsys):
    fitted(gan(*both(), t_clbk("progress")))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch")]
    assert lines[1].endswith("; generator_: unfroze 0.weight, 0.bias at batch 5")
    assert lines[2].endswith("; discriminator_: unfroze 0.weight, 0.bias")


def test_a_callback_as_plain_data_governs_the_same_module():
    data = to_dict(t_clbk("freezer", names="0.bias", module="discriminator"))
    assert data["params"] == {"names": "0.bias", "module": "discriminator"}
    assert from_dict(data).callback.module == "discriminator"


def test_functions_that_take_a_network_say_how_to_give_one_of_several():
    net = gan().initialize()
    with pytest.raises(TypeError, match=r"`module` is .*; give one of its modules, such as `generator_`"):
        trainable_names(net)
    assert trainable_names(net.generator_) == ALL


def test_a_copy_of_a_callback_governs_the_same_module():
    callback = Freezer("0.bias", module="discriminator")
    for copy in (deepcopy(callback), pickle.loads(pickle.dumps(callback)), callback.__sklearn_clone__()):
        assert repr(copy) == "Freezer(names='0.bias', module='discriminator')"
