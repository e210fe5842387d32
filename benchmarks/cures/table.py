"""The results as tables, written between markers of a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.cures import measure, search
from benchmarks.detection.table import rate

PAGES = {Path("docs/prescribe.md"): "cures", Path("docs/remedies.md"): "prescribe"}
"""Page → the name of its markers: the first has all tables, the second the summary."""


def write() -> None:
    """Puts the tables between the markers of the pages, below the first where the second is missing."""
    searched, half = search.read(), measured_half()
    for (page, name), text in zip(PAGES.items(), [tables(), _summary(searched, half)]):
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before = page.read_text() if page.exists() else ""
        if begin in before:
            above, _, rest = before.partition(begin)
            below = rest.partition(end)[2] if end in rest else rest
            page.write_text(f"{above}{begin}\n\n{text}\n\n{end}{below}")


def measured_half() -> list[dict[str, Any]]:
    """What was measured of the half that nothing was tuned on."""
    return [each for each in measure.read() if each["is_measured"]]


def tables() -> str:
    """The summary, each program, and what was left out."""
    searched = search.read()
    half = measured_half()
    return "\n\n".join([_summary(searched, half), _programs(half), _left_out(searched)])


def _summary(searched: Sequence[dict[str, Any]], half: Sequence[dict[str, Any]]) -> str:
    curable = [each for each in searched if each.get("cure") and each["is_measured"]]
    cured = [all(each["cured"]) for each in half]
    rows = [
        ("the remedy that `prescribe` ranks first", rate(cured), fmean(fmean(each["cured"]) for each in half)),
        ("do nothing", rate([False] * len(half)), 0.0),
        ("a remedy drawn at random", "–", fmean(fmean(each["random"]) for each in half)),
        (
            f"always {measure.ALWAYS}",
            rate([all(each["always"]) for each in half]),
            fmean(fmean(each["always"]) for each in half),
        ),
    ]
    lines = [f"| {name} | {programs} | {runs:.0%} |" for name, programs, runs in rows]
    longest = max(each["seconds"] for each in half)
    return "\n".join(
        [
            f"{len(half)} of the {len(curable)} programs of the measured half for which the search found a cure; "
            f"the longest took {longest:.0f} s.",
            "",
            "| | programs cured on all three fresh seeds | of all fresh runs |",
            "|---|---|---|",
            *lines,
        ]
    )


def _programs(half: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"| `{each['program']}` | {each['kind']} | {each['first'] or '–'} | {sum(each['cured']):.0f} of 3 "
        f"| {fmean(each['random']):.0%} | {sum(each['always']):.0f} of 3 | {each['seconds']:.0f} |"
        for each in sorted(half, key=lambda each: each["program"])
    ]
    header = "| program | kind | ranked first | cures | at random | always the same | seconds |"
    return "\n".join([header, "|---|---|---|---|---|---|---|", *lines])


def _left_out(searched: Sequence[dict[str, Any]]) -> str:
    reasons = Counter(each["excluded"] for each in searched if "excluded" in each)
    incurable = sorted(each["program"] for each in searched if "excluded" not in each and not each["cure"])
    lines = [f"| {reason} | {count} |" for reason, count in reasons.most_common()]
    lines.append(f"| the search found no cure: {', '.join(f'`{name}`' for name in incurable)} | {len(incurable)} |")
    return "\n".join(
        [f"Left out, of the {len(searched)} programs searched:", "", "| why | programs |", "|---|---|", *lines]
    )
