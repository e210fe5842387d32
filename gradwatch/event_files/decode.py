"""Decode arrays, the table of layers and findings from tensors that anyone may have written, or refuse them.

``gradwatch.event_files.format`` names the tags. A declared shape is compared with the bytes that are there before any
memory is taken for it: TensorBoard's own ``make_ndarray`` repeats a single value over whatever shape is declared. This
file loads neither torch nor TensorBoard.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from gradwatch.event_files.format import LOST, PREFIX, ROW_NAMES, TOTALS, VERSION
from gradwatch.event_files.run import Coverage, Environment, FindingEvent, Floats, LayerTable, RunEnd
from gradwatch.findings import KINDS, Finding, Severity, UnjudgedSteps

__all__ = [
    "LARGEST_STEP",
    "UnreadableError",
    "coverage_of",
    "environment_of",
    "finding_event_of",
    "finding_in",
    "floats",
    "layer_rows_at_once",
    "layer_rows_of",
    "layer_table_of",
    "refuse_newer",
    "refuse_step",
    "run_end_of",
    "totals_at_once",
    "totals_of",
]

FLOAT32, FLOAT64, STRING = 1, 2, 7  # DT_FLOAT, DT_DOUBLE, DT_STRING
LARGEST_STEP = 2**53 - 1  # what a browser counts exactly
_LONGEST_JSON = 1 << 26
_LONGEST_TEXT = 1_000_000
_LONGEST_NAME = 100_000
_MOST_VERSIONS = 100
_MOST_LAYERS = 10_000_000  # what a text of the largest size can hold


class UnreadableError(ValueError):
    """Something that no version of gradwatch wrote, or a later one did; the message is shown to people."""


def floats(tensor: Any, shape: tuple[int | None, ...], what: str, wide: bool = False) -> NDArray[np.floating]:
    """Return the entries of ``tensor``; None in ``shape`` means any length.

    Args:
        tensor: a TensorProto.
        shape: what is expected.
        what: its name in the error.
        wide: whether float64 will do, as TensorBoard's own histograms have it; gradwatch writes float32.

    Raises:
        UnreadableError: if type, shape or number of entries differ.
    """
    found = _shape_of(tensor)
    if found != shape and not _fits(found, shape):
        raise UnreadableError(f"{what}: expected the shape {_words(shape)}, found {_words(found)}.")
    if tensor.dtype != FLOAT32 and not (wide and tensor.dtype == FLOAT64):
        raise UnreadableError(f"{what}: expected floats, found the data type {int(tensor.dtype)}.")
    entries = _entries(tensor)
    if entries is None or len(entries) != math.prod(found):
        carried = "a broken buffer" if entries is None else f"{len(entries)} entries"
        raise UnreadableError(f"{what}: the shape {_words(found)} is declared, but {carried} found.")
    return entries.reshape(found)


def layer_rows_of(name: str, tensor: Any, what: str = "", layers: int | None = None) -> Floats:
    """Return the (K, P) figures that ``tensor``, of the tag ``name`` of ``ROW_NAMES``, holds.

    Args:
        name: the tag without its prefix.
        tensor: a TensorProto.
        what: its name in the error, if not that of the tag.
        layers: how many there are; None if that is not known yet.

    Raises:
        UnreadableError: if it holds no such figures.
    """
    rows = len(ROW_NAMES[name])
    shape = (layers,) if rows == 1 else (rows, layers)
    return floats(tensor, shape, what or PREFIX + name).reshape(rows, -1)


def layer_rows_at_once(name: str, tensors: Sequence[Any], layers: int) -> Floats | None:
    """Return what ``layer_rows_of`` gives for each tensor, (S, K, P), writable; None if they are not all alike."""
    rows = len(ROW_NAMES[name])
    found = _at_once(tensors, (layers,) if rows == 1 else (rows, layers))
    return None if found is None else found.reshape(len(tensors), rows, layers)


def totals_at_once(tensors: Sequence[Any]) -> Floats | None:
    """Return what ``totals_of`` gives for each tensor, (S, T); None if they are not all alike."""
    return _at_once(tensors, (len(TOTALS),))


def _at_once(tensors: Sequence[Any], shape: tuple[int, ...]) -> Floats | None:
    """Return (S, *shape) entries of float32 tensors, in a third of the time that one after the other takes.

    Returns:
        None if one has another type, shape or number of entries; ``floats`` says which and why.
    """
    if not all(tensor.dtype == FLOAT32 and _shape_of(tensor) == shape for tensor in tensors):
        return None
    entries = np.empty((len(tensors), math.prod(shape)), dtype=np.float32)  # takes no memory before it is written
    for row, tensor in zip(entries, tensors, strict=True):
        content = tensor.tensor_content
        if len(content) != row.nbytes:
            return None
        row[:] = np.frombuffer(content, dtype="<f4")
    return _quiet(entries).reshape(len(tensors), *shape)


def _shape_of(tensor: Any) -> tuple[int, ...]:
    return tuple([dimension.size for dimension in tensor.tensor_shape.dim])


def totals_of(tensor: Any, what: str = "gradwatch/totals") -> Floats:
    """Return the (T,) totals that ``tensor`` holds, in the order of ``TOTALS``.

    Raises:
        UnreadableError: if it holds none.
    """
    return floats(tensor, (len(TOTALS),), what)


def layer_table_of(tensor: Any, what: str = "gradwatch/layers") -> LayerTable:
    """Return the table of layers that ``tensor`` holds.

    Raises:
        UnreadableError: if it holds none.
    """
    content = _object(_text(tensor, what), what)
    layers = _layer_names(content.get("layers"), what)
    for name in ("depth", "size"):
        if not (_is_list_of(_is_count)(content.get(name)) and len(content[name]) == len(layers)):
            raise UnreadableError(f"{what}: expected {len(layers)} whole numbers as {name}.")
    return LayerTable(tuple(layers), *(np.array(content[name], dtype=np.int64) for name in ("depth", "size")))


def coverage_of(tensor: Any, what: str = "gradwatch/coverage") -> Coverage:
    """Return how much of a run was measured, which ``tensor`` holds.

    Raises:
        UnreadableError: if it does not.
    """
    content = _object(_text(tensor, what), what)
    steps, measured = content.get("steps"), content.get("measured")
    if not (_is_count(steps) and _is_count(measured) and measured <= steps):  # type: ignore[operator]
        raise UnreadableError(f"{what}: expected steps and, at most as many, measured: whole numbers from 0.")
    return Coverage(steps, measured, unjudged_in(content.get("unjudged", []), what))  # type: ignore[arg-type]


def unjudged_in(content: Any, what: str) -> tuple[UnjudgedSteps, ...]:
    """Return the rules that have not judged some steps.

    Raises:
        UnreadableError: where ``content`` is no list of them.
    """
    if not _is_list_of(_is_unjudged)(content):
        raise UnreadableError(f"{what}: expected a kind, the name of a rule, and how many steps for each of unjudged.")
    return tuple(UnjudgedSteps(each["kind"], each["rule"], each["steps"]) for each in content)


def _is_unjudged(entry: Any) -> bool:
    if not (isinstance(entry, dict) and _is_text(entry.get("rule"))):
        return False
    return entry.get("kind") in KINDS and entry["rule"].isidentifier() and _is_count(entry.get("steps"))


def environment_of(tensor: Any, what: str = "gradwatch/environment") -> Environment:
    """Return what a run was made with, which ``tensor`` holds.

    Raises:
        UnreadableError: if it does not.
    """
    content = _object(_text(tensor, what), what)
    versions = content.get("versions")
    texts = [content.get(name) for name in ("devices", "commit", "script")]
    if not (_are_versions(versions) and all(map(_is_text, texts))):
        raise UnreadableError(f"{what}: expected versions, an object of texts, and three texts.")
    return Environment(versions, *texts)  # type: ignore[arg-type]


def run_end_of(tensor: Any, what: str = "gradwatch/end") -> RunEnd:
    """Return the mark of a closed run, which ``tensor`` holds.

    Raises:
        UnreadableError: if it does not.
    """
    content = _object(_text(tensor, what), what)
    steps, lost = content.get("steps"), content.get("lost", {})
    if not _is_count(steps):
        raise UnreadableError(f"{what}: expected steps: a whole number from 0.")
    if not (isinstance(lost, dict) and all(_is_count(lost.get(name, 0)) for name in LOST)):
        raise UnreadableError(f"{what}: expected lost: an object of whole numbers from 0.")
    return RunEnd(steps, {name: lost[name] for name in LOST if lost.get(name)})  # type: ignore[arg-type]


def finding_event_of(tensor: Any, what: str = "gradwatch/finding") -> FindingEvent:
    """Return the finding that ``tensor`` holds; a number that JSON does not have is NaN.

    Raises:
        UnreadableError: if it holds none.
    """
    return finding_in(_object(_text(tensor, what), what), what)


def finding_in(found: Mapping[str, Any], what: str) -> FindingEvent:
    """Return the finding, and whether it has ended, that plain values hold.

    Raises:
        UnreadableError: if they hold none.
    """
    content = {"actions": [], **found}  # nothing was done in runs of older files
    for name, (is_valid, expected) in _FIELDS.items():
        if not is_valid(content.get(name)):
            raise UnreadableError(f"{what}: expected {name} to be {expected}.")
    values = {name: content[name] for name in _FIELDS if name not in ("ended", "value", "threshold")}
    figures = {name: _number(content.get(name)) for name in ("value", "threshold")}
    return FindingEvent(Finding.from_dict({**values, **figures}), content["ended"])


def refuse_newer(content: bytes, what: str) -> None:
    """Check the version in the metadata of the tag ``what``.

    Raises:
        UnreadableError: if it is not the one that this reads.
    """
    version = _object(content, f"{what}, the version of its format").get("version")
    if version != VERSION:
        raise UnreadableError(
            f"{what}: written in version {repr(version)[:40]} of the format, this reads {VERSION}. "
            "Run: pip install -U gradwatch"
        )


def refuse_step(step: int, what: str) -> None:
    """Check the step of an event of the tag ``what``.

    Raises:
        UnreadableError: if no run has such a step, or a browser could not count it exactly.
    """
    if not 0 <= step <= LARGEST_STEP:
        raise UnreadableError(f"{what}: expected a step from 0 to 2⁵³, found {step}.")


def _fits(found: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    if len(found) != len(shape):
        return False
    return all(size >= 0 and want in (None, size) for want, size in zip(shape, found, strict=True))


def _entries(tensor: Any) -> NDArray[np.floating] | None:
    dtype = np.dtype("<f4" if tensor.dtype == FLOAT32 else "<f8")
    content = tensor.tensor_content  # once: each look at it copies it
    if not content:
        return np.array(tensor.float_val if tensor.dtype == FLOAT32 else tensor.double_val, dtype=dtype)
    if len(content) % dtype.itemsize:
        return None
    return _quiet(np.frombuffer(content, dtype=dtype))


def _quiet(entries: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return ``entries`` with ordinary NaN: numpy warns of casting signalling ones, which damaged files hold."""
    not_numbers = np.isnan(entries)
    return np.where(not_numbers, entries.dtype.type(np.nan), entries) if not_numbers.any() else entries


def _words(shape: tuple[int | None, ...]) -> str:
    shown = ["any" if size is None else str(size) for size in shape[:8]]
    return f"({', '.join(shown)}{', …' if len(shape) > 8 else ''})"


def _text(tensor: Any, what: str) -> bytes:
    if tensor.dtype != STRING or len(tensor.string_val) != 1:
        raise UnreadableError(f"{what}: expected one JSON text.")
    text: bytes = tensor.string_val[0]
    if len(text) > _LONGEST_JSON:
        raise UnreadableError(f"{what}: expected one JSON text, found {len(text)} bytes.")
    return text


def _object(text: bytes, what: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{what}: this is no JSON ({type(error).__name__}).") from None
    if not isinstance(content, dict):
        raise UnreadableError(f"{what}: expected a JSON object, found {type(content).__name__}.")
    return content


def _layer_names(found: object, what: str) -> list[str]:
    if not isinstance(found, list) or not 0 < len(found) <= _MOST_LAYERS:
        raise UnreadableError(f"{what}: expected 1 to {_MOST_LAYERS:,} layers.")
    if not all(isinstance(name, str) and len(name) <= _LONGEST_NAME for name in found):
        raise UnreadableError(f"{what}: expected names of at most {_LONGEST_NAME:,} characters.")
    if len(set(found)) < len(found):
        raise UnreadableError(f"{what}: a name is there twice.")
    return found


def _number(found: float | None) -> float:
    try:
        return math.nan if found is None else float(found)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT


def _are_versions(value: object) -> bool:
    if not isinstance(value, dict) or len(value) > _MOST_VERSIONS:
        return False
    return all(_is_text(name) and _is_text(version) for name, version in value.items())


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_STEP


def _is_number_or_null(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_list_of(is_valid: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list | tuple) and len(value) <= _MOST_LAYERS and all(map(is_valid, value))


def _is_advice(value: object) -> bool:
    return isinstance(value, dict) and _is_text(value.get("name")) and _is_text(value.get("text"))


def _one_of(known: tuple[str, ...]) -> tuple[Callable[[object], bool], str]:
    return lambda value: isinstance(value, str) and value in known, f"one of {', '.join(known)}"


_TEXT = (_is_text, f"a text of at most {_LONGEST_TEXT:,} characters")
_TEXTS = (_is_list_of(_is_text), "a list of texts")
_STEP = (_is_count, "a step: a whole number from 0")
_NUMBER = (_is_number_or_null, "a number or null")
_FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "kind": _one_of(KINDS),
    "severity": _one_of(get_args(Severity)),
    "layer": _TEXT,
    "layers": _TEXTS,
    "step": _STEP,
    "raised_step": _STEP,
    "last_step": _STEP,
    "value": _NUMBER,
    "threshold": _NUMBER,
    "measured": _TEXT,
    "figure": _TEXT,
    "cause": _TEXT,
    "remedies": (_is_list_of(_is_advice), "a list of objects with name and text"),
    "actions": _TEXTS,
    "ranks": (_is_list_of(_is_count), "a list of ranks: whole numbers from 0"),
    "ended": (lambda value: isinstance(value, bool), "true or false"),
}
