"""Show a run in the terminal: headline, findings, sparklines along time, bars along depth.

Names are printed as plain text: rich's markup in them means nothing here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from gradwatch.event_files.run import Run, TimeSeries
from gradwatch.findings import Finding
from gradwatch.views.phrases import changes, counted, environment_words, facts, number, onset, since, verdict
from gradwatch.views.profile import lengths, profile_of
from gradwatch.views.run_table import STYLES, run_table, worst_first
from gradwatch.views.sparkline import sparkline

__all__ = ["curves_of", "in_terminal"]

_FEW = 2  # runs that are shown one after the other, without a table
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_SPARKS = 50  # columns of a sparkline: with its name and its range a terminal of 80
_MOST_LAYERS = 40  # lines of the profile
_BAR = 8  # columns of a bar
_TITLES = {
    "grad_norm_total": "total norm",
    "grad_norm_clipped_total": "after clipping",
    "loss": "loss",
    "learning_rate": "learning rate",
}


def in_terminal(runs: Sequence[Run], compares: bool = False, shows_all: bool = False) -> Iterator[RenderableType]:
    """Yield every run and, where ``compares``, what went and what came from one to the other.

    Of more than two runs a table comes first, worst on top, and then the runs that are not healthy.

    Args:
        runs: any number.
        compares: of two.
        shows_all: also show the healthy ones of many.
    """
    if len(runs) <= _FEW:
        yield from map(_run, runs)
        if compares:
            yield _compared(*runs)
        return
    ordered = worst_first(runs)
    yield run_table(ordered)
    shown = [run for run in ordered if shows_all or verdict(run).word != "healthy"]
    for run in shown:
        yield Text("")
        yield _run(run)
    if len(shown) < len(runs):
        healthy = counted(len(runs) - len(shown), "healthy run")
        yield Text(f"\n{healthy} in the table alone: --all shows the figures of every run.", style="dim")


def _run(run: Run) -> RenderableType:
    parts: list[RenderableType] = [Rule(Text(run.name, style="bold"), align="left"), _headline(run)]
    parts.append(Text(facts(run, time.time())))
    if (made_with := run.environment) is not None:
        parts.append(Text(environment_words(made_with), style="dim"))
    parts += [_finding(finding, ended) for finding, ended in zip(run.findings, run.ended, strict=True)]
    if len(run.steps):
        parts += [_titled("Along time", "lowest … highest; ✗ is NaN or Inf"), _along_time(run)]
        parts.append(_titled("Along depth", "last finite figures, input first; ● is part of a finding"))
        parts.append(_along_depth(run))
    return Group(*parts)


def _compared(first: Run, second: Run) -> RenderableType:
    title = Text(f"From {first.name} to {second.name}", style="bold")
    table = Table("", "kind", "layer", "first run", "second run")
    styles = {"went": "green", "stayed": "yellow", "came": "red"}
    for change in changes(first, second):
        finding = change.finding
        steps = [onset(each) for each in (change.before, change.after)]
        table.add_row(Text(change.what, styles[change.what]), finding.kind, Text(finding.place), *steps)
    if not table.row_count:
        return Group(Text(""), title, Text("Neither run has a finding.", style="green"))
    return Group(Text(""), title, table)


def _headline(run: Run) -> Text:
    judged = verdict(run)
    return Text.assemble((judged.word.upper(), STYLES[judged.word]), "  ", judged.words)


def _titled(title: str, key: str) -> Text:
    return Text.assemble("\n", (title, "bold"), (f"  {key}", "dim"))


def _finding(finding: Finding, ended: bool) -> RenderableType:
    kind = (finding.kind, STYLES[finding.severity])
    head = Text.assemble("\n", kind, f" ({finding.severity}) in {finding.place}, {since(finding, ended)}")
    body: list[RenderableType] = [Text(finding.measured), Text(f"Cause: {finding.cause}")]
    body += [Text(f"Done: {action}") for action in finding.actions]
    body += [Text("What to try:")] if finding.remedies else []
    remedies = Table.grid(padding=(0, 1, 0, 0))  # whose second lines begin below the first
    for advice in finding.remedies:
        remedies.add_row("•", Text(f"{advice.text} ({advice.name})"))
    return Group(head, Padding(Group(*body, remedies), (0, 0, 0, 2)))


def _along_time(run: Run) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, series in curves_of(run):
        known = series.values[np.isfinite(series.values)]
        extent = f"{number(known.min())} … {number(known.max())}" if len(known) else "not finite"
        table.add_row(name, sparkline(series, _SPARKS), Text(extent, style="dim"))
    return table


def curves_of(run: Run, *, with_flat_rates: bool = False) -> Iterator[tuple[str, TimeSeries]]:
    """Yield the totals, the loss and the learning rates, each with its title.

    Args:
        run: any.
        with_flat_rates: also those that never change.
    """
    for name, series in run.curves.items():
        which, _, optimizer = name.partition("/")
        if not _is_flat(run, name, with_flat_rates):
            yield _TITLES.get(which, which) + (f", {optimizer}" if optimizer else ""), series


def _is_flat(run: Run, name: str, with_flat_rates: bool) -> bool:
    """Return whether a curve says nothing of its own: nothing was clipped, or the learning rate never changed."""
    values = run.curves[name].values
    if name.startswith("learning_rate"):
        return not with_flat_rates and bool((values == values[0]).all())
    total = run.curves.get(name.replace("_clipped", ""))
    is_clipped_total = name.startswith("grad_norm_clipped_total") and total is not None
    return is_clipped_total and np.array_equal(values, total.values, equal_nan=True)  # type: ignore[union-attr]


def _along_depth(run: Run) -> Table:
    profile = profile_of(run, _MOST_LAYERS)
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("")
    table.add_column("layer", overflow="fold")
    for title in profile.columns:
        table.add_column(title, no_wrap=True)
    bars = {title: lengths(values) for title, values in profile.columns.items()}
    for place, name in enumerate(profile.names):
        mark = Text("●", style="red") if profile.sick[place] else Text(" ")
        figures = [
            _bar(bars[title][place], values[place], profile.sick[place]) for title, values in profile.columns.items()
        ]
        table.add_row(mark, Text(name), *figures)
    return table


def _bar(share: float, value: float, is_sick: bool) -> Text:
    if np.isnan(value):
        return Text("–".ljust(_BAR), style="dim")
    whole, part = divmod(round((0 if np.isnan(share) else min(share, 1)) * _BAR * 8), 8)
    bar = ("█" * whole + _EIGHTHS[part]).rstrip().ljust(_BAR)
    return Text.assemble((bar[:_BAR], "red" if is_sick else "cyan"), " ", number(value))
