"""When to look closer, and when to write."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cadence"]

_DETECTION_FIGURES = frozenset({"weight_norm", "weight_mean", "update_ratio"})
_FIRST_SAMPLES = (0, 1, 2, 4, 8)
_SAMPLE_EVERY = 10


@dataclass(frozen=True)
class Cadence:
    """The updates at which more is measured, or a row is written. Both count each optimizer's own updates.

    Attributes:
        log_every_n_steps: a row is written at every such update.
        row_figures: what it holds beside the norms of the gradients.
        histograms: whether entries go with it.
    """

    log_every_n_steps: int
    row_figures: frozenset[str]
    histograms: bool

    def is_sampled(self, update: int) -> bool:
        """Return whether this update is sampled for the detectors, whatever the logging."""
        return update in _FIRST_SAMPLES or update % _SAMPLE_EVERY == 0

    def is_logged(self, update: int) -> bool:
        """Return whether a row is written at this update."""
        return update % self.log_every_n_steps == 0

    def figures(self, update: int) -> frozenset[str]:
        """Return the names of the figures that this update is to measure."""
        figures: frozenset[str] = frozenset()
        if self.is_sampled(update):
            figures |= _DETECTION_FIGURES
        if self.is_logged(update):
            figures |= self.row_figures
        return figures
