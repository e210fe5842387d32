"""Whether what gradwatch said of a program is right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.external.program import External
from benchmarks.external.prove import BareRun, is_proven

LIST_OF_OPERATIONS = re.compile(r"\([^()]*made by [^()]*\)")
"""Where a cause lists all operations that a loss is made by, it names none of them as the one that failed."""

WORDS = {"log": "log|logarithm", "exp": "exp|exponential"}
"""Operation → the words for it."""


@dataclass(frozen=True)
class Verdict:
    """What is counted of one program.

    Attributes:
        is_found: there is a finding.
        has_right_kind: a finding is of a kind that says what is wrong.
        names_operation: a finding of NaN or Inf names the operation that made it, and it alone.
    """

    is_found: bool
    has_right_kind: bool
    names_operation: bool


def verdict(program: External, findings: Sequence[dict[str, Any]]) -> Verdict:
    """Judge the findings of one run."""
    truth = program.truth
    return Verdict(
        bool(findings),
        any(finding["kind"] in truth.kinds for finding in findings),
        any(finding["kind"] == "nonfinite" and names(finding["cause"], truth.operation) for finding in findings),
    )


def names(cause: str, operation: str) -> bool:
    """Return True if ``cause`` names ``operation``, as a word or as its node of the graph, outside of a list of all."""
    rest = LIST_OF_OPERATIONS.sub("", cause)
    words = WORDS.get(operation, operation)
    return bool(operation) and re.search(rf"\b({words})(backward\d*)?\b", rest, re.IGNORECASE) is not None


def reason_not_counted(program: External, bare: BareRun | None) -> str:
    """Return why a program does not count; ``""`` if it does. Decided before the watched run."""
    if program.not_run or program.cannot_show:
        return program.not_run or program.cannot_show
    if bare is not None and is_proven(program, bare):
        return ""
    if program.suite == "GRIST":
        return "GRIST does not find a failing input in the time given."
    if bare is None:
        return "It makes no update here."
    if not program.truth.kinds:
        return "It does not train here."
    return "Its fault does not show here: the loss comes down, and no gradient is zero or NaN."
