"""Along time: a character model of Python's own source that explodes, and digits read two pixels at a time.

Weights that are used at every time step have one gradient, the sum over all steps. No norm shows that it comes from the
last steps alone. A gradient that vanishes along time shows as a loss that does not fall.
"""

from __future__ import annotations

import statistics
import sysconfig
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from side_by_side import Outcome, Table, Way, compare, loop, outcome_of
from torch import Tensor, nn
from torch.nn import functional as F

from gradwatch.remedies import replace_rnns_, truncate_backprop_

LENGTH, WIDTH, BATCH = 32, 64, 16


@cache
def text() -> Tensor:
    """Return (200,000,) bytes below 128 of the standard library's source."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    source = b"".join(path.read_bytes() for path in files[:20])[:200_000]
    return torch.tensor([byte & 127 for byte in source])


class Writer(nn.Module):
    """A model of text: (N, T) characters → (N, T, 128) scores of the next; ``cell`` is a class of torch.nn."""

    def __init__(self, cell: Callable[..., nn.RNNBase], begin: str = "PyTorch's") -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 32)
        self.rnn, self.out = cell(32, WIDTH, batch_first=True), nn.Linear(WIDTH, 128)
        recurrent_weights(self.rnn, begin)

    def forward(self, characters: Tensor) -> Tensor:
        return self.out(self.rnn(self.embedding(characters))[0])


class Reader(nn.Module):
    """A reader of digits: (N, 64) pixels, two at a time → (N, 10) scores, 32 steps after the top of the image."""

    def __init__(self, cell: Callable[..., nn.RNNBase], begin: str = "PyTorch's") -> None:
        super().__init__()
        self.rnn, self.out = cell(2, WIDTH, batch_first=True), nn.Linear(WIDTH, 10)
        recurrent_weights(self.rnn, begin)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.out(self.rnn(pixels.unflatten(1, (32, 2)))[0][:, -1])


def recurrent_weights(rnn: nn.RNNBase, begin: str) -> None:
    """Draw recurrent weights: ``"wild"`` ones, with ReLU, multiply the norm by 1.4 a step; or ``"orthogonal"`` ones."""
    if begin == "wild":
        nn.init.normal_(rnn.weight_hh_l0, std=2 * WIDTH**-0.5)
    if begin == "orthogonal":
        nn.init.orthogonal_(rnn.weight_hh_l0)


def remade(make_model: Callable[[], nn.Module], change: Callable[[nn.Module], None]) -> Callable[[], nn.Module]:
    """Return a function that makes a model and changes it."""

    def make() -> nn.Module:
        model = make_model()
        change(model)
        return model

    return make


def train(way: Way, seed: int, steps: int, log_dir: Path | None, scale: float) -> Outcome:
    """Train one run on text; its last tenth is held out, and the figures are nats a character."""
    source = text()
    torch.manual_seed(seed)
    model = way.model()
    starts = torch.Generator().manual_seed(seed)
    trained = loop(way, model, lambda: windows(source[:180_000], starts), steps, log_dir)
    with torch.no_grad():
        held_out = [windows(source[180_000:], starts) for _ in range(8)]
        return outcome_of(*trained, statistics.fmean(nats(model(given), next_).item() for given, next_ in held_out))


def windows(source: Tensor, starts: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return (N, T) characters, from places drawn by ``starts``, and the one that follows each."""
    places = torch.randint(len(source) - LENGTH - 1, (BATCH,), generator=starts).tolist()
    stretches = torch.stack([source[place : place + LENGTH + 1] for place in places])
    return stretches[:, :-1], stretches[:, 1:]


def nats(scores: Tensor, following: Tensor) -> Tensor:
    """Return the cross-entropy of each character, given those before it."""
    return F.cross_entropy(scores.flatten(0, 1), following.flatten())


def main() -> list[str]:
    """Train a model that explodes along time, and one whose gradient has a long way."""
    written = partial(Way, loss=nats)
    relu = partial(nn.RNN, nonlinearity="relu")
    wild = partial(Writer, relu, begin="wild")
    adam = torch.optim.Adam
    return compare(
        "recurrent",
        Table(
            "An RNN of ReLUs with wild recurrent weights on text, plain descent at 0.5",
            [
                written("do nothing", wild, 0.5),
                written("lstm-gru: LSTM", partial(Writer, nn.LSTM), 0.5),
                written("lstm-gru: GRU", remade(wild, replace_rnns_), 0.5),
                written("tanh in place of ReLU, wild", partial(Writer, nn.RNN, begin="wild"), 0.5),
                written("orthogonal", partial(Writer, relu, begin="orthogonal"), 0.5),
                written("truncated-bptt, 8 of 32 steps", remade(wild, partial(truncate_backprop_, steps=8)), 0.5),
                written("truncated-bptt, 2 of 32 steps", remade(wild, partial(truncate_backprop_, steps=2)), 0.5),
                written("clip-norm, 1", wild, 0.5, clip=1.0),
                written("lower-learning-rate, 0.005", wild, 0.005),
            ],
            steps=150,
            train=train,
            held_out="held-out loss",
        ),
        Table(
            "Digits, two pixels a step, Adam at 0.003",
            [
                Way("do nothing: RNN", partial(Reader, nn.RNN), 0.003, optimizer=adam),
                Way("lstm-gru: LSTM", partial(Reader, nn.LSTM), 0.003, optimizer=adam),
                Way("lstm-gru: GRU", remade(partial(Reader, nn.RNN), replace_rnns_), 0.003, optimizer=adam),
                Way("orthogonal", partial(Reader, nn.RNN, begin="orthogonal"), 0.003, optimizer=adam),
            ],
            steps=150,
        ),
    )
