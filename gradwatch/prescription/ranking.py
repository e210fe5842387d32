"""Rank remedies by what their runs showed, and decide when a remedy counts as a cure.

A remedy cures a run if, on that seed,

- the kind of finding that the untreated model shows is gone, and there is no finding of severity ``error``;
- the loss on held-out batches is finite, and better by a tenth than the untreated model's after as much training (less
  than a tenth may be a matter of the seed);
- the loss is better by a tenth than the untrained model's, and than its own before training (a model that learns
  nothing is easily better than one that exploded).

Better by a tenth means lower by 10 % of the magnitude, so that losses below zero are judged alike. A remedy *cures* if
it does so on every seed it was tried on.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gradwatch.findings import Finding, Kind
from gradwatch.prescription.treatments import Treatment, code_of, name_of
from gradwatch.prescription.trial import FEWEST, TrialRun

__all__ = ["MARGIN", "Trial", "in_order", "is_cure", "is_cured", "kinds_of", "main_kind", "rank"]

MARGIN = 0.1
SOLVED = 1e-2  # of the loss before training: who ends below has solved the task, and a still lower loss says no more


@dataclass(frozen=True)
class Trial:
    """The measurements of one remedy, over its seeds.

    Attributes:
        remedy: its name in ``gradwatch.remedies``; pairs are joined with `` + ``.
        cured: it cured on every seed that it was tried on.
        loss: mean loss on the held-out batches.
        baseline_loss: the same, untreated, on the same seeds.
        findings: of the treated model, over all seeds.
        seconds_per_step: mean time of a training step.
        loss_interval: the lowest and the highest loss of its seeds.
        seeds: those that it was tried on.
        cost: processor time of a step as a multiple of the untreated one's, so that it does not matter what ran beside
            it; NaN if one of both was broken off early.
        code: the change, to paste.
        treatments: the change as the trial was given it.
    """

    remedy: str
    cured: bool
    loss: float
    baseline_loss: float
    findings: tuple[Finding, ...]
    seconds_per_step: float
    loss_interval: tuple[float, float]
    seeds: tuple[int, ...]
    cost: float
    code: str = field(repr=False)
    treatments: tuple[Treatment, ...] = field(default=(), repr=False)


def main_kind(untreated: TrialRun) -> Kind:
    """Return the kind to be cured: that of the first finding, of severity ``error`` if there is one."""
    return min(untreated.findings, key=lambda finding: (finding.severity != "error", finding.raised_step)).kind


def is_cured(run: TrialRun, baseline: TrialRun, kind: str) -> bool:
    """Return whether ``run`` is a cure of the untreated ``baseline`` of the same seed."""
    has_error = any(finding.severity == "error" for finding in run.findings)
    is_gone = kind not in kinds_of(run.findings) and not has_error
    return is_gone and all(is_better(run.after, loss) for loss in (baseline.after, baseline.before, run.before))


def is_cure(runs: Iterable[TrialRun], baselines: Mapping[int, TrialRun], kind: str) -> bool:
    """Return whether a remedy has cured on every seed that it was tried on."""
    return all(is_cured(run, baselines[run.seed], kind) for run in runs)


def is_better(loss: float, than: float) -> bool:
    """Return whether a loss is lower by ``MARGIN``; a finite one is better than any that is not."""
    if not math.isfinite(loss):
        return False
    return not math.isfinite(than) or loss <= than - MARGIN * abs(than)


def _score_of(
    runs: Sequence[TrialRun], baselines: Mapping[int, TrialRun], kind: str, solved: float
) -> tuple[float, float, float, float]:
    """Return the score of one candidate.

    Its parts, the first of which counts most: the share of seeds not cured; of seeds still sick; of seeds that show any
    finding of the untreated run; the mean loss, infinite if it is not finite, and ``solved`` if it is lower.
    """
    uncured = sum(not is_cured(run, baselines[run.seed], kind) for run in runs) / len(runs)
    sick = sum(kind in kinds_of(run.findings) for run in runs) / len(runs)
    shows = sum(not kinds_of(run.findings).isdisjoint(kinds_of(baselines[run.seed].findings)) for run in runs) / len(
        runs
    )
    loss = statistics.fmean(run.after for run in runs)
    return uncured, sick, shows, max(loss, solved) if math.isfinite(loss) else math.inf


def _solved_at(runs: Sequence[TrialRun]) -> float:
    """Return the loss below which a still lower one says no more: ``SOLVED`` of the least before training.

    It is −∞ where a loss is below zero: such a loss has no bottom of which a share could be taken.
    """
    before = min((run.before for run in runs if math.isfinite(run.before)), default=0.0)
    return SOLVED * before if all(run.after >= 0 for run in runs if math.isfinite(run.after)) else -math.inf


def kinds_of(findings: Iterable[Finding]) -> set[str]:
    """Return the kinds of ``findings``, each once."""
    return {finding.kind for finding in findings}


def rank(
    tried: Mapping[tuple[Treatment, ...], Sequence[TrialRun]],
    baselines: Mapping[int, TrialRun],
    kind: str,
    advised: Collection[str] = (),
) -> list[Trial]:
    """Return the remedies, best first; only the best of several strengths is kept. Arguments are ``in_order``'s."""
    order = in_order(tried, baselines, kind, advised)
    best = {name_of(treatments): treatments for treatments in reversed(order)}
    return [_trial(each, tried[each], baselines, kind) for each in order if best[name_of(each)] is each]


def in_order(
    tried: Mapping[tuple[Treatment, ...], Sequence[TrialRun]],
    baselines: Mapping[int, TrialRun],
    kind: str,
    advised: Collection[str] = (),
) -> list[tuple[Treatment, ...]]:
    """Return what was tried, best first.

    Cures come first, then remedies that leave nothing of what was found, then those that got further in the race, then
    those of lower loss. Of remedies about as good as the best, single ones come before pairs, those that act on the
    cause before those that happen to avoid it, and then the simplest. About as good are losses that differ by less than
    seeds do, or than a tenth, and all that are below a hundredth of the least that any of the models had before
    training.

    Args:
        tried: treatments → their runs.
        baselines: the untreated runs, by seed.
        kind: of the finding to be cured.
        advised: names of the remedies that the findings advise, because their cause is known.
    """
    solved = _solved_at([run for runs in tried.values() for run in runs])
    scores = {treatments: _score_of(runs, baselines, kind, solved) for treatments, runs in tried.items()}
    class_of = {each: (scores[each][0] > 0, scores[each][2] > 0, -len(tried[each])) for each in tried}
    order = sorted(tried, key=lambda each: (class_of[each], scores[each]))
    first_class = [each for each in order if class_of[each] == class_of[order[0]]]
    near = [each for each in first_class if _is_near(scores[each], scores[order[0]], tried[order[0]])]
    near.sort(key=lambda each: _effort(each, tried[each], advised))
    return list(dict.fromkeys([*near, *order]))


def _is_near(score: tuple[float, ...], best: tuple[float, ...], runs_of_best: Sequence[TrialRun]) -> bool:
    """Return whether a mean loss is within the losses of the best's own seeds, or not worse by ``MARGIN``."""
    worst = max(run.after for run in runs_of_best)
    return score[:-1] == best[:-1] and (score[-1] <= worst or not is_better(best[-1], score[-1]))


def _effort(treatments: tuple[Treatment, ...], runs: Sequence[TrialRun], advised: Collection[str]) -> tuple[float, ...]:
    """Return how much a change asks for: remedies, then whether another acts on the cause, then lines, then time."""
    avoids = any(treatment.remedy not in advised for treatment in treatments)
    lines = sum(len(treatment.change.lines.splitlines()) for treatment in treatments)
    seconds = statistics.fmean(run.processor_seconds for run in runs)
    halves = round(2 * math.log2(max(seconds, 1e-9)))  # times of short steps differ by a third by chance
    return len(treatments), avoids, lines, halves, statistics.fmean(run.after for run in runs)


def _trial(
    treatments: tuple[Treatment, ...], runs: Sequence[TrialRun], baselines: Mapping[int, TrialRun], kind: str
) -> Trial:
    losses = [run.after for run in runs]
    untreated = [baselines[run.seed] for run in runs]
    not_done = dict.fromkeys(run.not_done for run in runs if run.not_done)
    return Trial(
        remedy=name_of(treatments),
        cured=is_cure(runs, baselines, kind),
        loss=statistics.fmean(losses),
        baseline_loss=statistics.fmean(run.after for run in untreated),
        findings=tuple(finding for run in runs for finding in run.findings),
        seconds_per_step=_mean_seconds(runs),
        loss_interval=(min(losses), max(losses)),
        seeds=tuple(run.seed for run in runs),
        cost=_cost(runs, untreated),
        code="".join([*(f"# {text}\n" for text in not_done), code_of(treatments)]),
        treatments=treatments,
    )


def _cost(runs: Sequence[TrialRun], untreated: Sequence[TrialRun]) -> float:
    """Return the time of a step as a multiple of the untreated one's; NaN if a run was broken off early."""
    is_comparable = all(run.steps >= FEWEST and not run.is_hopeless for run in (*runs, *untreated))
    seconds, untreated_seconds = (statistics.fmean(run.processor_seconds for run in each) for each in (runs, untreated))
    return seconds / untreated_seconds if untreated_seconds and is_comparable else math.nan


def _mean_seconds(runs: Sequence[TrialRun]) -> float:
    return statistics.fmean(run.seconds_per_step for run in runs)
