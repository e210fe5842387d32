"""``gradwatch live``: follow a run in the terminal while it is being written."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]

MISSING = 3  # as `gradwatch report` ends


@click.command("live")
@click.argument("directory", metavar="RUN", type=click.Path(path_type=Path))
def command(directory: Path) -> None:
    """Follow RUN while it is being written: loss, total norm, the worst layers, findings as they come.

    RUN is the directory of a run. If it holds several, the one that was written last is followed. q or Ctrl-C ends the
    view, which leaves no trace on the screen; training goes on. Where the output is no terminal, each new row and each
    finding is a line, and the command ends with the run.

    \b
    Exit status:
      0  ended by q, Ctrl-C or, without a terminal, the end of the run
      2  the command was used wrongly
      3  no such directory
    """  # noqa: D301 (click reads the backslash)
    from gradwatch.cli.following import follow_in_lines, follow_on_screen, is_a_screen
    from gradwatch.event_files.legible import legible

    if not directory.is_dir():
        click.echo(f"gradwatch: {legible(str(directory))}: expected the directory of a run, found none.", err=True)
        raise click.exceptions.Exit(MISSING)
    follow = follow_on_screen if is_a_screen() else follow_in_lines
    follow(directory)
