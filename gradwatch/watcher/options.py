"""The keywords that every way of watching shares, and the refusal of bad values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from typing_extensions import TypedDict

from gradwatch.clip import Policy
from gradwatch.findings import Finding, Thresholds

__all__ = ["DEFAULTS", "OnNonFinite", "Options", "refuse_bad_options"]

OnNonFinite = Literal["report", "skip", "raise"]


class Options(TypedDict, total=False):
    """The keywords that every way of watching shares; ``gradwatch.watch`` says what each means."""

    clip: float | str | Policy | None
    on_nonfinite: OnNonFinite
    find_loss: bool
    log_every_n_steps: int
    thresholds: Thresholds | None
    layer_scalars: bool | Sequence[str]
    histograms: bool
    history: int
    on_finding: Callable[[Finding], None] | None


DEFAULTS: Options = {
    "clip": None,
    "on_nonfinite": "report",
    "find_loss": True,
    "log_every_n_steps": 50,
    "thresholds": None,
    "layer_scalars": False,
    "histograms": False,
    "history": 512,
    "on_finding": None,
}


def refuse_bad_options(options: Options) -> None:
    """Refuse values that make no sense.

    Raises:
        TypeError, ValueError: naming the keyword, what was found and what was expected.
    """
    if options["on_nonfinite"] not in ("report", "skip", "raise"):
        raise ValueError(f'on_nonfinite={options["on_nonfinite"]!r}: expected "report", "skip" or "raise".')
    if not isinstance(options["find_loss"], bool):
        raise TypeError(f"find_loss={options['find_loss']!r}: expected True or False.")
    for name in ("log_every_n_steps", "history"):
        value: object = options[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a whole number of steps, 1 or more.")
    thresholds = options["thresholds"]
    if thresholds is not None and not isinstance(thresholds, Thresholds):
        raise TypeError(f"thresholds={thresholds!r}: expected gradwatch.Thresholds(…) or None.")
