"""Write findings as lines on the logger ``gradwatch``: visible by default, and few."""

from __future__ import annotations

import logging
from collections import Counter

from gradwatch.findings import Finding, shortened_name
from gradwatch.hooks.logger import logger
from gradwatch.sinks import Row, is_update

__all__ = ["FewLines", "Log"]

MOST_LINES = 10
_LONGEST_LINE = 160  # characters: what a terminal or a log viewer shows without a break


class FewLines:
    """The lines of a run for people: one for a finding that opens and one for its end, ten at most, then a summary.

    The first finding of a kind always has its line: a NaN is not silent because ten other things were said.

    Args:
        has_watcher: whether readers have a watcher to ask for more; not under ``gradwatch run``.
    """

    def __init__(self, *, has_watcher: bool = True) -> None:
        self._lines, self._has_watcher = 0, has_watcher
        self._unwritten: Counter[str] = Counter()
        self._kinds: set[str] = set()  # of which a line was written

    def line_of(self, finding: Finding, ended: bool) -> str | None:
        """Return the line to write; None for a finding that goes on, and mostly where ten lines were written."""
        if is_update(finding, ended):
            return None
        is_first = not ended and finding.kind not in self._kinds
        if self._lines >= MOST_LINES and not is_first:
            if not ended:
                self._unwritten[finding.kind] += 1
            return None
        self._lines += 1
        self._kinds.add(finding.kind)
        if ended:
            return _end_of(finding)
        return f"gradwatch: {finding.message if self._has_watcher else finding.headline}"

    def take_summary(self) -> str | None:
        """Return the line that counts the findings without a line since the last call; None if there are none."""
        counts = ", ".join(f"{count} {kind}" for kind, count in self._unwritten.items())
        self._unwritten.clear()
        if not counts:
            return None
        where = "watcher.findings" if self._has_watcher else "the report"
        return f"gradwatch: and further findings, not shown here: {counts}. All are in {where}."


class Log:
    """One line for a finding that opens and one for its end; after ten lines a summary at ``close`` instead.

    Args:
        has_watcher: as for ``FewLines``.
    """

    shares_thread = True  # a line belongs to the cell of a notebook, and between the lines that the loop prints

    def __init__(self, *, has_watcher: bool = True) -> None:
        self._has_watcher = has_watcher
        self._lines = FewLines(has_watcher=has_watcher)

    def write_row(self, row: Row) -> None:
        pass

    def write_finding(self, finding: Finding, ended: bool) -> None:
        is_error = finding.severity == "error" and not ended
        if (line := self._lines.line_of(finding, ended)) is not None:
            logger.log(logging.ERROR if is_error else logging.WARNING, "%s", line)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        summary = self._lines.take_summary()
        self._lines = FewLines(has_watcher=self._has_watcher)
        if summary is not None:
            logger.warning("%s", summary)


def _end_of(finding: Finding) -> str:
    """Return one line of at most 160 characters; a long name of a layer loses modules in its middle."""
    start, end = (
        f"gradwatch: {finding.kind} in ",
        f" ended: last seen at step {finding.last_step} (since step {finding.step}).",
    )
    name = "".join(each if each.isprintable() else "?" for each in finding.layer or "the whole run")
    return start + shortened_name(name, _LONGEST_LINE - len(start) - len(end)) + end
