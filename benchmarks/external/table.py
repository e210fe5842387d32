"""The section of docs/detection.md on programs that others wrote, from the results."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.external import results
from benchmarks.external.judge import Verdict, reason_not_counted, verdict
from benchmarks.external.program import External
from benchmarks.external.programs import PROGRAMS, reproduced
from benchmarks.pages import write_between

PAGE = Path(__file__).resolve().parents[2] / "docs" / "detection.md"
BEGIN, END = "<!-- external: begin -->", "<!-- external: end -->"
WHOLE = {"GRIST": 22, reproduced.SUITE: 165, "deepmufl": 109}
"""Suite → its programs, of GRIST those on PyTorch."""

TOOLS = ("UMLAUT", "Neuralint", "DeepLocalize", "DeepDiagnosis")
DEEPMUFL_COLUMN = 29
"""Of its published table: all mutants, ranked by MUSE, the column with the most bugs found."""


@dataclass(frozen=True)
class Counted:
    """A program that counts, and what was said of it."""

    program: External
    findings: Sequence[dict[str, Any]]
    count: int
    verdict: Verdict

    @property
    def is_sick(self) -> bool:
        return bool(self.program.truth.kinds)


def write(repositories: Path) -> None:
    """Write the tables into the page, between the marks."""
    write_between(PAGE, (BEGIN, END), "\n".join(_lines(repositories)))


def _lines(repositories: Path) -> Iterator[str]:
    first, second = _counted(results.FIRST), _counted(results.SECOND)
    yield from _sick_table(first, second)
    yield ""
    yield from _healthy_table(first, second)
    yield ""
    yield from _rivals_table(first, repositories)
    for title, lines in (
        ("Missed in the first run", _misses(first)),
        ("Missed in the second run", _misses(second)),
        ("False alarms of the first run", _alarms(first)),
        ("False alarms of the second run", _alarms(second)),
        ("Not counted", _left_out()),
    ):
        shown = list(lines)
        if shown:
            yield ""
            yield f"**{title}**"
            yield ""
            yield from shown


def _counted(path: Path) -> list[Counted]:
    """Return the programs that count and have a result in ``path``."""
    bare, watched = results.bare_runs(), results.rows(path)
    return [
        Counted(program, watched[program.name]["findings"], watched[program.name]["count"],
                verdict(program, watched[program.name]["findings"]))
        for program in PROGRAMS
        if program.name in watched and not reason_not_counted(program, bare.get(program.name))
    ]  # fmt: skip


def _sick_table(first: Sequence[Counted], second: Sequence[Counted]) -> Iterator[str]:
    yield "| suite, run | programs | counted | found | right kind | operation named |"
    yield "|---|---:|---:|---:|---:|---:|"
    for suite in dict.fromkeys(program.suite for program in PROGRAMS if program.truth.kinds or program.cannot_show):
        whole = WHOLE[suite]
        for run, all_counted in (("first", first), ("second", second)):
            counted = [one for one in all_counted if one.program.suite == suite and one.is_sick]
            if not counted:
                continue
            with_operation = [one for one in counted if one.program.truth.operation]
            named = _share(sum(one.verdict.names_operation for one in with_operation), len(with_operation))
            found = _share(sum(one.verdict.is_found for one in counted), len(counted))
            right = _share(sum(one.verdict.has_right_kind for one in counted), len(counted))
            yield f"| {suite}, {run} | {whole} | {len(counted)} | {found} | {right} | {named} |"


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / whole:.0f} %)" if whole else "–"


def _healthy_table(first: Sequence[Counted], second: Sequence[Counted]) -> Iterator[str]:
    yield "| suite, run | programs | counted | silent | findings |"
    yield "|---|---:|---:|---:|---:|"
    for suite in dict.fromkeys(program.suite for program in PROGRAMS if program.suite.startswith("healthy")):
        whole = sum(program.suite == suite for program in PROGRAMS)
        for run, all_counted in (("first", first), ("second", second)):
            counted = [one for one in all_counted if one.program.suite == suite]
            if counted:
                silent, alarms = sum(not one.count for one in counted), sum(one.count for one in counted)
                yield f"| {suite}, {run} | {whole} | {len(counted)} | {silent} | {alarms} |"


def _rivals_table(first: Sequence[Counted], repositories: Path) -> Iterator[str]:
    ours = [one for one in first if one.program.suite == "deepmufl"]
    if not ours:
        return
    bugs = {one.program.name.partition("/")[2] for one in ours}
    yield "| tool | bugs found, of the deepmufl bugs that count | of all 109 |"
    yield "|---|---:|---:|"
    yield f"| gradwatch, first run | {sum(one.verdict.has_right_kind for one in ours)} of {len(bugs)} | – |"
    for tool in (*TOOLS, "deepmufl"):
        found = _published(repositories, tool)
        yield f"| {tool}, as published | {len(found & bugs)} of {len(bugs)} | {len(found)} |"


def _published(repositories: Path, tool: str) -> set[str]:
    """Return the bugs that ``tool`` finds by the tables of the suite."""
    file = repositories / "ali-ghanbari" / "deepmufl-ase-2023" / "RQ1-2" / f"{tool} Results.csv"
    column = DEEPMUFL_COLUMN if tool == "deepmufl" else 1
    with file.open(encoding="utf-8-sig", newline="") as opened:
        return {row[0] for row in csv.reader(opened) if len(row) > column and row[column].strip().upper() == "TRUE"}


def _misses(counted: Sequence[Counted]) -> Iterator[str]:
    """Yield a line for each fault of which something was missed, with the programs that have it."""
    missed: dict[tuple[str, str], list[str]] = {}
    for one in counted:
        if one.is_sick and not (one.verdict.has_right_kind and _named(one)):
            missed.setdefault((one.program.truth.because, _said(one)), []).append(f"`{one.program.name}`")
    for (fault, said), programs in missed.items():
        yield f"- {', '.join(programs)}: {fault} {said}"


def _named(one: Counted) -> bool:
    return one.verdict.names_operation or not one.program.truth.operation


def _said(one: Counted) -> str:
    if not one.findings:
        return "gradwatch was silent."
    if one.verdict.has_right_kind:
        return f"gradwatch found the NaN, and did not name {one.program.truth.operation}."
    kinds = ", ".join(sorted({finding["kind"] for finding in one.findings}))
    return f"gradwatch said: {kinds}."


def _alarms(counted: Sequence[Counted]) -> Iterator[str]:
    for one in counted:
        if not one.is_sick and one.count:
            kinds = Counter(finding["kind"] for finding in one.findings)
            said = ", ".join(f"{count} `{kind}`" for kind, count in kinds.items())
            yield f"- `{one.program.name}`: {said}. {one.findings[0]['measured']}"


def _left_out() -> Iterator[str]:
    bare = results.bare_runs()
    reasons: dict[tuple[str, str], list[str]] = {}
    for program in PROGRAMS:
        reason = reason_not_counted(program, bare.get(program.name))
        if reason:
            reasons.setdefault((program.suite, reason), []).append(program.name.partition("/")[2])
    for (suite, reason), names in reasons.items():
        yield f"- {suite}: {', '.join(names)}. {reason}"
    suite = reproduced.SUITE
    yield f"- {suite}: {reproduced.NEVER_TRAINS}. They raise before an update, do not train, or hold no program."
    yield f"- {suite}: {reproduced.OLD}. They need TensorFlow 1 or old Keras, most of them with data to download."
