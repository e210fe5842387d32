"""``--fail-on``: read kinds of findings from a command line; the same for every command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from gradwatch.findings import KINDS

__all__ = ["fail_on_option"]


def fail_on_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option ``--fail-on``, which ``command`` takes as ``fail_on``, a set of kinds."""
    words = (
        "Exit with 1 if a finding of these kinds is there, or steps that were not measured: any, or a list as in "
        f"{KINDS[1]},{KINDS[2]}."
    )
    return click.option("--fail-on", callback=_kinds, metavar="KINDS", help=words)(command)


def _kinds(context: click.Context, parameter: click.Parameter, value: str | None) -> frozenset[str]:
    """Read a list of kinds, or ``any``.

    Raises:
        click.BadParameter: for one that is unknown.
    """
    named = [] if value is None else [name.strip() for name in value.split(",")]
    if unknown := [name for name in named if name not in (*KINDS, "any")]:
        raise click.BadParameter(f"expected any, or kinds out of {', '.join(KINDS)}; found {unknown[0]!r}.")
    return frozenset(KINDS if "any" in named else named)
