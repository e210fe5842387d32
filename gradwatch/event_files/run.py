"""One run as its event files tell it: plain values.

Enters: nothing. Leaves: the shape in which readers of runs speak of them. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradwatch.findings import Finding

__all__ = ["Run", "Series"]


@dataclass(frozen=True)
class Series:
    """Figures along time.

    Attributes:
        steps: (S,) int64, rising.
        values: (S,), or (S, P) with a column per layer, float32.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: of its directory, as it was asked for.
        layers: P parameter names, in order of registration.
        depth: (P,) int64, place of each from input to output.
        size: (P,) int64, entries of each.
        packed: figures of all layers, (S, P) each, by the names of ``gradwatch.event_files.format``: ``NORMS``, and
            those of ``FIGURES`` that were written, at the steps where they were. NaN where not measured;
            ``highest`` is Inf where a gradient was not finite.
        curves: (S,) each: ``grad_norm_total``, ``grad_norm_clipped_total``, ``loss``; a second optimizer's end in
            ``/optimizer_1``.
        findings: by onset; one that ended as it stood then, an open one as it stood when it opened.
        ended: whether each of them has ended.
        skipped_steps: updates left out, as of the last row.
        written_at: when its newest file last grew, seconds since 1970.
        problems: what could not be read, for people.
    """

    name: str
    layers: tuple[str, ...]
    depth: NDArray[np.int64]
    size: NDArray[np.int64]
    packed: Mapping[str, Series]
    curves: Mapping[str, Series]
    findings: tuple[Finding, ...]
    ended: tuple[bool, ...]
    skipped_steps: int
    written_at: float
    problems: tuple[str, ...]

    @property
    def steps(self) -> NDArray[np.int64]:
        """(S,) logged steps."""
        return self.packed["grad_norm"].steps

    @property
    def order(self) -> NDArray[np.int64]:
        """(P,) columns from input to output."""
        return np.argsort(self.depth, kind="stable")

    @property
    def sick(self) -> NDArray[np.bool_]:
        """(P,) whether a finding covers the layer."""
        covered = {layer for finding in self.findings for layer in (finding.layer, *finding.layers)}
        return np.array([layer in covered for layer in self.layers], dtype=bool)
