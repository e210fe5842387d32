"""Plain values that hold a run, for readers of event files and for views. They know nothing of files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradwatch.findings import Finding, UnjudgedSteps

__all__ = [
    "Coverage",
    "Environment",
    "FindingEvent",
    "Floats",
    "LayerSeries",
    "LayerTable",
    "LoggedRow",
    "Run",
    "RunEnd",
    "TimeSeries",
    "Totals",
    "Written",
]

Floats = NDArray[np.floating]

_SHOWN_RULES = 4  # that are named: where more have failed, one fault is behind them all


@dataclass(frozen=True)
class LayerTable:
    """The table of P layers, in order of registration.

    Attributes:
        layers: their names, each of them once.
        depth: (P,) place of each from input to output.
        size: (P,) entries of each.
    """

    layers: tuple[str, ...]
    depth: NDArray[np.int64]
    size: NDArray[np.int64]


@dataclass(frozen=True)
class Coverage:
    """How much of a run was measured so far. What was not measured is not known to be healthy.

    Attributes:
        steps: attempted updates.
        measured: how many of them were measured and judged.
        unjudged: the rules that have failed, which have not judged some of these.
    """

    steps: int
    measured: int
    unjudged: tuple[UnjudgedSteps, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Return whether every step was measured, and judged by every rule."""
        return not (self.unmeasured or self.unjudged)

    @property
    def unmeasured(self) -> int:
        """How many steps nothing is known of."""
        return max(0, self.steps - self.measured)

    def as_dict(self) -> dict[str, Any]:
        """Return what is written of it; rules are named only where some have failed."""
        values = {"steps": self.steps, "measured": self.measured}
        return {**values, "unjudged": [asdict(each) for each in self.unjudged]} if self.unjudged else values

    def unjudged_in_words(self) -> str:
        """Return what was not looked for, and at how many steps; ``""`` where no rule has failed."""
        words = [f"{each.kind} by the rule {each.rule} at {each.steps}" for each in self.unjudged[:_SHOWN_RULES]]
        if len(self.unjudged) > len(words):
            words.append(f"more by {len(self.unjudged) - len(words)} other rules")
        return f"not looked for, of {self.steps} steps: {', '.join(words)}" if words else ""


@dataclass(frozen=True)
class Environment:
    """The environment of a run, as its first record says. It names no user, no host, no folder and no argument.

    Attributes:
        versions: of Python, torch, gradwatch, and the frameworks that the program had loaded.
        devices: that hold the parameters.
        commit: of git, where the script lies in a repository; else ``""``.
        script: the name of its file, or of its module; ``""`` where there is none.
    """

    versions: Mapping[str, str]
    devices: str
    commit: str
    script: str


@dataclass(frozen=True)
class RunEnd:
    """The mark that a run writes when it is closed. It is missing where a run goes on, or was killed.

    Attributes:
        steps: attempted updates.
        lost: how many rows and findings could not be written, by what they are; empty where all were.
    """

    steps: int
    lost: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FindingEvent:
    """A finding as it opened, as it went on, or as it ended."""

    finding: Finding
    ended: bool

    @property
    def is_opening(self) -> bool:
        """Return whether this is the first that was written of the finding: it has not gone on since it was raised."""
        return not self.ended and self.finding.last_step <= self.finding.raised_step


@dataclass(frozen=True)
class LoggedRow:
    """One logged step.

    Attributes:
        step: the attempted update.
        figures: (K, P) float32 for each tag of ``gradwatch.event_files.format.ROW_NAMES`` that was written.
        totals: (T,) in the order of ``TOTALS``; None if there were none.
        table: the table of layers if it changed with this row, else None.
    """

    step: int
    figures: Mapping[str, Floats]
    totals: Floats | None
    table: LayerTable | None


Written: TypeAlias = LoggedRow | FindingEvent | Coverage | Environment | RunEnd
"""What one record of an event file holds of gradwatch's."""


@dataclass(frozen=True)
class TimeSeries:
    """Figures along time.

    Attributes:
        steps: (S,) int64, strictly rising.
        values: (S,), or (S, P) with a column per layer, float32.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True)
class LayerSeries:
    """All rows of one tag along time.

    Attributes:
        steps: (S,) int64, strictly rising.
        values: (K, S, P) float32: K rows of P layers at each step, named by ``ROW_NAMES``.
        left_out: how many logged rows had no layer of the last table.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float32]
    left_out: int = 0


@dataclass(frozen=True)
class Totals:
    """Figures of the whole run along time.

    Attributes:
        steps: (S,) int64, strictly rising.
        values: (S,) float64 for each name of ``gradwatch.event_files.format.TOTALS``.
    """

    steps: NDArray[np.int64]
    values: Mapping[str, Floats]


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: of its directory, as it was asked for.
        layers: P parameter names, in order of registration.
        depth: (P,) int64, place of each from input to output.
        size: (P,) int64, entries of each.
        packed: figures of all layers, (S, P) each, by the names of ``gradwatch.event_files.format``: ``NORMS``, and
            those of ``PACKED_FIGURES`` that were written, at the steps where they were. NaN where not measured;
            ``highest`` is Inf where a gradient was not finite.
        curves: (S,) each: ``grad_norm_total``, ``grad_norm_clipped_total``, ``loss``, ``learning_rate``; a second
            optimizer's end in ``/optimizer_1``.
        findings: by onset, each as it was written last.
        ended: whether each of them has ended.
        skipped_steps: updates left out, as of the last row.
        coverage: how much was measured, as it was written last; None where all was.
        closed_after: attempted updates when the run was closed; None where it goes on, or was killed.
        written_at: when its newest file last grew, seconds since 1970.
        problems: what could not be read, for people.
        environment: what it was made with; None where the files do not say.
        lost: how many rows and findings could not be written, by what they are, as the run said where it was closed.
    """

    name: str
    layers: tuple[str, ...]
    depth: NDArray[np.int64]
    size: NDArray[np.int64]
    packed: Mapping[str, TimeSeries]
    curves: Mapping[str, TimeSeries]
    findings: tuple[Finding, ...]
    ended: tuple[bool, ...]
    skipped_steps: int
    coverage: Coverage | None
    closed_after: int | None
    written_at: float
    problems: tuple[str, ...]
    environment: Environment | None = None
    lost: Mapping[str, int] = field(default_factory=dict)

    @property
    def steps(self) -> NDArray[np.int64]:
        """Return (S,) logged steps."""
        return self.packed["grad_norm"].steps

    @property
    def order(self) -> NDArray[np.int64]:
        """Return (P,) columns from input to output."""
        return np.argsort(self.depth, kind="stable")

    @property
    def sick(self) -> NDArray[np.bool_]:
        """Return (P,) whether a finding covers the layer."""
        covered: set[str] = set()
        for finding in self.findings:
            covered.update((finding.layer, *finding.layers))
        return np.array([layer in covered for layer in self.layers], dtype=bool)
