"""The command ``gradwatch``."""

import click

from gradwatch.cli.run import command

__all__ = ["main"]


@click.group()
def main() -> None:
    """Watches a PyTorch training run for gradients that vanish, explode or turn NaN."""


main.add_command(command)
