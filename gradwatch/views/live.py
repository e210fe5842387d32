"""Show a run that is being written in one screen of a terminal: curves, the worst layers, findings.

Every line fits the width, and all lines fit the height. Names are plain text: rich's markup in them means nothing here.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradwatch.event_files.run import Floats, Run, TimeSeries
from gradwatch.findings import Finding
from gradwatch.views.names import labels
from gradwatch.views.phrases import FLUSHED, age, counted, number, verdict
from gradwatch.views.run_table import STYLES
from gradwatch.views.sparkline import sparkline
from gradwatch.views.terminal import curves_of
from gradwatch.views.worst_layers import WorstLayer, worst_layers

__all__ = ["LiveScreen", "live_screen"]

_MOST_CURVES = 6
_NAME = 24  # columns of a layer's name
_TITLE = 15  # columns of a curve's name
_FIGURES = 22  # columns to the right of a sparkline
_FEWEST_LAYERS = 3
_MOST_FINDINGS = 4  # with two lines each: half of a screen of 24 lines
_TAIL = 4  # lines of the script's own output


@dataclass(frozen=True)
class LiveScreen:
    """The terminal of a live view, and all that it shows beside the run.

    Attributes:
        width, height: of the terminal, in columns and lines.
        now: seconds since 1970.
        footer: the last line: how to end the view.
        output: the last lines that the watched script has printed, of ``gradwatch run --live``.
        others: how many other runs are in the directory.
    """

    width: int
    height: int
    now: float
    footer: str
    output: Sequence[str] = ()
    others: int = 0


def live_screen(run: Run, screen: LiveScreen) -> RenderableType:
    """Return one screen of ``run``."""
    curves = list(curves_of(run, with_flat_rates=True))[:_MOST_CURVES]
    findings = _latest_first(run)
    output = [Text(line, style="dim") for line in screen.output[-_TAIL:]]
    lines: list[RenderableType] = [_head(run, screen), _headline(run, screen.width), Text("")]
    left = screen.height - len(lines) - 1 - len(output)  # the footer is a line
    if curves:
        lines[-1] = _curves(curves, screen.width)  # whose first line is its titles
        left -= len(curves) + 1
    shown = findings[: max(1, min(_MOST_FINDINGS, (left - _FEWEST_LAYERS - 3) // 2))]
    left -= 2 * len(shown) + 2 * bool(shown)
    layers = worst_layers(run, max(0, left - 2))
    if layers:
        lines += [Text(""), _layers(layers, screen.width)]
    if shown:
        lines += [Text(""), _findings_title(findings, shown)]
        lines += [line for finding, ended in shown for line in _finding(finding, ended, screen.width)]
    lines += [*output, Text(screen.footer, style="dim")]
    return Group(*(_one_line(line) for line in lines))


def _one_line(line: RenderableType) -> RenderableType:
    if isinstance(line, Text):
        line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _head(run: Run, screen: LiveScreen) -> RenderableType:
    others = f" (and {counted(screen.others, 'other run')})" if screen.others else ""
    name = _without_begin(run.name + others, screen.width - 34)
    head = Table.grid(expand=True)
    head.add_column(no_wrap=True)
    head.add_column(justify="right", no_wrap=True)
    head.add_row(Text.assemble(("gradwatch  ", "bold"), name), _state(run, screen.now))
    return head


def _without_begin(text: str, most: int) -> str:
    """Return the end of ``text``: of a path the last part says most."""
    most = max(most, 8)
    return text if len(text) <= most else f"…{text[len(text) - most + 1 :]}"


def _state(run: Run, now: float) -> Text:
    """Say how far the run is, and whether it goes on."""
    if run.closed_after is not None:
        return Text(f"■ ended after {counted(run.closed_after, 'step')}")
    step = f"step {run.steps[-1]}" if len(run.steps) else "no rows yet"
    quiet = now - run.written_at
    if quiet < FLUSHED:
        return Text(f"● {step}", style="green")
    return Text(f"○ {step}, quiet for {age(quiet)}", style="yellow")


def _fitted(text: str, width: int) -> str:
    """Return ``text`` in at most ``width`` columns; what is too long ends after a whole word."""
    return textwrap.shorten(text, max(width, 8), placeholder=" …", break_on_hyphens=False)


def _headline(run: Run, width: int) -> Text:
    judged = verdict(run, goes_on=True)
    word = judged.word.upper()
    if judged.word == "healthy" and run.closed_after is None:
        return Text.assemble(("no findings so far", STYLES["healthy"]))
    return Text.assemble((word, STYLES[judged.word]), "  ", _fitted(judged.words, width - len(word) - 2))


def _curves(curves: Sequence[tuple[str, TimeSeries]], width: int) -> RenderableType:
    most = max(4, width - _TITLE - _FIGURES - 13)
    table = _grid(_TITLE, most)
    table.add_row(Text("Whole run", style="bold"), Text(""), Text("latest (lowest … highest)", style="dim"))
    for title, series in curves:
        known = series.values[np.isfinite(series.values)]
        last = series.values[-1]
        now = Text(number(last) if np.isfinite(last) else "NaN or Inf", style="" if np.isfinite(last) else "red")
        table.add_row(Text(title), sparkline(series, most), now + Text(_extent(known), style="dim"))
    return table


def _extent(known: Floats) -> str:
    """Return the lowest and the highest of what was finite, or that it never changed."""
    if not len(known):
        return ""
    low, high = number(known.min()), number(known.max())
    return " (constant)" if low == high else f" ({low} … {high})"


def _layers(layers: Sequence[WorstLayer], width: int) -> RenderableType:
    most = max(4, width - _NAME - _FIGURES - 6)
    table = _grid(_NAME + 2, most)
    table.add_row(Text("Layers, worst first", style="bold"), Text("gradient norm", style="dim"), Text("latest", "dim"))
    for layer, name in zip(layers, labels([layer.name for layer in layers]), strict=True):
        style = STYLES[layer.severity] if layer.severity else ""
        table.add_row(
            Text.assemble(("● " if layer.severity else "  ", style), (name, style)),
            sparkline(layer.norms, most, "red" if layer.severity == "error" else "cyan"),
            Text(_ratio(layer), style=style),
        )
    return table


def _ratio(layer: WorstLayer) -> str:
    if not np.isfinite(layer.norm):
        return "not measured" if np.isnan(layer.norm) else "NaN or Inf"
    return f"{number(layer.norm)}, {number(layer.ratio)} × usual"


def _grid(first: int, second: int) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, width=first, overflow="ellipsis")
    table.add_column(no_wrap=True, width=second)
    table.add_column(no_wrap=True, overflow="ellipsis")
    return table


def _latest_first(run: Run) -> list[tuple[Finding, bool]]:
    """Return the findings with whether each has ended: open ones first, and the latest first among these."""
    both = list(zip(run.findings, run.ended, strict=True))
    return sorted(both, key=lambda each: (each[1], -each[0].raised_step))


def _findings_title(findings: Sequence[object], shown: Sequence[object]) -> Text:
    more = f" ({len(shown)} of {len(findings)})" if len(shown) < len(findings) else ""
    return Text(f"Findings, latest first{more}", style="bold")


def _finding(finding: Finding, ended: bool, width: int) -> Iterator[Text]:
    end = ", ended" if ended else ""
    style = "dim" if ended else STYLES[finding.severity]
    yield Text.assemble((finding.kind, style), f" in {finding.place} since step {finding.step}{end}")
    yield Text(f"  {_fitted(finding.measured, width - 2)}", style="dim")
