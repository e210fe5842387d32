"""Tell from the figures of a step why the gradients of a layer are small, or 0."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gradwatch.explain.clues import Fact
from gradwatch.explain.run_course import RunCourse, shares
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import StepReport

__all__ = ["faded", "norm_of_one", "slope", "zeros"]

FAINT_GAIN = 1e-3  # of the gradient of its bias: what a normalisation returns before gain and bias is of size 1
REACHED = 1e-3  # share of the largest gradient, by root mean square, that layers of healthy nets have
STEEPEST = {"Sigmoid": "0.25", "LogSigmoid": "1", "Tanh": "1", "Softsign": "1", "Hardsigmoid": "0.17"}
NORMALISING = ("BatchNorm", "LayerNorm", "GroupNorm", "RMSNorm", "InstanceNorm")


def norm_of_one(layers: Layers, report: StepReport) -> Iterator[Fact]:
    """Yield a normalisation whose results are 0 whatever it is given: its gain gets no gradient, its bias does."""
    names = layers.names
    for column, owner in enumerate(layers.owners):
        module, _, own = names[column].rpartition(".")
        bias = f"{module}.bias" if module else "bias"
        if own != "weight" or not any(norm in owner for norm in NORMALISING) or bias not in names:
            continue
        gain, shift = float(report.grad_norm[column]), float(report.grad_norm[names.index(bias)])
        if gain < FAINT_GAIN * shift < math.inf:
            words = (
                f"{module or 'The model'} ({owner}) returns the same for whatever it is given: it normalises over "
                "single values, or over values that are all alike."
            )
            yield Fact(words, "norm of one", names[column])
            return


def zeros(layers: Layers, course: RunCourse, report: StepReport, column: int | None) -> Iterator[Fact]:
    """Yield what multiplies by 0 where the gradient of a weight is exactly 0: what it is given, or what follows.

    A bias that gets a gradient while its weight gets none says that the first is 0 in each row that a gradient
    comes from: the gradient of the weight is the sum over rows of that of the bias times what the layer is given.
    """
    if column is None or report.grad_norm[column] != 0:
        return
    name, names = layers.names[column], layers.names
    bias = f"{name.removesuffix('weight')}bias"
    norm = float(report.grad_norm[names.index(bias)]) if name.endswith("weight") and bias in names else math.nan
    if 0 < norm < math.inf:
        told = f"The gradient of {name} is exactly 0 while that of {bias} is {norm:.2g}"
        where = "wherever a gradient comes from"
        if int(layers.order[0]) in (column, names.index(bias)):
            yield Fact(f"{told}: the inputs of the model are 0 {where}.", "zero inputs")
        else:
            yield Fact(f"{told}: what the layer is given is 0 {where}.", "factor of 0")
    elif (zero := _zero_after(layers, course, column)) is not None:
        yield Fact(f"{names[zero]} is 0 throughout, so that no gradient passes it.", "factor of 0")


def _zero_after(layers: Layers, course: RunCourse, column: int) -> int | None:
    """Return the first weight or gain after ``column`` that is 0 throughout; None where none is known to be."""
    norms, depth = course.latest.get("weight_norm"), layers.depth
    if norms is None:
        return None
    is_factor = layers.is_weight | np.array(["Norm" in owner for owner in layers.owners])
    is_factor &= np.array([not name.endswith("bias") for name in layers.names])
    after = np.flatnonzero(is_factor & (norms == 0) & (depth > depth[column]))
    return int(after[np.argmin(depth[after])]) if after.size else None


def slope(layers: Layers, report: StepReport, column: int | None) -> Iterator[Fact]:
    """Yield how much smaller gradients get from one weight to the next, and through which functions."""
    shrink, through = _shrink(layers, report, column), _functions(layers)
    if shrink is not None:
        where = f", through {through}" if through else ""
        factor, count = shrink
        over = "from the next weight to this one" if count == 1 else f"a weight over {count} weights"
        yield Fact(f"Per entry they shrink {factor:.3g} times {over}{where}.")
    elif through:
        yield Fact(f"Gradients pass through {through}.")


def _shrink(layers: Layers, report: StepReport, column: int | None) -> tuple[float, int] | None:
    """Return (factor for each weight, number of weights) from the strongest gradient down to ``column``."""
    if column is None:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        rms = report.grad_norm / np.sqrt(layers.size)
    weights = [c for c in np.argsort(layers.depth) if layers.is_weight[c] and np.isfinite(rms[c])]
    onward = weights[weights.index(column) :] if column in weights else []
    if len(onward) < 2 or rms[column] <= 0:
        return None
    strongest = max(range(1, len(onward)), key=lambda place: float(rms[onward[place]]))
    with np.errstate(over="ignore"):
        ratio = float(rms[onward[strongest]] / rms[column])
    return (ratio ** (1 / strongest), strongest) if math.isfinite(ratio) else None


def _functions(layers: Layers) -> str:
    """Return the squashing functions of the model and their steepest slopes; "" where it has none."""
    types = layers.module_types
    squashing = [f"{name} (slope at most {STEEPEST[name]})" for name in STEEPEST if name in types]
    normalises = any(norm in name for name in types for norm in NORMALISING)
    return f"{' and '.join(squashing)}{'' if normalises or not squashing else ' without normalisation'}"


def faded(layers: Layers, course: RunCourse, report: StepReport, column: int | None) -> Iterator[Fact]:
    """Yield that the gradient of ``column`` was as large as others at first, and is faint now."""
    first = course.first_shares
    if column is None or first is None:
        return
    now = float(shares(layers, report)[column])
    if first[column] > REACHED > now:
        words = f"At the first step its gradient was {first[column]:.2g} of the largest, now it is {now:.2g}."
        yield Fact(words, "faded later")
