"""Tell the outcome of a prescription: the object that the user gets, its sentences, its controls."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gradwatch.findings import Finding
from gradwatch.prescription.outcome_table import figure, kinds, table
from gradwatch.prescription.race import Candidate
from gradwatch.prescription.ranking import Trial, is_cured, kinds_of
from gradwatch.prescription.trial import FEWEST, TrialRun

__all__ = ["Prescription", "controls", "none_fits", "nothing_sick", "sentence", "too_little"]

RUNS = 4  # two for the untreated run, which makes and judges a model twice, two for a trial: seeds leave it half


@dataclass(frozen=True)
class Prescription:
    """The outcome of ``prescribe``, to be printed.

    Attributes:
        ranking: every remedy that was tried, best first.
        note: the outcome in a sentence or two.
        findings: of the untreated model, on all seeds.
        controls: ``{"do nothing": …, "random choice": …}``: (share cured, loss) without a remedy, and with a remedy
            drawn at random from those that were tried (the share is the mean over them, the loss the median).
        not_applicable: remedy → the reason why it could not be tried, or not in full.
        steps: updates of the untreated run.
        own_change: the change of the best as a diff of your own functions, and what is left to paste; empty where it
            cannot be written so.
    """

    ranking: list[Trial]
    note: str
    findings: tuple[Finding, ...] = ()
    controls: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    not_applicable: Mapping[str, str] = field(default_factory=dict)
    steps: int = 0
    own_change: str = ""

    @property
    def best(self) -> Trial | None:
        """The first of the ranking, if it cures."""
        return self.ranking[0] if self.ranking and self.ranking[0].cured else None

    def __str__(self) -> str:
        parts = [self.note]
        if self.ranking:
            parts.append(table(self.ranking, self.controls))
        if self.own_change:
            parts.append(f"The change in your own code:\n\n{self.own_change}")
        if self.best is not None:
            title = "The same as the trial ran it, to paste" if self.own_change else "The change, to paste"
            parts.append(f"{title} (x are the inputs of one batch):\n\n{self.best.code}")
        if self.not_applicable:
            singles = [f"  {name}: {why}" for name, why in self.not_applicable.items() if " + " not in name]
            parts.append("\n".join(["Not tried, or not in full:", *singles]))
        return "\n\n".join(parts)


def controls(
    tried: Mapping[Candidate, Sequence[TrialRun]], baselines: Mapping[int, TrialRun], kind: str
) -> dict[str, tuple[float, float]]:
    """Return what no remedy and a random one come to; nothing if nothing was tried."""
    if not tried:
        return {}
    first = [runs[0] for runs in tried.values()]
    cured = statistics.fmean(is_cured(each, baselines[each.seed], kind) for each in first)
    losses = [each.after if math.isfinite(each.after) else math.inf for each in first]
    untreated = statistics.fmean(each.after for each in baselines.values())
    return {"do nothing": (0.0, untreated), "random choice": (cured, statistics.median(losses))}


def sentence(ranking: Sequence[Trial], kind: str, left: int = 0) -> str:
    """Return the sentence that says whether the first of a ranking cures.

    Args:
        ranking: of what was tried.
        kind: of the finding to be cured.
        left: remedies and pairs for which there was no time.
    """
    best = ranking[0]
    untreated = f"where the untreated run ends at {figure(best.baseline_loss)}"
    if best.cured:
        still = f" Still found with it: {kinds(best.findings)}." if best.findings else ""
        return (
            f"{kind} is cured by {best.remedy} on {_seeds(len(best.seeds))}: held-out loss {figure(best.loss)} "
            f"{untreated}.{still}"
        )
    if left:
        nothing = (
            f"The time ran out: {len(ranking)} of {len(ranking) + left} remedies were tried against {kind}, and none "
            "of these cured it. Give a larger budget_seconds"
        )
    else:
        nothing = f"Nothing helped: of {len(ranking)} remedies tried against {kind}, none cured it"
    if not math.isfinite(best.loss):
        gone = sum(kind not in kinds_of(trial.findings) for trial in ranking)
        return f"{nothing}; with {gone} of them the finding was gone."
    found = "there" if kind in kinds_of(best.findings) else "gone"
    return (
        f"{nothing}. Nearest came {best.remedy}: the finding was {found}, held-out loss {figure(best.loss)} "
        f"{untreated}. A cure has to be better by a tenth than that and than an untrained model."
    )


def nothing_sick(baselines: Mapping[int, TrialRun]) -> str:
    """Return the note for untreated runs of which none raised a finding."""
    first = next(iter(baselines.values()))
    seen = f"{first.steps} updates on {_seeds(len(baselines))} raised no finding"
    lost = next((run for run in baselines.values() if not math.isfinite(run.after)), None)
    if lost is None:
        losses = f"{figure(first.before)} → {figure(first.after)}"
        return f"Nothing was sick: {seen}, held-out loss {losses}. Nothing was tried."
    before = "before it was" if math.isfinite(lost.before) else "nor was it before"
    return (
        f"Training shows nothing: {seen}. But the held-out loss is not finite after it, {before}. Look at the model in "
        "eval mode (running statistics of batch normalisation, no dropout) and at the held-out batches. "
        "Nothing was tried."
    )


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def none_fits(kind: str) -> str:
    """Return the note for a run with time enough, but no remedy that could be tried."""
    return f"No remedy against {kind} could be tried: each one is in .not_applicable, with the reason."


def too_little(budget: float, untreated: TrialRun) -> str:
    """Return the note for a budget in which no trial came to its end; ``untreated`` may not be whole."""
    return (
        f"budget_seconds={budget:g} was too small: an untreated run of {FEWEST} updates and one trial did not fit. "
        f"{_would_do(budget, untreated)}Give more, or smaller batches."
    )


def _would_do(budget: float, untreated: TrialRun) -> str:
    """Return the sentence that says how many seconds would do, or nothing if that cannot be known."""
    one = untreated.seconds_around + max(FEWEST, untreated.steps) * untreated.seconds_per_step
    seconds = RUNS * one
    if seconds <= budget:
        return ""
    figure = f"{float(f'{seconds:.2g}'):g} s"
    return f"About {figure} would do. " if untreated.steps else f"It takes more than {figure}. "
