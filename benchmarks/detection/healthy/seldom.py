"""Learns although some parameters are touched only now and then, or never: rows, experts, layers, heads, margins."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import digits, windows
from benchmarks.detection.healthy.everyday import adam, network, on_digits, on_text, sgd
from benchmarks.detection.healthy.structure import blocks, language_model, sample
from benchmarks.detection.program import Observe, Training, healthy, plain


def reading(model: nn.Module, context: int, batch: int = 64) -> Callable[[int], Tensor]:
    """The loss of the next character, given the ids of as many character pairs before it."""

    def loss_of(step: int) -> Tensor:
        inputs, targets = windows(batch, context + 1)
        return F.cross_entropy(model(inputs[:, :-1] * 128 + inputs[:, 1:]), targets[:, -1])

    return loss_of


@healthy(falls_to=0.8)
def pair_embedding_dense(seed: int) -> Training:
    """16,384 rows, one for each pair of characters: most get a gradient of zero in every batch."""
    model = nn.Sequential(nn.Embedding(128 * 128, 16), nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 128))
    return plain(model, adam(model, 1e-2, weight_decay=0.0), reading(model, 4), 120)


@healthy(falls_to=0.8)
def pair_embedding_sparse_adam(seed: int) -> Training:
    """The same with sparse gradients: SparseAdam for the rows, Adam for the rest."""
    table = nn.Embedding(128 * 128, 16, sparse=True)
    rest = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 128))
    model = nn.Sequential(table, rest)
    optimizers = [torch.optim.SparseAdam(table.parameters(), lr=1e-2), torch.optim.Adam(rest.parameters(), lr=1e-2)]
    loss_of = reading(model, 4)

    def step(number: int, observe: Observe) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = loss_of(number)
        observe(loss)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    return Training(model, optimizers, 150, step)


@healthy(falls_to=0.9)
def bag_of_pairs_sparse_descent(seed: int) -> Training:
    """A sparse EmbeddingBag that starts at zero, under plain descent; padding's row has no gradient at all."""
    bag = nn.EmbeddingBag(128 * 128, 32, mode="mean", sparse=True, padding_idx=0)
    nn.init.zeros_(bag.weight)
    model = nn.Sequential(bag, nn.Linear(32, 128))
    return plain(model, sgd(model, 1.0), reading(model, 2, batch=128), 250)


class Dispatched(nn.Module):
    """Rows are sent to their best expert; an expert that gets none is not even called."""

    def __init__(self, width: int, count: int = 8) -> None:
        super().__init__()
        self.router = nn.Linear(width, count)
        self.experts = nn.ModuleList(network(width, 32, width) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).max(-1)
        output = x
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().squeeze(1)
            if len(rows):
                output = output.index_add(0, rows, weight[rows, None] * expert(x[rows]))
        return output


@healthy(falls_to=0.4)
def experts_skipped_when_empty(seed: int) -> Training:
    """Hard top-1 routing of small batches: an expert that gets no row has the gradient None in that update."""
    model = nn.Sequential(nn.Linear(64, 32), Dispatched(32), nn.ReLU(), Dispatched(32), nn.Linear(32, 10))
    return on_digits(model, adam(model), 250, batch=16)


class Dropped(nn.Module):
    """A residual branch that is left out at random while training."""

    def __init__(self, width: int, survival: float) -> None:
        super().__init__()
        self.inner, self.survival = nn.Sequential(nn.LayerNorm(width), network(width, width, width)), survival

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x) if torch.rand(()) < self.survival else x


@healthy(falls_to=0.4)
def stochastic_depth(seed: int) -> Training:
    """Ten branches, the last ones left out in half of the updates (Huang et al. 2016)."""
    dropped = [Dropped(48, 1 - depth / 20) for depth in range(1, 11)]
    model = nn.Sequential(nn.Linear(64, 48), *dropped, nn.Linear(48, 10))
    return on_digits(model, adam(model))


class Codebook(nn.Module):
    """An autoencoder whose latents are replaced by their nearest codes, straight through (VQ-VAE)."""

    def __init__(self, codes: int = 128) -> None:
        super().__init__()
        self.encoder, self.decoder = network(64, 64, 32), network(32, 64, 64)
        self.codes = nn.Embedding(codes, 8)
        nn.init.normal_(self.codes.weight, std=0.3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.encoder(x).view(-1, 4, 8)
        nearest = self.codes(torch.cdist(latent.detach(), self.codes.weight.detach()).argmin(-1))
        commitment = F.mse_loss(latent, nearest.detach()) * 0.25 + F.mse_loss(nearest, latent.detach())
        return self.decoder((latent + (nearest - latent).detach()).flatten(1)), commitment


@healthy(falls_to=0.7)
def codes_seldom_nearest(seed: int) -> Training:
    """A codebook many of whose rows are nearest to nothing in a batch, and have a gradient of zero."""
    model = Codebook()

    def loss_of(step: int) -> Tensor:
        x, _ = sample()
        output, commitment = model(x)
        return F.mse_loss(output, x) + 0.1 * commitment

    return plain(model, adam(model, 3e-3), loss_of, 300)


@healthy(falls_to=0.8)
def context_grows(seed: int) -> Training:
    """Sequences of 8, then 16, then 32 characters: the later positions have no gradient until they are reached."""
    model = language_model(*blocks(2), positions=64)

    def loss_of(step: int) -> Tensor:
        inputs, targets = windows(16, (8, 16, 32)[step // 50])
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    return plain(model, adam(model, 5e-3), loss_of, 150)


@healthy(falls_to=0.5)
def tasks_one_after_another(seed: int) -> Training:
    """Three tasks in turn, each with its head: a head has the gradient None before and after its time."""
    model = nn.ModuleDict({"body": network(64, 64, 48), "heads": nn.ModuleList(nn.Linear(48, 10) for _ in range(3))})
    orders = [torch.randperm(10) for _ in range(3)]

    def loss_of(step: int) -> Tensor:
        x, y = sample()
        task = step // 100
        return F.cross_entropy(model["heads"][task](F.relu(model["body"](x))), orders[task][y])

    return plain(model, adam(model), loss_of, 300)


@healthy(falls_to=0.15)
def auxiliary_heads_fade(seed: int) -> Training:
    """Heads on inner layers whose weight in the loss decays to nothing: so does their gradient, as is meant."""
    layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
    model = nn.ModuleDict({"layers": layers, "heads": nn.ModuleList(nn.Linear(64, 10) for _ in range(4))})

    def loss_of(step: int) -> Tensor:
        x, y = sample()
        losses = []
        for layer, head in zip(layers, model["heads"]):
            x = F.relu(layer(x))
            losses.append(F.cross_entropy(head(x), y))
        return losses[-1] + 0.3 * 0.95**step * sum(losses[:-1])

    return plain(model, adam(model), loss_of, 250)


@healthy(falls_to=0.5)
def batches_without_an_object(seed: int) -> Training:
    """Only nines have a position to be told: a batch of eight without any has a loss and gradients of exactly zero."""
    model = network(64, 32, 4)
    x, y = digits()
    corners = x.view(-1, 2, 4, 2, 4).mean((2, 4)).flatten(1) * 4

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (8,))
        is_object = (y[chosen] == 9).float()[:, None]
        return (is_object * F.smooth_l1_loss(model(x[chosen]), corners[chosen], reduction="none")).sum() / 8

    return plain(model, adam(model), loss_of, 600)


def same_class(y: Tensor) -> Tensor:
    """(len(y),) for each of ``y`` the index of a random digit of its class."""
    return torch.multinomial((digits()[1][None] == y[:, None]).float(), 1).squeeze(1)


@healthy(falls_to=0.3)
def triplets_satisfied(seed: int) -> Training:
    """Triplets of a few digits: once all margins hold, loss and gradients are exactly zero in most batches."""
    model = network(64, 64, 16)
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        anchor, other = torch.randint(300, (2, 16))
        keep = y[anchor] != y[other]
        anchor, other = anchor[keep], other[keep]
        triplet = (model(x[index]) for index in (anchor, same_class(y[anchor]), other))
        return F.triplet_margin_loss(*triplet, margin=0.2)

    return plain(model, adam(model), loss_of, 400)


@healthy(falls_to=0.6)
def siamese_margin(seed: int) -> Training:
    """Twins with shared weights: pairs of a class attract, others repel while they are closer than a margin."""
    model = network(64, 48, 16)
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        first, second = torch.randint(len(x), (2, 64))
        second[:32] = same_class(y[first[:32]])
        distance = F.pairwise_distance(model(x[first]), model(x[second]))
        return torch.where(y[first] == y[second], distance.square(), F.relu(2 - distance).square()).mean()

    return plain(model, adam(model), loss_of, 250)


@healthy(falls_to=0.3)
def support_vectors(seed: int) -> Training:
    """A linear SVM on two classes: hinge loss and decay; most digits are beyond the margin and have no gradient."""
    model = nn.Linear(64, 1)
    x, y = digits()
    x, y = x[y < 2], (2.0 * y[y < 2] - 1)[:, None]

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (16,))
        return F.relu(1 - y[chosen] * model(x[chosen])).mean()

    return plain(model, sgd(model, 0.05, weight_decay=1e-3), loss_of, 300)


@healthy(falls_to=0.5)
def ranked_pairs(seed: int) -> Training:
    """Ranks digits by their value with a margin: ever fewer pairs of a batch have a gradient."""
    model = network(64, 48, 1)
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        first, second = torch.randint(len(x), (2, 32))
        sign = (y[first] - y[second]).sign()
        loss = F.margin_ranking_loss(model(x[first]), model(x[second]), sign[:, None], 0.2, reduction="none")
        return (loss * (sign != 0)[:, None]).mean()

    return plain(model, adam(model), loss_of, 300)


class Threshold(nn.Module):
    """ReLU of what is 0.84 standard deviations above a unit's mean: four fifths are zero, yet no unit is dead."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x) - 0.84)


@healthy(falls_to=0.5)
def rectifiers_mostly_zero(seed: int) -> Training:
    """Four fifths of the activations of each batch are zero, though each unit is active on some digits."""
    model = nn.Sequential(nn.Linear(64, 128), Threshold(128), nn.Linear(128, 128), Threshold(128), nn.Linear(128, 10))
    return on_digits(model, adam(model, 2e-3), 200)


@healthy(falls_to=0.8)
def slow_and_fast_layers(seed: int) -> Training:
    """The embedding is updated every fourth step only, on the sum of four gradients; the rest at each."""
    model = language_model(*blocks(1))
    slow, fast = torch.optim.Adam(model[0].parameters(), lr=3e-3), torch.optim.Adam(model[1:].parameters(), lr=5e-3)

    def step(number: int, observe: Observe) -> None:
        inputs, targets = windows(16, 32)
        fast.zero_grad()
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        observe(loss)
        loss.backward()
        fast.step()
        if number % 4 == 3:
            slow.step()
            slow.zero_grad()

    return Training(model, [fast, slow], 140, step)


class Pooled(nn.Module):
    """A query of zeros attends to all rows of a digit alike: the keys' weights start without gradient."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.key, self.value, self.head = nn.Linear(8, width), nn.Linear(8, width), nn.Linear(4 * width, 10)
        self.query = nn.Parameter(torch.zeros(4, width))
        self.position = nn.Parameter(0.5 * torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, 8, 8) + self.position
        weights = (self.query @ self.key(rows).transpose(1, 2)).softmax(-1)
        return self.head((weights @ self.value(rows).relu()).flatten(1))


@healthy(falls_to=0.5)
def attention_uniform_at_first(seed: int) -> Training:
    """Attention weights of exactly one eighth each, and a key bias whose gradient stays zero for ever."""
    model = Pooled()
    return on_digits(model, adam(model, 1e-2), 250)


@healthy(falls_to=0.8)
def words_left_out(seed: int) -> Training:
    """A quarter of the alphabet never occurs: those rows of embedding and head only ever decay."""
    model = language_model(*blocks(1), positions=512)
    return on_text(model, adam(model, 5e-3, weight_decay=0.1), 120)
