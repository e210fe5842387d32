"""``gradwatch run``: the command line of ``gradwatch.scripts``."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import click

from gradwatch.cli.kinds import fail_on_option
from gradwatch.scripts import Program, run_watched

__all__ = ["command"]


def _clip(context: click.Context, parameter: click.Parameter, value: str | None) -> float | str | None:
    if value is None or value == "auto":
        return value
    try:
        norm = float(value)
    except ValueError:
        norm = math.nan
    if not 0 < norm < math.inf:
        raise click.BadParameter(f'expected a positive number (the largest total norm) or "auto", found {value!r}.')
    return norm


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option(
    "--log-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where TensorBoard event files go.  [default: runs/NAME of the script]",
)
@click.option(
    "--clip",
    callback=_clip,
    metavar="NORM|auto",
    help="Also clip gradients: to this total norm, or by the run's own history.",
)
@click.option(
    "--log-every",
    type=click.IntRange(min=1),
    metavar="N",
    help="Steps between two rows.  [default: 50, and more rows of the first steps]",
)
@click.option(
    "--live", "is_live", is_flag=True, help="Show the run on the terminal while it goes on, as gradwatch live does."
)
@fail_on_option
@click.option("-m", "is_module", is_flag=True, help="SCRIPT is the name of a module, as after python -m.")
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def command(
    log_dir: Path | None,
    clip: float | str | None,
    fail_on: frozenset[str],
    log_every: int | None,
    is_live: bool,
    is_module: bool,
    script: str,
    args: tuple[str, ...],
) -> None:
    """Run SCRIPT with ARGS as python would, and watch every optimizer that steps.

    The exit status is the script's own; where that is 0 and --fail-on names a kind that was found, it is 1. It is 7
    where --fail-on is given, none was found and steps were not measured: nobody has looked for those kinds there.
    """
    program = Program(script, args, is_module)
    if (refusal := program.refusal()) is not None:
        raise click.BadParameter(refusal, param_hint="SCRIPT")
    where = log_dir or Path("runs") / program.name
    if is_live:
        _run_live(where)
    _forget_click()
    run_watched(program, where, clip, fail_on, log_every)


def _run_live(log_dir: Path) -> None:
    """Run this very command without the view in another process, and show the view here; do nothing without a terminal.

    Raises:
        SystemExit: with the status of the program.
    """
    if os.environ.get("RANK", "0") != "0":
        return  # the first rank shows the run
    from gradwatch.cli.run_live import can_show, run_live

    if can_show():
        raise SystemExit(run_live([sys.executable, *_without_live(sys.orig_argv[1:])], log_dir))
    click.echo("gradwatch: --live needs a terminal to draw on: the script runs without the view.", err=True)


def _without_live(arguments: list[str]) -> list[str]:
    """Return ``arguments`` without the first ``--live``, which is ours: the script's come after it."""
    at = arguments.index("--live")
    return arguments[:at] + arguments[at + 1 :]


def _forget_click() -> None:
    """Let a program with a ``click.py`` of its own import that one, as it would without us."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "click"]:
        del sys.modules[name]
