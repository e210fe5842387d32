"""Write findings as lines on the logger ``gradwatch``: visible by default, few, and from rank 0 only."""

from __future__ import annotations

import logging
from collections import Counter

import torch.distributed

from gradwatch.findings import Finding
from gradwatch.sinks import Row, is_update

__all__ = ["Log", "logger"]

logger = logging.getLogger("gradwatch")

MOST_LINES = 10


class Log:
    """One line for a finding that opens and one for its end; after ten lines a summary at ``close`` instead."""

    def __init__(self) -> None:
        self._lines = 0
        self._untold: Counter[str] = Counter()

    def write_row(self, row: Row) -> None:
        pass

    def write_finding(self, finding: Finding, ended: bool) -> None:
        if is_update(finding, ended) or not _is_first_rank():
            return
        if self._lines >= MOST_LINES:
            if not ended:
                self._untold[finding.kind] += 1
            return
        self._lines += 1
        level = logging.ERROR if finding.severity == "error" else logging.WARNING
        name = finding.layer or "the whole run"
        if ended:
            logger.log(logging.WARNING, "gradwatch: %s in %s ended: last seen at step %d (since step %d).",
                       finding.kind, name, finding.last_step, finding.step)  # fmt: skip
        else:
            logger.log(level, "gradwatch: %s", finding.message)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if self._untold and _is_first_rank():
            counts = ", ".join(f"{count} {kind}" for kind, count in self._untold.items())
            logger.warning("gradwatch: and further findings, not shown here: %s. All are in watcher.findings.", counts)
            self._untold.clear()


def _is_first_rank() -> bool:
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
