"""Tell a sickness that keeps coming back in one finding, so that a long run does not hold a hundred thousand of them.

A broken row of the data makes the same ``nonfinite`` once an epoch, for ever. Each of the first findings of a kind in a
layer stands by itself; the last of them then speaks for all that follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradwatch.findings import Finding
from gradwatch.watcher.state import finding_of

__all__ = ["MOST_ALIKE", "Recurrences"]

MOST_ALIKE = 20
"""Findings of one kind in one layer that stand by themselves: nobody reads more of them, and memory stays bounded."""


@dataclass
class _Alike:
    """The findings of one kind in one layer.

    Attributes:
        count: how many there were.
        written: how many there were when ``last`` was written.
        last: the one that speaks for those after it, without the sentence that says so; None until there is one.
    """

    count: int = 0
    written: int = 0
    last: Finding | None = None


class Recurrences:
    """How often each sickness has come: a kind in a layer."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], _Alike] = {}

    def open(self, finding: Finding) -> Finding | None:
        """Count a finding that opens; return the earlier one that speaks for it, None where it stands by itself."""
        alike = self._known.setdefault((finding.kind, finding.layer), _Alike())
        alike.count += 1
        if alike.last is None:
            return None
        alike.last = replace(alike.last, last_step=finding.last_step, layers=finding.layers)
        return _with_count(alike)

    def end(self, finding: Finding) -> bool:
        """Take a finding that ends; return whether it is to be written.

        One that speaks for many is written each time that they have doubled, so that files stay small.
        """
        alike = self._known.setdefault((finding.kind, finding.layer), _Alike(count=1))
        if alike.count < MOST_ALIKE:
            return True
        self._keep(alike, finding)
        if alike.count < 2 * alike.written:
            return False
        alike.written = alike.count
        return True

    def amend(self, finding: Finding) -> None:
        """Take what is now known of a finding, should it be one that speaks for others."""
        alike = self._known.get((finding.kind, finding.layer))
        if alike is not None and alike.last is not None and alike.last.identity == finding.identity:
            self._keep(alike, finding)

    def unwritten(self) -> Iterator[Finding]:
        """Yield the findings that speak for more than when they were written last, which somebody now writes."""
        for alike in self._known.values():
            if alike.last is not None and alike.written < alike.count:
                alike.written = alike.count
                yield _with_count(alike)

    def state(self) -> list[dict[str, Any]]:
        """Return everything that a resumed run goes on from, as plain values."""
        return [
            {"kind": kind, "layer": layer, "count": alike.count, "last": alike.last and alike.last.as_dict()}
            for (kind, layer), alike in self._known.items()
        ]

    def restore(self, saved: Sequence[Mapping[str, Any]]) -> None:
        """Go on from what ``state`` returned."""
        self._known = {}
        for each in saved:
            last = None if each["last"] is None else finding_of(each["last"])
            self._known[each["kind"], each["layer"]] = _Alike(int(each["count"]), int(each["count"]), last)

    def _keep(self, alike: _Alike, finding: Finding) -> None:
        """Let ``finding`` speak for those to come."""
        alike.last = finding if alike.last is None else replace(finding, cause=alike.last.cause)


def _with_count(alike: _Alike) -> Finding:
    """Return the finding that speaks for others, with how many there were."""
    assert alike.last is not None
    words = (
        f"It came {alike.count:,} times by step {alike.last.last_step:,}; from time {MOST_ALIKE} on, this finding "
        "tells of all of them."
    )
    return replace(alike.last, cause=f"{alike.last.cause} {words}")
