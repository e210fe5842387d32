"""GANs that draw digits, and values that chase themselves.

A critic without bound, and three ways to bound its slope. A discriminator that is sure of itself, and a loss that
bears it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from activations import stack
from side_by_side import Outcome, Table, Way, compare, digits, outcome_of
from torch import Tensor, nn
from torch.nn import functional as F

import gradwatch
from gradwatch.remedies import add_spectral_norms_, gradient_penalty

NOISE, PIXELS, CRITIC_STEPS = 16, 64, 3


class Game(nn.Module):
    """A critic and a generator; ``change`` is applied to the critic."""

    def __init__(self, change: Callable[[nn.Module, Tensor], object] = lambda critic, images: None) -> None:
        super().__init__()
        self.critic = nn.Sequential(
            nn.Linear(PIXELS, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1)
        )
        change(self.critic, torch.zeros(2, PIXELS))
        self.generator = nn.Sequential(nn.Linear(NOISE, 128), nn.ReLU(), nn.Linear(128, PIXELS), nn.Sigmoid())

    def made(self, count: int) -> Tensor:
        """Return (count, 64) images."""
        return self.generator(torch.randn(count, NOISE))


def between(real: Tensor, made: Tensor) -> Tensor:
    """Return points drawn between real and made images."""
    mix = torch.rand(len(real), 1)
    return mix * real + (1 - mix) * made


def train(way: Way, seed: int, steps: int, log_dir: Path | None, scale: float) -> Outcome:
    """Play one game; the figures are the critic's, the held-out one is the distance of images from unseen digits."""
    images, _, held_out, _ = digits(scale)
    torch.manual_seed(seed)
    game = way.model()
    critic_optimizer = way.optimizer(game.critic.parameters(), lr=way.rate)
    generator_optimizer = way.optimizer(game.generator.parameters(), lr=way.rate)
    losses, times = [], []
    with gradwatch.watch(game.critic, critic_optimizer, log_dir=log_dir, clip=way.clip, log_every_n_steps=1) as watcher:
        for step in range(steps):
            begin = time.process_time()
            real, made = images[torch.randint(len(images), (way.batch,))], game.made(way.batch).detach()
            loss = game.critic(made).mean() - game.critic(real).mean()
            if way.regularisation:
                loss = loss + way.regularisation * gradient_penalty(game.critic, between(real, made))
            watcher.observe_loss(loss)
            critic_optimizer.zero_grad()
            loss.backward()
            critic_optimizer.step()
            way.after(game.critic)
            losses.append(loss.item())
            if step % CRITIC_STEPS == 0:
                generator_optimizer.zero_grad()
                (-game.critic(game.made(way.batch)).mean()).backward()
                generator_optimizer.step()
            times.append(time.process_time() - begin)
    with torch.no_grad():
        return outcome_of(watcher, losses, times, energy_distance(held_out, game.made(len(held_out))))


def oppose(way: Way, seed: int, steps: int, log_dir: Path | None, scale: float) -> Outcome:
    """Play a game whose discriminator learns ten times as fast; ``way.loss`` is the generator's, of logits."""
    images, _, held_out, _ = digits(scale)
    torch.manual_seed(seed)
    game = way.model()
    optimizer = way.optimizer(game.generator.parameters(), lr=way.rate)
    faster = way.optimizer(game.critic.parameters(), lr=10 * way.rate)
    ones, zeros = torch.ones(way.batch, 1), torch.zeros(way.batch, 1)
    losses, times = [], []
    with gradwatch.watch(
        {"generator": game.generator, "discriminator": game.critic},
        [optimizer, faster],
        log_dir=log_dir,
        log_every_n_steps=1,
    ) as watcher:
        for _ in range(steps):
            begin = time.process_time()
            real, made = images[torch.randint(len(images), (way.batch,))], game.made(way.batch)
            sure = F.binary_cross_entropy_with_logits(game.critic(real), ones)
            sure = sure + F.binary_cross_entropy_with_logits(game.critic(made.detach()), zeros)
            faster.zero_grad()
            sure.backward()
            faster.step()
            loss = way.loss(game.critic(made), ones)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            times.append(time.process_time() - begin)
    with torch.no_grad():
        return outcome_of(watcher, losses, times, energy_distance(held_out, game.made(len(held_out))))


def saturating(logits: Tensor, ones: Tensor) -> Tensor:
    """Return log(1 − σ(logits)), the generator's loss of the minimax game."""
    return -F.softplus(logits).mean()


def energy_distance(real: Tensor, made: Tensor) -> float:
    """Return 2·E‖x − y‖ − E‖x − x′‖ − E‖y − y′‖ (Székely and Rizzo 2004): 0 if both are of one distribution."""
    across, among_real, among_made = (
        torch.cdist(*pair).mean().item() for pair in ((real, made), (real, real), (made, made))
    )
    return 2 * across - among_real - among_made


@torch.no_grad()
def clamp_weights(critic: nn.Module, limit: float) -> None:
    """Clamp every weight to ± ``limit``."""
    for parameter in critic.parameters():
        parameter.clamp_(-limit, limit)


class Values(nn.Module):
    """Values of ten actions, one of which is rewarded; the next state is the next row of the batch.

    In training it returns (N, 10) values, and beside them (N, 1) the best value of the next state, times ``discount``.
    """

    def __init__(self, discount: float, *, has_target: bool = False) -> None:
        super().__init__()
        self.values, self.discount = stack(nn.ReLU, depth=2), discount
        self.target = copy.deepcopy(self.values).requires_grad_(False) if has_target else None

    def forward(self, states: Tensor) -> Tensor:
        if not self.training:
            return self.values(states)
        later = (self.target or self.values)(states.roll(1, 0)).detach().amax(1, keepdim=True)
        return torch.cat([self.values(states), self.discount * later], dim=1)

    @torch.no_grad()
    def follow(self) -> None:
        """Let the target network follow the values slowly."""
        if self.target is not None:
            for slow, fast in zip(self.target.parameters(), self.values.parameters(), strict=True):
                slow.lerp_(fast, 0.005)


def temporal_difference(outputs: Tensor, rewarded: Tensor) -> Tensor:
    """Return the squared difference between values and rewards with the values of what follows."""
    values, later = outputs[:, :10], outputs[:, 10:]
    return (values - F.one_hot(rewarded, 10) - later).square().mean()


def main() -> list[str]:
    """Train one game by six rules, one by two losses, and values by three."""
    opposed = partial(Way, model=Game, rate=0.0003, optimizer=torch.optim.Adam)
    values = partial(Way, rate=0.1, loss=temporal_difference)
    game = partial(Way, model=Game, rate=0.001, optimizer=torch.optim.RMSprop)
    return compare(
        "lipschitz",
        Table(
            "A Wasserstein critic on digits",
            [
                game("do nothing"),
                game("weight-clipping, 0.01", after=partial(clamp_weights, limit=0.01)),
                game("weight-clipping, 0.1", after=partial(clamp_weights, limit=0.1)),
                game("gradient-penalty, λ = 10", regularisation=10.0),
                game("spectral-norm", model=partial(Game, add_spectral_norms_)),
                game("clip-norm, 1", clip=1.0),
            ],
            steps=600,
            train=train,
            held_out="distance to held-out digits",
        ),
        Table(
            "A discriminator that learns ten times as fast as its generator",
            [
                opposed("do nothing", loss=saturating),
                opposed("non-saturating-loss", loss=F.binary_cross_entropy_with_logits),
            ],
            steps=600,
            train=oppose,
            held_out="distance to held-out digits",
        ),
        Table(
            "Values whose targets are made of themselves",
            [
                values("do nothing, discount 1.1", partial(Values, 1.1)),
                values("discount 0.99", partial(Values, 0.99)),
                values("target-network, discount 0.99", partial(Values, 0.99, has_target=True), after=Values.follow),
            ],
            steps=600,
        ),
    )
