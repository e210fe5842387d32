"""Findings as a run told them: an opening and an ending event of each, folded into one, every field checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gradwatch.tensorboard_plugin.tensors import UnreadableError, json_object

__all__ = ["folded"]

_MOST_FINDINGS = 1_000
_LONGEST_TEXT = 20_000
_LARGEST_STEP = 2**53


def folded(events: Iterable[tuple[int, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """(findings by first step, what could not be read); of each finding the latest event counts."""
    findings: dict[tuple[str, str, int], dict[str, Any]] = {}
    problems: list[str] = []
    for step, tensor in events:
        try:
            finding = _checked(json_object(tensor, f"gradwatch/finding at step {step}"), step)
        except UnreadableError as error:
            problems.append(str(error))
            continue
        findings[finding["kind"], finding["layer"], finding["step"]] = finding
    if len(findings) > _MOST_FINDINGS:
        problems.append(f"Only the first {_MOST_FINDINGS:,} of {len(findings):,} findings are shown.")
    return sorted(findings.values(), key=lambda finding: finding["step"])[:_MOST_FINDINGS], problems[:10]


def _checked(content: dict[str, Any], told_at: int) -> dict[str, Any]:
    finding = {}
    for name, (is_valid, expected) in _FIELDS.items():
        if not is_valid(content.get(name)):
            raise UnreadableError(f"gradwatch/finding at step {told_at}: expected {name} to be {expected}.")
        finding[name] = content.get(name)
    return finding


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list) and len(value) <= 100_000 and all(map(_is_text, value))


def _is_step(value: object) -> bool:
    return type(value) is int and 0 <= value < _LARGEST_STEP


def _is_number_or_null(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and abs(value) < 1e308)


_TEXT = (_is_text, f"a text of at most {_LONGEST_TEXT:,} characters")
_TEXTS = (_is_list_of_text, "a list of texts")
_STEP = (_is_step, "a step: a whole number from 0")
_NUMBER = (_is_number_or_null, "a number or null")
_FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "kind": _TEXT,
    "severity": (lambda value: value in ("warning", "error"), '"warning" or "error"'),
    "layer": _TEXT,
    "layers": _TEXTS,
    "step": _STEP,
    "raised_step": _STEP,
    "last_step": _STEP,
    "value": _NUMBER,
    "threshold": _NUMBER,
    "cause": _TEXT,
    "message": _TEXT,
    "remedies": _TEXTS,
    "ended": (lambda value: isinstance(value, bool), "true or false"),
}
