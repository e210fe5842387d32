"""Clips hard and learns: the optimizer divides by the size of gradients, or its rate fits the limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from benchmarks.detection.data import digits, windows
from benchmarks.detection.healthy.everyday import adam, network, on_digits, sgd
from benchmarks.detection.healthy.structure import blocks, language_model
from benchmarks.detection.program import Observe, Training, healthy, plain


def clipping(model: nn.Module, limit: float) -> Callable[[int], None]:
    """Return what clips the gradients of ``model`` by their total norm, before each update."""

    def clip(step: int) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), limit)

    return clip


class WithLoudScale(nn.Module):
    """A classifier of digits beside one vector whose gradient has a norm near ``loud``, and whose loss is 0."""

    def __init__(self, loud: float) -> None:
        super().__init__()
        self.net = network(64, 64, 10)
        self.scale, self.loud = nn.Parameter(torch.ones(4096)), loud

    def loss_of(self, step: int) -> Tensor:
        """Return the loss of one batch."""
        x, y = digits()
        chosen = torch.randint(len(x), (64,))
        noise = ((self.scale - self.scale.detach()) * torch.randn(4096)).sum() / 64
        return F.cross_entropy(self.net(x[chosen]), y[chosen]) + self.loud * noise


class Sign(torch.optim.Optimizer):
    """The sign of a running mean of gradients: Lion without decay (Chen et al. 2023, arXiv:2302.06675)."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, memory: float = 0.9) -> None:
        super().__init__(parameters, {"lr": lr, "memory": memory})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        """Move each entry by the rate, against the sign of its mean."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                parameter.sub_(mean.lerp(parameter.grad, 1 - group["memory"]).sign_(), alpha=group["lr"])
                mean.lerp_(parameter.grad, 0.01 if group["memory"] else 1.0)


@healthy(falls_to=0.6)
def rate_that_fits_its_limit(seed: int) -> Training:
    """Descent by the direction alone: each norm is clipped to 1e-3, and the rate of 100 was chosen for that."""
    model = network(64, 64, 32, 10)
    return on_digits(model, sgd(model, 100.0), 250, before_update=clipping(model, 1e-3))


@healthy(falls_to=0.6)
def lion_clipped_to_a_hundredth(seed: int) -> Training:
    """Lion, whose updates have one size whatever the limit is."""
    model = network(64, 64, 32, 10)
    return on_digits(model, Sign(model.parameters(), 1e-3), 250, before_update=clipping(model, 1e-2))


@healthy(falls_to=0.6)
def loud_layer_of_small_epsilon(seed: int) -> Training:
    """One vector makes nearly all of the total, and Adam's ε is small enough for what is left of the others."""
    model = WithLoudScale(30.0)
    return plain(model, adam(model, eps=1e-20), model.loss_of, 250, before_update=clipping(model, 1e-6))


@healthy(falls_to=0.8)
def warm_up_under_a_tight_limit(seed: int) -> Training:
    """Momentum with a limit of 0.01, warmed up from a rate of 0 within 150 updates: slow at first, never stalled."""
    model = network(64, 64, 10)
    optimizer = sgd(model, 2.0, momentum=0.9)
    schedule = lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 150))
    clip = clipping(model, 0.01)

    def before(step: int) -> None:
        clip(step)
        if step:
            schedule.step()

    return on_digits(model, optimizer, 300, before_update=before)


@healthy(falls_to=0.8)
def gpt_of_summed_losses_clipped_to_one(seed: int) -> Training:
    """A language model whose losses are summed: totals of hundreds, clipped to 1 for AdamW."""
    model = language_model(*blocks(2))

    def loss_of(step: int) -> Tensor:
        inputs, targets = windows(16, 32)
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum")

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    return plain(model, optimizer, loss_of, 150, before_update=clipping(model, 1.0))


@healthy(falls_to=0.6)
def clipped_unit_by_unit(seed: int) -> Training:
    """Adaptive clipping: the gradient of each unit to 0.01 of its weights (Brock et al. 2021, arXiv:2102.06171)."""
    model = network(64, 64, 32, 10)

    def clip(step: int) -> None:
        with torch.no_grad():
            for weight in model.parameters():
                axes = tuple(range(1, weight.ndim)) or (0,)
                largest = 0.01 * weight.norm(dim=axes, keepdim=True).clamp(min=1e-3)
                norm = weight.grad.norm(dim=axes, keepdim=True).clamp(min=1e-6)
                weight.grad.mul_((largest / norm).clamp(max=1.0))

    return on_digits(model, sgd(model, 0.5, momentum=0.9), 250, before_update=clip)


@healthy(falls_to=0.8)
def four_passes_under_a_tight_limit(seed: int) -> Training:
    """Four passes an update, their sum clipped to 0.001 for Adam."""
    model = network(64, 64, 10)
    optimizer, clip = adam(model), clipping(model, 1e-3)
    x, y = digits()

    def step(number: int, observe: Observe) -> None:
        for _ in range(4):
            chosen = torch.randint(len(x), (16,))
            loss = F.cross_entropy(model(x[chosen]), y[chosen])
            observe(loss)
            (loss / 4).backward()
        clip(number)
        optimizer.step()
        optimizer.zero_grad()

    return Training(model, [optimizer], 200, step)


@healthy(falls_to=2.0)
def tuned_at_a_tiny_rate_and_clipped(seed: int) -> Training:
    """Fine-tuning at 1e-6 of a network that has learned: the limit of 1e-3 is not why its loss stays where it is."""
    model = network(64, 64, 10)
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        return F.cross_entropy(model(x[chosen]), y[chosen])

    before = adam(model, 1e-2)
    for number in range(200):
        before.zero_grad()
        loss_of(number).backward()
        before.step()
    model.zero_grad()
    return plain(model, adam(model, 1e-6), loss_of, 250, before_update=clipping(model, 1e-3))
