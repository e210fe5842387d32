"""What is said once the program has ended.

Enters: findings of each model, as they are told to a sink. Leaves: lines for people. Knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gradwatch.findings import Finding
from gradwatch.sinks import Row

__all__ = ["Account", "summary"]

MOST_LINES = 10  # findings told for each model; the event files hold them all


class Account:
    """What became of one model: a sink that keeps findings only.

    Attributes:
        name: of the model.
        steps: attempted updates.
        log_dir: where its event files are, None where this run writes none for it.
        whose: who watches it, for the summary; ``""`` for this run.
        findings: as they were last told, by onset.
    """

    def __init__(self, name: str, log_dir: Path | None = None, whose: str = "") -> None:
        self.name, self.log_dir, self.whose, self.steps = name, log_dir, whose, 0
        self._findings: dict[tuple[str, str, int], Finding] = {}

    @property
    def findings(self) -> list[Finding]:
        return sorted(self._findings.values(), key=lambda finding: finding.step)

    def write_row(self, row: Row) -> None:
        pass

    def write_finding(self, finding: Finding, ended: bool) -> None:
        self._findings[finding.kind, finding.layer, finding.step] = finding

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def summary(accounts: Sequence[Account]) -> str:
    """Findings or their absence, steps seen, and where the event files are, model by model."""
    seen = [account for account in accounts if account.steps]
    if not seen:
        return (
            "gradwatch: no optimizer of torch.optim has stepped in this process, so there was nothing to watch. A loop "
            "that updates its weights by itself calls gradwatch.watch(model) and watcher.step(); for training in "
            "processes that a script starts, see docs/run.md.\n"
        )
    lines = [line for account in seen for line in _lines(account, is_only=len(seen) == 1)]
    return "\n".join(lines) + "\n"


def _lines(account: Account, *, is_only: bool) -> list[str]:
    findings = account.findings
    steps = "1 step" if account.steps == 1 else f"{account.steps} steps"
    count = {0: "no findings", 1: "1 finding"}.get(len(findings), f"{len(findings)} findings")
    where = f"; event files in {account.log_dir}" if account.log_dir is not None else ""
    whose = f", watched by {account.whose}" if account.whose else ""
    which = "" if is_only else f"{account.name}: "
    lines = [f"gradwatch: {which}{steps}, {count}{whose}{where}"]
    lines += [f"  {each.kind} in {each.layer or 'the whole run'} since step {each.step}: {each.message}"
              for each in findings[:MOST_LINES]]  # fmt: skip
    if len(findings) > MOST_LINES:
        lines.append(f"  and {len(findings) - MOST_LINES} more")
    return lines
