"""``gradwatch report``: show event files in the terminal, as JSON or as a page, and end with an exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from gradwatch.cli.kinds import fail_on_option
from gradwatch.event_files.legible import legible
from gradwatch.event_files.reader import NoRunError, read_runs
from gradwatch.event_files.run import Run
from gradwatch.findings import UNKNOWN_STATUS

__all__ = ["command"]

STATUS = {"missing": 3, "empty": 4, "foreign": 5, "corrupt": 6}
"""Why nothing could be read → exit status; 0, 1 and 2 are taken (well, findings, click's usage errors)."""


@click.command("report")
@click.argument("directories", metavar="RUN [RUN…]", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON, indented on a terminal; numbers that are not finite are null.",
)
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write one page that holds all it needs, with the picture of all layers along time.",
)
@click.option("--all", "shows_all", is_flag=True, help="Of many runs, also show the figures of those that are healthy.")
@fail_on_option
def command(
    directories: Sequence[Path], as_json: bool, html: Path | None, shows_all: bool, fail_on: frozenset[str]
) -> None:
    """Show what was found in RUN, a directory of event files, and in the runs below it.

    RUN is what watch(log_dir=…) was given, or the directory of Lightning's TensorBoardLogger. Of two RUNs it also shows
    what went and what came; of more than two a table, worst on top, before those that are sick. A run that is still
    going on is shown as far as it is.

    \b
    Exit status:
      0  shown
      1  a finding of --fail-on is there
      2  the command was used wrongly
      3  no such directory
      4  no event files in it
      5  event files of something else
      6  event files that are damaged, or may not be opened
      7  under --fail-on: no such finding, but not all of the run is known
    What cannot be read is said on standard error, and the rest is shown.
    Of several RUNs, the first that cannot be read decides; the others are shown.
    """  # noqa: D301 (click reads the backslash)
    runs, status = _read(directories)
    _say_what_was_not_read(runs)
    if runs:
        compares = len(runs) == 2 and (len(directories) == 2 or runs[0].layers == runs[1].layers)  # no two of a GAN
        if html is not None:
            _write(html, runs, compares)
        if as_json:
            _print_json(runs)
        elif html is None:
            _print(runs, compares, shows_all)
    raise click.exceptions.Exit(status or _status_of(runs, fail_on))


def _status_of(runs: Sequence[Run], fail_on: frozenset[str]) -> int:
    """Return 1 where a finding of ``fail_on`` is there, 7 where one may be in what is not known, else 0."""
    from gradwatch.views.phrases import gaps

    if any(finding.kind in fail_on for run in runs for finding in run.findings):
        return 1
    return UNKNOWN_STATUS if fail_on and any(any(gaps(run)) for run in runs) else 0


def _read(directories: Sequence[Path]) -> tuple[list[Run], int]:
    """Return the runs that can be read, and the status of the first directory that cannot."""
    runs: list[Run] = []
    status, named = 0, {directory.resolve() for directory in directories}
    for directory in directories:
        try:
            others = named - {directory.resolve()}  # those are shown in their own place
            runs += [run for run in read_runs(directory, _say) if Path(run.name).resolve() not in others]
        except NoRunError as error:
            _say(str(error).removesuffix("."))
            status = status or STATUS[error.reason]
        except OSError as error:  # removed, or forbidden, while it was read
            _say(f"{legible(str(directory))}: cannot be read: {error.strerror}")
            status = status or STATUS["missing"]
    return runs, status


def _say_what_was_not_read(runs: Sequence[Run]) -> None:
    for run in runs:
        for problem in run.problems:
            _say(f"{run.name}: {problem}")


def _say(problem: str) -> None:
    click.echo(f"gradwatch: {problem}.", err=True)


def _print_json(runs: Sequence[Run]) -> None:
    from gradwatch.views.plain import runs_as_json

    click.echo(runs_as_json(runs, indent=2 if sys.stdout.isatty() else None))


def _print(runs: Sequence[Run], compares: bool, shows_all: bool) -> None:
    from rich.console import Console

    from gradwatch.views.terminal import in_terminal

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without bars shows question marks, not a traceback
    console = Console(highlight=False)
    for part in in_terminal(runs, compares, shows_all):
        console.print(part)


def _write(html: Path, runs: Sequence[Run], compares: bool) -> None:
    from gradwatch.views.page import page_of

    try:
        html.write_text(page_of(runs, compares), encoding="utf-8")
    except OSError as error:
        raise click.BadParameter(f"{html}: cannot be written: {error.strerror}.", param_hint="--html") from error
    except ModuleNotFoundError as error:  # of the template engine
        raise click.BadParameter(str(error), param_hint="--html") from error
    click.echo(f"Written: {html}", err=True)
