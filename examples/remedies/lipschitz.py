"""A critic without bound, and three ways to bound its slope: a Wasserstein GAN that draws digits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from side_by_side import Outcome, Way, compare, digits, outcome_of, quiet
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import gradwatch

NOISE, PIXELS, CRITIC_STEPS = 16, 64, 3


class Game(nn.Module):
    """A critic and a generator; ``wrap`` is put around each layer of the critic."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> None:
        super().__init__()
        self.critic = nn.Sequential(
            wrap(nn.Linear(PIXELS, 128)), nn.LeakyReLU(0.2), wrap(nn.Linear(128, 128)), nn.LeakyReLU(0.2),
            wrap(nn.Linear(128, 1)),
        )  # fmt: skip
        self.generator = nn.Sequential(nn.Linear(NOISE, 128), nn.ReLU(), nn.Linear(128, PIXELS), nn.Sigmoid())

    def made(self, count: int) -> Tensor:
        """(count, 64) images."""
        return self.generator(torch.randn(count, NOISE))


def penalty(critic: nn.Module, real: Tensor, made: Tensor) -> Tensor:
    """(‖slope‖ − 1)² between real and made images."""
    mix = torch.rand(len(real), 1)
    between = (mix * real + (1 - mix) * made).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.norm(dim=1) - 1).square().mean()


def train(way: Way, seed: int, steps: int, log_dir: Path | None, scale: float) -> Outcome:
    """One game; the figures are the critic's, and held out is how far made images are from digits never shown."""
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
                loss = loss + way.regularisation * penalty(game.critic, real, made)
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
    """2·E‖x − y‖ − E‖x − x′‖ − E‖y − y′‖ (Székely and Rizzo 2004): 0 where both are of one distribution."""
    between, within, among = torch.cdist(real, made), torch.cdist(real, real), torch.cdist(made, made)
    return statistics.fmean([2 * between.mean().item() - within.mean().item() - among.mean().item()])


@torch.no_grad()
def clamp_weights(critic: nn.Module, limit: float) -> None:
    """Every weight within ± ``limit``."""
    for parameter in critic.parameters():
        parameter.clamp_(-limit, limit)


def main() -> list[str]:
    """One game, five rules."""
    game = partial(Way, model=Game, rate=0.001, optimizer=torch.optim.RMSprop)
    return compare(
        "lipschitz",
        "A Wasserstein critic on digits",
        [
            game("do nothing"),
            game("weight-clipping, 0.01", after=partial(clamp_weights, limit=0.01)),
            game("weight-clipping, 0.1", after=partial(clamp_weights, limit=0.1)),
            game("gradient-penalty, λ = 10", regularisation=10.0),
            game("spectral-norm", model=partial(Game, spectral_norm)),
            game("clip-norm, 1", clip=1.0),
        ],
        steps=600,
        train=train,
        held_out="distance to held-out digits",
    )


if __name__ == "__main__":
    quiet()
    main()
