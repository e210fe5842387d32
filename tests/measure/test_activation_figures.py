"""Activations of sampled forward passes, against float64 twins; ``dead`` and ``saturated``."""

import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradwatch
from gradwatch import Thresholds, _torch
from gradwatch.measure.activation_figures import Activations
from gradwatch.measure.layers import of_model
from tests import reference

SAMPLED = (1, 2, 4, 8, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110)


def watched(model, steps, batch_of, loss_of=lambda output: output.square().mean(), rate=0.0, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with gradwatch.watch(model, optimizer, **options) as watcher:
        for step in range(steps):
            optimizer.zero_grad()
            loss = loss_of(model(batch_of(step)))
            watcher.observe_loss(loss)
            loss.backward()
            optimizer.step()
    return watcher


def of_kind(watcher, kind):
    return [finding for finding in watcher.findings if finding.kind == kind]


def batch(step, width=8, rows=32):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(step))


class Functional(nn.Module):
    """The same functions without modules of their own."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(8, 16), nn.Linear(16, 2), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


SQUASHING = {
    "nn.Sigmoid": (nn.Sigmoid(), lambda x: 4 * math.exp(-x) / (1 + math.exp(-x)) ** 2),
    "torch.sigmoid": (torch.sigmoid, lambda x: 4 * math.exp(-x) / (1 + math.exp(-x)) ** 2),
    "Tensor.tanh": (lambda x: x.tanh(), lambda x: 1 - math.tanh(x) ** 2),
    "F.hardtanh": (F.hardtanh, lambda x: float(-1 < x < 1)),
    "F.hardsigmoid": (F.hardsigmoid, lambda x: float(-3 < x < 3)),
    "F.softsign": (F.softsign, lambda x: 1 / (1 + abs(x)) ** 2),
}


@pytest.mark.parametrize("name", SQUASHING)
def test_the_saturated_share_is_that_of_its_twin(name):
    function, slope = SQUASHING[name]
    torch.manual_seed(0)
    model = Functional(function)
    with torch.no_grad():
        model.first.weight.mul_(10)
    history = watched(model, 3, batch).history
    before = model.first.double()(batch(2).double()).flatten().tolist()
    expected = reference.saturated_share([slope(x) for x in before], steepest=1.0)
    assert history["saturated_share"][2, 0] == pytest.approx(expected)
    assert 0 < expected < 1
    assert math.isnan(history["saturated_share"][0, 0])  # activations are measured from step 1 on


RECTIFIERS = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU(inplace=True)": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "torch.relu": torch.relu,
    "Tensor.relu": lambda x: x.relu(),
    "F.gelu": F.gelu,
    "nn.SiLU": nn.SiLU(),
    "F.relu6": F.relu6,
}


def slopes_at(model, steps):
    """Absolute slopes of the rectifier, by step, row and unit."""
    found = []
    for step in steps:
        x = model.first.double()(batch(step).double()).detach().requires_grad_()
        found.append(torch.autograd.grad(model.function(x * 1).sum(), x)[0].abs().tolist())
    return found


@pytest.mark.parametrize("name", RECTIFIERS)
def test_units_that_are_silent_on_all_inputs_of_five_samples_are_dead(name):
    torch.manual_seed(0)
    model = Functional(RECTIFIERS[name])
    with torch.no_grad():
        model.first.bias[:6] = -40.0
        model.first.bias[6:] = 1.0
    history = watched(model, 12, batch).history
    shares = dict(zip(history.steps.tolist(), history["dead_share"][:, 0].tolist(), strict=True))
    assert [shares[step] for step in SAMPLED[:4]] == [0, 0, 0, 0]
    assert shares[10] == pytest.approx(6 / 16)
    expected = [reference.dead_share(slopes_at(model, SAMPLED[: number + 1])) for number in range(5)]
    assert [shares[step] for step in SAMPLED[:5]] == pytest.approx(expected)


def test_samples_in_which_no_unit_of_a_layer_passes_a_gradient_are_counted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    nn.init.constant_(model[0].bias, 5.0)
    nn.init.constant_(model[2].bias, -40.0)
    activations = Activations({"": model}, of_model(model))
    counted = []
    for wakes in (False, False, True, False):
        nn.init.constant_(model[2].bias, 40.0 if wakes else -40.0)
        activations.begin()
        loss = model(batch(0)).sum()
        activations.observe_loss(loss)
        counted.append(activations.take(range(6))["shut_samples"])
        activations.remove()
    names = of_model(model).names
    assert [names[column] for column in counted[0].columns] == ["0.weight", "2.weight"]
    assert [each.values.tolist() for each in counted] == [[0, 1], [0, 2], [0, 0], [0, 1]]


def test_a_unit_that_wakes_up_for_one_batch_is_not_dead():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)
        model[0].weight[0, 0] = 1.0  # unit 0 wakes where the first input is large
    history = watched(model, 31, lambda step: torch.full((4, 8), 5.0 if step == 8 else 0.0)).history
    by_step = dict(zip(history.steps.tolist(), history["dead_share"][:, 0].tolist(), strict=True))
    assert (by_step[10], by_step[20], by_step[30]) == (0.75, 0.75, 0.75)


def test_the_root_mean_square_is_that_of_what_the_module_returned():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    images = lambda step: batch(step, 36).reshape(-1, 1, 6, 6)[:4]  # few enough that every row is examined
    history = watched(model, 3, images).history
    returned = model[0].double()(images(2).double())
    assert history["activation_rms"][2, 0] == pytest.approx(
        reference.root_mean_square(returned.flatten().tolist()), rel=1e-5
    )


def test_units_of_a_convolution_are_its_channels():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([-50.0, 1.0, 1.0, 1.0]))
    history = watched(model, 11, lambda step: batch(step, 36).reshape(-1, 1, 6, 6)).history
    assert history["dead_share"][10, 0] == 0.25


def test_dead_is_found_once_and_says_why():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    with torch.no_grad():
        model[0].bias[3:] = -20.0
    (finding,) = of_kind(watched(model, 60, batch), "dead")
    assert (finding.layer, finding.step, finding.raised_step, finding.value) == ("0.weight", 1, 20, 13 / 16)
    assert "on average" in finding.cause
    assert "81% of the units after 0.weight passed no gradient" in finding.measured


def test_saturated_is_found_once_and_says_why():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    nn.init.normal_(model[0].weight, std=30.0)
    (finding,) = of_kind(watched(model, 60, batch), "saturated")
    assert (finding.layer, finding.step, finding.raised_step) == ("0.weight", 1, 4)
    assert "0.weight has standard deviation" in finding.cause
    assert "where 0.35 keeps the variance" in finding.cause


@pytest.mark.parametrize(("falls", "found"), [(True, 0), (False, 1)])
def test_a_layer_that_turned_flat_by_training_counts_only_while_the_loss_stays(falls, found):
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.head = nn.Linear(8, 4), nn.Linear(4, 1)

        def forward(self, x):
            return self.head(torch.sigmoid(self.gate(x)))

    model = Gate()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(130):
            with torch.no_grad():
                model.gate.bias.fill_(0.2 * step)
            optimizer.zero_grad()
            output = model(batch(step))
            watcher.observe_loss(1 / (1 + step) if falls else 1.0)
            output.mean().backward()
            optimizer.step()
        assert len(of_kind(watcher, "saturated")) == found


@pytest.mark.parametrize(("flat_units", "found"), [(14, 0), (16, 1)])
def test_a_layer_that_turned_flat_counts_only_where_its_gradient_has_faded(flat_units, found):
    """A critic whose targets grow: its loss stands, though it learns by the units that are steep."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradwatch.watch(model, optimizer, find_loss=False) as watcher:
        for step in range(130):
            with torch.no_grad():
                model[0].bias[:flat_units] = 0.2 * step
            optimizer.zero_grad()
            output = model(batch(step))
            watcher.observe_loss(1.0)
            output.square().mean().backward()
            optimizer.step()
        assert np.nanmax(watcher.history["saturated_share"]) > 0.8
        assert len(of_kind(watcher, "saturated")) == found


@pytest.mark.parametrize(
    "gated",
    [lambda g, x: g * x, lambda g, x: x * (1 - g), lambda g, x: (g.unsqueeze(2) * x.unsqueeze(2)).squeeze(2)],
)
@pytest.mark.parametrize(("falls", "found"), [(True, 0), (False, 1)])
def test_a_gate_that_is_shut_from_the_start_counts_only_while_the_loss_stays(gated, falls, found):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.head = nn.Linear(8, 8), nn.Linear(8, 1)
            nn.init.constant_(self.gate.bias, -20.0)

        def forward(self, x):
            return self.head(gated(torch.sigmoid(self.gate(x)), x))

    model = Gated()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(130):
            optimizer.zero_grad()
            watcher.observe_loss(1 / (1 + step) if falls else 1.0)
            model(batch(step)).mean().backward()
            optimizer.step()
        assert len(of_kind(watcher, "saturated")) == found


def test_an_output_that_is_sure_of_itself_under_a_falling_loss_is_healthy():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 1), nn.Sigmoid())
    target = lambda step: (batch(step)[:, :1] > 0).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=50.0)
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(150):
            optimizer.zero_grad()
            loss = F.binary_cross_entropy(model(batch(step)), target(step))
            watcher.observe_loss(loss)
            loss.backward()
            optimizer.step()
        shares = watcher.history["saturated_output_share"]
        assert np.nanmax(shares) > 0.8
        assert of_kind(watcher, "saturated") == []


def test_thresholds_hold_literally():
    torch.manual_seed(0)
    model = Functional(F.relu)
    with torch.no_grad():
        model.first.bias[:6] = -40.0
        model.first.bias[6:] = 1.0
    (finding,) = of_kind(watched(model, 40, batch, thresholds=Thresholds(dead_share=0.3)), "dead")
    assert finding.value == pytest.approx(6 / 16)
    assert finding.threshold == pytest.approx(0.3)
    model = Functional(torch.tanh)
    assert of_kind(watched(model, 40, batch, thresholds=Thresholds(saturated_share=1e-9)), "saturated") == []


def test_the_bits_are_those_of_an_unwatched_run_and_nothing_is_left():
    def trained(is_watched):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.BatchNorm1d(16), nn.Linear(16, 16), nn.Tanh(),
            nn.Linear(16, 2), nn.Softmax(-1),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters())
        watcher = gradwatch.watch(model, optimizer) if is_watched else None
        for step in range(25):
            optimizer.zero_grad()
            model(batch(step)).square().mean().backward()
            optimizer.step()
        if watcher is not None:
            watcher.close()
        assert not any("_compiled_call_impl" in vars(module) for module in model.modules())
        return [*model.state_dict().values(), torch.get_rng_state()]

    assert all(torch.equal(a, b) for a, b in zip(trained(False), trained(True), strict=True))


def test_a_forward_pass_that_raises_does_not_spoil_the_next_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1))
    nn.init.constant_(model[0].bias, -40.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(12):
            with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                model(torch.ones(2, 5))
            optimizer.zero_grad()
            model(batch(step)).sum().backward()
            optimizer.step()
        assert watcher.history["dead_share"][10, 0] == 1.0


def test_closing_in_the_midst_of_a_forward_pass_is_no_fault(caplog):
    class Closes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.watcher = nn.Linear(8, 1), None

        def forward(self, x):
            if self.watcher is not None:
                self.watcher.close()
            return self.layer(x)

    model = Closes()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watcher = gradwatch.watch(model, optimizer)
    model(batch(0)).sum().backward()
    optimizer.step()
    model.watcher = watcher
    model(batch(1))
    assert not [record for record in caplog.records if "fault" in record.message]


def test_functions_that_the_loop_calls_belong_to_the_layer_before():
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(8, 16), "second": nn.Linear(16, 4)})
    nn.init.constant_(model["first"].bias, -40.0)
    nn.init.normal_(model["second"].bias, std=30.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(12):
            optimizer.zero_grad()
            output = model["second"](F.relu(model["first"](batch(step))))
            loss = output.softmax(1).square().mean()  # after the last module: seen with the loss
            watcher.observe_loss(loss)
            loss.backward()
            optimizer.step()
        history = watcher.history
    assert dict(zip(history.layers, history["dead_share"][10].tolist(), strict=True))["first.weight"] == 1.0
    shares = dict(zip(history.layers, history["saturated_output_share"][10].tolist(), strict=True))
    assert shares["second.weight"] == 1.0
    assert math.isnan(shares["first.weight"])


@pytest.mark.parametrize("hinge", [F.relu, lambda margin: margin.clamp(min=0)])
@pytest.mark.parametrize("two_heads", [False, True])
def test_a_hinge_that_is_satisfied_is_no_dead_unit(hinge, two_heads):
    torch.manual_seed(0)
    model = nn.ModuleDict({"trunk": nn.Linear(8, 16), "head": nn.Linear(16, 1), "other": nn.Linear(16, 1)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(150):
            x = batch(step)
            x[:, 0] = 3 * x[:, 0].sign()
            optimizer.zero_grad()
            hidden = model["trunk"](x).relu()
            loss = hinge(1 - x[:, :1].sign() * model["head"](hidden)).mean()
            if two_heads:
                loss = loss + 0.1 * (model["other"](hidden) - x[:, 1:2]).square().mean()
            watcher.observe_loss(loss)
            loss.backward()
            optimizer.step()
        shares = watcher.history["dead_share"]
    assert loss < 0.1
    assert of_kind(watcher, "dead") == []
    assert np.isfinite(shares[:, 0]).any()  # those after the trunk are units
    assert np.isnan(shares[:, 2:]).all()


def test_of_a_recurrence_each_call_counts():
    torch.manual_seed(0)
    model = nn.ModuleDict({"cell": nn.Linear(4, 4), "head": nn.Linear(4, 1)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    inputs = [30.0 * torch.ones(8, 4), 0.0 * torch.ones(8, 4)]
    nn.init.eye_(model["cell"].weight)
    nn.init.zeros_(model["cell"].bias)
    with gradwatch.watch(model, optimizer) as watcher:
        for _ in range(3):
            optimizer.zero_grad()
            state = torch.zeros(8, 4)
            for each in inputs:
                state = model["cell"](each + state - state).tanh()
            model["head"](state).sum().backward()
            optimizer.step()
        assert watcher.history["saturated_share"][2, 0] == 0.5  # of the first call all, of the second none


def test_a_checkpointed_part_is_not_computed_once_more():
    from torch.utils.checkpoint import checkpoint

    calls = []

    class Counts(nn.Linear):
        def forward(self, x):
            calls.append(1)
            return super().forward(x).relu()

    model = nn.ModuleList([Counts(8, 8), nn.Linear(8, 1)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(6):
            optimizer.zero_grad()
            loss = model[1](checkpoint(model[0], batch(step), use_reentrant=False)).sum()
            watcher.observe_loss(loss)
            loss.backward()
            optimizer.step()
    assert len(calls) == 12


def test_no_function_of_the_graph_is_held_once_the_step_is_over():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradwatch.watch(model, optimizer):
        for step in range(5):
            optimizer.zero_grad()
            hidden = model[1](model[0](batch(step)))
            saved = weakref.ref(hidden)
            model[2](hidden).sum().backward()
            optimizer.step()
            del hidden
            assert saved() is None


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # the compiler of torch 2.14 asks for it
def test_no_activations_of_what_is_compiled():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1))
    model[1].compile(backend="eager")
    history = watched(model, 5, batch).history
    assert np.isnan(history["activation_rms"]).all()


def adversaries():
    """A generator whose first layer is dead, and a discriminator; their optimizers."""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    nn.init.constant_(generator[0].bias, -40.0)
    discriminator = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    return (
        generator,
        discriminator,
        *(torch.optim.SGD(each.parameters(), lr=0.0) for each in (generator, discriminator)),
    )


def play(turns, steps=12):
    """Watch a game in which ``turns`` says who updates when, each sample having been made before the first turn."""
    generator, discriminator, of_generator, of_discriminator = adversaries()
    with gradwatch.watch({"G": generator, "D": discriminator}, [of_discriminator, of_generator]) as watcher:
        for step in range(steps):
            made = generator(batch(step))
            for turn in turns:
                loss = discriminator(made).mean() if turn == "G" else discriminator(made.detach()).square().mean()
                loss.backward()
                (of_generator if turn == "G" else of_discriminator).step()
                of_generator.zero_grad()
                of_discriminator.zero_grad()
    return watcher


def dead_shares(watcher, layer):
    """The share of dead units after ``layer`` by the update of its own optimizer, where it was measured."""
    figures = watcher.history.layer(layer)
    own = [share for share, norm in zip(figures["dead_share"], figures["grad_norm"], strict=True) if norm == norm]
    return {update: float(share) for update, share in enumerate(own) if update > 0 and share == share}


@pytest.mark.parametrize("turns", ["DG", "GD", "DDDG"])
def test_optimizers_that_take_turns_each_have_the_activations_of_their_own_samples(turns):
    watcher = play(turns)
    of_generator, of_discriminator = (dead_shares(watcher, f"{name}.0.weight") for name in "GD")
    assert [*of_generator] == [update for update in SAMPLED if update < 12]
    assert [*of_discriminator] == [update for update in SAMPLED if update < 12 * turns.count("D")]
    assert of_generator[10] == 1
    assert of_discriminator[10] < 1


def test_an_optimizer_that_has_stopped_keeps_nobody_listening():
    generator, discriminator, of_generator, of_discriminator = adversaries()
    listening = []
    with gradwatch.watch({"G": generator, "D": discriminator}, [of_discriminator, of_generator]):
        for step in range(200):
            optimizer = of_generator if step < 4 else of_discriminator
            discriminator(generator(batch(step))).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            listening.append(len(_torch.compiled_call_of(generator).__self__.listeners))
    assert set(listening[4:60]) == {2}  # update 4 of the generator would be sampled
    assert listening[70:].count(2) == pytest.approx(len(listening[70:]) / 10, abs=1)
