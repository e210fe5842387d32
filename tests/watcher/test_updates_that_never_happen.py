"""Programs whose updates never happen, each beside one that looks like it and is healthy."""

import copy
import logging
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradwatch

TEACHER = torch.randn(8, 3, generator=torch.Generator().manual_seed(3))


def network():
    return nn.Sequential(
        OrderedDict(a=nn.Linear(8, 32), r=nn.ReLU(), b=nn.Linear(32, 32), s=nn.ReLU(), head=nn.Linear(32, 3))
    )


def adam(parameters, rate=3e-3):
    return torch.optim.Adam(parameters, lr=rate)


def loss_of(forward, seed):
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(seed))
    return F.cross_entropy(forward(inputs), (inputs @ TEACHER).argmax(1))


def train(model, optimizers, steps=100, forward=None, before_step=lambda step: None, given=None, loss=loss_of):
    """Train; return the findings. All of ``optimizers`` step; ``given`` are those that gradwatch is told of."""
    forward = forward or model
    with gradwatch.watch(model, optimizers if given is None else given) as watcher:
        for step in range(steps):
            before_step(step)
            value = loss(forward, step)
            watcher.observe_loss(value)
            value.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    return watcher.findings


def kinds_and_layers(findings):
    return [(finding.kind, finding.layers) for finding in findings]


@pytest.fixture(autouse=True)
def same_every_time():
    torch.manual_seed(0)


# schedules


@pytest.mark.parametrize(("length", "is_sick"), [(10, True), (120, False)])
def test_a_schedule_that_is_over_before_anything_was_learned(length, is_sick):
    model = network()
    optimizer = adam(model.parameters(), 1e-3)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: max(0.0, (length - n) / length))
    findings = train(model, [optimizer], 120, before_step=lambda step: step and decay.step())
    assert [finding.step for finding in findings] == [10] * is_sick
    assert all("its schedule was over before the loss came down" in finding.cause for finding in findings)


def test_clipping_so_hard_that_nothing_moves_is_named():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, clip=1e-9) as watcher:
        for step in range(60):
            value = loss_of(model, step)
            watcher.observe_loss(value)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
    (finding,) = watcher.findings
    assert finding.kind == "stalled"
    assert "Clipping leaves" in finding.cause


# number formats


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 3)

    def forward(self, inputs):
        inputs = inputs.to(self.first.weight.dtype)
        return self.last(F.gelu(self.norm(self.first(inputs)))).float()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "rate", "layers"),
    [
        pytest.param(torch.bfloat16, 3e-2, None, id="bfloat16 at a high rate"),
        pytest.param(torch.bfloat16, 2e-3, None, id="bfloat16 that learns, though its scales stand still"),
        pytest.param(torch.bfloat16, 4e-4, ("norm.weight",), id="scales stand still, and little is learned"),
        pytest.param(torch.bfloat16, 3e-6, ("",), id="next to nothing moves"),
        pytest.param(torch.float32, 1e-4, None, id="float32"),
    ],
)
def test_updates_that_a_number_format_rounds_away(dtype, rate, layers):
    model = Normalised().to(dtype)
    findings = train(model, [torch.optim.AdamW(model.parameters(), lr=rate)], 210)
    assert kinds_and_layers(findings) == ([] if layers is None else [("stalled", layers)])
    assert all("bfloat16" in finding.cause for finding in findings)


# owners


def test_a_head_exchanged_after_the_optimizer_was_made():
    model = network()
    optimizer = adam(model.parameters())
    model.head = nn.Linear(32, 3)
    (finding,) = train(model, [optimizer])
    assert (finding.layer, finding.layers) == ("head.weight", ("head.weight", "head.bias"))
    assert "The optimizer holds 2 tensors without a gradient that the model does not" in finding.cause


def test_parameters_exchanged_during_the_run():
    model = network()

    def exchange(step):
        if step == 5:
            model.b.weight = nn.Parameter(model.b.weight.detach().clone())

    (finding,) = train(model, [adam(model.parameters())], before_step=exchange)
    assert finding.layers == ("b.weight",)
    assert "The model holds other tensors by these names" in finding.cause


def test_a_copy_is_trained_and_the_original_is_held():
    model = network()
    (finding,) = train(model, [adam(model.parameters())], forward=copy.deepcopy(model))
    assert (finding.kind, finding.layers) == ("stalled", tuple(name for name, _ in model.named_parameters()))
    assert "The loss does not depend on them" in finding.cause


def test_a_head_frozen_after_the_optimizer_was_made():
    model = network()
    optimizer = adam(model.head.parameters())
    model.head.requires_grad_(False)
    (finding,) = train(model, [optimizer])
    assert "All of them are frozen" in finding.cause
    assert "a.weight" in finding.cause


def test_a_head_that_no_optimizer_was_given():
    model = network()
    (finding,) = train(model, [adam([*model.a.parameters(), *model.b.parameters()])])
    assert finding.layers == ("head.weight", "head.bias")


def by_hand(model, layer):
    def update(step):
        for parameter in layer.parameters():
            if parameter.grad is not None:
                parameter.data -= 0.01 * parameter.grad
                parameter.grad = None

    return update


def test_an_encoder_that_nobody_has_trained_and_no_optimizer_was_given():
    model = network()
    (finding,) = train(model, [adam(model.head.parameters())])
    assert (finding.kind, finding.layers) == ("stalled", ("a.weight", "a.bias", "b.weight", "b.bias"))
    assert "No optimizer of this process was given them, and they are as they were made" in finding.cause


def pretrained():
    """A network that has learned another order of the classes for 30 updates."""
    model = network()
    optimizer = adam(model.parameters())
    for step in range(30):
        loss_of(lambda inputs: model(inputs).flip(1), step).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_what_is_left_out_on_purpose_is_no_finding():
    model = pretrained()
    assert train(model, [adam(model.head.parameters())]) == []  # a linear probe whose backbone is not frozen
    assert train(model, [adam(model.head.parameters(), 1e-5)]) == []
    model = network()
    model.a.weight.data = torch.cos(torch.outer(torch.arange(32) + 0.5, torch.arange(8) * torch.pi / 32)) / 4
    assert train(model, [adam([*model.b.parameters(), *model.head.parameters()])]) == []  # filters that are not frozen
    model = network()
    assert train(model, [adam([p for name, p in model.named_parameters() if "bias" in name])]) == []
    model = network()
    model.head.requires_grad_(False)
    assert train(model, [adam(model.parameters())]) == []


class Critic(nn.Module):
    """Values, and those of a copy that is made anew every 200 updates; gradients reach the copy, too."""

    def __init__(self):
        super().__init__()
        self.own = network()
        self.copy = copy.deepcopy(self.own)

    def forward(self, inputs):
        return self.own(inputs) - 0.5 * self.copy(inputs.roll(1, 0)).amax(1, keepdim=True)


def test_a_copy_beside_what_is_trained_is_no_finding():
    model = Critic()
    assert train(model, [adam(model.own.parameters())]) == []


def test_what_others_update_is_no_finding():
    model = network()
    both = [adam([*model.a.parameters(), *model.b.parameters()]), adam(model.head.parameters())]
    assert train(model, both) == []
    model = network()
    both = [adam([*model.a.parameters(), *model.b.parameters()]), adam(model.head.parameters())]
    assert train(model, both, given=both[0]) == []
    model = network()
    body = [*model.a.parameters(), *model.b.parameters()]
    assert train(model, [adam(body)], before_step=by_hand(model, model.head)) == []


# no gradient at all


def test_a_cross_entropy_over_one_class_has_no_gradient_from_the_first_step_on():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))

    def over_one_class(forward, step):
        return -forward(torch.randn(24, 8)).log_softmax(-1).sum(-1).mean()

    (finding,) = train(model, [adam(model.parameters())], loss=over_one_class)
    assert (finding.kind, len(finding.layers)) == ("vanishing", 4)


def test_a_hinge_that_is_satisfied_later_is_healthy():
    model = nn.Linear(8, 1)

    def hinge(forward, step):
        inputs = torch.randn(24, 8)
        return (1 - forward(inputs + 5 * torch.ones(8)).squeeze(1)).clamp(min=0).mean()

    assert train(model, [torch.optim.SGD(model.parameters(), lr=0.1)], 120, loss=hinge) == []


# what is no finding and worth a line


class Residual(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        if kind == "zeros":
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

    def forward(self, inputs):
        return inputs + self.down(F.silu(self.up(inputs)))


@pytest.mark.parametrize(("kind", "count"), [("healthy", None), ("zeros", "3 of 8")])
def test_parameters_that_never_had_a_gradient_are_counted_at_the_end(kind, count, caplog):
    model = nn.Sequential(nn.Linear(8, 32), Residual(kind), nn.Linear(32, 3))
    caplog.set_level(logging.WARNING, "gradwatch")
    train(model, [adam(model.parameters())])
    lines = [line for line in caplog.messages if "had no gradient" in line]
    assert len(lines) == (count is not None)
    assert all(f"{count} parameters had no gradient other than zero at any of" in line for line in lines)


@pytest.mark.parametrize(("is_flat", "steps", "lines"), [(True, 6, 1), (False, 6, 0), (True, 30, 0)])
def test_a_short_run_without_any_gradient_is_told_at_the_end(is_flat, steps, lines, caplog):
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    caplog.set_level(logging.WARNING, "gradwatch")
    limit = (lambda outputs: outputs.clamp(min=50)) if is_flat else (lambda outputs: outputs)
    findings = train(
        model,
        [adam(model.parameters())],
        steps,
        loss=lambda forward, step: limit(forward(torch.randn(16, 8))).square().mean(),
    )
    told = [line for line in caplog.messages if "No parameter had a gradient other than zero at any of" in line]
    assert len(told) == lines
    assert bool(findings) == (steps >= 10)  # which needs ten updates


@pytest.mark.parametrize("is_frozen", [True, False])
def test_gradients_of_what_no_optimizer_holds_are_mentioned_at_the_end(is_frozen, caplog):
    model = pretrained()
    for layer in (model.a, model.b):
        layer.requires_grad_(not is_frozen)
    train(model, [adam(model.head.parameters())])
    lines = [line for line in caplog.messages if "no optimizer holds them" in line]
    assert len(lines) == (not is_frozen)
    assert all("4 of 6 parameters get gradients" in line and "requires_grad_(False)" in line for line in lines)
