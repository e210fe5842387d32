"""``gradwatch report``: event files → terminal, JSON or a page, and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from gradwatch.findings import KINDS
from gradwatch.runs import NoRunError, Run, legible, read_runs

__all__ = ["command"]

STATUS = {"missing": 3, "empty": 4, "foreign": 5, "corrupt": 6}
"""Why nothing could be read → exit status; 0, 1 and 2 are taken (well, findings, click's usage errors)."""


def _kinds(context: click.Context, parameter: click.Parameter, value: str | None) -> frozenset[str]:
    """A list of kinds, or ``any``.

    Raises:
        click.BadParameter: for one that is unknown.
    """
    named = [] if value is None else [name.strip() for name in value.split(",")]
    if unknown := [name for name in named if name not in (*KINDS, "any")]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(KINDS)}; 'any' stands for all.")
    return frozenset(KINDS if "any" in named else named)


@click.command("report")
@click.argument("directories", metavar="RUN [RUN…]", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs, numbers that are not finite as null.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write one page that holds all it needs, with the picture of all layers along time.",
)
@click.option(
    "--fail-on",
    "kinds",
    callback=_kinds,
    metavar="KINDS",
    help=f"Exit with 1 if a finding of these kinds is there: any, or a list as in {KINDS[1]},{KINDS[2]}.",
)
def command(directories: Sequence[Path], as_json: bool, html: Path | None, kinds: frozenset[str]) -> None:
    """Show what was found in RUN, a directory of event files, and in the runs below it.

    RUN is what watch(log_dir=…) was given, or the directory of Lightning's TensorBoardLogger. Of two runs it also shows
    what went and what came. A run that is still going on is shown as far as it is.

    \b
    Exit status:
      0  shown
      1  a finding of --fail-on is there
      2  the command was used wrongly
      3  no such directory
      4  no event files in it
      5  event files of something else
      6  event files so damaged that nothing can be read
    Damaged parts of files that can be read otherwise are told on standard error.
    Of several RUNs, the first that cannot be read decides; the others are shown.
    """  # noqa: D301 (click reads the backslash)
    runs, status = _read(directories)
    _say_what_was_not_read(runs)
    if html is not None and runs:
        _write(html, runs)
    if as_json and runs:
        _print_json(runs)
    elif runs and html is None:
        _print(runs)
    found = any(finding.kind in kinds for run in runs for finding in run.findings)
    raise click.exceptions.Exit(status or int(found))


def _read(directories: Sequence[Path]) -> tuple[list[Run], int]:
    """Runs that can be read, and the status of the first directory that cannot."""
    runs: list[Run] = []
    status = 0
    for directory in directories:
        try:
            runs += read_runs(directory)
        except NoRunError as error:
            click.echo(f"gradwatch: {error}", err=True)
            status = status or STATUS[error.reason]
        except OSError as error:  # removed, or forbidden, while it was read
            click.echo(f"gradwatch: {legible(str(directory))}: cannot be read: {error.strerror}.", err=True)
            status = status or STATUS["missing"]
    return runs, status


def _say_what_was_not_read(runs: Sequence[Run]) -> None:
    for run in runs:
        for problem in run.problems:
            click.echo(f"gradwatch: {run.name}: {problem}.", err=True)


def _print_json(runs: Sequence[Run]) -> None:
    from gradwatch.views.plain import runs_as_json

    click.echo(runs_as_json(runs))


def _print(runs: Sequence[Run]) -> None:
    from rich.console import Console

    from gradwatch.views.terminal import in_terminal

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without bars shows question marks, not a traceback
    console = Console(highlight=False)
    for part in in_terminal(runs):
        console.print(part)


def _write(html: Path, runs: Sequence[Run]) -> None:
    from gradwatch.views.page import page_of

    try:
        html.write_text(page_of(runs), encoding="utf-8")
    except OSError as error:
        raise click.BadParameter(f"{html}: cannot be written: {error.strerror}.", param_hint="--html") from error
    click.echo(f"Written: {html}", err=True)
