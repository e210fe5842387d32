"""The keywords that every way of watching shares, and the refusal of bad values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from typing_extensions import TypedDict

from gradwatch.clip import Policy, policy_of
from gradwatch.findings import Finding, Thresholds
from gradwatch.recover.black_box import BlackBox, black_box_of
from gradwatch.recover.rewind import Rewind

__all__ = ["DEFAULTS", "OnNonFinite", "Options", "refuse_bad_options"]

OnNonFinite = Literal["report", "skip", "raise"]


class Options(TypedDict, total=False):
    """The keywords that every way of watching shares; ``gradwatch.watch`` says what each means."""

    clip: float | Literal["auto"] | Policy | None
    on_nonfinite: OnNonFinite
    find_loss: bool
    recover: Rewind | None
    black_box: BlackBox | str | Path | None
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
    "recover": None,
    "black_box": None,
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
    policy_of(options["clip"])
    if options["on_nonfinite"] not in ("report", "skip", "raise"):
        raise ValueError(f'on_nonfinite={options["on_nonfinite"]!r}: expected "report", "skip" or "raise".')
    if not isinstance(options["find_loss"], bool):
        raise TypeError(f"find_loss={options['find_loss']!r}: expected True or False.")
    _refuse_bad_recovery(options["recover"], options["on_nonfinite"])
    black_box_of(options["black_box"])
    for name in ("log_every_n_steps", "history"):
        value: object = options[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a whole number of steps, 1 or more.")
    thresholds = options["thresholds"]
    if thresholds is not None and not isinstance(thresholds, Thresholds):
        raise TypeError(f"thresholds={thresholds!r}: expected gradwatch.Thresholds(…) or None.")


def _refuse_bad_recovery(recover: object, on_nonfinite: OnNonFinite) -> None:
    """
    Raises:
        TypeError, ValueError: naming the keyword, what was found and what was expected.
    """
    if recover is None:
        return
    if not isinstance(recover, Rewind):
        raise TypeError(f"recover={recover!r}: expected gradwatch.Rewind(…) or None.")
    if on_nonfinite == "raise":
        raise ValueError(
            'recover= leaves an update out that is not finite, and on_nonfinite="raise" would raise. Set one of them.'
        )
