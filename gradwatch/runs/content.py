"""What gradwatch wrote into an event, from bytes that anyone may have written.

Enters: the content of a record. Leaves: a row, a finding, or what is wrong with it. Checks every length and every type
before it allocates; names lose what a terminal would obey.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard, get_args

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING

from gradwatch.findings import KINDS, Finding, Severity
from gradwatch.packed import FIGURES, VERSION

__all__ = ["MalformedError", "Row", "Table", "Told", "legible", "parse"]

_CURVES = ("grad_norm_total", "grad_norm_clipped_total")
_LONGEST = 2_000  # characters of one text; findings write a few hundred


class MalformedError(ValueError):
    """A record of gradwatch's that does not hold what gradwatch writes."""


@dataclass(frozen=True)
class Table:
    """The table of layers as it stands from one row on; see ``Run``."""

    layers: tuple[str, ...]
    depth: NDArray[np.int64]
    size: NDArray[np.int64]


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
    norms: NDArray[np.float32]
    figures: Mapping[str, NDArray[np.float32]]
    curves: Mapping[str, float]
    table: Table | None


@dataclass(frozen=True)
class Told:
    """A finding as it opened or ended."""

    finding: Finding
    ended: bool


def parse(content: bytes) -> Row | Told | None:
    """None where nothing of gradwatch's stands in it.

    Raises:
        MalformedError: in words.
    """
    try:
        event = Event.FromString(content)
    except DecodeError as error:
        raise MalformedError("a record is no event of TensorBoard's") from error
    own = {value.tag: value for value in event.summary.value if value.tag.startswith("gradwatch/")}
    if (written := own.get("gradwatch/finding")) is not None:
        return _told(_json(written))
    if "gradwatch/grad_norm" in own:
        return _row(event, own)
    return None


def legible(text: str) -> str:
    """``text`` without what would move a cursor, turn the direction of reading, or fill the screen."""
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return shown if len(shown) <= _LONGEST else shown[:_LONGEST] + "…"


def _row(event: Event, own: Mapping[str, Summary.Value]) -> Row:
    norms = _floats(own["gradwatch/grad_norm"].tensor)
    _refuse_newer(own["gradwatch/grad_norm"])
    if norms.ndim != 2 or len(norms) != 3:
        raise MalformedError(f"gradwatch/grad_norm: expected the shape (3, layers), found {norms.shape}")
    figures = {name: _floats(own[tag].tensor) for name in FIGURES if (tag := f"gradwatch/{name}") in own}
    for name, values in figures.items():
        if values.shape != norms.shape[1:]:
            raise MalformedError(f"gradwatch/{name}: expected the shape {norms.shape[1:]}, found {values.shape}")
    table = _table(_json(own["gradwatch/layers"])) if "gradwatch/layers" in own else None
    return Row(event.step, norms, figures, dict(_curves(event)), table)


def _curves(event: Event) -> list[tuple[str, float]]:
    named = ((value.tag.removeprefix("gradwatch/"), value) for value in event.summary.value)
    wanted = (*_CURVES, "loss", "skipped_steps")
    return [
        (legible(tag), value.simple_value)
        for tag, value in named
        if tag.partition("/")[0] in wanted and value.WhichOneof("value") == "simple_value"
    ]


def _floats(tensor: TensorProto) -> NDArray[np.float32]:
    """Its values; a shape that its bytes do not fill is refused before anything is allocated."""
    shape = [dimension.size for dimension in tensor.tensor_shape.dim]
    count = math.prod(shape)
    if tensor.dtype != DT_FLOAT or len(shape) > 2 or any(length < 0 for length in shape):
        raise MalformedError(f"a tensor: expected float32, found the type {tensor.dtype} of shape {shape[:8]}")
    if len(tensor.tensor_content) == 4 * count:
        return np.frombuffer(tensor.tensor_content, dtype="<f4").reshape(shape).astype(np.float32)
    if len(tensor.float_val) == count:
        return np.array(tensor.float_val, dtype=np.float32).reshape(shape)
    raise MalformedError(f"a tensor: its shape {shape} is not that of its {len(tensor.tensor_content)} bytes")


def _json(value: Summary.Value) -> dict[str, Any]:
    _refuse_newer(value)
    tensor = value.tensor
    if tensor.dtype != DT_STRING or len(tensor.string_val) != 1:
        raise MalformedError(f"{legible(value.tag)}: expected one string")
    return _object(tensor.string_val[0], legible(value.tag))


def _object(text: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{where}: expected JSON") from error
    if not isinstance(found, dict):
        raise MalformedError(f"{where}: expected a JSON object, found {type(found).__name__}")
    return found


def _refuse_newer(value: Summary.Value) -> None:
    plugin = value.metadata.plugin_data
    if plugin.plugin_name != "gradwatch":  # only a tag's first event says it
        return
    version = _object(plugin.content, "the version").get("version")
    if version != VERSION:
        raise MalformedError(f"written in version {legible(repr(version))} of the format, this reads {VERSION}")


def _table(found: Mapping[str, Any]) -> Table:
    layers, depth, size = (found.get(name) for name in ("layers", "depth", "size"))
    if not (_are_texts(layers) and _are_counts(depth) and _are_counts(size)):
        raise MalformedError("gradwatch/layers: expected names, depths and sizes")
    if not len(layers) == len(depth) == len(size):
        raise MalformedError(f"gradwatch/layers: {len(layers)} names, {len(depth)} depths and {len(size)} sizes")
    return Table(tuple(map(legible, layers)), np.array(depth, dtype=np.int64), np.array(size, dtype=np.int64))


def _told(found: Mapping[str, Any]) -> Told:
    texts = [found.get(name) for name in ("layer", "cause", "message")]
    steps = [found.get(name) for name in ("step", "raised_step", "last_step")]
    layers, remedies, ended = (found.get(name) for name in ("layers", "remedies", "ended"))
    if found.get("kind") not in KINDS or found.get("severity") not in get_args(Severity):
        raise MalformedError("gradwatch/finding: expected a known kind and severity")
    if not (_are_texts(texts) and _are_texts(layers) and _are_texts(remedies)):
        raise MalformedError("gradwatch/finding: expected texts")
    if not (_are_counts(steps) and isinstance(ended, bool)):
        raise MalformedError("gradwatch/finding: expected steps")
    layer, cause, message = map(legible, texts)
    step, raised_step, last_step = steps
    finding = Finding(
        kind=found["kind"],
        severity=found["severity"],
        layer=layer,
        layers=tuple(map(legible, layers)),
        step=step,
        raised_step=raised_step,
        last_step=last_step,
        value=_number(found.get("value")),
        threshold=_number(found.get("threshold")),
        cause=cause,
        message=message,
        remedies=tuple(map(legible, remedies)),
    )
    return Told(finding, ended)


def _are_texts(found: object) -> TypeGuard[list[str]]:
    return isinstance(found, list) and all(isinstance(each, str) for each in found)


def _are_counts(found: object) -> TypeGuard[list[int]]:
    return isinstance(found, list) and all(type(each) is int and 0 <= each < 2**63 for each in found)


def _number(found: object) -> float:
    """JSON has no number that is not finite: null stands for them."""
    if found is None:
        return math.nan
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise MalformedError("gradwatch/finding: expected numbers")
    try:
        return float(found)
    except OverflowError:
        return math.inf
