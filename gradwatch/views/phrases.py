"""Say in a few words what a run and its findings are like."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gradwatch.event_files.run import Coverage, Environment, Run
from gradwatch.findings import Finding

__all__ = [
    "FLUSHED",
    "Change",
    "Verdict",
    "age",
    "changes",
    "counted",
    "environment_words",
    "facts",
    "gaps",
    "lost_words",
    "number",
    "onset",
    "since",
    "unmeasured_words",
    "verdict",
]

FLUSHED = 120  # seconds after which a SummaryWriter writes out what it holds: a file older than that may be complete


@dataclass(frozen=True)
class Verdict:
    """The headline of a run.

    Attributes:
        word: ``"error"`` or ``"warning"``, the gravest severity found; ``"unknown"`` where nothing was found and not
            all is known, else ``"healthy"``.
        words: one line.
    """

    word: str
    words: str


def verdict(run: Run, *, goes_on: bool = False) -> Verdict:
    """Return the gravest that was found, and how much. A run of which not all is known is not called healthy.

    Args:
        run: any.
        goes_on: whether it is known to go on; else one that was not closed may have been killed.
    """
    if not run.findings:
        return _verdict_of_silence([*gaps(run, goes_on=goes_on)])
    by_kind = list(dict.fromkeys(finding.kind for finding in run.findings))
    firsts = [next(finding for finding in run.findings if finding.kind == kind) for kind in by_kind]
    kinds = "; ".join(f"{each.kind} in {each.place} since step {each.step}" for each in firsts)
    gravest = "error" if any(finding.severity == "error" for finding in run.findings) else "warning"
    return Verdict(gravest, f"{counted(len(run.findings), 'finding')}: {kinds}.")


def _verdict_of_silence(unknown: Sequence[str]) -> Verdict:
    if unknown:
        return Verdict("unknown", f"No findings in what is known: {'; '.join(unknown)}.")
    return Verdict("healthy", "No findings.")


def gaps(run: Run, *, goes_on: bool = False) -> Iterator[str]:
    """Yield in words what of ``run`` is not known; nothing where all is. Arguments as for ``verdict``."""
    if unmeasured := unmeasured_words(run.coverage):
        yield unmeasured
    if run.closed_after is None and not goes_on:
        after = f"after step {run.steps[-1]}" if len(run.steps) else "later"
        yield f"the run was not closed, so nothing is known of what came {after}"
    if lost := lost_words(run.lost):
        yield lost
    if run.problems:
        yield "a part of its files cannot be read"


def unmeasured_words(coverage: Coverage | None) -> str:
    """Return how many steps were not measured, and what was not looked for; ``""`` where all was, as far as known."""
    if coverage is None or coverage.is_whole:
        return ""
    if not coverage.unmeasured:
        return coverage.unjudged_in_words()
    steps = counted(coverage.steps, "step")
    unmeasured = f"{steps}, {f'{coverage.unmeasured} of them not' if coverage.measured else 'none'} measured"
    return f"{unmeasured}; {coverage.unjudged_in_words()}" if coverage.unjudged else unmeasured


def lost_words(lost: Mapping[str, int]) -> str:
    """Return what could not be written; ``""`` where all was."""
    counts = [counted(number, what) for what, number in lost.items() if what in ("row", "finding")]
    if counts:
        return f"{' and '.join(counts)} could not be written"
    return "it could not be written how many steps were measured" if lost else ""


def facts(run: Run, now: float) -> str:
    """Say how much was read, and whether more may come."""
    extent = "no rows yet"
    if len(run.steps):
        extent = f"{counted(len(run.steps), 'row')}, steps {run.steps[0]} to {run.steps[-1]}, "
        extent += counted(len(run.layers), "layer")
    skipped = f", {counted(run.skipped_steps, 'update')} skipped" if run.skipped_steps else ""
    unmeasured = unmeasured_words(run.coverage)
    skipped += f"; {unmeasured}" if unmeasured else ""
    return f"{extent}{skipped}; {_end(run, now)}."


def environment_words(environment: Environment) -> str:
    """Say what a run was made with: the script, versions, devices and the commit."""
    names = {"python": "Python"}
    versions = ", ".join(f"{names.get(name, name)} {version}" for name, version in environment.versions.items())
    commit = f"; commit {environment.commit[:12]}" if environment.commit else ""
    script = f"script {environment.script}; " if environment.script else ""
    return f"{script}{versions}; {environment.devices}{commit}"


def _end(run: Run, now: float) -> str:
    """Say whether more may come: a run that was closed says so, and one that was killed does not."""
    ago = f"{age(now - run.written_at)} ago"
    if run.closed_after is not None:
        return f"ended after {counted(run.closed_after, 'step')}, {ago}"
    if now - run.written_at < FLUSHED:
        return f"last written {ago}: it is still going on, or has just been killed"
    return f"last written {ago}: it was not closed, so it may have been killed"


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
