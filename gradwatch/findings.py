"""Findings, advice, thresholds and errors: plain values, no torch.

Every other room reports a sick run in these values.
"""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal

__all__ = [
    "KINDS",
    "MAY_COME_FIRST",
    "UNKNOWN_STATUS",
    "Advice",
    "Clue",
    "Finding",
    "Kind",
    "NonFiniteError",
    "RecoveryError",
    "Severity",
    "StateError",
    "Thresholds",
    "UnjudgedSteps",
    "shortened_name",
]

Kind = Literal["vanishing", "exploding", "nonfinite", "dead", "saturated", "stalled", "unstable"]
Severity = Literal["warning", "error"]
Clue = Literal[
    "logarithm",  # which operation made a NaN or Inf
    "root",
    "division",
    "softmax",
    "exponential",
    "power",
    "arc",
    "decomposition",
    "overflow",
    "overflow of float16",
    "another operation",  # one that has no remedy of its own
    "made backward",  # of a finite forward pass
    "bad batch",  # what the model was given was sick
    "bad target",  # what the loss was given beside the outputs was sick
    "sick from the start",  # a weight, before any update
    "sick update",  # the update of an optimizer made NaN or Inf of finite gradients
    "overwritten",  # something other than the optimizer wrote NaN, Inf or huge numbers into a weight
    "epsilon is 0",  # of the optimizer, in the format of its weights
    "zero gradient",  # was what the sick update was made of
    "rate is not finite",
    "another rank",  # may have made it, since gradients are means over the ranks
    "scaler gave up",
    "norm overflows",  # so that clipping would scale nothing
    "diverged",  # loss, gradients or a weight had grown a hundredfold before
    "no gradient",  # output or loss are flat
    "targets out of reach",  # of the function at the output
    "shut by others",  # flat functions after layers that this optimizer does not update, before the loss
    "softmax of one",  # over an axis of one entry: 1 whatever it is given
    "factor of 0",  # on the way to the layer, or from it
    "flat operation",  # between the model and the loss, for every entry
    "zero inputs",  # of the model
    "norm of one",  # a normalisation over single values, or over values that are all alike
    "norm left idle",  # a batch normalisation in eval mode, with the statistics that it began with
    "targets grow",  # from look to look, as those that are computed from the model's own outputs do
    "weights alike",  # of the layer, when the run began
    "weights small",
    "weights large",
    "bias far out",
    "recurrence grows",  # the recurrent matrix stretches what it carries, step after step
    "no lower bound",  # of the loss, which falls below 0 while weights grow
    "weights grown",  # large, or a bias far out, by training
    "large outputs",
    "dead units",  # somewhere in the model
    "rate rose",
    "rate decayed",  # to next to nothing of what it was
    "raw inputs",  # whose size is far from 1
    "raw targets",
    "one batch",  # unlike all before it, while updates were small
    "update too large",  # one update moved a weight by many times its size
    "branches add up",  # so that activations grow along depth, though every weight is of ordinary size
    "grows along depth",  # activations, or gradients, are multiplied by layer after layer
    "grows without bound",  # weights grow for hundreds of steps, and the loss runs away with them
    "one branch",  # of a stack gets no gradient, while its siblings do
    "faded later",  # gradients reached the layer at first
    "rate zero",  # why nothing moves
    "clipped away",
    "rounded away",
    "not owned",
    "not reached",  # by the loss: no weight that the optimizer holds gets a gradient
    "never cleared",  # zero_grad is missing
    "cleared early",  # zero_grad between backward and step
    "clipping idle",  # the optimizer divides by the size of the gradient itself
    "clipped out of place",  # before backward() or after step(), where it has no effect
    "clipped while scaled",  # unscale_ is missing before clipping
    "before any update",  # neither rate nor clipping has had a part in it
]
"""What a cause says in words and remedies depend on."""
KINDS: tuple[Kind, ...] = ("vanishing", "exploding", "nonfinite", "dead", "saturated", "stalled", "unstable")
UNKNOWN_STATUS = 7
"""The exit status of a command that was to fail on findings, and knows of none, but does not know the whole run."""


class NonFiniteError(RuntimeError):
    """A loss or gradient turned NaN or Inf under ``on_nonfinite="raise"``; raised before the update is made.

    Attributes:
        layer: name of the sick tensor nearest the output, ``""`` where only the loss is sick.
        step: the attempted update, counted from 0.
    """

    def __init__(self, layer: str, step: int, message: str) -> None:
        super().__init__(layer, step, message)
        self.layer = layer
        self.step = step
        self.message = message

    def __str__(self) -> str:
        return self.message


class StateError(ValueError):
    """A saved state cannot be read; the message says what was expected, what was found, and what to do."""


class RecoveryError(RuntimeError):
    """A run under ``recover=`` cannot be saved any more; its message tells what was tried.

    Attributes:
        step: the attempted update after which it is raised, counted from 0.
        reason: why the run cannot go back, or not again.
        actions: what was done before, a sentence each, in order; the latest ones.
        finding: what is wrong with the run; None where no detector says.
    """

    def __init__(self, step: int, reason: str, actions: tuple[str, ...], finding: Finding | None) -> None:
        super().__init__(step, reason, actions, finding)
        self.step, self.reason, self.actions, self.finding = step, reason, actions, finding

    def __str__(self) -> str:
        blocks = [f"recover= cannot save this run at step {self.step}: {self.reason}."]
        if self.actions:
            blocks.append("\n".join(["What was done before:", *(f"  - {action}" for action in self.actions)]))
        if self.finding is not None:
            blocks.append(str(self.finding))
        return "\n\n".join(blocks)


MAY_COME_FIRST: Mapping[Kind, tuple[Kind, ...]] = {
    "exploding": ("unstable",),
    "nonfinite": ("exploding", "unstable", "nonfinite"),
    "dead": ("exploding", "unstable"),
    "saturated": ("exploding", "unstable"),
    "vanishing": ("exploding", "unstable", "dead", "saturated"),
    "stalled": ("exploding", "unstable", "dead", "saturated", "vanishing"),
    "unstable": ("exploding",),
}
"""Kinds from which a finding may follow. Updates that are too large kill units, and dead units pass no gradient."""


@dataclass(frozen=True)
class UnjudgedSteps:
    """The steps that one rule has not judged, because of faults of gradwatch itself; the other rules have judged them.

    Attributes:
        kind: what the rule looks for.
        rule: its name.
        steps: how many.
    """

    kind: Kind
    rule: str
    steps: int


@dataclass(frozen=True)
class Advice:
    """One remedy that a finding suggests.

    Attributes:
        name: the key of the remedy, as docs/remedies.md and ``gradwatch.prescribe`` use it: ``"batch-norm"``.
        text: one sentence that says what to do. ``str()`` gives it.
    """

    name: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Finding:
    """One sickness of one run, from its first sick step to its latest. Its identity is (kind, layer, step).

    ``print(finding)`` shows it in three blocks: what was measured, why, and what to do.

    Attributes:
        kind: one of ``KINDS``.
        severity: ``"error"`` if the run cannot recover by itself, else ``"warning"``.
        layer: parameter or module name; ``""`` for the loss or the whole model. For ``nonfinite`` it is the sick tensor
            nearest the output, for several sick layers the worst of them at the first sick step.
        layers: every layer that the finding covers, in the model's order; ``("",)`` for the whole model.
        step: first sick step. A step is an attempted update, counted from 0.
        raised_step: the step at which the finding was raised; later than ``step`` if the rule asks for patience.
        last_step: latest sick step, also while the finding is open.
        value: what was measured when it was raised. docs/detection.md gives the unit of each kind.
        threshold: the limit for ``value``, in the same unit.
        measured: one sentence that says what was measured.
        cause: one to three sentences that say what is known of the reason.
        remedies: what to try, best first.
        ranks: the processes that saw it; ``()`` for a single process.
        figure: what was measured in a few words, for ``message``; ``""`` where the usual words of the kind say it.
        actions: what ``recover=`` has done about it, a sentence each, in order.
    """

    kind: Kind
    severity: Severity
    layer: str
    layers: tuple[str, ...]
    step: int
    raised_step: int
    last_step: int
    value: float
    threshold: float
    measured: str
    cause: str
    remedies: tuple[Advice, ...] = ()
    ranks: tuple[int, ...] = ()
    figure: str = ""
    actions: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """One line of at most 160 characters: kind, layer, step, the figure, and where to read more.

        It leaves room for a logger to put a name in front of it. A long name of a layer loses its middle.
        """
        return self._line(". More: print(finding)")

    @property
    def headline(self) -> str:
        """One line of at most 149 characters, as ``message`` but for where to read more."""
        return self._line("")

    def _line(self, end: str) -> str:
        start, rest = f"{self.kind} in ", f"{self._elsewhere} since step {self.step}: {self._figure}{end}"
        return start + shortened_name(_printable(self._place), _LONGEST_MESSAGE - len(start) - len(rest)) + rest

    def __str__(self) -> str:
        """Three short blocks: what was measured, why, and what to do."""
        blocks = [f"What: {self.kind} ({self.severity}) in {self.place}, {self._time}\n  {self.measured}"]
        if self.cause:
            blocks.append(f"Why:\n  {self.cause}")
        if self.actions:
            blocks.append("\n".join(["What was done:", *(f"  - {action}" for action in self.actions)]))
        if self.remedies:
            first = [f"  - {advice.text} ({advice.name})" for advice in self.remedies[:_SHOWN_REMEDIES]]
            names = ", ".join(advice.name for advice in self.remedies[_SHOWN_REMEDIES:])
            blocks.append(
                "\n".join(["What to do:", *first, *([f"  Or, further down the list: {names}"] if names else [])])
            )
        return "\n\n".join(blocks)

    @property
    def identity(self) -> tuple[str, str, int]:
        """The kind, layer and first sick step, which no two findings of a run share."""
        return self.kind, self.layer, self.step

    @property
    def place(self) -> str:
        """The layer that names it and how many others it covers, or ``"the whole run"``."""
        others = len(set(self.layers) - {self.layer})
        if not self.layer or not others:
            return self._place
        return f"{self._place} and {others} other {'layer' if others == 1 else 'layers'}"

    @property
    def _place(self) -> str:
        return self.layer or "the whole run"

    @property
    def _time(self) -> str:
        steps = f"step {self.step}" if self.last_step <= self.step else f"steps {self.step} to {self.last_step}"
        return f"{steps}, {_listed_ranks(self.ranks)}" if self.ranks else steps

    @property
    def _elsewhere(self) -> str:
        """Return the ranks for ``message``, which rank 0 tells: only where it is none of them."""
        return f" on {_listed_ranks(self.ranks)}" if self.ranks and 0 not in self.ranks else ""

    @property
    def _figure(self) -> str:
        """Return what was measured, in a few words for ``message``."""
        if self.figure:
            return textwrap.shorten(_printable(self.figure), _LONGEST_FIGURE, placeholder=" …", break_on_hyphens=False)
        if self.kind == "exploding" and not math.isfinite(self.value):
            return "its gradient norm overflows"
        if self.kind == "nonfinite" and not self.layer:
            return "the loss is NaN or Inf"
        if self.kind == "nonfinite" and self.value == 1:
            return "at least 1 gradient entry is NaN or Inf"  # off the CPU nobody counts further
        words = {"value": _number(self.value), "percent": _number(100 * self.value), "limit": _number(self.threshold)}
        return _FIGURES[self.kind].format(**words, percent_limit=_number(100 * self.threshold))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for files and checkpoints, ``message`` among them."""
        return {**asdict(self), "message": self.message}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Finding:
        """Return the finding whose ``as_dict`` gave ``values``; lists, as JSON makes them, become tuples again."""
        fields_ = {name: value for name, value in values.items() if name != "message"}
        return cls(
            **{
                **fields_,
                "layers": tuple(values["layers"]),
                "remedies": tuple(Advice(each["name"], each["text"]) for each in values["remedies"]),
                "ranks": tuple(values.get("ranks", ())),
                "actions": tuple(values.get("actions", ())),
            }
        )


_LONGEST_MESSAGE = 149  # characters: with "gradwatch: " in front of it a line of 160
_LONGEST_FIGURE = 70
_SHOWN_RANKS = 4
_SHOWN_REMEDIES = 3  # what acts on the cause comes first; of the others names are enough

_FIGURES: Mapping[Kind, str] = {
    "vanishing": "gradient norm {value}, normal above {limit}",
    "exploding": "grown {value} times, normal up to {limit}",
    "nonfinite": "{value} gradient entries are NaN or Inf",
    "dead": "{percent}% of its units are dead, normal below {percent_limit}%",
    "saturated": "{percent}% of its activations are flat, normal below {percent_limit}%",
    "stalled": "the largest change is {value}, normal above {limit}",
    "unstable": "the loss jumps by {value} times its first value, normal up to {limit}",
}
"""The figure of a ``message`` where a finding has none of its own; docs/detection.md gives the units."""


def _listed_ranks(ranks: tuple[int, ...]) -> str:
    """Return ``rank 1``, ``ranks 1, 2``; of many their number."""
    if len(ranks) > _SHOWN_RANKS:
        return f"{len(ranks):,} ranks, {ranks[0]} the first of them"
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))}"


def _number(value: float) -> str:
    """Return three digits, and all digits of a whole number that has few."""
    return f"{value:,.0f}" if abs(value) < 1e9 and value == round(value) else f"{value:.3g}"


def _printable(name: str) -> str:
    """Return ``name`` without line breaks and other characters that would not stay on one line."""
    return "".join(character if character.isprintable() else "?" for character in name)


def shortened_name(name: str, length: int) -> str:
    """Return the name of a layer in at most ``length`` characters, three or more.

    A long one loses modules in its middle; a module that is too long alone, characters in its middle.
    """
    if len(name) <= length:
        return name
    kept = max(length - 1, 2)
    parts = re.findall(r"[^.]*\.|[^.]+$", name)
    head = "".join(_fitting(parts, kept // 2))
    tail = "".join(reversed(_fitting(parts[::-1], kept - len(head))))
    if tail:
        return f"{head}…{tail}"
    return f"{name[: kept // 2]}…{name[len(name) - (kept - kept // 2) :]}"


def _fitting(parts: Sequence[str], length: int) -> Sequence[str]:
    """Return as many of the first ``parts`` as have at most ``length`` characters."""
    ends = itertools.accumulate(map(len, parts))
    return parts[: sum(end <= length for end in ends)]


@dataclass(frozen=True)
class Thresholds:
    """The limits beyond which a layer counts as sick.

    ``None`` means the scale-free default (docs/detection.md); a value that is set holds literally.

    Attributes:
        vanishing_norm: a layer whose gradient's L2 norm stays below this is vanishing.
        exploding_growth: a layer whose gradient's L2 norm exceeds this many times its own running level is exploding.
        dead_share: a layer more than this share of whose units pass no gradient is dead.
        saturated_share: a layer whose activation function is flat for more than this share of its entries is saturated.
        stalled_update_ratio: a run whose weights all move by less than this share of their norm is stalled.
        unstable_jump: a loss that keeps jumping by more than this share of its first value is unstable.
        patience: how many sick steps in a row make a finding, for every kind but ``nonfinite``.
        warmup_steps: so many first steps raise nothing but ``nonfinite``.

    Raises:
        ValueError: for a value that is no positive number (``exploding_growth``: more than 1; ``warmup_steps``: 0 or
            more; the two counts: whole numbers).

    Examples:
        >>> Thresholds(vanishing_norm=1e-7, patience=20).vanishing_norm
        1e-07
    """

    vanishing_norm: float | None = None
    exploding_growth: float | None = None
    dead_share: float | None = None
    saturated_share: float | None = None
    stalled_update_ratio: float | None = None
    unstable_jump: float | None = None
    patience: int | None = None
    warmup_steps: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                _refuse_unless_sensible(field.name, value)


def _refuse_unless_sensible(name: str, value: object) -> None:
    is_count = name in ("patience", "warmup_steps")
    wanted = {
        "patience": "a whole number of steps, 1 or more",
        "warmup_steps": "a whole number of steps, 0 or more",
        "exploding_growth": "a finite factor above 1",
    }.get(name, "a finite number above 0")
    lowest = {"exploding_growth": 1, "warmup_steps": -1}.get(name, 0)
    is_number = isinstance(value, Integral if is_count else Real) and not isinstance(value, bool)
    if not is_number or not lowest < float(value) < math.inf:  # type: ignore[arg-type]
        raise ValueError(f"Thresholds({name}={value!r}): expected {wanted}, or None for the scale-free default.")
