"""Faults in the forward pass of a module within a larger structure: attention, recurrences, graphs, experts, flows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.detection.data import windows
from benchmarks.detection.program import Training, plain
from benchmarks.origins.parts import adam, classify, named, network, on_digits, on_features, regress, row_since, since
from benchmarks.origins.program import origin

# Attention ------------------------------------------------------------------------------------------------------------


class Heads(nn.Module):
    """Two heads of attention by hand; ``padding`` (batch, keys) is True where a key is to be hidden."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        q, k, v = (project(x).unflatten(2, (2, -1)).transpose(1, 2) for project in (self.query, self.key, self.value))
        scores = (q @ k.mT / 3).masked_fill(padding[:, None, None, :], -torch.inf)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class TorchHeads(nn.Module):
    """torch's own attention, with the weights it was asked for."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.inner(x, x, x, key_padding_mask=padding)[0]


class Block(nn.Module):
    def __init__(self, attention: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.attention, self.norm = attention, nn.LayerNorm(width)
        self.feedforward = network(width, 2 * width, width)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return x + self.feedforward(self.norm(x + self.attention(x, padding)))


class Transformer(nn.Module):
    """Reads the eight rows of an image as tokens; each block is given its own padding."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.embed, self.blocks, self.head = nn.Linear(8, 16), nn.ModuleList(blocks), nn.Linear(16, 10)

    def forward(self, x: Tensor, paddings: list[Tensor]) -> Tensor:
        x = self.embed(x.unflatten(1, (8, 8)))
        for block, padding in zip(self.blocks, paddings):
            x = block(x, padding)
        return self.head(x.mean(1))


def with_an_empty_item(model: Transformer, first: int, layer: int) -> Training:
    """From step ``first`` on, layer ``layer`` may see none of one item's tokens."""

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        paddings = [torch.arange(8) >= torch.randint(3, 9, (len(x), 1)) for _ in model.blocks]
        if step >= first:
            paddings[layer][4] = True
        return F.cross_entropy(model(x, paddings), y)

    return on_digits(model, loss, steps=20)


@origin("blocks.2.attention", "forward", "softmax", "softmax")
def local_attention_without_a_neighbour(seed: int) -> Training:
    """The third layer's local mask hides every key of one item: softmax over −Inf alone is NaN."""
    return with_an_empty_item(Transformer([Block(Heads(16)) for _ in range(4)]), 12, 2)


@origin("blocks.0.attention.inner", "forward", "softmax", "softmax")
def torch_attention_over_an_empty_document(seed: int) -> Training:
    """An empty document is padding alone, and nn.MultiheadAttention that returns its weights divides 0 by 0."""
    return with_an_empty_item(Transformer([Block(TorchHeads(16)) for _ in range(2)]), 9, 0)


# Recurrences ----------------------------------------------------------------------------------------------------------


class ExponentialCell(nn.Module):
    """Exponential gates as in sLSTM, without the state that keeps them in range."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.gates = nn.Linear(inner + width, 3 * width)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        hidden, cell, total = state
        entry, keep, value = self.gates(torch.cat([x, hidden], 1)).chunk(3, 1)
        entry, keep = entry.exp(), keep.sigmoid()
        cell, total = keep * cell + entry * value.tanh(), keep * total + entry
        return cell / total, cell, total


class ReadsRows(nn.Module):
    """Two stacked cells read an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleDict({"lower": ExponentialCell(8, 16), "upper": ExponentialCell(16, 16)})
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        lower = upper = (torch.zeros(len(x), 16),) * 3
        for row in x.unflatten(1, (8, 8)).unbind(1):
            lower = self.cells["lower"](row, lower)
            upper = self.cells["upper"](lower[0], upper)
        return self.head(upper[0])


@origin("cells.lower", "forward", "exp", "exp")
def exponential_gate_without_a_stabiliser(seed: int) -> Training:
    """A row of pixels in the wrong unit drives an exponential gate past 88, and the cell divides Inf by Inf."""
    return classify(ReadsRows(), row_since(10, 4, 5000.0))


class ForwardAlgorithm(nn.Module):
    """Log-likelihood of a hidden Markov model by sums of probabilities, not of their logarithms."""

    def __init__(self, states: int = 6) -> None:
        super().__init__()
        self.transition = nn.Parameter(torch.randn(states, states))
        self.emission = nn.Parameter(torch.randn(states, 128))

    def forward(self, tokens: Tensor) -> Tensor:
        emission, transition = self.emission.softmax(1).T, self.transition.softmax(1)
        alpha = emission[tokens[:, 0]] / len(transition)
        for token in tokens[:, 1:].unbind(1):
            alpha = (alpha @ transition) * emission[token]
        return alpha.sum(1).log()


@origin("likelihood", "forward", "log", "log")
def likelihood_of_a_long_sentence(seed: int) -> Training:
    """Products of probabilities underflow to 0 over 80 characters: log 0; the sentences before had 12."""
    model = nn.ModuleDict({"likelihood": ForwardAlgorithm()})
    loss_of = lambda step: -model["likelihood"](windows(8, 80 if step >= 14 else 12)[0]).mean() / 12
    return plain(model, adam(model), loss_of, 20)


class Repeated(nn.Module):
    """A ReLU network that is applied to itself, started near the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.entry, self.recurrent, self.head = nn.Linear(1, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        with torch.no_grad():
            self.recurrent.weight.copy_(1.15 * torch.eye(8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.ones(len(x), 8)
        for value in x.split(1, 1):
            hidden = self.recurrent(hidden + 0.1 * self.entry(value)).relu()
        return self.head(hidden)


@origin("recurrent", "forward", "overflow", "linear")
def recurrence_over_a_long_series(seed: int) -> Training:
    """A recurrent weight of 1.15 grows the state as 1.15ⁿ: 10 readings are fine, 800 pass 3e38."""
    model = Repeated()
    loss = lambda step, x, y: F.mse_loss(model(x.repeat(1, 100) if step >= 8 else x), y)
    return on_features(model, loss, batch=4, steps=12, optimizer=adam(model, 1e-4))


class Halting(nn.Module):
    """The share of the weight left that this round takes."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 16)

    def forward(self, hidden: Tensor, remaining: Tensor) -> tuple[Tensor, Tensor]:
        share = 0.125 / remaining
        return self.project(hidden).tanh() * share, remaining - 0.125


class Ponders(nn.Module):
    """One module called once a round."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.halting, self.head, self.rounds = nn.Linear(64, 16), Halting(), nn.Linear(16, 10), 4

    def forward(self, x: Tensor) -> Tensor:
        hidden, remaining = self.stem(x), torch.ones(())
        for _ in range(self.rounds):
            taken, remaining = self.halting(hidden, remaining)
            hidden = hidden + taken
        return self.head(hidden)


@origin("halting", "forward", "division", "reciprocal")
def one_round_of_pondering_too_many(seed: int) -> Training:
    """Eight rounds use up the halting weight exactly; a ninth, allowed from step 10 on, divides by what is left, 0."""
    model = Ponders()

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        model.rounds = 9 if step >= 10 else 4 + step % 4
        return F.cross_entropy(model(x), y)

    return on_digits(model, loss)


# Graphs, transport, experts -------------------------------------------------------------------------------------------


class MeanOfNeighbours(nn.Module):
    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return adjacency @ x / adjacency.sum(1, keepdim=True)


class GraphLayer(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.own, self.aggregate, self.others = nn.Linear(inner, outer), MeanOfNeighbours(), nn.Linear(inner, outer)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.own(x) + self.others(self.aggregate(x, adjacency))


class GraphNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([GraphLayer(8, 16), GraphLayer(16, 16), GraphLayer(16, 1)])

    def forward(self, x: Tensor, adjacencies: list[Tensor]) -> Tensor:
        for layer, adjacency in zip(self.layers, adjacencies):
            x = layer(x, adjacency).tanh()
        return x


@origin("layers.1.aggregate", "forward", "division", "div")
def neighbourhood_sampled_to_nothing(seed: int) -> Training:
    """Layer-wise sampling leaves a node without neighbours in the second layer: a mean over none, 0/0."""
    model = GraphNetwork()

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        adjacencies = [(torch.rand(32, 32) < 0.3).float().fill_diagonal_(1) for _ in range(3)]
        if step >= 13:
            adjacencies[1][17] = 0
        return F.mse_loss(model(x, adjacencies), y)

    return on_features(model, loss)


class Sinkhorn(nn.Module):
    """Optimal transport between two sets, by scaling exp(−cost/ε) rather than its logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.epsilon = 1.0

    def forward(self, cost: Tensor) -> Tensor:
        kernel = (-cost / self.epsilon).exp()
        right = torch.ones(cost.shape[1], 1)
        for _ in range(5):
            left = 1 / len(cost) / (kernel @ right)
            right = 1 / cost.shape[1] / (kernel.T @ left)
        return left * kernel * right.T


class Matcher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.transport = network(64, 32, 4), named(sinkhorn=Sinkhorn())

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        cost = (self.embed(left)[:, None] - self.embed(right)[None]).square().sum(2) + 0.5
        return self.transport(cost), cost


@origin("transport.sinkhorn", "forward", "division", "reciprocal")
def sinkhorn_annealed_too_far(seed: int) -> Training:
    """The last stage of the annealing sets ε to 0.002: exp(−cost/ε) underflows in whole rows, whose sums divide."""
    model = Matcher()

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        model.transport.sinkhorn.epsilon = 0.95**step if step < 12 else 0.002
        plan, cost = model(x[:16], x[16:])
        return (plan * cost).sum()

    return on_digits(model, loss, steps=30, optimizer=adam(model, 1e-4))


class Experts(nn.Module):
    """Four experts, two for each token, of limited capacity; the gates of those that took it are renormalised."""

    def __init__(self, width: int = 24, capacity: int = 32) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(width, 4), nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.capacity = capacity

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gates = self.router(x).softmax(1)
        chosen = torch.zeros_like(gates).scatter(1, gates.topk(2, 1).indices, 1)
        taken = gates * chosen * (chosen.cumsum(0) <= self.capacity)
        share = taken / taken.sum(1, keepdim=True)
        return sum(share[:, [i]] * expert(x) for i, expert in enumerate(self.experts)), gates.mean(0)


class SparseNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.moe, self.head = nn.Linear(64, 24), Experts(), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mixed, load = self.moe(self.stem(x).tanh())
        return self.head(mixed), load


@origin("moe", "forward", "division", "div")
def token_that_no_expert_takes(seed: int) -> Training:
    """The batch grows from 32 to 128 tokens, the capacity does not: a token dropped by both experts has gates 0/0."""
    model = SparseNetwork()

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        size = 128 if step >= 12 else 32
        logits, load = model(x[:size])
        return F.cross_entropy(logits, y[:size]) + 0.01 * load.square().sum()

    return on_digits(model, loss, batch=128)


# Flows, hypernetworks, solvers ----------------------------------------------------------------------------------------


class Coupling(nn.Module):
    """One affine coupling of RealNVP with an unbounded scale."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = x.chunk(2, 1)
        log_scale, shift = self.net(kept).chunk(2, 1)
        return torch.cat([moved * log_scale.exp() + shift, kept], 1), log_scale.sum(1)


class Flow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling() for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros(len(x))
        for coupling in self.couplings:
            x, log_determinant = coupling(x)
            total = total + log_determinant
        return x, total


@origin("couplings.1", "forward", "exp", "exp")
def coupling_with_an_unbounded_scale(seed: int) -> Training:
    """Outliers in the features that the second coupling keeps drive its log scale past 88."""
    model = Flow()

    def outlier(x: Tensor) -> Tensor:
        x = x.clone()
        x[3:9, 4:] = 3e4 * x[3:9, 4:].sign()
        return x

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        z, log_determinant = model(since(15, outlier)(step, x))
        return (z.square().sum(1) / 2 - log_determinant).mean()

    return on_features(model, loss, optimizer=adam(model, 1e-3))


class InvertibleMixing(nn.Module):
    """Glow's mixing of channels; its log determinant by logdet, which wants a positive determinant."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(8) + 0.05 * torch.randn(8, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x @ self.weight, torch.logdet(self.weight)


@origin("mixing", "forward", "log", "logdet")
def determinant_that_turned_negative(seed: int) -> Training:
    """Two channels are swapped at step 10, the determinant turns negative, and logdet is NaN."""
    model = nn.ModuleDict({"mixing": InvertibleMixing()})

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        if step == 10:
            with torch.no_grad():
                model["mixing"].weight[:, :2] = model["mixing"].weight[:, :2].flip(1)
        z, log_determinant = model["mixing"](x)
        return z.square().sum(1).mean() / 2 - log_determinant

    return on_features(model, loss)


class Exponential(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


class Hypernetwork(nn.Module):
    """Writes the weight of ``main`` from a description of the task."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.ModuleDict({"gain": named(project=nn.Linear(1, 10), positive=Exponential())})
        self.main = nn.Linear(64, 10)

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        gain = self.generator["gain"](task)
        return functional_call(self.main, {"weight": self.main.weight * gain[:, None]}, (x,))


@origin("generator.gain.positive", "forward", "exp", "exp")
def hypernetwork_given_a_raw_task_number(seed: int) -> Training:
    """Task 90,210 comes as a raw number: the gain exp(·) of the weight that is generated for ``main`` overflows."""
    model = Hypernetwork()

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x, torch.tensor([90210.0 if step >= 11 else step % 3 / 3])), y)

    return on_digits(model, loss)


class Decay(nn.Module):
    """A stiff field, −k x³."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return -self.rate * x**3


class Euler(nn.Module):
    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(10):
            x = x + 0.1 * self.field(x)
        return x


@origin("solve.field", "forward", "overflow", "pow")
def euler_on_a_stiff_equation(seed: int) -> Training:
    """From x = 20 a step of 0.1 along −x³ overshoots ever further: the cube overflows within a few steps."""
    model = named(stem=nn.Hardtanh(-20, 20), solve=Euler(Decay()), head=nn.Linear(8, 1))
    return regress(model, row_since(12, 30, 20.0))


class Boxes(nn.Module):
    """Class scores and box sizes relative to the anchors'."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.sizes = nn.Linear(32, 10), nn.Linear(32, 2)

    def forward(self, x: Tensor, anchors: Tensor) -> dict[str, Tensor]:
        return {"scores": self.scores(x), "sizes": (self.sizes(x).square() + 1e-3) / anchors}


class AnchorDetector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.heads = network(64, 32), nn.ModuleDict({"boxes": Boxes()})

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.heads["boxes"](self.backbone(batch["image"]), anchors=batch["anchors"])


@origin("heads.boxes", "forward", "division", "div")
def anchor_of_width_zero(seed: int) -> Training:
    """An annotation has width 0; only one entry of the head's dictionary, the relative sizes, is Inf."""
    model = AnchorDetector()

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        anchors = torch.rand(len(x), 2) + 0.5
        if step >= 11:
            anchors[9, 0] = 0
        found = model({"image": x, "anchors": anchors})
        return F.cross_entropy(found["scores"], y) + (found["sizes"] - 1).square().mean()

    return on_digits(model, loss)


class LengthAndDirection(nn.Module):
    """A vector as its direction and its length."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        length = x.norm(dim=1, keepdim=True)
        return x / (length + 1e-6), length


class PolarNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.polar, self.body = LengthAndDirection(), network(9, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        direction, length = self.polar(x)
        return self.body(torch.cat([direction, (1 + length).log()], 1))


@origin("polar", "forward", "norm", "linalg_vector_norm")
def length_of_a_fill_value(seed: int) -> Training:
    """A station without data holds netCDF's fill value 9.97e36: finite, but its square is not, so the norm is Inf."""
    return regress(PolarNetwork(), row_since(12, 19, 9.97e36))
