"""Decode a row, a finding, a count, an environment or an end from one event of a file that anyone may have written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from gradwatch.event_files.decode import (
    UnreadableError,
    coverage_of,
    environment_of,
    finding_event_of,
    layer_rows_of,
    layer_table_of,
    refuse_newer,
    refuse_step,
    run_end_of,
    totals_of,
)
from gradwatch.event_files.format import PLUGIN, PREFIX, ROW_NAMES
from gradwatch.event_files.legible import legible, legible_environment, legible_event, legible_table
from gradwatch.event_files.run import LoggedRow, Written

__all__ = ["decode_event"]


def decode_event(content: bytes) -> Written | None:
    """Return what gradwatch wrote in ``content``, one record of an event file; None if it wrote nothing.

    Raises:
        UnreadableError: if something of gradwatch's is in it that cannot be read.
    """
    try:
        event = Event.FromString(content)
    except DecodeError as error:
        raise UnreadableError("a record is no event of TensorBoard's") from error
    own = {value.tag.removeprefix(PREFIX): value for value in event.summary.value if value.tag.startswith(PREFIX)}
    for value in own.values():
        if value.metadata.plugin_data.plugin_name == PLUGIN:  # only a tag's first event says it
            refuse_newer(value.metadata.plugin_data.content, legible(value.tag))
    for name, decode in _ALONE.items():
        if name in own:
            return decode(own[name].tensor)
    return _row(event.step, own) if "grad_norm" in own else None


_ALONE: Mapping[str, Callable[[Any], Written]] = {
    "finding": lambda tensor: legible_event(finding_event_of(tensor)),
    "coverage": coverage_of,
    "environment": lambda tensor: legible_environment(environment_of(tensor)),
    "end": run_end_of,
}
"""Tags without the prefix that have a record of their own, and how to decode it."""


def _row(step: int, own: Mapping[str, Summary.Value]) -> LoggedRow:
    refuse_step(step, "gradwatch/grad_norm")
    norms = layer_rows_of("grad_norm", own["grad_norm"].tensor)
    figures = {name: layer_rows_of(name, own[name].tensor, layers=norms.shape[1]) for name in ROW_NAMES if name in own}
    totals = totals_of(own["totals"].tensor) if "totals" in own else None
    table = legible_table(layer_table_of(own["layers"].tensor)) if "layers" in own else None
    return LoggedRow(step, {**figures, "grad_norm": norms}, totals, table)
