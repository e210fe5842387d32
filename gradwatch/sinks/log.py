"""Write findings as lines on the logger ``gradwatch``: visible by default, few, and from rank 0 only."""

from __future__ import annotations

import logging
from collections import Counter

import torch.distributed

from gradwatch.findings import Finding
from gradwatch.hooks.logger import logger
from gradwatch.sinks import Row, is_update

__all__ = ["Log"]

MOST_LINES = 10
_LONGEST_LINE = 160  # characters: what a terminal or a log viewer shows without a break


class Log:
    """One line for a finding that opens and one for its end; after ten lines a summary at ``close`` instead."""

    def __init__(self) -> None:
        self._lines = 0
        self._unwritten: Counter[str] = Counter()

    def write_row(self, row: Row) -> None:
        pass

    def write_finding(self, finding: Finding, ended: bool) -> None:
        if is_update(finding, ended) or not _is_first_rank():
            return
        if self._lines >= MOST_LINES:
            if not ended:
                self._unwritten[finding.kind] += 1
            return
        self._lines += 1
        if ended:
            logger.warning("%s", _end_of(finding))
        else:
            level = logging.ERROR if finding.severity == "error" else logging.WARNING
            logger.log(level, "gradwatch: %s", finding.message)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if self._unwritten and _is_first_rank():
            counts = ", ".join(f"{count} {kind}" for kind, count in self._unwritten.items())
            logger.warning("gradwatch: and further findings, not shown here: %s. All are in watcher.findings.", counts)
            self._unwritten.clear()


def _end_of(finding: Finding) -> str:
    """Return one line of at most 160 characters; a long name of a layer loses its middle."""
    start, end = (
        f"gradwatch: {finding.kind} in ",
        f" ended: last seen at step {finding.last_step} (since step {finding.step}).",
    )
    name, most = finding.layer or "the whole run", _LONGEST_LINE - len(start) - len(end)
    if len(name) > most:
        name = f"{name[: most // 2]}…{name[len(name) - (most - 1) // 2 :]}"
    return start + "".join(each if each.isprintable() else "?" for each in name) + end


def _is_first_rank() -> bool:
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
