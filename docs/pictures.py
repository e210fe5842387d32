"""The pictures of docs/detection.md: each kind of finding on a program of the detection benchmark.

``make screenshots`` runs it. Every figure is drawn from ``watcher.history`` and ``watcher.findings`` of a real run.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import gradwatch  # noqa: E402
from benchmarks.detection import faulty, healthy  # noqa: E402, F401
from benchmarks.detection.bare import start  # noqa: E402
from benchmarks.detection.program import PROGRAMS  # noqa: E402

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

EXAMPLES = {
    "vanishing": "deep_sigmoid",
    "exploding": "rate_jumps_late",
    "nonfinite": "one_bad_pixel",
    "dead": "first_bias_of_minus_ten",
    "saturated": "tanh_of_deviation_five",
    "stalled": "schedule_stuck_at_zero",
    "unstable": "cross_entropy_under_a_rate_of_200",
}


def watched(name: str) -> gradwatch.Watcher:
    """The program, run to its end under a watcher."""
    training = start(PROGRAMS[name], seed=0)
    with gradwatch.watch(training.model, training.optimizers) as watcher:
        for number in range(training.steps):
            training.step(number, watcher.observe_loss)
    return watcher


def draw(kind: str, watcher: gradwatch.Watcher, path: Path) -> None:
    """Gradient norms along depth and time above, the loss below; the finding's steps shaded, its onset a line."""
    history = watcher.history
    finding = next(f for f in watcher.findings if f.kind == kind)
    weights = [i for i, name in enumerate(history.layers) if name.endswith("weight")]
    norms = history["grad_norm"][:, weights].T.astype(float)
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 5), sharex=True, height_ratios=(3, 2), layout="constrained")
    with np.errstate(divide="ignore"):
        shown = np.ma.masked_invalid(np.log10(norms))
    colours = plt.get_cmap("viridis").copy()
    colours.set_bad("crimson")
    extent = (-0.5, len(history) - 0.5, len(weights) - 0.5, -0.5)
    image = above.imshow(shown, aspect="auto", cmap=colours, extent=extent, interpolation="nearest")
    figure.colorbar(image, ax=above, label="log10 of the gradient norm\n(red: zero, NaN or Inf)")
    above.set_yticks(range(len(weights)), [history.layers[i] for i in weights], fontsize=7)
    where = finding.layer or "whole run"
    above.set_title(f"{kind} in {where} since step {finding.step}, raised at {finding.raised_step}", loc="left")
    below.plot(history.steps, history["loss"], color="black", linewidth=1)
    below.set_ylabel("loss")
    below.set_xlabel("step")
    if np.nanmax(history["loss"][np.isfinite(history["loss"])]) > 1e3:
        below.set_yscale("log")
    for axes in (above, below):
        axes.axvline(finding.step, color="crimson", linestyle="--", linewidth=1)
    below.axvspan(finding.step, finding.last_step, color="crimson", alpha=0.12)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    torch.set_num_threads(1)
    logging.getLogger("gradwatch").setLevel(logging.CRITICAL)
    for kind, name in EXAMPLES.items():
        draw(kind, watched(name), ROOT / "docs" / "images" / f"{kind}.png")


if __name__ == "__main__":
    main()
