"""What a program of the benchmark is: a small training run, and what is claimed of it.

Knows nothing of gradwatch: a program trains the same whether anyone looks or not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

Observe = Callable[[Tensor], None]
"""Takes each loss before its backward pass."""


@dataclass(frozen=True)
class Supervised:
    """A training run told apart: what is trained on, and the loss.

    Attributes:
        draw: number of the update → (inputs, targets), from torch's generator.
        loss: (outputs, targets) → scalar.
    """

    draw: Callable[[int], tuple[Any, Any]]
    loss: Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Training:
    """One run, ready to start.

    Attributes:
        model: what is trained, or ``{name: module}`` for several.
        optimizers: that update it.
        steps: how many times ``step`` is called.
        step: (number from 0, observe) → one iteration: forward, ``observe(loss)``, backward, update.
        loss_of: number → the forward pass, where the loop is a plain one.
        supervised: the same told apart, where it can be.
        is_plain: whether the loop does nothing but forward, backward and update.
        score: how well it has learned, once it is over; more is better, and 1 is often the most.
    """

    model: nn.Module | Mapping[str, nn.Module]
    optimizers: Sequence[Optimizer]
    steps: int
    step: Callable[[int, Observe], None]
    loss_of: Callable[[int], Tensor] | None = None
    supervised: Supervised | None = None
    is_plain: bool = False
    score: Callable[[], float] | None = None


@dataclass(frozen=True)
class Program:
    """A training run and what is claimed of it; ``prove.py`` measures the claim on the bare run.

    Attributes:
        name: of the function that makes it.
        make: seed → ``Training``.
        kind: of the finding that it deserves; None for a healthy program.
        also: kinds that would be right, too.
        layers: globs over parameter names: the sick ones. Empty: whichever the proof measures.
        attainable: for ``vanishing``, ``stalled``: a loss that the cured program reaches in as many steps.
        falls_to: for healthy programs: the share of its first loss that its last ones fall to, or less.
        pair: for programs of the group ``others``: what a sick program shares with its healthy twin.
        reaches: for those: the score that the healthy twin reaches, and the sick one does not.
        cause: for those that are sick: what is wrong, in a few words.
    """

    name: str
    make: Callable[[int], Training]
    kind: str | None
    also: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    attainable: float | None = None
    falls_to: float = 0.7
    pair: str | None = None
    reaches: float | None = None
    cause: str = ""

    @property
    def half(self) -> str:
        """``tune`` or ``measured`` (never tuned on), by its name; or ``others``, the pairs written by a stranger."""
        if self.pair is not None:
            return "others"
        return ("tune", "measured")[hashlib.sha256(self.name.encode()).digest()[0] % 2]

    @property
    def is_measured(self) -> bool:
        """Whether it belongs to the half that is only measured on, never tuned on."""
        return self.half == "measured"


PROGRAMS: dict[str, Program] = {}


def faulty(
    kind: str, *, also: Sequence[str] = (), layers: Sequence[str] = (), attainable: float | None = None
) -> Callable[[Callable[[int], Training]], Callable[[int], Training]]:
    """Registers a sick program."""

    def register(make: Callable[[int], Training]) -> Callable[[int], Training]:
        return _add(Program(make.__name__, make, kind, tuple(also), tuple(layers), attainable))

    return register


def healthy(*, falls_to: float = 0.7) -> Callable[[Callable[[int], Training]], Callable[[int], Training]]:
    """Registers a program that learns: its last losses are at most ``falls_to`` times its first."""

    def register(make: Callable[[int], Training]) -> Callable[[int], Training]:
        return _add(Program(make.__name__, make, None, falls_to=falls_to))

    return register


@dataclass(frozen=True)
class Pair:
    """Sick and healthy programs as close together as possible; its methods are decorators that register them.

    Attributes:
        name: what the programs have in common.
        reaches: the score that the healthy ones reach, and the sick ones do not.
    """

    name: str
    reaches: float

    def sick(
        self, kind: str, *, cause: str, also: Sequence[str] = (), layers: Sequence[str] = ()
    ) -> Callable[[Callable[[int], Training]], Callable[[int], Training]]:
        """Registers a program that deserves a finding of ``kind``."""

        def register(make: Callable[[int], Training]) -> Callable[[int], Training]:
            claim = (kind, tuple(also), tuple(layers))
            return _add(Program(make.__name__, make, *claim, pair=self.name, reaches=self.reaches, cause=cause))

        return register

    def healthy(self, make: Callable[[int], Training]) -> Callable[[int], Training]:
        """Registers a program that deserves none."""
        return _add(Program(make.__name__, make, None, pair=self.name, reaches=self.reaches))


def plain(
    model: nn.Module,
    optimizer: Optimizer,
    loss_of: Callable[[int], Tensor],
    steps: int,
    *,
    zero: bool = True,
    before_update: Callable[[int], None] | None = None,
    told_apart: Supervised | None = None,
) -> Training:
    """The loop that most people write: ``loss_of(step)`` is the forward pass."""

    def step(number: int, observe: Observe) -> None:
        if zero:
            optimizer.zero_grad()
        loss = loss_of(number)
        observe(loss)
        loss.backward()
        if before_update is not None:
            before_update(number)
        optimizer.step()

    return Training(model, [optimizer], steps, step, loss_of, told_apart, zero and before_update is None)


def supervised(
    model: nn.Module,
    optimizer: Optimizer,
    draw: Callable[[int], tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
    steps: int,
    **options: Any,
) -> Training:
    """The plain loop of a model that takes inputs and a loss that takes its outputs and targets."""

    def loss_of(step: int) -> Tensor:
        inputs, targets = draw(step)
        return loss(model(*inputs) if isinstance(inputs, tuple) else model(inputs), targets)

    return plain(model, optimizer, loss_of, steps, told_apart=Supervised(draw, loss), **options)


def _add(program: Program) -> Callable[[int], Training]:
    if program.name in PROGRAMS:
        raise ValueError(f"two programs are called {program.name!r}")
    PROGRAMS[program.name] = program
    return program.make
