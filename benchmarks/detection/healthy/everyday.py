"""Runs that learn, each with something in it that makes a rule of thumb cry wolf."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import digits, windows
from benchmarks.detection.program import Observe, Training, healthy, plain


def network(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths with activations between."""
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        layers += [nn.Linear(inner, outer), activation()]
    return nn.Sequential(*layers[:-1])


def on_digits(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int = 200,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    batch: int = 64,
    scale: float = 1.0,
    shape: tuple[int, ...] = (64,),
    **options,
) -> Training:
    """Classification of digits in random batches."""
    x, y = digits(scale)

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (batch,))
        return loss(model(x[chosen].reshape(-1, *shape)), y[chosen])

    return plain(model, optimizer, loss_of, steps, **options)


def adam(model: nn.Module, rate: float = 3e-3, **options) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, **options)


def sgd(model: nn.Module, rate: float = 0.1, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=rate, **options)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, causal."""

    def __init__(self, width: int, zero_output: bool = False, key_bias: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=key_bias) for _ in range(3))
        self.mix, self.up, self.down = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        if zero_output:
            for layer in (self.mix, self.down):
                nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        query, key, value = (each(h).unsqueeze(1) for each in (self.query, self.key, self.value))
        x = x + self.mix(F.scaled_dot_product_attention(query, key, value, is_causal=True).squeeze(1))
        return x + self.down(F.gelu(self.up(self.second(x))))


class LanguageModel(nn.Module):
    """Characters of the standard library; embedding and head tied or not."""

    def __init__(self, depth: int = 2, width: int = 32, tied: bool = False, positions: int = 64, **options) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(128, width), nn.Embedding(positions, width)
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.blocks = nn.ModuleList(Block(width, **options) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 128, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def on_text(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 120, length: int = 32, **options):
    """Prediction of the next character."""

    def loss_of(step: int) -> Tensor:
        inputs, targets = windows(16, length)
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    return plain(model, optimizer, loss_of, steps, **options)


@healthy(falls_to=0.3)
def perceptron_adam(seed: int) -> Training:
    """The plainest of all."""
    model = network(64, 64, 32, 10)
    return on_digits(model, adam(model))


@healthy(falls_to=0.3)
def perceptron_momentum(seed: int) -> Training:
    """Momentum 0.9."""
    model = network(64, 64, 32, 10)
    return on_digits(model, sgd(model, 0.1, momentum=0.9))


@healthy(falls_to=0.01)
def converged_long_ago(seed: int) -> Training:
    """Memorises 32 digits, then goes on: gradients end up a millionth of what they were."""
    model = network(64, 64, 10)
    x, y = digits()
    optimizer = adam(model, 1e-2, weight_decay=0.0)
    return plain(model, optimizer, lambda step: F.cross_entropy(model(x[:32]), y[:32]), 600)


@healthy(falls_to=0.5)
def sum_of_losses(seed: int) -> Training:
    """Losses summed over a batch of 512: norms in the thousands."""
    model = network(64, 64, 10)
    optimizer = sgd(model, 0.1 / 512)
    return on_digits(model, optimizer, batch=512, loss=lambda o, y: F.cross_entropy(o, y, reduction="sum"))


@healthy(falls_to=0.5)
def loss_in_nano_units(seed: int) -> Training:
    """The loss times 1e-8: Adam does not mind."""
    model = network(64, 64, 10)
    optimizer = adam(model, eps=1e-20)
    return on_digits(model, optimizer, loss=lambda output, y: F.cross_entropy(output, y) * 1e-8)


@healthy(falls_to=0.5)
def loss_in_large_units(seed: int) -> Training:
    """The loss times 1e5, the rate divided by it."""
    model = network(64, 64, 10)
    return on_digits(model, sgd(model, 1e-6), loss=lambda output, y: F.cross_entropy(output, y) * 1e5)


@healthy(falls_to=0.6)
def frozen_backbone(seed: int) -> Training:
    """All but the last layer frozen."""
    model = network(64, 64, 32, 10)
    for parameter in [*model[0].parameters(), *model[2].parameters()]:
        parameter.requires_grad_(False)
    return on_digits(model, adam(model, 5e-2), 300)


@healthy(falls_to=0.5)
def bias_before_batch_norm(seed: int) -> Training:
    """The bias before a normalisation has no gradient but rounding."""
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise([64, *[48] * 8]):
        layers += [nn.Linear(inner, outer), nn.BatchNorm1d(outer), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(48, 10))
    return on_digits(model, adam(model))


class Residual(nn.Module):
    """x + scale · f(x)."""

    def __init__(self, width: int, scale: float | None = None, zero_last: bool = False) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.scale = nn.Parameter(torch.tensor(1.0 if scale is None else scale), requires_grad=scale is not None)
        if zero_last:
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(F.relu(self.up(self.norm(x))))


@healthy(falls_to=0.5)
def branches_scaled_from_zero(seed: int) -> Training:
    """ReZero: every branch is multiplied by a scalar that starts at zero, so its weights have no gradient at first."""
    model = nn.Sequential(nn.Linear(64, 48), *[Residual(48, 0.0) for _ in range(12)], nn.Linear(48, 10))
    return on_digits(model, adam(model))


@healthy(falls_to=0.5)
def branches_end_in_zeros(seed: int) -> Training:
    """Every branch ends in a layer of zeros, under a warm-up of the rate."""
    model = nn.Sequential(nn.Linear(64, 48), *[Residual(48, zero_last=True) for _ in range(12)], nn.Linear(48, 10))
    optimizer = adam(model)

    def warm(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, step / 100)

    return on_digits(model, optimizer, before_update=warm)


@healthy(falls_to=0.7)
def head_of_zeros(seed: int) -> Training:
    """A head that starts at zero passes no gradient at the first update; plain descent at a low rate."""
    model = network(64, 64, 64, 10)
    nn.init.zeros_(model[-1].weight)
    return on_digits(model, sgd(model, 0.2), 300)


class LowRank(nn.Module):
    """A frozen linear layer and a low-rank update that starts at zero (LoRA)."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@healthy(falls_to=0.5)
def low_rank_adapters(seed: int) -> Training:
    """LoRA as published: A random, B zero."""
    model = nn.Sequential(
        LowRank(nn.Linear(64, 64)), nn.ReLU(), LowRank(nn.Linear(64, 64)), nn.ReLU(), LowRank(nn.Linear(64, 10))
    )
    return on_digits(model, adam(model, 1e-2), 300)


class Experts(nn.Module):
    """Each row goes to one of the experts; ``closed`` ones are never chosen."""

    def __init__(self, width: int, count: int = 6, closed: int = 2) -> None:
        super().__init__()
        self.router = nn.Linear(width, count)
        self.experts = nn.ModuleList(network(width, 32, width) for _ in range(count))
        self.closed = torch.arange(count) >= count - closed

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).masked_fill(self.closed, -torch.inf).softmax(-1)
        best, chosen = weights.max(-1)
        outputs = torch.stack([expert(x) for expert in self.experts], 1)
        return x + best[:, None] * outputs[torch.arange(len(x)), chosen]


@healthy(falls_to=0.5)
def experts_never_routed_to(seed: int) -> Training:
    """Two of six experts are never chosen: their gradient is exactly zero, for ever."""
    model = nn.Sequential(nn.Linear(64, 32), Experts(32), Experts(32), nn.Linear(32, 10))
    return on_digits(model, adam(model))


@healthy(falls_to=0.8)
def transformer(seed: int) -> Training:
    """A causal transformer with a key bias, whose gradient is rounding."""
    model = LanguageModel()
    return on_text(model, adam(model))


@healthy(falls_to=0.8)
def transformer_tied(seed: int) -> Training:
    """Tied embedding, positions that no sequence reaches, branches that start at zero."""
    model = LanguageModel(tied=True, positions=512, zero_output=True)
    return on_text(model, adam(model))


@healthy(falls_to=0.8)
def transformer_clipped_by_itself(seed: int) -> Training:
    """Warm-up, cosine, and the loop's own clipping."""
    model = LanguageModel(depth=4)
    optimizer = adam(model)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, 120)

    def before(step: int) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if step:
            schedule.step()

    return on_text(model, optimizer, before_update=before)


class Recurrent(nn.Module):
    """A recurrent language model."""

    def __init__(self, kind: type[nn.Module], width: int = 48, sparse: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 24, sparse=sparse)
        self.recurrent, self.head = kind(24, width, batch_first=True), nn.Linear(width, 128)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.recurrent(self.embedding(tokens))[0])


@healthy(falls_to=0.8)
def lstm(seed: int) -> Training:
    """Text, default initialisation."""
    model = Recurrent(nn.LSTM)
    return on_text(model, adam(model, 1e-2))


@healthy(falls_to=0.8)
def gru(seed: int) -> Training:
    """Text, default initialisation."""
    model = Recurrent(nn.GRU)
    return on_text(model, adam(model, 1e-2))


@healthy(falls_to=0.8)
def vanilla_recurrent(seed: int) -> Training:
    """Text, tanh, with the loop's own clipping."""
    model = Recurrent(nn.RNN)
    return on_text(
        model, adam(model, 1e-2), before_update=lambda step: nn.utils.clip_grad_norm_(model.parameters(), 0.5) and None
    )


@healthy(falls_to=0.9)
def sparse_embedding(seed: int) -> Training:
    """Sparse gradients; most rows of the embedding are rare."""
    model = Recurrent(nn.GRU, sparse=True)
    return on_text(model, sgd(model, 0.5))


@healthy(falls_to=0.5)
def heads_by_turns(seed: int) -> Training:
    """Two tasks by turns: each head has a gradient every other update."""
    body, digit, parity = network(64, 64, 32), nn.Linear(32, 10), nn.Linear(32, 2)
    model = nn.ModuleDict({"body": body, "digit": digit, "parity": parity})
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        h = F.relu(body(x[chosen]))
        return F.cross_entropy(parity(h), y[chosen] % 2) if step % 2 else F.cross_entropy(digit(h), y[chosen])

    return plain(model, adam(model), loss_of, 300)


@healthy(falls_to=0.5)
def outliers_now_and_then(seed: int) -> Training:
    """Every 37th batch is ten times as large as the others: a spike of the gradient that does no harm."""
    model = network(64, 64, 10)
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        return F.cross_entropy(model(x[chosen] * (10 if step % 37 == 36 else 1)), y[chosen])

    return plain(model, sgd(model, 0.01, momentum=0.9), loss_of, 300)


@healthy(falls_to=0.6)
def heavy_tailed_targets(seed: int) -> Training:
    """Cauchy noise on the targets, a Huber loss."""
    model, truth = network(8, 32, 1), torch.randn(8, 1) * 3

    def loss_of(step: int) -> Tensor:
        x = torch.randn(64, 8)
        noise = torch.empty(64, 1).cauchy_(sigma=0.1)
        return F.huber_loss(model(x), x @ truth + noise.clamp(-100, 100))

    return plain(model, adam(model, 1e-2), loss_of, 300)


@healthy(falls_to=0.9)
def reinforce(seed: int) -> Training:
    """Policy gradients on a contextual bandit; the regret is what falls, gradients have heavy tails."""
    model = network(64, 32, 10)
    x, y = digits()
    optimizer = adam(model, 1e-2)

    def step(number: int, observe: Observe) -> None:
        chosen = torch.randint(len(x), (128,))
        policy = torch.distributions.Categorical(logits=model(x[chosen]))
        action = policy.sample()
        reward = (action == y[chosen]).float()
        optimizer.zero_grad()
        observe(1 - reward.mean())
        (-(reward - reward.mean()) * policy.log_prob(action)).mean().backward()
        optimizer.step()

    return Training(model, [optimizer], 300, step)


@healthy(falls_to=0.6)
def rate_restarts(seed: int) -> Training:
    """Cosine with warm restarts: the loss jumps up at each."""
    model = network(64, 64, 10)
    optimizer = sgd(model, 0.5, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 40)
    return on_digits(model, optimizer, 240, before_update=lambda step: schedule.step() if step else None)


@healthy(falls_to=0.6)
def task_changes_midway(seed: int) -> Training:
    """From update 150 on the classes are permuted: the loss jumps up once, and is learned again."""
    model = network(64, 64, 10)
    x, y = digits()
    permuted = torch.randperm(10)

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        return F.cross_entropy(model(x[chosen]), permuted[y[chosen]] if step >= 150 else y[chosen])

    return plain(model, adam(model, 5e-3), loss_of, 400)


@healthy(falls_to=0.3)
def hinge_satisfied(seed: int) -> Training:
    """A hinge loss on few data: exactly zero, with exactly zero gradients, once every margin holds."""
    model = network(64, 64, 10)
    x, y = digits()
    return plain(model, adam(model, 1e-2), lambda step: F.multi_margin_loss(model(x[:64]), y[:64]), 300)


@healthy(falls_to=0.7)
def batch_of_one(seed: int) -> Training:
    """One digit at a time: a noisy loss, gradients that are nearly zero for most."""
    model = network(64, 32, 10)
    return on_digits(model, sgd(model, 0.02), 1200, batch=1)


@healthy(falls_to=0.5)
def twenty_layers_normalised(seed: int) -> Training:
    """Twenty layers with batch normalisation."""
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise([64, *[32] * 20]):
        layers += [nn.Linear(inner, outer, bias=False), nn.BatchNorm1d(outer), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(32, 10))
    return on_digits(model, adam(model))


@healthy(falls_to=0.5)
def raw_pixels_normalised(seed: int) -> Training:
    """Grey levels up to 255 straight into a batch normalisation."""
    model = nn.Sequential(nn.BatchNorm1d(64), *network(64, 64, 10))
    return on_digits(model, adam(model), scale=255.0)


@healthy(falls_to=0.6)
def thawed_layer_by_layer(seed: int) -> Training:
    """Layers are unfrozen one after the other, from the head on."""
    model = network(64, 64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)

    def thaw(step: int) -> None:
        if step in (60, 120):
            model[2 if step == 60 else 0].requires_grad_(True)

    return on_digits(model, optimizer, 240, before_update=thaw)


@healthy(falls_to=0.4)
def convolutions(seed: int) -> Training:
    """Two convolutions, dropout."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip
    return on_digits(model, adam(model), shape=(1, 8, 8))


@healthy(falls_to=0.5)
def variational(seed: int) -> Training:
    """A variational autoencoder whose second term is warmed up."""
    encoder, decoder = network(64, 48, 16), network(8, 48, 64)
    model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    x, _ = digits()

    def loss_of(step: int) -> Tensor:
        inputs = x[torch.randint(len(x), (64,))]
        mean, log_variance = encoder(inputs).chunk(2, -1)
        latent = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean() / 2
        error = (decoder(latent) - inputs).square().sum(-1).mean()
        return error + min(1.0, step / 150) * 0.1 * divergence

    return plain(model, adam(model), loss_of, 300)


@healthy(falls_to=0.7)
def two_layer_net_by_its_book(seed: int) -> Training:
    """N = 64, 1000–100–10, all standard normal, sum of squares, rate 1e-6: norms fall from millions to ones."""
    model = nn.Sequential(nn.Linear(1000, 100, bias=False), nn.ReLU(), nn.Linear(100, 10, bias=False))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x, y = torch.randn(64, 1000), torch.randn(64, 10)
    return plain(model, sgd(model, 1e-6), lambda step: (model(x) - y).square().sum(), 300)


@healthy(falls_to=0.8)
def sigmoid_shallow(seed: int) -> Training:
    """Two sigmoid layers learn slowly, but learn."""
    model = network(64, 32, 32, 10, activation=nn.Sigmoid)
    return on_digits(model, adam(model, 1e-2), 300)


@healthy(falls_to=0.7)
def tanh_ten_layers(seed: int) -> Training:
    """Ten tanh layers with Xavier's initialisation."""
    model = network(64, *[32] * 10, 10, activation=nn.Tanh)
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight, 5 / 3)
    return on_digits(model, adam(model, 1e-3), 300)


@healthy(falls_to=0.8)
def plateau_then_learns(seed: int) -> Training:
    """Eight default ReLU layers under Adam: a plateau at first, whose gradients grow a hundredfold as it is left."""
    model = network(64, *[48] * 8, 10)
    return on_digits(model, torch.optim.Adam(model.parameters(), lr=1e-3), 400)


@healthy(falls_to=0.5)
def second_order(seed: int) -> Training:
    """LBFGS with its closure, full batches."""
    model = network(64, 32, 10)
    x, y = digits()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)

    def step(number: int, observe: Observe) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[:300]), y[:300])
            loss.backward()
            return loss

        with torch.no_grad():
            observe(F.cross_entropy(model(x[:300]), y[:300]))
        optimizer.step(closure)

    return Training(model, [optimizer], 40, step)


@healthy(falls_to=0.8)
def alternating_networks(seed: int) -> Training:
    """A generator and a critic by turns, least squares; the critic's loss is what is observed."""
    generator, critic = network(8, 32, 64), network(64, 32, 1, activation=lambda: nn.LeakyReLU(0.2))
    x, _ = digits()
    optimizers = [torch.optim.Adam(part.parameters(), lr=1e-3, betas=(0.5, 0.9)) for part in (critic, generator)]

    def step(number: int, observe: Observe) -> None:
        real, noise = x[torch.randint(len(x), (64,))], torch.randn(64, 8)
        loss = (critic(real) - 1).square().mean() + critic(generator(noise).detach()).square().mean()
        optimizers[0].zero_grad()
        observe(loss)
        loss.backward()
        optimizers[0].step()
        loss = (critic(generator(noise)) - 1).square().mean()
        optimizers[1].zero_grad()
        observe(loss)
        loss.backward()
        optimizers[1].step()

    return Training({"generator": generator, "critic": critic}, optimizers, 150, step)
