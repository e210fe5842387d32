"""Small networks of many kinds. Each takes (B, 6, 4) entries."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

__all__ = ["NETWORKS", "SHAPE", "first_tensor"]

SHAPE = 6, 4


def first_tensor(output: object) -> Tensor:
    """Return the first tensor of what a network returns."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output


class Embedded(nn.Module):
    """A network that looks rows up: it turns its input into numbers of rows."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table, self.head = table, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.nan_to_num(0.0, 0.0, 0.0).mul(3).long().remainder(10).flatten(1)
        return self.head(self.table(rows)) + x.mean(1, keepdim=True)[:, :1].sum(-1, keepdim=True)


class Tied(nn.Module):
    """A network of which two layers share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 4), nn.Linear(4, 4)
        self.decode.weight = self.encode.weight
        self.again = self.encode

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.decode(torch.tanh(self.again(self.encode(x))))}


class Nested(nn.Module):
    """A network of lists and dicts of modules, called in an order of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.GELU())) for _ in range(3))
        self.heads = nn.ModuleDict({"b": nn.Linear(4, 2), "a": nn.Linear(4, 4), "unused": nn.Linear(4, 4)})

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for block in reversed(self.blocks):
            x = x + block(x)
        return self.heads["a"](x), self.heads["b"](x)


class ByHand(nn.Module):
    """A network without layers: parameters in a dict, a list and by themselves, one of them of no dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({"first": nn.Parameter(torch.randn(8, 4) / 2)})
        self.more = nn.ParameterList([nn.Parameter(torch.randn(4, 8) / 2), nn.Parameter(torch.zeros(4))])
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.empty = nn.Parameter(torch.empty(0, 4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(F.linear(x, self.weights["first"]))
        return self.scale * F.linear(hidden, *self.more) + self.empty.sum()


class Experts(nn.Module):
    """A network that sends each row to one of its parts: some parts have no gradient at some steps."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 3), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        weights = self.gate(rows).softmax(-1)
        chosen = weights.nan_to_num().argmax(-1)
        made = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            if (mine := chosen == number).any():
                made[mine] = weights[mine, number, None] * expert(rows[mine])
        return made.view_as(x)


class Convolution(nn.Module):
    """A network of images, with activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3),
            nn.GroupNorm(2, 4), nn.LeakyReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.unsqueeze(1))


def _sequence(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Linear(8, 4))


def _pruned() -> nn.Module:
    return nn.Sequential(prune.l1_unstructured(nn.Linear(4, 8), "weight", amount=0.5), nn.Tanh(), nn.Linear(8, 4))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: _sequence(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh()),
    "dropout": lambda: _sequence(nn.Linear(4, 8), nn.Dropout(0.5), nn.RReLU(), nn.AlphaDropout(0.2)),
    "batch norm": lambda: _sequence(nn.Conv1d(6, 6, 1), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(4, 8)),
    "layer norm": lambda: _sequence(nn.LayerNorm(4), nn.Linear(4, 8), nn.GELU(), nn.RMSNorm(8)),
    "convolution": Convolution,
    "lstm": lambda: nn.LSTM(4, 5, num_layers=2, dropout=0.3, batch_first=True),
    "gru": lambda: nn.GRU(4, 5, bidirectional=True, batch_first=True),
    "rnn": lambda: nn.RNN(4, 5, nonlinearity="relu", batch_first=True),
    "transformer": lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True, norm_first=True),
    "embedding": lambda: Embedded(nn.Embedding(10, 8, padding_idx=0)),
    "embedding with a limit": lambda: Embedded(nn.Embedding(10, 8, max_norm=1.0)),
    "bag": lambda: Embedded(nn.EmbeddingBag(10, 8)),
    "sparse": lambda: Embedded(nn.Embedding(10, 8, sparse=True)),
    "tied": Tied,
    "nested": Nested,
    "by hand": ByHand,
    "experts": Experts,
    "spectral norm": lambda: _sequence(parametrizations.spectral_norm(nn.Linear(4, 8)), nn.Tanh()),
    "old spectral norm": lambda: _sequence(nn.utils.spectral_norm(nn.Linear(4, 8)), nn.Tanh()),
    "weight norm": lambda: _sequence(parametrizations.weight_norm(nn.Linear(4, 8)), nn.Tanh()),
    "pruned": _pruned,
    "lazy": lambda: nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(4)),
    "double": lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).double(),
    "half": lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).bfloat16(),
}
