"""What gradwatch wrote into an event, from bytes that anyone may have written.

Enters: the content of a record. Leaves: a row, a finding, or what is wrong with it. Names lose what a terminal would
obey; ``gradwatch.event_files.decode`` checks the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from gradwatch.event_files.decode import Table, Told, UnreadableError, floats, refuse_newer, table_of, told_of
from gradwatch.event_files.format import FIGURES, NORMS, PLUGIN
from gradwatch.findings import Finding

__all__ = ["Row", "legible", "parse"]

_CURVES = ("grad_norm_total", "grad_norm_clipped_total", "loss", "skipped_steps")
_LONGEST = 2_000  # characters of one text; findings write a few hundred


@dataclass(frozen=True)
class Row:
    """One logged step.

    Attributes:
        norms: (3, P) float32: norm, highest, lowest.
        figures: (P,) float32 each.
        curves: totals, ``loss`` and ``skipped_steps``.
        table: where it changed with this row.
    """

    step: int
    norms: NDArray[np.floating]
    figures: Mapping[str, NDArray[np.floating]]
    curves: Mapping[str, float]
    table: Table | None


def parse(content: bytes) -> Row | Told | None:
    """None where nothing of gradwatch's stands in it.

    Raises:
        UnreadableError: in words.
    """
    try:
        event = Event.FromString(content)
    except DecodeError as error:
        raise UnreadableError("a record is no event of TensorBoard's") from error
    own = {value.tag: value for value in event.summary.value if value.tag.startswith("gradwatch/")}
    for value in own.values():
        if value.metadata.plugin_data.plugin_name == PLUGIN:  # only a tag's first event says it
            refuse_newer(value.metadata.plugin_data.content, legible(value.tag))
    if (written := own.get("gradwatch/finding")) is not None:
        told = told_of(written.tensor)
        return replace(told, finding=_legible(told.finding))
    if "gradwatch/grad_norm" in own:
        return _row(event, own)
    return None


def legible(text: str) -> str:
    """``text`` without what would move a cursor, turn the direction of reading, or fill the screen."""
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return shown if len(shown) <= _LONGEST else shown[:_LONGEST] + "…"


def _row(event: Event, own: Mapping[str, Summary.Value]) -> Row:
    norms = floats(own["gradwatch/grad_norm"].tensor, (len(NORMS), None), "gradwatch/grad_norm")
    figures = {
        name: floats(own[tag].tensor, norms.shape[1:], tag) for name in FIGURES if (tag := f"gradwatch/{name}") in own
    }
    table = table_of(own["gradwatch/layers"].tensor) if "gradwatch/layers" in own else None
    shown = table and replace(table, layers=tuple(map(legible, table.layers)))
    return Row(event.step, norms, figures, dict(_curves(event)), shown)


def _curves(event: Event) -> list[tuple[str, float]]:
    named = ((value.tag.removeprefix("gradwatch/"), value) for value in event.summary.value)
    return [
        (legible(tag), value.simple_value)
        for tag, value in named
        if tag.partition("/")[0] in _CURVES and value.WhichOneof("value") == "simple_value"
    ]


def _legible(finding: Finding) -> Finding:
    return replace(
        finding,
        layer=legible(finding.layer),
        layers=tuple(map(legible, finding.layers)),
        cause=legible(finding.cause),
        message=legible(finding.message),
        remedies=tuple(map(legible, finding.remedies)),
    )
