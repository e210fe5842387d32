"""Write the results as tables between the markers of pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.cures import measure
from benchmarks.cures.collection import OWN, of_others
from benchmarks.detection.table import rate

PAGES = {Path("docs/prescribe.md"): "cures", Path("docs/remedies.md"): "prescribe"}
"""Page → the name of its markers: the first has all tables, the second the summary."""
HALVES = ("measured", "other")
"""The halves of our own programs; nothing was tuned on the first."""
EXTERNAL = "external"
"""The programs that others wrote, on which nothing was tuned either."""
TITLES = {"measured": "The measured half", "other": "The other half", EXTERNAL: "Programs that others wrote"}


def write() -> None:
    """Put the tables between the markers of the pages, or below the first marker if the second is missing."""
    for (page, name), text in zip(PAGES.items(), [tables(), summary("measured")]):
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before = page.read_text() if page.exists() else ""
        if begin in before:
            above, _, rest = before.partition(begin)
            below = rest.partition(end)[2] if end in rest else rest
            page.write_text(f"{above}{begin}\n\n{text}\n\n{end}{below}")


def tables() -> str:
    """Return the summary of each half, each program, and the programs that were left out."""
    searched, measured = _all()
    ours = [each for each in searched if _half(each) != EXTERNAL]
    theirs = [each for each in searched if _half(each) == EXTERNAL]
    lists = [_programs(measured), _left_out(ours), _left_out_by_name(theirs)]
    return "\n\n".join([*map(summary, TITLES), *lists])


def summary(half: str) -> str:
    """Return the summary of one half: ``measured``, on which nothing was tuned, ``other``, or ``external``."""
    return _summary(half, *([each for each in rows if _half(each) == half] for rows in _all()))


def _all() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what was searched and what was measured, of our own programs and of those of others.

    The kind of a program of ours is that of its label. Labels of others allow several: theirs is what was found first.
    """
    both = (OWN, of_others())
    return [row for each in both for row in each.read_searched()], [
        row for each in both for row in each.read_measured()
    ]


def _half(result: dict[str, Any]) -> str:
    return EXTERNAL if "/" in result["program"] else HALVES[not result["is_measured"]]  # a suite and a name


def _summary(name: str, searched: Sequence[dict[str, Any]], half: Sequence[dict[str, Any]]) -> str:
    curable = sum(bool(each.get("cure")) for each in searched)
    begun = f"**{TITLES[name]}**: measured are {len(half)} of the {curable} programs for which the search found a cure"
    judged = [each for each in half if _judged(each, "cured")]
    if not judged:
        return f"{begun}."
    rows = [
        ("the remedy that `prescribe` ranks first", *_rates(judged, "cured")),
        ("do nothing (by what a cure is)", rate([False] * len(judged)), 0.0),
        ("a remedy drawn at random", "–", _rates(judged, "random")[1]),
        (f"always {measure.ALWAYS}", *_rates(judged, "always")),
    ]
    lines = [f"| {name} | {programs} | {runs:.0%} |" for name, programs, runs in rows]
    longest = max(each["seconds"] for each in half)
    return "\n".join(
        [
            f"{begun}; the longest took {longest:.0f} s. {_not_judged(half)}",
            "",
            "| | programs cured on every fresh seed | of all fresh runs |",
            "|---|---|---|",
            *lines,
        ]
    )


def _judged(result: dict[str, Any], what: str) -> list[float]:
    """Return the figures of the fresh seeds on which something was sick."""
    return [figure for figure in result[what] if figure is not None]


def _rates(judged: Sequence[dict[str, Any]], what: str) -> tuple[str, float]:
    """Return the share that ``what`` cures, of programs on all their judged seeds and of judged runs."""
    figures = [_judged(each, what) for each in judged]
    return rate([all(figure == 1 for figure in each) for each in figures]), fmean(f for each in figures for f in each)


def _not_judged(half: Sequence[dict[str, Any]]) -> str:
    runs = sum(len(each["cured"]) for each in half)
    left_out = runs - sum(len(_judged(each, "cured")) for each in half)
    programs = sum(not _judged(each, "cured") for each in half)
    if not left_out:
        return f"On each of the {runs} fresh seeds the untreated run was sick."
    return (
        f"On {left_out} of the {runs} fresh seeds the untreated run was not sick: they are not judged, and left out of "
        f"every share (programs sick on none of theirs: {programs})."
    )


def _programs(results: Sequence[dict[str, Any]]) -> str:
    header = "| half | program | kind | ranked first | cures | at random | always the same | seconds |"
    return "\n".join([header, "|---|---|---|---|---|---|---|---|", *_rows(results)])


def _rows(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    for each in sorted(results, key=lambda each: (_half(each), each["program"])):
        name, first, seconds = f"`{each['program']}`", each["first"] or "–", f"{each['seconds']:.0f}"
        yield f"| {' | '.join([_half(each), name, each['kind'], first, *_shares(each), seconds])} |"


def _shares(result: dict[str, Any]) -> list[str]:
    cured, random, always = (_judged(result, what) for what in ("cured", "random", "always"))
    if not cured:
        return ["not judged"] * 3
    return [f"{sum(cured):.0f} of {len(cured)}", f"{fmean(random):.0%}", f"{sum(always):.0f} of {len(always)}"]


def _left_out(searched: Sequence[dict[str, Any]]) -> str:
    reasons = Counter(each["excluded"] for each in searched if "excluded" in each)
    incurable = sorted(each["program"] for each in searched if "excluded" not in each and not each["cure"])
    lines = [f"| {reason} | {count} |" for reason, count in reasons.most_common()]
    lines.append(f"| the search found no cure: {', '.join(f'`{name}`' for name in incurable)} | {len(incurable)} |")
    return "\n".join(
        [f"Left out, of the {len(searched)} programs searched:", "", "| why | programs |", "|---|---|", *lines]
    )


def _left_out_by_name(searched: Sequence[dict[str, Any]]) -> str:
    """Return why programs of others are not measured, suite by suite."""
    reasons: dict[str, list[str]] = {}
    for each in searched:
        if not each.get("cure"):
            reasons.setdefault(each.get("excluded", "the search found no cure"), []).append(f"`{each['program']}`")
    lines = [f"| {reason} | {', '.join(sorted(names))} |" for reason, names in sorted(reasons.items())]
    header = f"Left out, of the {len(searched)} sick programs of others that were searched:"
    return "\n".join([header, "", "| why | programs |", "|---|---|", *lines])
