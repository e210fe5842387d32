"""The command ``gradwatch``: a table of commands, each loaded when it is called.

``gradwatch --help`` imports none of them.
"""

from __future__ import annotations

import importlib

import click

import gradwatch

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "run": ("gradwatch.cli.run", "Run a training script and watch it, without a line of it changed."),
    "report": ("gradwatch.cli.report", "Show the findings of a run, and its figures along depth and time."),
    "live": ("gradwatch.cli.live", "Follow a run in the terminal while it is being written."),
    "replay": ("gradwatch.cli.replay", "Run the step of a black box again, and say what made it fail."),
    "demo": ("gradwatch.cli.demo", "Train four small networks, one healthy and three sick, and show what is found."),
}
"""Name → its module, which holds a command ``command``, and its line in ``gradwatch --help``."""


class _Commands(click.Group):
    """The commands of a table, each imported when it is called."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[name][0]).command
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(gradwatch.__version__, message="gradwatch %(version)s")
def main() -> None:
    """Find the gradients that vanish, explode or turn NaN: which layer, since when, why, and what to do."""
