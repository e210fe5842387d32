"""One branch learns nothing while a residual path lets the rest learn; and branches that wake up from nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.others.parts import adam, classifier, explained, network, sample, scored
from benchmarks.detection.program import Pair, Training, plain


class Attention(nn.Module):
    """One head over all positions; queries and keys start ``sharpness`` times as large as usual."""

    def __init__(self, width: int, sharpness: float = 1.0) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)
        with torch.no_grad():
            self.query.weight.mul_(sharpness)
            self.key.weight.mul_(sharpness)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-1, -2) / x.shape[-1] ** 0.5
        return self.out(scores.softmax(-1) @ self.value(x))


class Branch(nn.Module):
    """x + scale · inner(norm(x)), where the scale is learned if ``is_learned``."""

    def __init__(self, width: int, inner: nn.Module, scale: float = 1.0, is_learned: bool = False) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), inner
        self.scale = nn.Parameter(torch.full((width,), scale)) if is_learned else scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.inner(self.norm(x))


class Reader(nn.Module):
    """Rows of a digit as eight tokens, blocks of attention and feed-forward by turns, the last row's head."""

    def __init__(self, make_branches: Callable[[int], list[nn.Module]], width: int = 32) -> None:
        super().__init__()
        self.row, self.position = nn.Linear(8, width), nn.Parameter(0.3 * torch.randn(8, width))
        self.branches = nn.Sequential(*make_branches(width))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        h = self.row(x.view(-1, 8, 8)) + self.position
        return self.head(self.branches(h)[:, 4])


def read(make_branches: Callable[[int], list[nn.Module]], rate: float = 2e-3, steps: int = 150) -> Training:
    model = Reader(make_branches)
    return classifier(model, adam(model, rate), steps)


def perceptron(width: int) -> nn.Module:
    return network(width, 2 * width, width, activation=nn.GELU)


READER = Pair("transformer that reads rows", reaches=0.8)


@READER.sick(
    "vanishing",
    also=("stalled",),
    layers=("branches.0.inner.*", "branches.2.inner.*"),
    cause="the attention branches are scaled by 1e-6 and cannot grow out of it",
)
def attention_scaled_by_a_millionth(seed: int) -> Training:
    """A layer scale of 1e-6, a buffer by mistake: attention has no say, and the head sees one row of eight."""
    return read(
        lambda width: [
            Branch(width, Attention(width), 1e-6), Branch(width, perceptron(width)),
            Branch(width, Attention(width), 1e-6), Branch(width, perceptron(width)),
        ]
    )  # fmt: skip


@READER.healthy
def attention_scaled_from_zero(seed: int) -> Training:
    """A learned layer scale that starts at zero (ReZero): the branches begin without gradient and wake up."""
    return read(
        lambda width: [
            Branch(width, Attention(width), 0.0, True), Branch(width, perceptron(width), 0.0, True),
            Branch(width, Attention(width), 0.0, True), Branch(width, perceptron(width), 0.0, True),
        ],
        5e-3,
        200,
    )  # fmt: skip


@READER.healthy
def attention_scaled_by_a_learned_millionth(seed: int) -> Training:
    """A learned layer scale that starts at 1e-6 (CaiT): it is out of it after some updates of Adam."""
    return read(
        lambda width: [
            Branch(width, Attention(width), 1e-6, True), Branch(width, perceptron(width), 1e-6, True),
            Branch(width, Attention(width), 1e-6, True), Branch(width, perceptron(width), 1e-6, True),
        ],
        5e-3,
        200,
    )  # fmt: skip


class Cut(nn.Module):
    """Passes its input on and stops the gradient."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).detach()


@READER.sick(
    "stalled",
    also=("vanishing",),
    layers=("branches.0.inner.*", "branches.2.inner.*"),
    cause="a detach behind both attention branches: nothing in them gets a gradient",
)
def attention_detached(seed: int) -> Training:
    """A detach that was meant for a visualisation cuts the attention off; feed-forward and head still learn."""
    return read(
        lambda width: [
            Branch(width, Cut(Attention(width, 0.01))), Branch(width, perceptron(width)),
            Branch(width, Cut(Attention(width, 0.01))), Branch(width, perceptron(width)),
        ],
        steps=100,
    )  # fmt: skip


class Gated(nn.Module):
    """x + σ(gate) · inner(x), with one learned gate for each unit."""

    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.inner = network(width, width, width, activation=nn.Tanh)
        self.gate = nn.Parameter(torch.full((width,), bias))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate.sigmoid() * self.inner(x)


def waves() -> tuple[Tensor, Tensor]:
    """Points on a line, and a curve through them that no line follows."""
    x = torch.rand(500, 1) * 4 - 2
    return x, torch.sin(3 * x) + 0.5 * x


def gated(bias: float) -> Training:
    """A linear path and three gated blocks; only the blocks can follow the curve."""
    x, y = waves()
    model = nn.Sequential(nn.Linear(1, 24), *[Gated(24, bias) for _ in range(3)], nn.Linear(24, 1))

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        return F.mse_loss(model(x[chosen]), y[chosen])

    return scored(plain(model, adam(model, 5e-3), loss_of, 400), explained(model, x, y))


GATES = Pair("gated residual blocks", reaches=0.8)


@GATES.sick("vanishing", also=("saturated", "stalled"), layers=("[123].*",), cause="the gates start shut, at σ(−15)")
def gates_shut_from_the_start(seed: int) -> Training:
    """Every gate starts at −15, and 3e-7 of each branch passes: only the linear path learns."""
    return gated(-15.0)


@GATES.healthy
def gates_ajar(seed: int) -> Training:
    """Gates that start at −2, as in highway networks."""
    return gated(-2.0)


class SoftExperts(nn.Module):
    """Experts weighed by a softmax of their router's scores, on a path beside the input."""

    def __init__(self, width: int, count: int, scale: float) -> None:
        super().__init__()
        self.router, self.scale = nn.Linear(2, count), scale
        self.experts = nn.ModuleList(nn.Linear(2, 1) for _ in range(count))
        with torch.no_grad():
            self.router.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.scale * (self.router(x))).softmax(-1)
        outputs = torch.cat([expert(x) for expert in self.experts], dim=-1)
        return (weights * outputs).sum(-1, keepdim=True)


def experts(bias: float) -> Training:
    """Four planes meet along two lines; each expert is one plane."""
    x = torch.randn(800, 2)
    y = x.abs().sum(1, keepdim=True)
    model = SoftExperts(2, 4, 3.0)
    with torch.no_grad():
        model.router.bias[0] = bias

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (128,))
        return F.mse_loss(model(x[chosen]), y[chosen])

    return scored(plain(model, adam(model, 2e-2), loss_of, 400), explained(model, x, y))


EXPERTS = Pair("mixture of four experts", reaches=0.8)


@EXPERTS.sick(
    "vanishing",
    also=("saturated", "stalled"),
    layers=("experts.[123].*", "router.*"),
    cause="the router sends everything to one expert, with a certainty of 1 − 1e-20",
)
def router_collapsed(seed: int) -> Training:
    """The router's bias for the first expert is 16, by a checkpoint of another task: the others get no gradient."""
    return experts(16.0)


@EXPERTS.healthy
def router_shares_out(seed: int) -> Training:
    """The same mixture with a router that starts without a preference."""
    return experts(0.0)


class Adapted(nn.Module):
    """A frozen layer and a low-rank update of it."""

    def __init__(self, base: nn.Linear, rank: int = 4, scale: float = 2.0) -> None:
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), scale
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.up(self.down(x))


def pretrained(steps: int = 150) -> nn.Sequential:
    """Return a network that tells digits modulo five."""
    model = network(64, 48, 48, 10)
    optimizer = adam(model, 5e-3)
    for _ in range(steps):
        x, y = sample()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y % 5).backward()
        optimizer.step()
    model.zero_grad()
    return model


def adapters(is_late: bool) -> Training:
    """Low-rank adapters on a frozen network; the optimizer is made before them where ``is_late``."""
    model = pretrained()
    before = adam(model, 5e-3)
    for index in (0, 2, 4):
        model[index] = Adapted(model[index], rank=8)
    optimizer = before if is_late else torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    return classifier(model, optimizer, 300)


ADAPTERS = Pair("low-rank adapters on a frozen network", reaches=0.7)


@ADAPTERS.sick(
    "stalled",
    layers=("*.up.*", "*.down.*"),
    cause="the optimizer was made before the adapters and holds frozen weights",
)
def adapters_made_after_their_optimizer(seed: int) -> Training:
    """The adapters have gradients, yet the optimizer knows only the frozen weights."""
    return adapters(True)


@ADAPTERS.healthy
def adapters_that_wake_up(seed: int) -> Training:
    """One half of each adapter starts at zero, the other without gradient; base and head stay frozen."""
    return adapters(False)


class Marked(nn.Module):
    """Items of which one is marked; the head sees the first item alone, and the others only through attention."""

    def __init__(self, sharpness: float, width: int = 16) -> None:
        super().__init__()
        self.token = nn.Linear(2, width)
        self.attention, self.perceptron = Attention(width, sharpness), perceptron(width)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.token(x)
        h = h + self.attention(h)
        h = h + self.perceptron(h)
        return self.head(h[:, 0])[:, 0]


def marked_items(sharpness: float) -> Training:
    """Tell the first item's value plus twice the marked one's."""
    model = Marked(sharpness)

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        values, mark = torch.randn(batch, 12), torch.randint(12, (batch,))
        is_marked = F.one_hot(mark, 12).float()
        return torch.stack([values, is_marked], dim=-1), values[:, 0] + 2 * (values * is_marked).sum(1)

    def loss_of(step: int) -> Tensor:
        x, y = draw(64)
        return F.mse_loss(model(x), y)

    return scored(plain(model, adam(model, 5e-3), loss_of, 250), explained(model, *draw(500)))


class Pooled(nn.Module):
    """Scores of eight rows, (N, 8, 1), their softmax over ``dim``, the weighted mean of the rows, a head."""

    def __init__(self, dim: int, width: int = 24) -> None:
        super().__init__()
        self.score, self.value = network(3, 16, 1, activation=nn.Tanh), nn.Linear(3, width)
        self.head, self.dim = nn.Linear(width, 1), dim

    def forward(self, x: Tensor) -> Tensor:
        weights = self.score(x).softmax(self.dim)
        return self.head(torch.tanh((weights * self.value(x)).sum(1)))[:, 0]


def pooled(dim: int) -> Training:
    """Find the marked one of eight items, and tell its value."""
    model = Pooled(dim)

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        values, mark = torch.randn(batch, 8, 2), F.one_hot(torch.randint(8, (batch,)), 8).float()
        return torch.cat([values, mark[..., None]], dim=-1), (values[..., 0] * mark).sum(1)

    def loss_of(step: int) -> Tensor:
        x, y = draw(64)
        return F.mse_loss(model(x), y)

    return scored(plain(model, adam(model, 5e-3), loss_of, 300), explained(model, *draw(500)))


POOLING = Pair("pooling by attention", reaches=0.7)


@POOLING.sick(
    "vanishing",
    also=("stalled",),
    layers=("score.*",),
    cause="the softmax is over an axis of one entry: its slope is zero",
)
def pooling_over_the_wrong_axis(seed: int) -> Training:
    """The softmax over the last axis has one entry, so that every weight is 1 and the scores get no gradient."""
    return pooled(-1)


@POOLING.healthy
def pooling_over_the_items(seed: int) -> Training:
    """The softmax over the eight items."""
    return pooled(1)


POINTERS = Pair("attention that finds a marked item", reaches=0.7)


@POINTERS.sick(
    "saturated",
    also=("vanishing", "stalled"),
    layers=("attention.query.*", "attention.key.*"),
    cause="queries and keys started so large that the attention is one-hot",
)
def attention_one_hot_from_the_start(seed: int) -> Training:
    """Queries and keys are 1,000 times too large: each position attends to one other, and that choice has no slope."""
    return marked_items(1000.0)


@POINTERS.healthy
def attention_that_becomes_sharp(seed: int) -> Training:
    """The same with ordinary queries and keys; in the end attention is as sharp as the task asks for."""
    return marked_items(1.0)
