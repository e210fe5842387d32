"""Say in a few lines what was seen and found, once the program has ended. It needs no torch."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradwatch.event_files.run import Coverage
from gradwatch.findings import Finding
from gradwatch.sinks import Row

if TYPE_CHECKING:
    from gradwatch.sinks.tensorboard import TensorBoard

__all__ = ["SummarySink", "summary_text"]

NOTHING_YET = (
    "gradwatch: the script ended before an optimizer of torch.optim had stepped: there was nothing to watch.\n"
)
NOTHING = (
    "gradwatch: no optimizer of torch.optim has stepped in this process, so there was nothing to watch. A loop that "
    "updates its weights by itself calls gradwatch.watch(model) and watcher.step(); for training in processes that a "
    "script starts: torchrun --nproc-per-node N -m gradwatch run SCRIPT.\n"
)


class SummarySink:
    """A sink that keeps what became of one model: its findings.

    Attributes:
        name: of the model.
        steps: attempted updates.
        measured: how many of them were measured, as far as it was told.
        unjudged: what rules that failed have not looked for, in words.
        saw_loss: one of them came with a loss.
        notes: what is no finding and worth a line.
        files: its event files, None where this run writes none for it.
        whose: who watches it, for the summary; ``""`` for this run.
        findings: their latest state, by first step.
    """

    is_of_every_rank = True  # each rank ends with a status of its own
    shares_thread = True  # it waits for nothing

    def __init__(self, name: str, files: TensorBoard | None = None, whose: str = "") -> None:
        self.name, self.files, self.whose = name, files, whose
        self.steps, self.measured, self.saw_loss = 0, 0, False
        self.unjudged = ""
        self.notes: list[str] = []
        self._findings: dict[tuple[str, str, int], Finding] = {}

    @property
    def findings(self) -> list[Finding]:
        return sorted(self._findings.values(), key=lambda finding: finding.step)

    @property
    def unmeasured(self) -> int:
        """Return how many attempted updates nothing is known of."""
        return max(0, self.steps - self.measured)

    @property
    def log_dir(self) -> Path | None:
        """Return where its event files are: beside those of an earlier run, if there is one."""
        return None if self.files is None else self.files.opened

    def write_row(self, row: Row) -> None:
        pass

    def write_finding(self, finding: Finding, ended: bool) -> None:
        self._findings[finding.kind, finding.layer, finding.step] = finding

    def write_coverage(self, coverage: Coverage) -> None:
        self.measured, self.unjudged = coverage.measured, coverage.unjudged_in_words()

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def summary_text(
    summaries: Sequence[SummarySink], *, has_failed: bool = False, last_words: str | None = None, left_out: int = 0
) -> str:
    """Return findings or their absence, steps seen, and where the event files are, model by model.

    Args:
        summaries: of all models.
        left_out: how many optimizers were not followed.
        has_failed: the program has ended with a status other than 0, and has said so itself.
        last_words: what a model was given last, where the program has died of it.
    """
    end = "" if last_words is None else f"gradwatch: {last_words}\n"
    seen = [summary for summary in summaries if summary.steps]
    if not seen:
        return (NOTHING_YET if has_failed else NOTHING) + end
    lines = [line for summary in seen for line in _lines(summary, is_only=len(seen) == 1)]
    if left_out:
        lines.append(
            f"gradwatch: {left_out} further optimizers were not followed, so nothing is known of their models."
        )
    return "\n".join(lines) + "\n" + end


def _lines(summary: SummarySink, *, is_only: bool) -> Iterator[str]:
    findings = summary.findings
    whose = f", watched by {summary.whose}" if summary.whose else ""
    which = "" if is_only else f"{summary.name}: "
    yield f"gradwatch: {which}{_extent(summary)}{_by_kind(findings)}{whose}{_where(summary.log_dir)}"
    if not (summary.saw_loss or summary.whose):
        yield "  No scalar loss was seen, so rules that need one did not run."
    if summary.unjudged:
        yield f"  {summary.unjudged}."
    for note in summary.notes:
        yield f"  {note}"
    if findings and summary.log_dir is not None and summary.log_dir.is_dir():
        yield f"  why, and what to do: gradwatch report {shlex.quote(str(summary.log_dir))}"


def _extent(summary: SummarySink) -> str:
    """Return how many steps there were, how many of them were not measured, and how many findings there are."""
    steps, findings = "1 step" if summary.steps == 1 else f"{summary.steps} steps", len(summary.findings)
    if summary.unmeasured and not summary.measured:
        return f"{steps}, none measured: nothing is known of this run"
    unmeasured = f", {summary.unmeasured} of them not measured" if summary.unmeasured else ""
    count = {0: "no findings", 1: "1 finding"}.get(findings, f"{findings} findings")
    return f"{steps}{unmeasured}, {count}"


def _by_kind(findings: Sequence[Finding]) -> str:
    """Return how many there are of each kind; the log has a line for each."""
    counts = Counter(finding.kind for finding in findings)
    return f" ({', '.join(f'{count} {kind}' for kind, count in counts.items())})" if counts else ""


def _where(log_dir: Path | None) -> str:
    if log_dir is None:
        return ""
    return f"; event files in {log_dir}" if log_dir.is_dir() else f"; no event files: {log_dir} is not there"
