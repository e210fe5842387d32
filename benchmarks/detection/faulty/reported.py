"""More failures that people reported, made again from the facts of their reports."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import digits, windows
from benchmarks.detection.program import Observe, Training, faulty, plain, supervised


def sgd(model: nn.Module, rate: float, momentum: float = 0.0) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)


def convolutional(last: nn.Module | None = None) -> nn.Sequential:
    """Two convolutions with pools, one linear layer, for digits."""
    layers = [
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    ]  # fmt: skip
    return nn.Sequential(*layers, *([] if last is None else [last]))


@faulty("vanishing", also=("saturated", "stalled"), attainable=0.1)
def permutation_of_bytes(seed: int) -> Training:
    """256 8-bit vectors to a random permutation; 8–8–8 sigmoid, N(0, .05), MSE, SGD .01 (Stack Overflow 39217567)."""
    bits = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).float()
    targets = bits[torch.randperm(256)]
    model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Sigmoid())
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return supervised(model, sgd(model, 0.01), lambda step: (bits, targets), F.mse_loss, 150)


@faulty("vanishing", also=("saturated", "stalled"), attainable=1e3)
def sigmoid_for_an_unbounded_target(seed: int) -> Training:
    """An unbounded linear target, 5–1 sigmoid, MSE, full batch: saturated at 1 (Stack Overflow 48221692)."""
    x = torch.rand(200, 3) * 100
    y = x @ torch.tensor([[3.0], [2.0], [1.0]]) + 5
    model = nn.Sequential(nn.Linear(3, 5), nn.Sigmoid(), nn.Linear(5, 1), nn.Sigmoid())
    return supervised(model, sgd(model, 0.1), lambda step: (x, y), F.mse_loss, 150)


@faulty("unstable", also=("stalled", "saturated", "exploding"))
def cross_entropy_under_a_rate_of_200(seed: int) -> Training:
    """A rate far too high for a plain classifier of digits: the loss leaps, update after update."""
    x, y = digits()
    model = nn.Linear(64, 10)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(x), (64,))
        return x[chosen], y[chosen]

    return supervised(model, sgd(model, 200.0), draw, F.cross_entropy, 150)


@faulty("exploding", also=("nonfinite",))
def line_through_eight_points(seed: int) -> Training:
    """8 points x ~ U(−8, 8), y = wx + b from zero, lr .1: each update overshoots."""
    x = torch.linspace(-8, 8, 8)[:, None] + torch.rand(8, 1)
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return supervised(model, sgd(model, 0.1), lambda step: (x, 3 * x + 1), F.mse_loss, 60)


@faulty("exploding", also=("nonfinite",))
def time_as_it_is(seed: int) -> Training:
    """T = 0..99 raw, a linear model, SSE/200, lr .5: Inf within a few updates."""
    t = torch.arange(100.0)[:, None]
    model = nn.Linear(1, 1)
    return plain(model, sgd(model, 0.5), lambda step: (model(t) - (2 * t + 1)).square().sum() / 200, 40)


@faulty("nonfinite")
def logarithm_of_raw_logits(seed: int) -> Training:
    """512 sigmoid units, W ~ N(0, 1), binary cross-entropy written on raw logits, lr .05: log of a negative number."""
    x, y = digits()
    target = (y % 2).float()[:, None]
    model = nn.Sequential(nn.Linear(64, 512), nn.Sigmoid(), nn.Linear(512, 1))
    for parameter in model.parameters():
        nn.init.normal_(parameter)

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        output = model(x[chosen])
        return -(target[chosen] * output.log() + (1 - target[chosen]) * (1 - output).log()).mean()

    return plain(model, sgd(model, 0.05), loss_of, 40)


@faulty("vanishing", also=("dead", "stalled"), attainable=0.5)
def relu_on_the_logits(seed: int) -> Training:
    """A ReLU on the logits before cross-entropy; a bias that starts low leaves every output dead."""
    x, y = digits()
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10), nn.ReLU())
    nn.init.constant_(model[2].bias, -5.0)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(x), (64,))
        return x[chosen], y[chosen]

    return supervised(model, sgd(model, 0.1), draw, F.cross_entropy, 120)


@faulty("vanishing", also=("saturated", "stalled"), attainable=0.05)
def one_sigmoid_under_a_rate_of_10_000(seed: int) -> Training:
    """Y = σ(Wx), lr 10,000 on inputs near 1: the first update saturates every output (after discuss.pytorch 153791)."""
    x = torch.rand(64, 8) + 0.5
    y = torch.rand(64, 4)
    model = nn.Sequential(nn.Linear(8, 4), nn.Sigmoid())
    return supervised(model, sgd(model, 10_000.0), lambda step: (x, y), F.mse_loss, 120)


class LowRank(nn.Module):
    """A frozen linear layer and an update of low rank."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.zeros(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


@faulty("vanishing", also=("stalled",), attainable=1.5)
def low_rank_with_both_halves_zero(seed: int) -> Training:
    """LoRA with A = B = 0: each half's gradient is a product with the other, zero for ever."""
    x, y = digits()
    model = nn.Sequential(LowRank(nn.Linear(64, 64)), nn.ReLU(), LowRank(nn.Linear(64, 10)))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(x), (64,))
        return x[chosen], y[chosen]

    return supervised(model, optimizer, draw, F.cross_entropy, 120)


@faulty("nonfinite")
def where_after_the_division(seed: int) -> Training:
    """``where(n == 0, 0, x / n)``: the loss is finite, the gradient 0 · Inf (pytorch 16317)."""
    x, y = digits()
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        output = model(x[chosen])
        count = F.relu(output).sum(1, keepdim=True)
        count = count + 1 if step < 15 else torch.cat([count[1:] + 1, count[:1] * 0])
        return F.cross_entropy(torch.where(count == 0, torch.zeros_like(output), output / count), y[chosen])

    return plain(model, sgd(model, 0.1), loss_of, 40)


class Gpt(nn.Module):
    """A small post-norm transformer of characters."""

    def __init__(self, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(128, width), nn.Embedding(64, width)
        layer = nn.TransformerEncoderLayer(width, 2, 4 * width, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, depth)
        self.head = nn.Linear(width, 128)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.embedding(tokens) + self.position(torch.arange(length))
        return self.head(self.body(x, mask=mask, is_causal=True))


@faulty("exploding", also=("nonfinite", "unstable"))
def language_model_whose_rate_breaks_out(seed: int) -> Training:
    """A nanoGPT-like model whose schedule lets its rate grow: late, the loss turns up and never comes down again."""
    model = Gpt()
    optimizer = sgd(model, 0.05, momentum=0.9)

    def grow(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 0.05 if step < 60 else 0.05 * 1.35 ** (step - 60)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = windows(8, 32)
        return inputs, targets

    loss = lambda output, y: F.cross_entropy(output.flatten(0, 1), y.flatten())
    return supervised(model, optimizer, draw, loss, 120, before_update=grow)


@faulty("vanishing", also=("dead", "exploding", "unstable"), attainable=0.5)
def he_normal_on_raw_pixels(seed: int) -> Training:
    """A He-normal CNN on raw 0–255 images, Adam at 0.3: thrown dead at once (after Stack Overflow 48594888).

    At Adam's usual rate it learns: ``he_normal_on_raw_pixels_learns``.
    """
    x, y = digits(255.0)
    model = convolutional()
    for module in model:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(x), (32,))
        return x[chosen], y[chosen]

    return supervised(model, torch.optim.Adam(model.parameters(), lr=0.3), draw, F.cross_entropy, 80)


@faulty("vanishing", also=("saturated",), attainable=0.5)
def critic_that_is_sure(seed: int) -> Training:
    """A GAN in its minimax form against a critic that is sure of itself: log(1 − D) is flat for the generator."""
    generator, critic = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64)), nn.Linear(64, 1)
    with torch.no_grad():
        critic.weight.fill_(0.5)
        critic.bias.fill_(-120.0)
    optimizer = sgd(generator, 0.1)

    def step(number: int, observe: Observe) -> None:
        optimizer.zero_grad()
        loss = -F.softplus(critic(generator(torch.randn(64, 8)))).mean() + 1
        observe(loss)
        loss.backward()
        optimizer.step()

    return Training({"generator": generator}, [optimizer], 120, step)


class Tagger(nn.Module):
    """A recurrent classifier whose only evidence is its first input."""

    def __init__(self, cell: nn.Module, width: int) -> None:
        super().__init__()
        self.embedding, self.cell, self.head = nn.Embedding(10, 8), cell, nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.cell(self.embedding(tokens))[0][:, -1])


@faulty("vanishing", attainable=0.5, layers=("embedding.weight",))
def remembers_nothing_after_100_steps(seed: int) -> Training:
    """A tanh recurrence with small weights through 100 steps: the embedding of what matters is out of reach."""
    cell = nn.RNN(8, 16, batch_first=True)
    nn.init.orthogonal_(cell.weight_hh_l0, 0.3)
    model = Tagger(cell, 16)

    def loss_of(step: int) -> Tensor:
        first = torch.randint(10, (32,))
        hidden = cell(torch.cat([model.embedding(first)[:, None], torch.zeros(32, 99, 8)], 1))[0]
        return F.cross_entropy(model.head(hidden[:, -1]), first)

    return plain(model, sgd(model, 0.1), loss_of, 60)
