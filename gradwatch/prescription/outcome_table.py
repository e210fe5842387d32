"""Draw the table of a prescription: the best remedies, and the controls beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from gradwatch.findings import Finding
from gradwatch.prescription.ranking import Trial, kinds_of

__all__ = ["figure", "kinds", "table"]

MOST = 10  # remedies of the ranking that the table shows


def table(ranking: Sequence[Trial], controls: Mapping[str, tuple[float, float]]) -> str:
    """Return the table as text; ``controls`` is {name: (share cured, loss)}."""
    rows: list[tuple[str, ...]] = [
        ("", "remedy", "cured", "held-out loss", "over seeds", "cost of a step", "still found")
    ]
    rows.extend(_row(place, trial) for place, trial in enumerate(ranking[:MOST], 1))
    for name, (share, loss) in controls.items():
        rows.append(("", name, f"{share:.0%}", figure(loss), "", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    left_out = [f"… and {len(ranking) - MOST} more in .ranking"] if len(ranking) > MOST else []
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *left_out])


def _row(place: int, trial: Trial) -> tuple[str, ...]:
    lowest, highest = trial.loss_interval
    return (
        str(place),
        trial.remedy,
        "yes" if trial.cured else "no",
        figure(trial.loss),
        f"{figure(lowest)} … {figure(highest)} ({len(trial.seeds)})",
        f"× {trial.cost:.2f}" if math.isfinite(trial.cost) else "–",
        kinds(trial.findings) or "–",
    )


def kinds(findings: Iterable[Finding]) -> str:
    """Return the kinds of findings, by name, joined by commas."""
    return ", ".join(sorted(kinds_of(findings)))


def figure(loss: float) -> str:
    """Return a loss with four digits, or "not finite"."""
    return f"{loss:.4g}" if math.isfinite(loss) else "not finite"
