"""Draw the pictures of docs/remedies.md from the runs that ``python examples/remedies`` left in runs/remedies.

One picture a family, one row a table of the page: the loss, and the gradient norm of the first weight.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path

import matplotlib
import numpy as np

from gradwatch.event_files.reader import read_runs
from gradwatch.event_files.run import Run

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

IMAGES = Path(__file__).parent / "images"
LOWEST, HIGHEST = 1e-12, 1e6  # beyond, a logarithmic axis would show little else


def main(directory: str = "runs/remedies") -> None:
    """Draw one picture for each family that has runs."""
    for family in sorted(path for path in Path(directory).iterdir() if path.is_dir()):
        draw(family, IMAGES / f"remedy-{family.name.replace('_', '-')}.png")


def draw(family: Path, path: Path) -> None:
    """Draw a row for each table: the loss to the left, the first weight's gradient to the right."""
    tables = sorted((table for table in family.iterdir()), key=lambda table: table.stat().st_mtime)
    figure, rows = plt.subplots(
        len(tables), 2, figsize=(11, 2.9 * len(tables)), squeeze=False, sharex="row", layout="constrained"
    )
    for (left, right), table in zip(rows, tables, strict=True):
        names = json.loads((table / "names.json").read_text(encoding="utf-8"))
        runs = {Path(run.name).name: run for run in read_runs(table)}
        sick, cured = itertools.count(), itertools.count()
        for folder, label in names["rows"].items():
            run = runs[folder]
            style = sick_style(next(sick)) if label.startswith("do nothing") else cured_style(next(cured))
            curve(left, run.curves["loss"].steps, run.curves["loss"].values, label, style)
            curve(right, run.steps, run.packed["highest"].values[:, first_weight(run)], "", style)
        left.set_ylabel("loss")
        right.set_ylabel("gradient norm, first weight")
        right.set_yscale("log")
        if spans_decades(left):
            left.set_yscale("log")
        for axes in (left, right):
            axes.set_ylim(*limits(axes))
        left.set_title(names["title"], loc="left", fontsize=9)
        right.legend(*left.get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    for axes in rows[-1]:
        axes.set_xlabel("step")
    figure.savefig(path, dpi=90)
    plt.close(figure)
    print(path)


def sick_style(number: int) -> dict[str, object]:
    """Return black, for the rows that all others are compared with."""
    return {"color": "black", "linewidth": 2, "linestyle": ("-", "--", ":", "-.")[number % 4]}


def cured_style(number: int) -> dict[str, object]:
    """Return a colour for each remedy."""
    return {"color": f"C{number % 10}", "linewidth": 1.5, "linestyle": "--" if number > 9 else "-"}


def first_weight(run: Run) -> int:
    """Return the column of the weight nearest the input."""
    return next(int(column) for column in run.order if "weight" in run.layers[column])


def curve(axes: Axes, steps: np.ndarray, values: np.ndarray, label: str, style: dict[str, object]) -> None:
    """Draw a line that ends in a cross if it stops being finite; a zero is drawn below the lower edge."""
    finite = np.isfinite(values)
    axes.plot(steps[finite], np.where(values == 0, LOWEST / 1e9, values)[finite], label=label, **style)
    if not finite.all() and finite.any():
        last = int(np.flatnonzero(finite)[-1])
        axes.plot(steps[last], values[last], "x", markersize=9, **{**style, "linestyle": "none"})


def spans_decades(axes: Axes) -> bool:
    """Return whether a linear scale would flatten all lines but one."""
    values = values_of(axes)
    return values.min() > 0 and math.log10(values.max() / values.min()) > 3


def limits(axes: Axes) -> tuple[float, float]:
    """Return limits around the values that lie between ``LOWEST`` and ``HIGHEST``."""
    values = values_of(axes)
    if axes.get_yscale() == "linear":
        margin = 0.05 * (values.max() - values.min() or 1.0)
        return values.min() - margin, values.max() + margin
    return max(values.min(), LOWEST) / 2, min(values.max(), HIGHEST) * 2


def values_of(axes: Axes) -> np.ndarray:
    """Return all values that are drawn."""
    return np.concatenate([line.get_ydata() for line in axes.lines])


if __name__ == "__main__":
    main(*sys.argv[1:])
