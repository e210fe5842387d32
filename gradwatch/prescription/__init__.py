"""Try remedies on copies of a model and say which of them cure it: ``gradwatch.prescribe``.

The user's objects and the state of every random generator stay as they were.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.prescription import outcome
from gradwatch.prescription.fitting import advised_for, candidates
from gradwatch.prescription.outcome import Prescription
from gradwatch.prescription.own_code import own_change
from gradwatch.prescription.problem import ArgumentError, ArgumentValueError, Problem
from gradwatch.prescription.progress import bar
from gradwatch.prescription.race import Candidate, race
from gradwatch.prescription.ranking import Trial, main_kind, rank
from gradwatch.prescription.side_by_side import number_of_workers, one_thread
from gradwatch.prescription.treatments import name_of
from gradwatch.prescription.trial import LONGEST, TrialRun, run

__all__ = ["Prescription", "Trial", "prescribe"]

SHARE = 0.1  # of the budget, for an untreated run that has shown something
MOST = 0.5  # of the budget, for all untreated runs while none has shown anything


def prescribe(
    make_model: Callable[[], nn.Module] | nn.Module,
    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    batches: Iterable[Any] | None = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    *,
    seeds: int = 3,
    budget_seconds: float = 60,
    log_dir: str | Path | None = None,
) -> Prescription:
    """Try the remedies that fit what is wrong with a training run, and rank them by what they did.

    The untreated model is trained for up to 300 updates under a watcher. If that finds something, the remedies that its
    findings advise are tried, then whatever else may fit, singly and in pairs, each on a fresh model. A trial executes
    the code of the remedy that the result shows (``gradwatch.remedies``). A race (successive halving,
    arXiv:1502.07943) gives the better ones further seeds, and the leader twice as many. A remedy *cures* a run if the
    finding is gone, no finding has severity ``error``, and the loss on held-out batches is better by a tenth than the
    untreated model's, the untrained one's and its own before training.

    Nothing of the caller's changes: each trial has a model of its own, and a copy of the loss if that is a module. The
    generators of torch, numpy and random are put back.

    Args:
        make_model: makes a model; it is called anew for every trial, under that trial's seed. A model is taken, too:
            its copies keep its weights under the first seed, and draw them by ``reset_parameters`` under the others.
        make_optimizer: parameters → optimizer. None takes that of ``configure_optimizers`` of a ``LightningModule``,
            with its schedule, or AdamW at 5e-5 for a model of transformers, as its ``Trainer`` does.
        batches: two or more (inputs, targets), or ``{"inputs": …, "targets": …}``: a sequence, a ``DataLoader`` or a
            ``LightningDataModule``. Every fifth is held out, without its rows that hold NaN or Inf. Inputs that are a
            mapping or a tuple are handed to ``forward`` by name or in order, if it accepts them so.
        loss_fn: (outputs, targets) → scalar tensor. Targets may be any structure. None takes the loss that
            ``training_step`` of a ``LightningModule`` returns for a whole batch, or the ``.loss`` of the outputs of a
            model that is given a whole batch, with its labels.
        seeds: on how many the last remedies of the race are tried; the first of them on twice as many, in the time that
            is left.
        budget_seconds: of wall clock; no trial runs past it.
        log_dir: a folder for TensorBoard runs to compare, one for each remedy and seed; None writes none.

    Raises:
        TypeError, ValueError: for an argument that makes no sense.
        RuntimeError: if the untreated model cannot make a single update.

    Examples:
        >>> x = torch.randn(320, 8)
        >>> prescription = gradwatch.prescribe(
        ...     lambda: torch.nn.Linear(8, 1),
        ...     lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        ...     list(zip(x.split(32), x.sum(1, keepdim=True).split(32))),
        ...     torch.nn.functional.mse_loss,
        ...     seeds=1,
        ...     budget_seconds=20,
        ... )
        >>> prescription.best, prescription.note[:17]
        (None, 'Nothing was sick:')
    """
    begin = time.perf_counter()
    _refuse_bad_numbers(seeds, budget_seconds)
    problem = Problem.of(make_model, make_optimizer, batches, loss_fn, until=begin + SHARE * budget_seconds)
    folder = None if log_dir is None else Path(log_dir)
    deadline = begin + budget_seconds

    def try_one(candidate: Candidate, seed: int, steps: int) -> TrialRun:
        stop_at = kind if candidate else None
        return run(
            problem, candidate, seed, steps, deadline, stop_at=stop_at, log_dir=_run_folder(folder, candidate, seed)
        )

    workers = number_of_workers()
    with bar(budget_seconds) as advance, one_thread(workers):
        runs = _untreated(problem, seeds, begin, budget_seconds, folder)
        untreated = {run.seed: run for run in runs if run.is_whole}
        if not untreated:
            return Prescription([], outcome.too_little(budget_seconds, runs[-1]))
        seed, first = list(untreated.items())[-1]
        if not first.findings:
            return Prescription([], outcome.nothing_sick(untreated), steps=first.steps)
        kind = main_kind(first)
        baselines = {seed: first}
        order = [seed, *range(seed), *range(seed + 1, seeds)]
        length = _length(first, budget_seconds)
        field = candidates(kind, first.findings)
        advised = advised_for(kind, first.findings)
        tried, reasons = race(field, try_one, baselines, order, length, kind, deadline, advance, advised, workers)
    ranking = rank(tried, baselines, kind, advised)
    left = _left(field, tried, reasons)
    note = _note(ranking, kind, len(left), budget_seconds, first)
    findings = tuple(finding for each in baselines.values() for finding in each.findings)
    controls = outcome.controls(tried, baselines, kind)
    change = own_change(problem, ranking[0].treatments) if ranking and ranking[0].cured else ""
    return Prescription(ranking, note, findings, controls, reasons, first.steps, change)


def _note(ranking: Sequence[Trial], kind: str, left: int, budget: float, untreated: TrialRun) -> str:
    """Return the outcome in words; ``left`` candidates had no time."""
    if ranking:
        return outcome.sentence(ranking, kind, left)
    return outcome.too_little(budget, untreated) if left else outcome.none_fits(kind)


def _untreated(problem: Problem, seeds: int, begin: float, budget: float, folder: Path | None) -> list[TrialRun]:
    """Return untreated runs, seed after seed, up to the first that shows anything; the last may not be whole."""
    done: list[TrialRun] = []
    for seed in range(seeds):
        now = time.perf_counter()
        try:
            latest = run(
                problem, (), seed, LONGEST, begin + budget,
                enough=(now + SHARE * budget, begin + MOST * budget), log_dir=_run_folder(folder, (), seed),
            )  # fmt: skip
        except ArgumentError:
            raise
        except Exception as error:
            raise RuntimeError(_cannot(error, problem.check)) from error
        done.append(latest)
        if latest.findings or not latest.is_whole:
            break
    return done


def _cannot(error: Exception, check: str) -> str:
    """Return the message about an error of the untreated model, with the place where it was raised if that is known."""
    said = [*getattr(error, "__notes__", ()), type(error).__name__, str(error).rstrip(" .\n")]
    return (
        f"prescribe: the untreated model could not be trained: {': '.join(filter(None, said))}. "
        f"Check that {check} runs for each of the batches."
    )


def _left(candidates: Iterable[Candidate], tried: Container[Candidate], reasons: Container[str]) -> list[Candidate]:
    """Return the candidates for which there was no time: neither they nor a part of them has a reason."""
    return [
        each
        for each in candidates
        if each not in tried
        and name_of(each) not in reasons
        and not any(treatment.remedy in reasons for treatment in each)
    ]


def _length(untreated: TrialRun, budget: float) -> int:
    """Return the updates of a trial: those that the untreated run made, or would have made with a finite loss."""
    if not untreated.is_hopeless:
        return untreated.steps
    return max(untreated.steps, min(LONGEST, int(SHARE * budget / untreated.seconds_per_step)))


def _run_folder(folder: Path | None, candidate: Candidate, seed: int) -> Path | None:
    if folder is None:
        return None
    name = "+".join(f"{t.remedy}{t.strength}" for t in candidate) or "do-nothing"
    return folder / name / f"seed-{seed}"


def _refuse_bad_numbers(seeds: int, budget: float) -> None:
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise ArgumentValueError(f"seeds={seeds!r}: expected a whole number, 1 or more.")
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget < math.inf:
        raise ArgumentValueError(f"budget_seconds={budget!r}: expected a finite number of seconds above 0.")
