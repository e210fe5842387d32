"""When to look closer, and when to write."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cadence"]

_DETECTION_FIGURES = frozenset({"weight_norm", "weight_mean", "update_ratio"})
_FIRST_SAMPLES = (0, 1, 2, 4, 8)
_SAMPLE_EVERY = 10
_ROWS_PER_DOUBLING = 16  # of a run that is logged densely at first


@dataclass(frozen=True)
class Cadence:
    """The updates at which more is measured, or a row is written. Both count each optimizer's own updates.

    Attributes:
        log_every_n_steps: a row is written at every such update.
        row_figures: what it holds beside the norms of the gradients.
        histograms: whether entries go with it.
        is_dense_at_first: also write every row of the first updates, then ever fewer until ``log_every_n_steps`` is
            reached: a run of any length has rows enough to be looked at.
    """

    log_every_n_steps: int
    row_figures: frozenset[str]
    histograms: bool
    is_dense_at_first: bool = False

    def is_sampled(self, update: int) -> bool:
        """Return whether this update is sampled for the detectors, whatever the logging."""
        return update in _FIRST_SAMPLES or update % _SAMPLE_EVERY == 0

    def is_logged(self, update: int) -> bool:
        """Return whether a row is written at this update."""
        return update % self.log_every_n_steps == 0 or (self.is_dense_at_first and self._is_early_row(update))

    def _is_early_row(self, update: int) -> bool:
        """Return whether ``update`` is 0 to 31, or every 2nd up to 63, every 4th up to 127, and so on: 16 a doubling.

        This ends where these rows would be more than half as far apart as the regular ones.
        """
        spacing = 1 << max(0, (update // _ROWS_PER_DOUBLING).bit_length() - 1)
        return 2 * spacing <= self.log_every_n_steps and update % spacing == 0

    def figures(self, update: int) -> frozenset[str]:
        """Return the names of the figures that this update is to measure."""
        figures: frozenset[str] = frozenset()
        if self.is_sampled(update):
            figures |= _DETECTION_FIGURES
        if self.is_logged(update):
            figures |= self.row_figures
        return figures
