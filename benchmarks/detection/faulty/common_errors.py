"""What beginners and tired experts do: rates, scales, losses and initialisations that do not fit."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import digits
from benchmarks.detection.program import Training, faulty, plain, supervised

Loss = Callable[[Tensor, Tensor], Tensor]


def network(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths with activations between."""
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        layers += [nn.Linear(inner, outer), activation()]
    return nn.Sequential(*layers[:-1])


def on_digits(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int = 100,
    *,
    scale: float = 1.0,
    loss: Loss = F.cross_entropy,
    batch: int = 64,
    **options,
) -> Training:
    """Classification of digits in random batches."""
    x, y = digits(scale)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(x), (batch,))
        return x[chosen], y[chosen]

    return supervised(model, optimizer, draw, loss, steps, **options)


def sgd(model: nn.Module, rate: float, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=rate, **options)


def squared(output: Tensor, classes: Tensor) -> Tensor:
    """Sum of squares against one-hot classes, mean over the batch."""
    return (output - F.one_hot(classes, 10)).square().sum(1).mean()


@faulty("exploding")
def regression_on_one_hot_diverges(seed: int) -> Training:
    """Squared error at a rate that overshoots: each update doubles the error of the one before."""
    model = network(64, 64, 10)
    return on_digits(model, sgd(model, 3.0), 60, loss=squared)


@faulty("exploding")
def raw_pixels_into_a_regression(seed: int) -> Training:
    """Grey levels of 0 to 255 where 0 to 1 were meant: the curvature grows by their square."""
    model = network(64, 32, 10)
    return on_digits(model, sgd(model, 0.01), 60, scale=255.0, loss=squared)


@faulty("exploding")
def rate_grows_for_ever(seed: int) -> Training:
    """A warm-up without an end: the rate grows by a tenth every update."""
    model = network(64, 32, 10)
    optimizer = sgd(model, 0.01)

    def grow(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 0.01 * 1.1**step

    return on_digits(model, optimizer, 150, loss=squared, before_update=grow)


@faulty("exploding")
def rate_jumps_late(seed: int) -> Training:
    """Healthy for 100 updates; then a schedule's bug multiplies the rate by 300."""
    model = network(64, 32, 10)
    optimizer = sgd(model, 0.05)

    def jump(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 0.05 if step < 100 else 15.0

    return on_digits(model, optimizer, 150, loss=squared, before_update=jump)


@faulty("exploding", also=("unstable",))
def clipped_but_diverging(seed: int) -> Training:
    """The loop clips to 10, yet the rate makes each step overshoot: norms grow behind the clipping."""
    model = network(64, 64, 10)

    def clip(step: int) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)

    return on_digits(model, sgd(model, 3.0), 80, loss=squared, before_update=clip)


@faulty("exploding")
def loss_summed_over_the_batch(seed: int) -> Training:
    """``reduction="sum"`` with the rate of a mean: 256 times too fast."""
    model = network(64, 32, 10)
    return on_digits(model, sgd(model, 0.1), 60, batch=256, loss=lambda output, y: squared(output, y) * len(y))


@faulty("exploding")
def ascends(seed: int) -> Training:
    """The sign of a squared error is wrong: the error grows without bound."""
    model = network(64, 32, 10)
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        return -squared(model(x[chosen]), y[chosen])

    return plain(model, sgd(model, 0.1), loss_of, 60)


@faulty("nonfinite", also=("exploding",))
def deep_relu_started_too_large(seed: int) -> Training:
    """Twelve ReLU layers at three times He's standard deviation: each layer trebles what passes it, both ways."""
    model = network(64, *[64] * 12, 10)
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=3 * (2 / module.in_features) ** 0.5)
    return on_digits(model, sgd(model, 1e-9), 60, loss=squared)


@faulty("vanishing", attainable=0.5, also=("saturated",))
def sigmoids_of_width_16(seed: int) -> Training:
    """Eight narrow sigmoid layers under Adam: the first layers get a millionth of the gradient."""
    model = network(64, *[16] * 8, 10, activation=nn.Sigmoid)
    return on_digits(model, torch.optim.Adam(model.parameters(), lr=1e-3), 120)


@faulty("vanishing", attainable=0.5)
def tanh_started_small(seed: int) -> Training:
    """Twelve tanh layers with a standard deviation of 0.05 where 0.18 would keep the variance."""
    model = network(64, *[32] * 12, 10, activation=nn.Tanh)
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.05)
    return on_digits(model, sgd(model, 0.1), 120)


@faulty("vanishing", attainable=0.5)
def relu_twenty_layers_default(seed: int) -> Training:
    """Twenty ReLU layers with torch's default initialisation, which loses a third of the variance a layer."""
    model = network(64, *[32] * 20, 10)
    return on_digits(model, sgd(model, 0.1), 120)


@faulty("vanishing", attainable=0.5)
def five_sigmoids(seed: int) -> Training:
    """Five sigmoid layers under plain descent: slow to tell from healthy, learns nothing."""
    model = network(64, *[32] * 5, 10, activation=nn.Sigmoid)
    return on_digits(model, sgd(model, 0.1), 150)


@faulty("vanishing", attainable=0.5, also=("dead", "stalled"))
def every_relu_dead(seed: int) -> Training:
    """A bias of −20 before the last ReLU: no unit ever fires, no gradient passes."""
    model = network(64, 32, 32, 10)
    nn.init.constant_(model[2].bias, -20.0)
    return on_digits(model, sgd(model, 0.1), 120)


@faulty("vanishing", attainable=0.5, also=("saturated", "stalled"))
def saturated_by_a_bias(seed: int) -> Training:
    """A bias of 40 before the second sigmoid: flat everywhere, its output is 1 whatever the input."""
    model = network(64, 32, 32, 10, activation=nn.Sigmoid)
    nn.init.constant_(model[2].bias, 40.0)
    return on_digits(model, sgd(model, 0.1), 120)


@faulty("exploding", also=("unstable",))
def one_update_too_large(seed: int) -> Training:
    """Learns for 60 updates; then one update at 200,000 times the rate, from which it never recovers."""
    model = network(64, 32, 10)
    optimizer = sgd(model, 0.1)

    def jump(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 20000.0 if step == 60 else 0.1

    return on_digits(model, optimizer, 200, before_update=jump)


@faulty("unstable", also=("exploding",))
def bounces_between_walls(seed: int) -> Training:
    """A rate at which cross-entropy overshoots again and again without diverging."""
    model = network(64, 64, 10)
    return on_digits(model, sgd(model, 60.0), 150)


@faulty("unstable", also=("exploding",))
def adam_far_too_fast(seed: int) -> Training:
    """Adam at a rate of 10: it moves every weight by 10 an update."""
    model = network(64, 32, 10)
    return on_digits(model, torch.optim.Adam(model.parameters(), lr=10.0), 150)


@faulty("stalled", attainable=1.0)
def rate_of_nothing(seed: int) -> Training:
    """A rate of 1e-12: no weight changes by more than rounding."""
    model = network(64, 32, 10)
    return on_digits(model, sgd(model, 1e-12), 120)


@faulty("stalled", attainable=1.0)
def schedule_stuck_at_zero(seed: int) -> Training:
    """A warm-up whose counter never advances: the rate stays at zero."""
    model = network(64, 32, 10)
    return on_digits(model, torch.optim.AdamW(model.parameters(), lr=0.0), 120)


def sick_from(step_of_onset: int, sick: Callable[[Tensor], Tensor]) -> Loss:
    """Cross-entropy whose logits pass ``sick`` from one update on."""
    seen = 0

    def loss(output: Tensor, y: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        return F.cross_entropy(sick(output) if seen > step_of_onset else output, y)

    return loss


@faulty("nonfinite")
def log_of_a_difference(seed: int) -> Training:
    """From update 70 on the logits pass a logarithm of numbers that may be negative."""
    model = network(64, 32, 10)
    return on_digits(model, sgd(model, 0.1), 100, loss=sick_from(70, lambda output: output.log()))


@faulty("nonfinite")
def root_of_zero(seed: int) -> Training:
    """The root of an exact zero: its value is fine, its gradient infinite, times zero."""
    model = network(64, 32, 10)
    return on_digits(
        model, sgd(model, 0.1), 60, loss=sick_from(30, lambda output: output + (output - output).square().sqrt())
    )


@faulty("nonfinite")
def one_bad_pixel(seed: int) -> Training:
    """One NaN among the inputs of the 40th batch."""
    model = network(64, 32, 10)
    x, y = digits()

    def draw(step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(x), (64,))
        inputs = x[chosen]
        if step == 40:
            inputs[3, 5] = torch.nan
        return inputs, y[chosen]

    return supervised(model, sgd(model, 0.1), draw, F.cross_entropy, 80)


@faulty("nonfinite")
def masked_row_of_attention(seed: int) -> Training:
    """A row of the mask hides every key: its softmax is 0/0."""
    x, y = digits()
    attend, head = nn.MultiheadAttention(8, 1, batch_first=True), nn.Linear(8, 10)
    model = nn.ModuleDict({"attend": attend, "head": head})

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (32,))
        rows = x[chosen].reshape(-1, 8, 8)
        mask = torch.zeros(8, 8)
        if step >= 25:
            mask[7] = -torch.inf
        return F.cross_entropy(head(attend(rows, rows, rows, attn_mask=mask)[0].mean(1)), y[chosen])

    return plain(model, sgd(model, 0.1), loss_of, 50)


@faulty("nonfinite", layers=("*",))
def one_corrupt_weight(seed: int) -> Training:
    """A bit flips at update 50: one weight of the third layer becomes Inf."""
    model = network(64, 32, 32, 32, 10)

    def corrupt(step: int) -> None:
        if step == 50:
            with torch.no_grad():
                model[4].weight[0, 0] = torch.inf

    return on_digits(model, sgd(model, 0.1), 80, before_update=corrupt)


@faulty("nonfinite")
def half_precision_overflows(seed: int) -> Training:
    """An activation is cast to float16 and squared: beyond 65,504 it is Inf."""
    model = network(64, 32, 10)
    return on_digits(
        model,
        sgd(model, 0.1),
        60,
        loss=sick_from(20, lambda output: ((output * 300).half() ** 2).float() / 90_000),
    )
