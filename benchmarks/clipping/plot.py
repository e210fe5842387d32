"""Draw the picture of docs/clipping.md: the final loss against the learning rate, with each way to clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from benchmarks.clipping.programs import CLEAN, MODELS, RATES
from benchmarks.clipping.results import Runs, Setting
from benchmarks.clipping.table import BEST, Best, complete, losses

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

PICTURE = Path("docs/images/clipping.png")
STYLES = {
    "none": {"color": "#b42318", "linestyle": ":"},
    "1.0": {"color": "#b54708", "linestyle": "--"},
    "z-score": {"color": "#667085", "linestyle": "-."},
    BEST: {"color": "#98a2b3", "linewidth": 5, "alpha": 0.6},
    "auto": {"color": "#175cd3", "linewidth": 2},
}
NAMES = {"none": "no clipping", "1.0": "1.0", "z-score": "z-score (ZClip)", BEST: "best fixed norm", "auto": '"auto"'}


def draw(runs: Runs, best: Best) -> None:
    """Draw a panel for each model and optimizer of which all rates are known, of clean runs."""
    known = complete(runs, best, tuple(way for way in STYLES if way != BEST))
    panels = [
        (model, optimizer)
        for model in MODELS
        for optimizer in RATES
        if all((Setting(model, optimizer, rate), CLEAN) in known for rate in RATES[optimizer])
    ]
    optimizers = [name for name in RATES if any(name == optimizer for _, optimizer in panels)]
    models = [name for name in MODELS if any(name == model for model, _ in panels)]
    figure, grid = plt.subplots(
        len(optimizers),
        len(models),
        figsize=(2.7 * len(models), 2.5 * len(optimizers)),
        squeeze=False,
        layout="constrained",
    )
    for axes_of, optimizer in zip(grid, optimizers, strict=True):
        for axes, model in zip(axes_of, models, strict=True):
            if (model, optimizer) in panels:
                _panel(axes, runs, best, [(Setting(model, optimizer, rate), CLEAN) for rate in RATES[optimizer]])
                axes.set_title(f"{model}, {optimizer}", loc="left", fontsize=9)
            else:
                axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("learning rate")
    for axes in grid[:, 0]:
        axes.set_ylabel("final loss")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(STYLES), fontsize=9)
    figure.savefig(PICTURE, dpi=90)


def _panel(axes: Axes, runs: Runs, best: Best, pairs: Sequence[tuple[Setting, str]]) -> None:
    rates = [setting.rate for setting, _ in pairs]
    for way, style in STYLES.items():
        axes.plot(rates, losses(runs, best, way, pairs).mean(-1), label=NAMES[way], **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.tick_params(labelsize=8, which="both")
    lowest = min(float(np.min(losses(runs, best, way, pairs).mean(-1))) for way in STYLES)
    axes.set_ylim(bottom=0.9 * lowest)
