"""Parts of networks that keep state of the user's own, which is no tensor that a watcher could copy.

Each part adds a little to what passes through it, and notes in a journal that it was called. Whoever calls one twice,
or leaves a call out, makes another run of it.
"""

from __future__ import annotations

import collections
import copy
import itertools
import logging
import queue
import random
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["FEED", "OWN_STATE", "Journal", "left_of"]

Journal = list[str]
"""What has happened, in order."""

FEED = "feed"
"""The part that waits until its loop has put something into its queue."""


class Own(nn.Module):
    """A part that adds a number which ``draw`` gets out of some state.

    Args:
        journal: takes a line a call.
        state: anything.
        draw: takes the state, and returns a number.
        left: returns what is left of the state at the end, something that can be compared.
    """

    def __init__(self, journal: Journal, state: Any, draw: Callable[[Any], float], left: Callable[[Any], Any]) -> None:
        super().__init__()
        self.journal, self.state, self.draw, self.left = journal, state, draw, left

    def forward(self, x: Tensor) -> Tensor:
        self.journal.append("forward of a part")
        return x + 0.01 * float(self.draw(self.state))

    def __deepcopy__(self, known: dict[int, Any]) -> Own:
        return self  # not every state can be copied


def _numbers() -> Iterator[float]:
    number = 0.0
    while True:
        yield number
        number = number * 0.9 + 0.1


def _appended(state: list[int]) -> float:
    state.append(len(state))
    return state[-1] % 3


def _turned(state: collections.deque[float]) -> float:
    state.rotate(1)
    state[0] *= 0.99
    return state[0]


def _counted(state: collections.Counter[str]) -> float:
    state["calls"] += 1
    return state["calls"] % 4


def _taken(state: queue.Queue[float]) -> float:
    number = state.get()
    state.put(number * 0.9)
    return number


def _written(state: Any) -> float:
    state.write("a line\n")
    state.flush()
    return state.tell() % 5


def _locked(state: Any) -> float:
    with state["lock"]:
        state["count"] += 1
        return state["count"] % 2


def _logged(state: logging.Logger) -> float:
    state.warning("forward")
    return 0.0


def _warned(_: None) -> float:
    warnings.warn("forward of the user's", UserWarning, stacklevel=2)
    return 0.0


def _drawn_in_thread(state: random.Random) -> float:
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(state.random()))
    thread.start()
    thread.join()
    return found[0]


def _filled(*numbers: float) -> queue.Queue[float]:
    made: queue.Queue[float] = queue.Queue()
    for number in numbers:
        made.put(number)
    return made


def _logger(journal: Journal) -> logging.Logger:
    logger = logging.Logger("the user's")
    handler = logging.Handler()
    handler.emit = lambda record: journal.append("logged")  # type: ignore[method-assign]
    logger.addHandler(handler)
    return logger


class MomentumEncoder(nn.Module):
    """A part whose keys follow its queries in place, in forward (He et al. 2020, arXiv:1911.05722)."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 4)
        self.key = copy.deepcopy(self.query).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for key, query in zip(self.key.parameters(), self.query.parameters(), strict=True):
                key.mul_(0.9).add_(query, alpha=0.1)
            keys = self.key(x)
        return x + 0.1 * (self.query(x) - keys)


class Average(nn.Module):
    """A part that keeps a running mean in a buffer, anew at each call, and a count in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean().nan_to_num(0.0, 0.0, 0.0)
        return x - self.mean


class Bank(nn.Module):
    """A part that keeps what it has seen, with the graph of none, and adds the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.hidden: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().nan_to_num(0.0, 0.0, 0.0).mean())
        before = self.seen[-2] if len(self.seen) > 1 else 0.0
        self.hidden = torch.as_tensor(before) * 0.5
        return x + self.hidden


class Clamped(nn.Module):
    """A part that clamps its weights in forward, as critics do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.layer.parameters():
            weight.data.mul_(0.999).clamp_(-0.4, 0.4)
        return x + self.layer(x)


class Reversal(torch.autograd.Function):
    """A gradient that grows smaller from call to call."""

    @staticmethod
    def forward(context: Any, x: Tensor, part: Any) -> Tensor:
        context.part = part
        return x.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        context.part.count += 1
        context.part.journal.append("backward of a part")
        return gradients[0] / (1 + context.part.count % 3), None


class Reversed(nn.Module):
    """A part that counts its backward passes."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal, self.count = journal, 0

    def forward(self, x: Tensor) -> Tensor:
        return Reversal.apply(x, self)


class Hooked(nn.Module):
    """A part that puts a hook on each tensor that passes."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        if x.requires_grad:
            x.register_hook(self._halved)
        return x

    def _halved(self, gradient: Tensor) -> Tensor:
        self.journal.append("hook of a tensor")
        return gradient * 0.5


class Counting(nn.Module):
    """A parametrisation that counts how often the weight was made."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    def forward(self, weight: Tensor) -> Tensor:
        self.journal.append("weight made")
        return weight * (1 + 0.001 * (len(self.journal) % 3))


class Parametrised(nn.Module):
    """A layer with a parametrisation of the user's."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        parametrize.register_parametrization(self.layer, "weight", Counting(journal))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


class Stumbling(nn.Module):
    """A part that raises at some of its calls; its loop goes on with the next batch."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % 7 == 6:
            raise RuntimeError("out of memory, says the part")
        return x


def _holding(state: Callable[[Journal], Any], draw: Callable[[Any], Any], left: Callable[[Any], Any] = repr) -> Any:
    return lambda journal: Own(journal, state(journal), draw, left)


OWN_STATE: dict[str, Callable[[Journal], nn.Module]] = {
    "generator of torch": _holding(
        lambda _: torch.Generator().manual_seed(1),
        lambda own: torch.rand((), generator=own),
        lambda own: own.get_state(),
    ),
    "generator of python": _holding(lambda _: random.Random(1), random.Random.random, random.Random.getstate),
    "generator of numpy": _holding(
        lambda _: np.random.default_rng(1), lambda own: own.random(), lambda own: str(own.bit_generator.state)
    ),
    "random": _holding(lambda _: None, lambda _: random.random()),
    "numpy": _holding(lambda _: None, lambda _: np.random.random()),
    "torch": _holding(lambda _: None, lambda _: torch.rand(())),
    "iterator": _holding(lambda _: itertools.cycle([0.1, 0.4, 0.2]), next, next),
    "coroutine": _holding(lambda _: _numbers(), next, next),
    "list": _holding(lambda _: [], _appended),
    "deque": _holding(lambda _: collections.deque([0.1, 0.2, 0.3]), _turned),
    "counter": _holding(lambda _: collections.Counter(), _counted),
    "queue": _holding(lambda _: _filled(0.5, 0.2), _taken, lambda own: list(own.queue)),
    FEED: _holding(lambda _: _filled(), lambda own: own.get(), lambda own: own.qsize()),
    "file": _holding(lambda _: tempfile.TemporaryFile("w+"), _written, lambda own: own.tell()),  # noqa: SIM115
    "lock": _holding(lambda _: {"lock": threading.Lock(), "count": 0}, _locked, lambda own: own["count"]),
    "log": _holding(_logger, _logged, lambda own: None),
    "warning": _holding(lambda _: None, _warned),
    "thread": _holding(lambda _: random.Random(2), _drawn_in_thread, random.Random.getstate),
    "momentum encoder": lambda _: MomentumEncoder(),
    "average": lambda _: Average(),
    "bank": lambda _: Bank(),
    "clamped": lambda _: Clamped(),
    "reversal": Reversed,
    "hook of a tensor": Hooked,
    "parametrisation": Parametrised,
    "stumbles": lambda _: Stumbling(),
}
"""Parts of own state by name."""


def left_of(model: nn.Module) -> list[Any]:
    """Return what is left of the own state of the parts of ``model``."""
    found: list[Any] = []
    for part in model.modules():
        if isinstance(part, Own):
            found.append(part.left(part.state))
        elif isinstance(part, Bank):
            found.append([float(each) for each in part.seen])
        elif isinstance(part, Reversed | Stumbling):
            found.append(vars(part).get("count", vars(part).get("calls")))
    return found
