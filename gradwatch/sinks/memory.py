"""Keep the last steps in memory."""

from __future__ import annotations

import difflib
import importlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gradwatch.findings import Finding
from gradwatch.measure.report import LAYER_FIGURES, LayerFigure, StepReport
from gradwatch.sinks import Row

__all__ = ["History", "HistoryKey", "Memory"]

HistoryKey = Literal[
    "grad_norm",
    "nonfinite",
    LayerFigure,
    "step",
    "optimizer",
    "grad_norm_total",
    "grad_norm_clipped_total",
    "loss",
    "learning_rate",
    "skipped",
    "already_clipped",
    "learning_rates",
]
"""The names that ``history[name]`` takes, for editors and type checkers."""

_PER_LAYER: dict[HistoryKey, tuple[type, object, Callable[[StepReport], Any]]] = {
    "grad_norm": (np.float32, np.nan, lambda report: report.grad_norm),
    "nonfinite": (np.int64, 0, lambda report: report.nonfinite),
    **{
        name: (np.float32, np.nan, lambda report, name=name: report.figures.get(name, np.nan))  # type: ignore[misc]
        for name in LAYER_FIGURES
    },
}
_PER_STEP: dict[HistoryKey, tuple[type, object, Callable[[StepReport], Any]]] = {
    "step": (np.int64, -1, lambda report: report.step),
    "optimizer": (np.int64, -1, lambda report: report.optimizer),
    "grad_norm_total": (np.float64, np.nan, lambda report: report.grad_norm_total),
    "grad_norm_clipped_total": (np.float64, np.nan, lambda report: report.grad_norm_clipped_total),
    "loss": (np.float64, np.nan, lambda report: _or_nan(report.loss)),
    "learning_rate": (np.float64, np.nan, lambda report: _or_nan(report.learning_rate)),
    "skipped": (np.bool_, False, lambda report: report.skipped),
    "already_clipped": (np.bool_, False, lambda report: report.already_clipped),
}


_ALL = {**_PER_LAYER, **_PER_STEP}
_PER_GROUP: HistoryKey = "learning_rates"


class History:
    """The last S ≤ ``length`` steps of P layers, oldest first.

    ``history["grad_norm"]`` is (S, P) float32 as measured before clipping, NaN where not measured;
    ``history["nonfinite"]`` (S, P) counts; every name of ``gradwatch.measure.report.LAYER_FIGURES`` (S, P), NaN at
    steps where it was not measured. ``history["grad_norm_total"]``, ``["grad_norm_clipped_total"]``, ``["loss"]``,
    ``["learning_rate"]`` (the largest of the optimizer's groups), ``["skipped"]``, ``["already_clipped"]`` (figures
    of that step are after the loop's own clipping) and ``["optimizer"]`` are (S,). ``["learning_rates"]`` is (S, G),
    the rate of each group, NaN where an optimizer has fewer than G. ``keys()`` names them all.
    Every array is a copy.

    Args:
        layers: P names.
        length: how many steps are held.

    Attributes:
        layers: as given.
        steps: (S,) int64.
    """

    def __init__(self, layers: tuple[str, ...], length: int) -> None:
        self.layers = layers
        self._length, self._seen = length, 0
        self._rings: dict[str, NDArray[np.generic]] = {}
        self._rates: deque[tuple[float, ...]] = deque(maxlen=length)

    def append(self, report: StepReport) -> None:
        """Take in one step; the oldest falls out once ``length`` are held."""
        at = self._seen % self._length
        with np.errstate(over="ignore"):  # a norm of float64 entries beyond float32 is Inf here
            for name, (*_, value_of) in _ALL.items():
                if name in self._rings or name not in LAYER_FIGURES or name in report.figures:
                    self._ring(name)[at] = value_of(report)
        self._rates.append(report.learning_rates)
        self._seen += 1

    def amend(self, step: int, name: HistoryKey, values: NDArray[np.floating]) -> None:
        """Take a (P,) figure of a layer that is known later than the rest of its step, if that is still held."""
        at = self._ring("step") == step
        self._ring(name)[at] = values

    def _ring(self, name: HistoryKey) -> NDArray[np.generic]:
        """Return the last values of a figure, allocated once it is first measured."""
        if name not in self._rings:
            dtype, absent, _ = _ALL[name]
            width = (len(self.layers),) if name in _PER_LAYER else ()
            self._rings[name] = np.full((self._length, *width), absent, dtype=dtype)
        return self._rings[name]

    @property
    def steps(self) -> NDArray[np.int64]:
        return self["step"]  # type: ignore[return-value]

    def keys(self) -> tuple[HistoryKey, ...]:
        """Return the names that ``history[name]`` takes."""
        return (*_ALL, _PER_GROUP)

    def layer(self, name: str) -> dict[HistoryKey, NDArray[np.generic]]:
        """Return (S,) for each figure of one layer.

        Args:
            name: one of ``layers``.

        Raises:
            KeyError: for a name that is none of them; it names near misses.
        """
        if name not in self.layers:
            near = _near_misses(name, self.layers)
            raise KeyError(f"history.layer({name!r}): expected one of the {len(self.layers)} names in .layers.{near}")
        column = self.layers.index(name)
        return {figure: self[figure][:, column] for figure in _PER_LAYER}

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with a row per step and layer, indexed by both.

        Raises:
            ModuleNotFoundError: if pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")  # it ships no types
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("to_pandas() needs pandas. Run: pip install pandas", name="pandas") from error
        index = pandas.MultiIndex.from_product([self.steps, self.layers], names=["step", "layer"])
        per_layer: dict[str, Any] = {name: self[name].ravel() for name in _PER_LAYER}
        per_step: dict[str, Any] = {
            name: np.repeat(self[name], len(self.layers)) for name in _PER_STEP if name != "step"
        }
        return pandas.DataFrame({**per_layer, **per_step}, index=index)

    def __len__(self) -> int:
        return min(self._seen, self._length)

    def __getitem__(self, name: HistoryKey) -> NDArray[np.generic]:
        if name == _PER_GROUP:
            return self._learning_rates()
        if name not in _ALL:
            known = self.keys()
            raise KeyError(f"history[{name!r}]: expected one of {', '.join(known)}.{_near_misses(name, known)}")
        dtype, absent, _ = _ALL[name]
        if name not in self._rings:
            width = (len(self.layers),) if name in _PER_LAYER else ()
            return np.full((len(self), *width), absent, dtype=dtype)
        ring = self._rings[name]
        return ring[: self._seen].copy() if self._seen <= self._length else np.roll(ring, -self._seen, axis=0)

    def _learning_rates(self) -> NDArray[np.generic]:
        rates = np.full((len(self), max(map(len, self._rates), default=0)), np.nan)
        for row, groups in zip(rates, self._rates, strict=True):
            row[: len(groups)] = groups
        return rates

    def __repr__(self) -> str:
        return f"History({len(self)} steps, {len(self.layers)} layers)"


def _near_misses(name: object, known: Sequence[str]) -> str:
    """Return a question that names what of ``known`` looks like ``name``; nothing if nothing does."""
    close = difflib.get_close_matches(str(name), known, n=3)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


class Memory:
    """A sink that keeps what it is given; for tests and notebooks.

    Attributes:
        rows: every row.
        events: (finding, ended) as written: when each finding opened, as it went on, and when it ended.
        closed: whether ``close`` was called.
    """

    is_of_every_rank = True  # it writes nothing
    shares_thread = True

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.events: list[tuple[Finding, bool]] = []
        self.closed = False

    def write_row(self, row: Row) -> None:
        self.rows.append(row)

    def write_finding(self, finding: Finding, ended: bool) -> None:
        self.events.append((finding, ended))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
