"""``gradwatch demo``: train four networks and show what is found."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]

NOT_INSTALLED = 2  # as click ends where a command cannot be carried out as given


@click.command("demo")
@click.option(
    "--log-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where the TensorBoard files of the four runs go; those of an earlier demonstration are replaced.",
)
@click.option("--steps", type=click.IntRange(min=1), default=300, show_default=True, help="Steps of each network.")
def command(log_dir: Path, steps: int) -> None:
    """Train four small networks on handwritten digits, one healthy and three sick, and show what is found.

    Needs scikit-learn, for the digits: pip install 'gradwatch[demo]'. Exits 2 where it is missing.
    """
    from gradwatch.cli import demonstration

    try:
        demonstration.main(str(log_dir), steps)
    except ModuleNotFoundError as error:
        if error.name != "sklearn":
            raise
        click.echo(demonstration.NOT_INSTALLED, err=True)
        raise click.exceptions.Exit(NOT_INSTALLED) from None
