"""Tell which of a run's findings may have led to which, so that a reader sees the cause first."""

from __future__ import annotations

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
    return [
        next((earlier for earlier in range(index) if _may_lead(states[earlier], state)), None)
        for index, state in enumerate(states)
    ]


def _may_lead(first: FindingEvent, then: FindingEvent) -> bool:
    was_going_on = not first.ended or first.finding.last_step + AFTERMATH >= then.finding.step
    return was_going_on and first.finding.kind in MAY_COME_FIRST[then.finding.kind]
