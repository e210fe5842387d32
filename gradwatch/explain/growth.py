"""Tell why gradients, losses and weights grow, from the course of the run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradwatch.explain.clues import Fact
from gradwatch.explain.current import spectral_radius
from gradwatch.explain.loss_graph import LossGraph
from gradwatch.explain.run_course import GREW, RunCourse
from gradwatch.explain.scales import grown_along_depth, raw_inputs, raw_targets
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import StepReport

__all__ = ["diverged", "growing_targets", "raw_numbers", "reasons_to_grow"]

MOVED_FAR = 1.0  # size of a weight that one update moves it by; most healthy first updates stay below a tenth
WITHOUT_END = 10.0  # times the first losses that a loss lies below 0, where nothing bounds it
STRETCHES = 1.5  # spectral radius: usual initialisations begin at 0.6 to 1


def reasons_to_grow(layers: Layers, course: RunCourse, losses: LossGraph, report: StepReport) -> Iterator[Fact]:
    """Yield why gradients grow without bound."""
    yield from _leaps(layers, course, losses, report)
    yield from _recurrence(layers)
    yield from raw_numbers(layers, course, losses)
    yield from growing_targets(losses)
    yield from _without_end(course, report)
    yield from grown_along_depth(layers, course.first)
    yield from _moved_far(layers, course)
    yield from course.rates.risen()


def diverged(layers: Layers, course: RunCourse) -> Fact | None:
    """Return that the run had diverged before this step; None where nothing has grown so far."""
    for each, what in ((course.total, "total gradient norm"), (course.loss, "loss")):
        if (growth := each.growth(what)) is not None:
            return Fact(f"The run had diverged before: {growth}.", "diverged")
    return next(_grown_weight(layers, course), None)


def growing_targets(losses: LossGraph) -> Iterator[Fact]:
    """Yield that the targets of the loss grow along with the model."""
    growth = losses.target_growth()
    if growth is not None:
        words = f"The targets of the loss have grown from a root mean square of {growth[0]:.3g} to {growth[1]:.3g}"
        why = "as those do that are computed from the model's own outputs"
        yield Fact(f"{words}, {why}.", "targets grow")


def raw_numbers(layers: Layers, course: RunCourse, losses: LossGraph) -> Iterator[Fact]:
    """Yield inputs, and targets, whose size is far from 1."""
    yield from raw_inputs(layers, course.first)
    yield from raw_targets(layers, course.first, losses)


def _leaps(layers: Layers, course: RunCourse, losses: LossGraph, report: StepReport) -> Iterator[Fact]:
    """Yield what leapt although updates were small."""
    if course.rates.has_risen:
        return
    overwritten = [*course.leaps.overwritten(layers, report)]
    if overwritten:
        yield from overwritten
    elif not any(raw_numbers(layers, course, losses)):  # they make the loss so steep that a small update is enough
        yield from course.leaps.one_batch(report.step)


def _recurrence(layers: Layers) -> Iterator[Fact]:
    """Yield a recurrent matrix that stretches what it carries from step to step."""
    for column, owner in enumerate(layers.owners):
        name = layers.names[column]
        if owner not in ("RNN", "RNNCell") or "weight_hh" not in name:
            continue
        radius = spectral_radius(layers.tensors[column])
        if radius is not None and radius > STRETCHES:
            words = f"{name} has spectral radius {radius:.3g}: from step to step it stretches what it carries."
            yield Fact(words, "recurrence grows", name)
            return


def _moved_far(layers: Layers, course: RunCourse) -> Iterator[Fact]:
    """Yield that the first update that was measured moved a weight further than its own size."""
    if course.first_move > MOVED_FAR:
        name = layers.names[course.first_mover]
        yield Fact(
            f"The first sampled update moved {name} by {course.first_move:.2g} times its size.", "update too large"
        )


def _without_end(course: RunCourse, report: StepReport) -> Iterator[Fact]:
    """Yield that the loss itself has no lower bound: it falls ever further below 0."""
    loss = report.loss
    if loss is None or not course.loss.first or course.lowest_loss is None:
        return
    scale = float(np.max(np.abs(course.loss.first)))
    if loss < -WITHOUT_END * scale and loss <= course.lowest_loss / 2:
        words = f"The loss has fallen to {loss:.3g} from {course.loss.first[0]:.3g}: nothing bounds it from below."
        yield Fact(words, "no lower bound")


def _grown_weight(layers: Layers, course: RunCourse) -> Iterator[Fact]:
    """Yield the weight that has grown most, if that is a hundredfold."""
    first, last = course.first.get("weight_norm"), course.latest.get("weight_norm")
    if first is None or last is None:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = np.where((first > 0) & np.isfinite(last), last / first, np.nan)
    if not np.isnan(growth).all() and np.nanmax(growth) >= GREW:
        worst = int(np.nanargmax(growth))
        grew = f"the norm of {layers.names[worst]} grew from {first[worst]:.3g} to {last[worst]:.3g}"
        yield Fact(f"The run had diverged before: {grew}.", "diverged")
