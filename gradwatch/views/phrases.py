"""Say in a few words what a run and its findings are like."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gradwatch.event_files.run import Run
from gradwatch.findings import Finding

__all__ = [
    "FLUSHED",
    "Change",
    "Verdict",
    "age",
    "changes",
    "counted",
    "facts",
    "number",
    "onset",
    "since",
    "verdict",
]

FLUSHED = 120  # seconds after which a SummaryWriter writes out what it holds: a file older than that may be complete


@dataclass(frozen=True)
class Verdict:
    """The headline of a run.

    Attributes:
        word: ``"healthy"``, ``"warning"`` or ``"error"``: the gravest severity found.
        words: one line.
    """

    word: str
    words: str


def verdict(run: Run) -> Verdict:
    """Return the gravest that was found, and how much."""
    if not run.findings:
        return Verdict("healthy", "No findings.")
    by_kind = list(dict.fromkeys(finding.kind for finding in run.findings))
    firsts = [next(finding for finding in run.findings if finding.kind == kind) for kind in by_kind]
    kinds = "; ".join(f"{each.kind} in {each.place} since step {each.step}" for each in firsts)
    gravest = "error" if any(finding.severity == "error" for finding in run.findings) else "warning"
    return Verdict(gravest, f"{counted(len(run.findings), 'finding')}: {kinds}.")


def facts(run: Run, now: float) -> str:
    """Say how much was read, and whether more may come."""
    extent = "no rows yet"
    if len(run.steps):
        extent = f"{counted(len(run.steps), 'row')}, steps {run.steps[0]} to {run.steps[-1]}, "
        extent += counted(len(run.layers), "layer")
    skipped = f", {counted(run.skipped_steps, 'update')} skipped" if run.skipped_steps else ""
    still = "; the run may still be going on" if now - run.written_at < FLUSHED else ""
    return f"{extent}{skipped}; last written {age(now - run.written_at)} ago{still}."


def since(finding: Finding, ended: bool) -> str:
    """Say when it began, when it was raised, and whether it is over."""
    raised = "" if finding.raised_step == finding.step else f", raised at step {finding.raised_step}"
    end = f", last seen at step {finding.last_step}, ended" if ended else ", still open"
    return f"since step {finding.step}{raised}{end}"


@dataclass(frozen=True)
class Change:
    """A finding that two runs may share, by kind and layer.

    Attributes:
        what: ``"went"``, ``"stayed"`` or ``"came"``.
        before, after: as the first and the second run tell it.
    """

    what: str
    before: Finding | None
    after: Finding | None

    @property
    def finding(self) -> Finding:
        """Return the one of them that there is."""
        finding = self.before or self.after
        assert finding is not None
        return finding


def changes(first: Run, second: Run) -> Iterator[Change]:
    """Yield what went, what stayed and what came from one run to another."""
    before, after = ({(each.kind, each.layer): each for each in run.findings} for run in (first, second))
    for key, finding in before.items():
        yield Change("stayed" if key in after else "went", finding, after.get(key))
    yield from (Change("came", None, finding) for key, finding in after.items() if key not in before)


def onset(finding: Finding | None) -> str:
    """Return since when a run has the finding; a dash if it has none."""
    return "–" if finding is None else f"since step {finding.step}"


def number(value: float) -> str:
    """Return ``value`` with three digits."""
    return f"{value:.3g}" if math.isfinite(value) else "not finite"


def counted(many: int, what: str) -> str:
    """Return ``1 row``, ``2 rows``."""
    return f"{many} {what}" if many == 1 else f"{many} {what}s"


def age(seconds: float) -> str:
    """Say roughly how long that is."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds / length)} {unit}"
    return "less than two minutes"
