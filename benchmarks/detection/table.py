"""Verdicts → tables.

A run counts where its label is proven. *Recall*: some alarm has the label's kind (or one that is just as right). *Right
kind*: the first alarm has. *Right layer*: the first alarm of a right kind names a layer that the proof calls sick.
*Delay*: from the proven onset to that alarm. *Lead*: from the first ``exploding`` to the first NaN. Intervals are
Wilson's, 95 %. Without observed losses, programs of which nothing but the loss is sick do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.pages import write_between

if TYPE_CHECKING:
    from benchmarks.detection.run import Verdict

OURS, SILENT = "gradwatch", "gradwatch, no loss observed"
KINDS = ("vanishing", "exploding", "nonfinite", "dead", "saturated", "stalled", "unstable")
MARKERS = "<!-- bench-detection: begin -->", "<!-- bench-detection: end -->"


def is_detected(verdict: Verdict) -> bool:
    """Some alarm has a right kind."""
    return first_right(verdict) is not None


def first_right(verdict: Verdict) -> tuple[str, str, int] | None:
    """The first alarm of a right kind."""
    return next((alarm for alarm in verdict.alarms if alarm[0] in (verdict.kind, *verdict.also)), None)


def is_right_kind(verdict: Verdict) -> bool:
    """The first alarm has a right kind."""
    return bool(verdict.alarms) and verdict.alarms[0][0] in (verdict.kind, *verdict.also)


def is_right_layer(verdict: Verdict) -> bool:
    """The first alarm of a right kind names a sick layer; for a sickness of the whole run, any."""
    alarm = first_right(verdict)
    if alarm is None:
        return False
    return alarm[1] in verdict.layers or alarm[0] in ("stalled", "unstable") or verdict.layers == ("",)


def delay(verdict: Verdict) -> int | None:
    """Steps from onset to the first alarm of a right kind."""
    alarm = first_right(verdict)
    return None if alarm is None else alarm[2] - verdict.onset


def leads(verdict: Verdict) -> bool:
    """``exploding`` came before the first NaN."""
    assert verdict.first_nonfinite is not None
    return any(kind == "exploding" and step < verdict.first_nonfinite for kind, _, step in verdict.alarms)


def rate(held: Sequence[bool]) -> str:
    """Share with its interval, and the count."""
    if not held:
        return "–"
    n, p = len(held), sum(held) / len(held)
    z = 1.96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    return f"{p:.1%} [{max(0, middle - half):.0%}–{min(1, middle + half):.0%}] ({sum(held)}/{n})"


def tables(verdicts: Sequence[Verdict]) -> str:
    """Markdown: every tool, on the measured half and on all programs."""
    counted = [verdict for verdict in verdicts if verdict.is_proven]
    parts = []
    for title, part in (
        ("The half that is only measured on", [v for v in counted if v.half == "measured"]),
        ("All programs", counted),
    ):
        if part:
            parts.append(f"**{title}**\n\n{_by_tool(part)}\n\n{_by_kind([v for v in part if v.tool == OURS])}")
    return "\n\n".join(parts)


def _by_tool(verdicts: Sequence[Verdict]) -> str:
    columns: list[tuple[str, Callable[[list[Verdict], list[Verdict]], str]]] = [
        ("recall", lambda sick, well: rate([is_detected(v) for v in sick])),
        ("right kind first", lambda sick, well: rate([is_right_kind(v) for v in sick])),
        ("right layer", lambda sick, well: rate([is_right_layer(v) for v in sick])),
        ("`exploding` before the first NaN", lambda sick, well: rate([leads(v) for v in sick if _diverges(v)])),
        ("healthy runs with an alarm", lambda sick, well: rate([bool(v.alarms) for v in well])),
    ]
    lines = ["| tool | " + " | ".join(title for title, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for tool in dict.fromkeys(v.tool for v in verdicts):
        mine = [v for v in verdicts if v.tool == tool and not _is_unknowable(v)]
        sick, well = [v for v in mine if v.kind is not None], [v for v in mine if v.kind is None]
        lines.append(f"| {tool} | " + " | ".join(cell(sick, well) for _, cell in columns) + " |")
    return "\n".join(lines)


def _by_kind(verdicts: Sequence[Verdict]) -> str:
    lines = [
        "| kind | programs | recall | right kind first | right layer | delay: median, longest |",
        "|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        mine = [v for v in verdicts if v.kind == kind]
        if not mine:
            continue
        delays = [d for v in mine if (d := delay(v)) is not None]
        lines.append(
            f"| `{kind}` | {len({v.program for v in mine})} | {rate([is_detected(v) for v in mine])} | "
            f"{rate([is_right_kind(v) for v in mine])} | {rate([is_right_layer(v) for v in mine])} | "
            f"{f'{median(delays):g}, {max(delays)}' if delays else '–'} |"
        )
    healthy = [v for v in verdicts if v.kind is None]
    programs = len({v.program for v in healthy})
    lines.append(
        f"| healthy | {programs} | {sum(len(v.alarms) for v in healthy)} findings in {len(healthy)} runs | | | |"
    )
    return "\n".join(lines)


def complaints(verdicts: Sequence[Verdict]) -> str:
    """A line for each of our runs that is not as it should be, and for each label that was not proven."""
    lines = []
    for v in verdicts:
        if not v.tool.startswith("gradwatch") or _is_unknowable(v):
            continue
        where = f"[{v.half}] {v.program} seed {v.seed} ({v.tool}; {v.kind or 'healthy'} since {v.onset}, NaN at "
        where += f"{v.first_nonfinite}, of {v.steps})"
        said = ", ".join(f"{kind} {layer!r} @{step}" for kind, layer, step in v.alarms[:4]) or "nothing"
        if not v.is_proven:
            lines.append(f"LABEL NOT PROVEN {where}: {said}")
        elif v.kind is None:
            lines += [f"FALSE ALARM {where}: {said}"] if v.alarms else []
        elif not is_detected(v):
            lines.append(f"MISSED {where}: {said}")
        else:
            late, lag = delay(v), {"nonfinite": 0, "vanishing": 25}.get(v.kind)
            wrong = [] if is_right_kind(v) else ["FIRST OF ANOTHER KIND"]
            wrong += [] if is_right_layer(v) else [f"WRONG LAYER (proven: {', '.join(v.layers[:5])})"]
            wrong += [f"LATE by {late}"] if lag is not None and late is not None and late > lag else []
            wrong += ["NO LEAD"] if _diverges(v) and not leads(v) else []
            lines += [f"{'; '.join(wrong)} {where}: {said}"] if wrong else []
    return "\n".join(lines)


def write(page: str, path: Path) -> None:
    """Puts the tables between the markers of ``path``."""
    write_between(path, MARKERS, page)


def _is_unknowable(verdict: Verdict) -> bool:
    """No loss is observed, and nothing but the loss is sick."""
    return verdict.tool == SILENT and (verdict.kind in ("stalled", "unstable") or verdict.layers == ("",))


def _diverges(verdict: Verdict) -> bool:
    """The label is ``exploding`` and the run ends in NaN or Inf, later than its first update."""
    return verdict.kind == "exploding" and (verdict.first_nonfinite or 0) > 0
