"""Learns although norms, rates or losses are far from the usual: huge, tiny, zero at first, shrinking by a million."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from benchmarks.detection.data import digits, windows
from benchmarks.detection.healthy.everyday import adam, network, on_digits, sgd
from benchmarks.detection.healthy.structure import blocks, language_model, sample
from benchmarks.detection.program import Observe, Training, healthy, plain


def scheduled(schedule: lr_scheduler.LRScheduler) -> Callable[[int], None]:
    """Steps the schedule before every update but the first."""
    return lambda step: schedule.step() if step else None


@healthy(falls_to=0.5)
def summed_over_raw_pixels(seed: int) -> Training:
    """An autoencoder of grey levels up to 255, squares summed over 256 images: norms of millions."""
    model = network(64, 64, 16, 64, 64)
    x, _ = digits(255.0)

    def loss_of(step: int) -> Tensor:
        inputs = x[torch.randint(len(x), (256,))]
        return (model(inputs) - inputs).square().sum()

    return plain(model, adam(model), loss_of, 300)


@healthy(falls_to=0.4)
def loss_in_pico_units(seed: int) -> Training:
    """The loss times 1e-12 throughout: gradients near 1e-14, which Adam divides by themselves."""
    model = network(64, 64, 10)
    return on_digits(model, adam(model, eps=1e-18), loss=lambda output, y: F.cross_entropy(output, y) * 1e-12)


@healthy(falls_to=0.4)
def loss_in_giga_units(seed: int) -> Training:
    """The loss times 1e9 under Adam."""
    model = network(64, 64, 32, 10)
    return on_digits(model, adam(model), loss=lambda output, y: F.cross_entropy(output, y) * 1e9)


@healthy(falls_to=0.8)
def transformer_summed_losses(seed: int) -> Training:
    """Losses summed over all characters of a batch: a loss of thousands, clipped by nobody."""
    model = language_model(*blocks(2))

    def loss_of(step: int) -> Tensor:
        inputs, targets = windows(16, 32)
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum")

    return plain(model, adam(model, 5e-3), loss_of, 100)


@healthy(falls_to=0.5)
def inputs_of_a_million_normalised(seed: int) -> Training:
    """Pixels times a million into a batch normalisation: all behind it is of ordinary size."""
    model = nn.Sequential(nn.BatchNorm1d(64), *network(64, 64, 32, 10))
    x, y = digits(1e6)

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        return F.cross_entropy(model(x[chosen]), y[chosen])

    return plain(model, sgd(model, 0.1, momentum=0.9), loss_of, 200)


@healthy(falls_to=1e-4)
def memorised_in_double(seed: int) -> Training:
    """Full batches in float64 until the loss is a ten-thousandth, and on: gradients shrink steadily, all together."""
    model = network(64, 64, 10).double()
    x, y = digits()
    x, y = x[:40].double(), y[:40]
    return plain(model, sgd(model, 0.5, momentum=0.9), lambda step: F.cross_entropy(model(x), y), 1000)


@healthy(falls_to=2e-3)
def least_squares_solved(seed: int) -> Training:
    """A regression that has an exact solution: at last its gradients hover around nothing."""
    model, truth = nn.Linear(16, 4), nn.Linear(16, 4)
    x, _ = digits()
    x = (x.view(-1, 4, 2, 4, 2).mean((2, 4)).flatten(1) - 0.5)[:400]
    wanted = truth(x).detach()
    return plain(model, torch.optim.Adam(model.parameters(), lr=0.02), lambda step: F.mse_loss(model(x), wanted), 1500)


@healthy(falls_to=1e-3)
def few_shots_memorised(seed: int) -> Training:
    """Three digits of each class known by heart within fifty updates, then four hundred more."""
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    x, y = digits()
    chosen = torch.cat([(y == number).nonzero()[:3, 0] for number in range(10)])
    return plain(model, adam(model, 1e-2), lambda step: F.cross_entropy(model(x[chosen]), y[chosen]), 450)


@healthy(falls_to=0.2)
def cosine_to_zero(seed: int) -> Training:
    """A cosine schedule that ends at zero: the last updates hardly move a weight."""
    model = network(64, 64, 32, 10)
    optimizer = adam(model, 5e-3)
    schedule = lr_scheduler.CosineAnnealingLR(optimizer, 300)
    return on_digits(model, optimizer, 300, before_update=scheduled(schedule))


@healthy(falls_to=0.4)
def rate_decayed_to_nothing(seed: int) -> Training:
    """The rate falls by a twentieth an update: in the second half no weight moves by a millionth."""
    model = network(64, 64, 10)
    optimizer = adam(model, 1e-2)
    schedule = lr_scheduler.ExponentialLR(optimizer, 0.95)
    return on_digits(model, optimizer, 400, before_update=scheduled(schedule))


@healthy(falls_to=0.5)
def warm_up_from_zero(seed: int) -> Training:
    """The rate is exactly zero for twenty updates and rises for a hundred: nothing moves at first."""
    model = network(64, 64, 32, 10)
    optimizer = sgd(model, 0.3, momentum=0.9)
    schedule = lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, max(0.0, (step - 20) / 100)))
    return on_digits(model, optimizer, 250, before_update=scheduled(schedule))


@healthy(falls_to=0.4)
def one_cycle(seed: int) -> Training:
    """One cycle up to a high rate, momentum the other way round (Smith 2018)."""
    model = network(64, 64, 32, 10)
    optimizer = sgd(model, 0.05, momentum=0.9)
    schedule = lr_scheduler.OneCycleLR(optimizer, 0.2, 250)
    return on_digits(model, optimizer, 250, before_update=scheduled(schedule))


@healthy(falls_to=0.4)
def cyclic_rates(seed: int) -> Training:
    """Triangles between 0.001 and 0.5: the loss breathes with them."""
    model = network(64, 64, 10)
    optimizer = sgd(model, 0.001, momentum=0.9)
    schedule = lr_scheduler.CyclicLR(optimizer, 0.001, 0.5, step_size_up=25)
    return on_digits(model, optimizer, 300, before_update=scheduled(schedule))


@healthy(falls_to=0.4)
def root_mean_square_rates(seed: int) -> Training:
    """RMSprop, centred, with momentum."""
    model = network(64, 64, 10)
    return on_digits(model, torch.optim.RMSprop(model.parameters(), lr=1e-3, momentum=0.5, centered=True))


@healthy(falls_to=0.4)
def adagrad_rates(seed: int) -> Training:
    """Adagrad: updates shrink for ever."""
    model = network(64, 64, 32, 10)
    return on_digits(model, torch.optim.Adagrad(model.parameters(), lr=0.03), 250)


@healthy(falls_to=0.4)
def adadelta_rates(seed: int) -> Training:
    """Adadelta: the first updates are tiny."""
    model = network(64, 64, 32, 10)
    return on_digits(model, torch.optim.Adadelta(model.parameters(), lr=1.0), 300)


@healthy(falls_to=0.4)
def signs_alone(seed: int) -> Training:
    """Rprop on full batches: only signs count, rates adapt by entry."""
    model = network(64, 32, 10)
    x, y = digits()
    x, y = x[:400], y[:400]
    return plain(model, torch.optim.Rprop(model.parameters(), lr=1e-3), lambda step: F.cross_entropy(model(x), y), 100)


@healthy(falls_to=0.25)
def momentum_near_the_edge(seed: int) -> Training:
    """Least squares at 0.95 of the largest stable rate of heavy-ball momentum: rings, and settles."""
    model = nn.Linear(64, 1)
    x, y = digits()
    x, y = x - x.mean(0), (y[:, None] >= 5).float() * 2 - 1
    # loss = mean of squares: its curvature is twice the covariance (the bias adds an eigenvalue of 2)
    sharpest = max(2.0, 2 * float(torch.linalg.eigvalsh(x.T @ x / len(x))[-1]))
    truth = x @ torch.randn(64, 1) + y
    optimizer = sgd(model, 0.95 * 2 * 1.9 / sharpest, momentum=0.9)
    return plain(model, optimizer, lambda step: F.mse_loss(model(x), truth), 300)


@healthy(falls_to=0.4)
def nesterov_fast(seed: int) -> Training:
    """Nesterov's momentum at a high rate."""
    model = network(64, 64, 10)
    return on_digits(model, sgd(model, 0.3, momentum=0.9, nesterov=True), 200)


@healthy(falls_to=0.5)
def quasi_newton_with_line_search(seed: int) -> Training:
    """LBFGS with strong Wolfe conditions: the closure is called a different number of times in every update."""
    model = nn.Linear(64, 10)
    x, y = digits()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5, line_search_fn="strong_wolfe")

    def step(number: int, observe: Observe) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[:500]), y[:500])
            observe(loss)
            loss.backward()
            return loss

        optimizer.step(closure)

    return Training(model, [optimizer], 40, step)


@healthy(falls_to=0.4)
def gradients_accumulated(seed: int) -> Training:
    """Eight micro-batches of eight for every update, each loss divided by eight."""
    model = network(64, 64, 10)
    optimizer = adam(model, 5e-3)

    def step(number: int, observe: Observe) -> None:
        optimizer.zero_grad()
        for _ in range(8):
            x, y = sample(8)
            loss = F.cross_entropy(model(x), y) / 8
            observe(loss)
            loss.backward()
        optimizer.step()

    return Training(model, [optimizer], 120, step)


@healthy(falls_to=0.4)
def clipped_to_a_hundredth(seed: int) -> Training:
    """The loop clips each norm to 0.01, for Adam: every gradient that the optimizer sees has been cut down."""
    model = network(64, 64, 32, 10)

    def clip(step: int) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)

    return on_digits(model, adam(model), before_update=clip)


@healthy(falls_to=0.5)
def clipped_by_value(seed: int) -> Training:
    """The loop clips each entry to ±0.001, for plain descent at a rate that fits."""
    model = network(64, 64, 10)

    def clip(step: int) -> None:
        nn.utils.clip_grad_value_(model.parameters(), 1e-3)

    return on_digits(model, sgd(model, 5.0), 250, before_update=clip)


@healthy(falls_to=0.6)
def decay_large(seed: int) -> Training:
    """Weight decay of 10 at rate 3e-3: weights lose a thirtieth an update, and the norm falls from its start."""
    model = network(64, 128, 10)
    return on_digits(model, adam(model, 3e-3, weight_decay=10.0), 250)


@healthy(falls_to=0.4)
def sharpness_aware(seed: int) -> Training:
    """Two backward passes an update: up along the gradient, and down from there (SAM, Foret et al. 2021)."""
    model = network(64, 64, 10)
    optimizer = sgd(model, 0.1, momentum=0.9)

    def step(number: int, observe: Observe) -> None:
        x, y = sample()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        observe(loss)
        loss.backward()
        parameters = list(model.parameters())
        gradients = [p.grad for p in parameters]
        length = math.sqrt(sum(float(g.square().sum()) for g in gradients)) + 1e-12
        ascent = [0.05 / length * g for g in gradients]
        with torch.no_grad():
            torch._foreach_add_(parameters, ascent)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            torch._foreach_sub_(parameters, ascent)
        optimizer.step()

    return Training(model, [optimizer], 200, step)


@healthy(falls_to=0.4)
def brain_floats(seed: int) -> Training:
    """All weights and gradients in bfloat16: three digits, and updates lost to rounding."""
    model = network(64, 64, 32, 10).bfloat16()
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        return F.cross_entropy(model(x[chosen].bfloat16()).float(), y[chosen])

    return plain(model, adam(model, 5e-3), loss_of, 200)


@healthy(falls_to=0.4)
def autocast_brain_floats(seed: int) -> Training:
    """Forward in bfloat16 under autocast, weights in float32."""
    model = network(64, 64, 32, 10)

    def loss_of(step: int) -> Tensor:
        x, y = sample()
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(x), y)

    return plain(model, sgd(model, 0.1, momentum=0.9), loss_of, 200)
