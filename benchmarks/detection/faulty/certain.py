"""Softmaxes, of attention or at the output, that are certain of what is wrong, in runs that do not learn."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import digits
from benchmarks.detection.faulty.common_errors import network, on_digits, sgd, squared
from benchmarks.detection.faulty.dead import adam
from benchmarks.detection.program import Observe, Training, faulty, plain, supervised


class Recall(nn.Module):
    """Attention of one query over pairs of key and content; the query's pair holds the answer."""

    def __init__(self, width: int, temperature: float, fused: bool = False) -> None:
        super().__init__()
        self.ask, self.key = nn.Linear(8, width, bias=False), nn.Linear(8, width, bias=False)
        self.value, self.head = nn.Linear(4, width), nn.Linear(width, 4)
        self.temperature, self.fused = temperature, fused

    def forward(self, query: Tensor, keys: Tensor, contents: Tensor) -> Tensor:
        asked, key = self.ask(query).unsqueeze(1), self.key(keys)
        if self.fused:
            seen = F.scaled_dot_product_attention(asked, key, self.value(contents), scale=1 / self.temperature)
        else:
            seen = F.softmax(asked @ key.mT / self.temperature, dim=-1) @ self.value(contents)
        return self.head(seen.squeeze(1))


def on_recall(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 150, batch: int = 64) -> Training:
    """One of eight keys is asked for, with some noise; its content is one of four."""

    def draw(step: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        keys, contents = F.normalize(torch.randn(batch, 8, 8), dim=-1) * 8**0.5, torch.randint(4, (batch, 8))
        asked = torch.randint(8, (batch,))
        query = keys[torch.arange(batch), asked] + 0.2 * torch.randn(batch, 8)
        return (query, keys, F.one_hot(contents, 4).float()), contents[torch.arange(batch), asked]

    return supervised(model, optimizer, draw, F.cross_entropy, steps)


@faulty("saturated", layers=("key.*",), attainable=0.05)
def attention_at_a_thousandth(seed: int) -> Training:
    """A temperature of a thousandth: each query sees one key, a wrong one, and never learns of the others."""
    model = Recall(16, 0.001)
    return on_recall(model, adam(model))


@faulty("saturated", layers=("key.*",), attainable=0.05)
def attention_without_its_root(seed: int) -> Training:
    """Dot products of 256 numbers, not divided by 16, of projections drawn from a standard normal."""
    model = Recall(256, 1.0)
    nn.init.normal_(model.ask.weight)
    nn.init.normal_(model.key.weight)
    return on_recall(model, adam(model, 1e-3))


@faulty("saturated", layers=("key.*", "value.*"), attainable=0.1)
def fused_attention_of_large_weights(seed: int) -> Training:
    """The fused kernel, its scale forgotten in the conversion of a checkpoint, weights of deviation 2."""
    model = Recall(32, 1.0, fused=True)
    nn.init.normal_(model.ask.weight, std=2.0)
    nn.init.normal_(model.key.weight, std=2.0)
    return on_recall(model, adam(model))


@faulty("saturated", layers=("address.*",), attainable=0.1)
def addressing_by_a_sharpness_of_a_thousand(seed: int) -> Training:
    """A memory read by softmax of a thousand times the match: each input is stuck with the slot that it first hit."""
    model = nn.ModuleDict({"address": nn.Linear(8, 4), "embed": nn.Linear(8, 16, bias=False)})
    slots = torch.randn(4, 1)
    truth = torch.randn(8, 4)

    def loss_of(step: int) -> Tensor:
        x = torch.randn(64, 8)
        weights = torch.softmax(1000 * model["address"](x), -1)
        return F.mse_loss(weights @ slots, (2 * x @ truth).softmax(-1) @ slots)

    return plain(model, adam(model, 1e-3), loss_of, 120)


@faulty("saturated", also=("vanishing",), layers=("2.*",), attainable=0.65)
def softmax_of_huge_logits(seed: int) -> Training:
    """Squared error behind a softmax of logits in the hundreds: certain, mostly wrong, and flat."""
    model = network(64, 32, 10)
    nn.init.normal_(model[2].weight, std=400.0)
    return on_digits(model, adam(model, 1e-3), 120, loss=lambda output, y: squared(F.softmax(output, dim=1), y))


@faulty("saturated", also=("vanishing", "stalled"), layers=("3.*",), attainable=0.5)
def log_of_a_softmax_of_raw_pixels(seed: int) -> Training:
    """Raw pixels, a softmax module, then a logarithm with an ε: where the right class is 0, its gradient is, too."""
    model = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 10), nn.Softmax(1))
    nn.init.normal_(model[3].weight)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return -(output + 1e-6).log().gather(1, y[:, None]).mean()

    return on_digits(model, sgd(model, 1e-3), 120, scale=255.0, loss=loss)


@faulty("saturated", also=("vanishing",), layers=("2.*",), attainable=0.3)
def policy_that_never_explores(seed: int) -> Training:
    """Policy gradients on a bandit from a policy that is certain at first: it never sees another reward."""
    model = network(64, 32, 10)
    nn.init.normal_(model[2].weight, std=200.0)
    x, y = digits()
    optimizer = adam(model, 3e-3)

    def step(number: int, observe: Observe) -> None:
        chosen = torch.randint(len(x), (128,))
        policy = model(x[chosen]).softmax(-1)
        action = torch.multinomial(policy.detach(), 1).squeeze(1)
        reward = (action == y[chosen]).float()
        optimizer.zero_grad()
        observe(1 - reward.mean())
        likelihood = policy.gather(1, action[:, None]).squeeze(1)
        (-(reward - reward.mean()) * (likelihood + 1e-8).log()).mean().backward()
        optimizer.step()

    return Training(model, [optimizer], 200, step)
