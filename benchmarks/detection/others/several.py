"""Several towers, heads, networks and losses side by side: parallel, not deep; each with a twin that is sick."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.others.parts import adam, explained, held_out, network, sample, scored, sgd
from benchmarks.detection.program import Observe, Pair, Training, plain


class Towers(nn.Module):
    """A deep tower for the upper half of a digit, a shallow one for the lower half."""

    def __init__(self, is_detached: bool) -> None:
        super().__init__()
        self.upper, self.lower = network(32, 48, 48, 48, 16), network(32, 16)
        self.is_detached = is_detached

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        upper, lower = self.upper(x[:, :32]), self.lower(x[:, 32:])
        if self.is_detached:
            upper = upper.detach()
        return F.normalize(upper, dim=1, eps=1e-6), F.normalize(lower, dim=1, eps=1e-6)


def contrastive(is_detached: bool, temperature: float) -> Training:
    """Match upper and lower halves of the same digit among 64."""
    model = Towers(is_detached)

    def similarity(x: Tensor) -> Tensor:
        upper, lower = model(x)
        return upper @ lower.T / temperature

    def loss_of(step: int) -> Tensor:
        scores = similarity(sample()[0])
        own = torch.arange(len(scores))
        return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2

    def score() -> Tensor:
        scores = similarity(held_out()[0][:64])
        return (scores.argsort(1, descending=True)[:, :5] == torch.arange(64)[:, None]).any(1).float().mean()

    return scored(plain(model, adam(model, 3e-3), loss_of, 250), score)


TOWERS = Pair("two towers, contrasted", reaches=0.6)


@TOWERS.sick(
    "stalled",
    also=("vanishing",),
    layers=("upper.*",),
    cause="the deep tower's output is detached, as a cache would be",
)
def deep_tower_detached(seed: int) -> Training:
    """The deep tower's embeddings are detached, as a cache would be, though the tower is meant to learn."""
    return contrastive(True, 0.1)


@TOWERS.healthy
def deep_and_shallow_tower(seed: int) -> Training:
    """A deep and a shallow tower side by side: gradients of very different size, both learn."""
    return contrastive(False, 0.1)


def siamese(margin: float, is_rooted: bool) -> Training:
    """One encoder twice: digits of a class come close, others stay a margin away."""
    model = network(64, 48, 48, 8)

    def distance(first: Tensor, second: Tensor) -> Tensor:
        squares = (model(first) - model(second)).square().sum(1)
        return squares.sqrt() if is_rooted else (squares + 1e-8).sqrt()

    def loss_of(step: int) -> Tensor:
        x, y = sample()
        second, other = sample()
        if step >= 30:  # augmentation that may pick the same picture twice
            second[:2], other[:2] = x[:2], y[:2]
        gap = distance(x, second)
        is_same = (y == other).float()
        return (is_same * gap.square() + (1 - is_same) * F.relu(margin - gap).square()).mean()

    def score() -> Tensor:
        x, y = held_out()
        embedded = model(x)
        distances = torch.cdist(embedded, embedded) + 1e6 * torch.eye(len(x))
        is_finite = torch.isfinite(embedded).all()
        return (y[distances.argmin(1)] == y).float().mean() if is_finite else torch.tensor(torch.nan)

    return scored(plain(model, adam(model, 3e-3), loss_of, 200), score)


SIAMESE = Pair("siamese encoder", reaches=0.8)


@SIAMESE.sick("nonfinite", cause="the root of a squared distance of exactly zero has no derivative")
def siamese_distance_of_the_same_picture(seed: int) -> Training:
    """A pair of the same picture twice: the root at zero has an infinite slope, times zero."""
    return siamese(2.0, True)


@SIAMESE.healthy
def siamese_distance_rounded_up(seed: int) -> Training:
    """The same with 1e-8 below the root."""
    return siamese(2.0, False)


class Predictor(nn.Module):
    """SimSiam's encoder and predictor."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16))
        self.norm, self.predictor = nn.BatchNorm1d(16, affine=False), network(16, 8, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.encoder(x))


def self_supervised(is_cut_twice: bool) -> Training:
    """Two noisy views of a digit; each view's prediction follows the other's embedding, which is detached."""
    model = Predictor()

    def views(x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (x + 0.3 * torch.randn_like(x) for _ in range(2))
        return model(first), model(second)

    def similarity(z1: Tensor, z2: Tensor) -> Tensor:
        p1, p2 = (model.predictor(z.detach() if is_cut_twice else z) for z in (z1, z2))
        return (F.cosine_similarity(p1, z2.detach()).mean() + F.cosine_similarity(p2, z1.detach()).mean()) / 2

    def loss_of(step: int) -> Tensor:
        return -similarity(*views(sample(128)[0]))

    made = plain(model, sgd(model, 0.1, momentum=0.9), loss_of, 200)
    return scored(made, lambda: similarity(*views(held_out()[0])))


VIEWS = Pair("two views, one stopped", reaches=0.75)


@VIEWS.sick(
    "stalled",
    also=("vanishing",),
    layers=("encoder.*",),
    cause="both paths into the encoder are detached, not one of them",
)
def views_both_stopped(seed: int) -> Training:
    """The predictor's input is detached, too: the encoder gets no gradient, and random features are followed."""
    return self_supervised(True)


@VIEWS.healthy
def views_one_stopped(seed: int) -> Training:
    """SimSiam: gradients pass through one view and stop at the other; the loss is negative."""
    return self_supervised(False)


class ClassAndPlace(nn.Module):
    """A deep head and a shallow one on one trunk, each with its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = network(64, 48, 48)
        self.kind, self.weight = network(48, 48, 48, 10), nn.Linear(48, 1)


def own_losses(is_too_fast: bool) -> Training:
    """Classes, and the sum of all pixels; an optimizer for each head, the trunk with the first."""
    model = ClassAndPlace()
    first = torch.optim.Adam([*model.trunk.parameters(), *model.kind.parameters()], lr=1.5e-3)
    own = model.weight.parameters()
    second = torch.optim.SGD(own, lr=0.03) if is_too_fast else torch.optim.Adam(own, lr=2e-2)

    def target(x: Tensor) -> Tensor:
        return (x.sum(1) - 19) / 3

    def step(number: int, observe: Observe) -> None:
        x, y = sample()
        h = model.trunk(x).relu()
        first.zero_grad()
        second.zero_grad()
        losses = F.cross_entropy(model.kind(h), y), F.mse_loss(model.weight(h.detach())[:, 0], target(x))
        for loss in losses:
            observe(loss)
            loss.backward()
        first.step()
        second.step()

    def score() -> Tensor:
        x, y = held_out()
        h = model.trunk(x).relu()
        is_right = (model.kind(h).argmax(1) == y).float().mean()
        return torch.minimum(is_right, explained(lambda rows: model.weight(rows)[:, 0], h, target(x))() + 0.3)

    return scored(Training(model, [first, second], 300, step), score)


HEADS = Pair("two heads with losses and optimizers of their own", reaches=0.6)


@HEADS.healthy
def heads_by_optimizers_of_their_own(seed: int) -> Training:
    """A deep and a shallow head, a loss and an optimizer each; the second reads the trunk detached, on purpose."""
    return own_losses(False)


@HEADS.sick(
    "exploding",
    also=("nonfinite", "unstable"),
    layers=("weight.*",),
    cause="the second head's rate is too high once the features that it reads have grown",
)
def second_head_outrun_by_its_features(seed: int) -> Training:
    """Plain descent at 0.03 fits the features of the start; they grow, the curvature with them, and it diverges."""
    return own_losses(True)


class Teacher(nn.Module):
    """A student and its teacher, an average of it that no optimizer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.student = network(64, 48, 10)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)


def averaged(share: float) -> Training:
    """Few labels, and agreement with the average of the student's own weights (mean teacher)."""
    model = Teacher()
    optimizer = adam(model.student, 3e-3)

    def step(number: int, observe: Observe) -> None:
        x, y = sample()
        with torch.no_grad():
            expected = model.teacher(x).softmax(1)
        logits = model.student(x + 0.1 * torch.randn_like(x))
        loss = F.cross_entropy(logits[:32], y[:32]) + 0.5 * F.mse_loss(logits.softmax(1), expected)
        optimizer.zero_grad()
        observe(loss)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(model.teacher.parameters(), model.student.parameters()):
                mine.lerp_(theirs, share)

    def score() -> Tensor:
        x, y = held_out()
        return (model.teacher(x).argmax(1) == y).float().mean()

    return scored(Training(model, [optimizer], 200, step), score)


HEALTHY_ALONE = Pair("parts that stand still on purpose", reaches=0.75)


@HEALTHY_ALONE.healthy
def teacher_averages_its_student(seed: int) -> Training:
    """A mean teacher: half of the parameters have no gradient and no optimizer, and move nevertheless."""
    return averaged(0.05)


@HEALTHY_ALONE.healthy
def trunk_frozen_for_the_first_epochs(seed: int) -> Training:
    """Head first, everything after 100 updates (gradual unfreezing), one optimizer throughout."""
    model = nn.ModuleDict({"trunk": network(64, 48, 48), "head": nn.Linear(48, 10)})
    optimizer = adam(model, 3e-3)

    def forward(x: Tensor) -> Tensor:
        return model["head"](model["trunk"](x).relu())

    def step(number: int, observe: Observe) -> None:
        model["trunk"].requires_grad_(number >= 100)
        x, y = sample()
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(x), y)
        observe(loss)
        loss.backward()
        optimizer.step()

    def score() -> Tensor:
        x, y = held_out()
        return (forward(x).argmax(1) == y).float().mean()

    return scored(Training(model, [optimizer], 250, step), score)


class Trajectory(nn.Module):
    """The solution of an equation, f(t), and its derivative by autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(1, 32, 32, 1, activation=nn.Tanh)

    def forward(self, t: Tensor) -> Tensor:
        return self.net(t)


def physics() -> Training:
    """Solve f' = −2 f, f(0) = 1 by a network whose derivative is in the loss."""
    model = Trajectory()

    def residual(t: Tensor) -> Tensor:
        t = t.requires_grad_()
        f = model(t)
        slope = torch.autograd.grad(f.sum(), t, create_graph=True)[0]
        return (slope + 2 * f).square()

    def loss_of(step: int) -> Tensor:
        start = (model(torch.zeros(1, 1)) - 1).square().sum()
        return residual(torch.rand(64, 1)).mean() + 10 * start

    t = torch.linspace(0, 1, 100)[:, None]
    return scored(plain(model, adam(model, 3e-3), loss_of, 400), explained(model, t, torch.exp(-2 * t)))


HEALTHY_PHYSICS = Pair("derivatives in the loss", reaches=0.9)


@HEALTHY_PHYSICS.healthy
def decay_by_its_equation(seed: int) -> Training:
    """A network that solves an equation: second derivatives, two losses summed, targets of zero."""
    return physics()


def inner_loop(rate: float) -> Training:
    """MAML on sine curves: one inner update by ``autograd.grad``, an outer one by Adam."""
    model = network(1, 32, 32, 1, activation=nn.Tanh)
    optimizer = adam(model, 3e-3)
    names = [name for name, _ in model.named_parameters()]

    def adapted(x: Tensor, y: Tensor, is_training: bool) -> dict[str, Tensor]:
        weights = dict(model.named_parameters())
        with torch.enable_grad():
            loss = F.mse_loss(model(x), y)
            gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=is_training)
        return {name: weights[name] - rate * gradient for name, gradient in zip(names, gradients)}

    def draw() -> tuple[Tensor, Tensor]:
        x = torch.rand(40, 1) * 4 - 2
        return x, (torch.rand(()) + 0.5) * torch.sin(x + torch.rand(()))

    def outer(is_training: bool) -> Tensor:
        x, y = draw()
        weights = adapted(x[:20], y[:20], is_training)
        return F.mse_loss(torch.func.functional_call(model, weights, (x[20:],)), y[20:])

    def step(number: int, observe: Observe) -> None:
        optimizer.zero_grad()
        loss = torch.stack([outer(True) for _ in range(4)]).mean()
        observe(loss)
        loss.backward()
        optimizer.step()

    return scored(
        Training(model, [optimizer], 150, step), lambda: -torch.stack([outer(False) for _ in range(30)]).mean()
    )


META = Pair("learning to learn", reaches=-0.15)


@META.healthy
def learned_from_one_inner_update(seed: int) -> Training:
    """MAML with an inner rate of 0.05."""
    return inner_loop(0.05)


@META.sick(
    "exploding",
    also=("unstable", "nonfinite", "saturated"),
    cause="the inner rate is so high that the inner update overshoots",
)
def inner_rate_far_too_high(seed: int) -> Training:
    """An inner rate of 50: the adapted weights are thrown far away, and the outer gradient runs through that."""
    return inner_loop(50.0)
