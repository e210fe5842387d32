"""Show in plain text what the file of a black box holds, and what running its step again has shown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["file_as_text", "replay_as_text"]

SHOWN_ROWS = 5

_VERDICTS = {
    "reproducible": "reproducible: the step fails again",
    "transient": "transient: the very same step is finite now. A bit flip, a race or a faulty device made it fail",
    "not reproduced": "not reproduced: the step is finite now, but it was not quite the same step",
    "healthy": "the record of this step shows no failure",
}


def file_as_text(held: Mapping[str, Any]) -> str:
    """Return lines on the contents of a file.

    Args:
        held: reason, steps, models, state and about, as ``gradwatch replay --json`` prints them.
    """
    return "\n".join(_file_lines(held))


def replay_as_text(shown: Mapping[str, Any]) -> str:
    """Return lines on a replay.

    Args:
        shown: the fields of ``StepReplay``, and the reason of the file.
    """
    return "\n".join(_replay_lines(shown))


def _file_lines(held: Mapping[str, Any]) -> Iterator[str]:
    yield f"Black box of step {held['step']}: {_reason(held['reason'])}"
    yield "models    " + ", ".join(f"{name or 'the model'} ({kind})" for name, kind in held["models"].items())
    state = held["state"]
    yield (
        f"state     {_count(state['weights'], 'weight')}, {_count(state['buffers'], 'buffer')} and "
        f"{_count(state['optimizers'], 'optimizer')} of before step {state['before_step']}"
    )
    about = held["about"]
    yield f"made by   gradwatch {about['gradwatch']}, torch {about['torch']}, Python {about['python']}"
    for step in held["steps"]:
        yield f"step {step['step']:<5}{_figures(step)}"
        for batch in step["batches"] or step["given"]:
            yield f"          {json.dumps(batch)}"
    yield "To run the step again: gradwatch replay FILE --model MODULE:CALLABLE [--loss MODULE:CALLABLE]"


def _replay_lines(shown: Mapping[str, Any]) -> Iterator[str]:
    yield f"Step {shown['step']}: {_reason(shown['reason'])}"
    yield f"verdict   {_VERDICTS[shown['verdict']]}."
    yield f"recorded  {_figures(shown['recorded'])}"
    yield f"replayed  {_figures(shown['replayed'])}"
    if shown["is_bitwise"] is not None:
        words = "the same, bit for bit" if shown["is_bitwise"] else "not the same bit for bit"
        yield f"compared  {shown['compared']}: {words}"
    if shown["origin"]:
        yield f"where     {shown['origin']}"
    yield from _row_lines(shown)
    for variant in shown["variants"]:
        yield f"{'tried':<10}{variant['name']}: {_happens(variant)}"
    for note in shown["notes"]:
        yield f"note      {note}."


def _row_lines(shown: Mapping[str, Any]) -> Iterator[str]:
    if not shown["rows"]:
        yield f"rows      {shown['rows_are']}"
        return
    yield f"rows      {shown['rows_are']}"
    for row in shown["rows"][:SHOWN_ROWS]:
        if row["gradient_share"] is None:
            yield f"          row {row['row']}: NaN or Inf"
            continue
        loss = "" if row["loss_share"] is None else f"{row['loss_share']:.1%} of the loss, "
        yield f"          row {row['row']}: {loss}{row['gradient_share']:.1%} of the gradient"


def _happens(variant: Mapping[str, Any]) -> str:
    if variant["happens"] is None:
        return f"not tried, {variant['why']}"
    return "it still happens" if variant["happens"] else "it does not happen"


def _reason(reason: Mapping[str, Any]) -> str:
    if reason["kind"] == "finding":
        return str(reason["finding"]["measured"])
    if reason["kind"] == "exception":
        return f"{reason['exception']['type']}: {reason['exception']['message']}"
    return "written on request"


def _figures(figures: Mapping[str, Any]) -> str:
    names = {"loss": "loss", "grad_norm_total": "total gradient norm"}
    known = [f"{word} {figures[name]:.6g}" for name, word in names.items() if figures.get(name) is not None]
    return ", ".join(known) or "no figures"


def _count(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
