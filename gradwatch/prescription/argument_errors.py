"""Name the errors that ``prescribe`` raises for arguments that make no sense."""

from __future__ import annotations

__all__ = ["ArgumentError", "ArgumentTypeError", "ArgumentValueError"]


class ArgumentError(Exception):
    """An argument of ``prescribe`` that makes no sense: its name, what was expected, what was found, what to do."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument of the wrong type."""


class ArgumentValueError(ArgumentError, ValueError):
    """An argument of the right type whose value makes no sense."""
