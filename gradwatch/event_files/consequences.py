"""Tell which of a run's findings may have led to which, so that a reader sees the cause first."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from gradwatch.event_files.run import FindingEvent
from gradwatch.findings import MAY_COME_FIRST

__all__ = ["leaders"]

AFTERMATH = 25  # steps: what a finding has done to the weights shows for a while after its last sick step


def leaders(states: Sequence[FindingEvent]) -> list[int | None]:
    """Return for each finding the index of the one that may have led to it; None where nothing explains it.

    It is the earliest finding of a kind that can bring this one about and that was still going on, or had ended not
    more than ``AFTERMATH`` steps before. Findings come by onset, as ``latest_states`` returns them, so no two of them
    lead to each other.
    """
    going_on: dict[str, deque[int]] = {}  # by kind: those that may lead to a later one, the earliest first
    found: list[int | None] = []
    for index, state in enumerate(states):
        kinds = MAY_COME_FIRST[state.finding.kind]
        firsts = (_first(going_on.get(kind, deque()), states, state.finding.step) for kind in kinds)
        found.append(min((first for first in firsts if first is not None), default=None))
        going_on.setdefault(state.finding.kind, deque()).append(index)
    return found


def _first(going_on: deque[int], states: Sequence[FindingEvent], step: int) -> int | None:
    """Return the earliest that goes on at ``step``, or had ended shortly before; forget those that were over sooner."""
    while going_on and _was_over(states[going_on[0]], step):
        going_on.popleft()
    return going_on[0] if going_on else None


def _was_over(first: FindingEvent, step: int) -> bool:
    return first.ended and first.finding.last_step + AFTERMATH < step
