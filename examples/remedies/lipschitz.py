"""A critic without bound, and three ways to bound its slope: a Wasserstein GAN that draws digits."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from side_by_side import Outcome, Table, Way, compare, digits, outcome_of
from torch import Tensor, nn

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


def main() -> list[str]:
    """Train one game by six rules."""
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
    )
