"""Turn what detectors remember into plain values for checkpoints, and read it back with checks.

A state is a dataclass with typed fields and a ``VERSION``. ``plain`` gives nested dicts of numbers, strings and arrays.
``read`` compares names, types, shapes and version with the annotations, so that a state of another model or of another
version of gradwatch is refused in words, and never half understood.
"""

from __future__ import annotations

import reprlib
import sys
import textwrap
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from gradwatch.findings import StateError

__all__ = ["VERSION_KEY", "plain", "read", "refusal", "shown"]

VERSION_KEY = "version"

S = TypeVar("S")

_LONGEST = 300  # characters of what was found: a damaged state may name anything


def plain(state: Any) -> dict[str, Any]:
    """Return ``{"version": …, field: value}`` of a state; arrays and lists are copies.

    Args:
        state: a dataclass instance whose class has a ``VERSION``.
    """
    values = {field.name: _plain(getattr(state, field.name)) for field in fields(state)}
    return {VERSION_KEY: state.VERSION, **values}


def read(fresh: S, saved: object) -> S:
    """Return a new state of the class of ``fresh``, with the values of ``saved``.

    Args:
        fresh: a state that has seen nothing; arrays must have the shapes of its arrays.
        saved: what ``plain`` gave; tuples may have become lists on the way through a file.

    Raises:
        StateError: if a field is missing, unknown, or of another type or shape, or if the version differs.
    """
    return _read_state(type(fresh), saved, type(fresh).__name__, fresh)


def shown(value: object) -> str:
    """Return a value for a message, in so many characters that the message can be read whatever it is."""
    return textwrap.shorten(reprlib.repr(value), _LONGEST, placeholder=" …")


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return plain(value)
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def _read_state(kind: type[S], saved: object, where: str, fresh: S | None) -> S:
    if not isinstance(saved, Mapping):
        raise refusal(where, "a dict of its fields", f"{type(saved).__name__}")
    hints = _hints(kind)  # type: ignore[arg-type]
    wanted = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    version: int = kind.VERSION  # type: ignore[attr-defined]
    if saved.get(VERSION_KEY) != version:
        raise refusal(where, f"version {version}", f"version {shown(saved.get(VERSION_KEY))}")
    found = set(saved) - {VERSION_KEY}
    if found != wanted:
        names = textwrap.shorten(", ".join(sorted(map(str, found))), _LONGEST, placeholder=", …")
        raise refusal(where, f"the fields {', '.join(sorted(wanted))}", names)
    values = {
        name: _read(hints[name], saved[name], f"{where}.{name}", getattr(fresh, name, None)) for name in sorted(wanted)
    }
    return kind(**values)


def _read(hint: Any, saved: object, where: str, fresh: object) -> Any:
    """Return ``saved`` as ``hint`` asks for it; ``fresh`` gives the shape of an array, where it is one."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _read_union(arguments, saved, where, fresh)
    if origin is np.ndarray:
        return _read_array(saved, where, fresh)
    if is_dataclass(hint):
        return _read_state(hint, saved, where, fresh)  # type: ignore[arg-type]
    if origin is Literal:
        if saved not in arguments:
            raise refusal(where, f"one of {', '.join(map(repr, arguments))}", shown(saved))
        return saved
    if origin in (list, tuple):
        return _read_sequence(origin, arguments, saved, where)
    if origin is dict:
        if not isinstance(saved, Mapping):
            raise refusal(where, "a dict", type(saved).__name__)
        return {name: _read(arguments[1], each, f"{where}[{shown(name)}]", None) for name, each in saved.items()}
    return _read_number(hint, saved, where)


def _read_union(options: tuple[Any, ...], saved: object, where: str, fresh: object) -> Any:
    if saved is None and type(None) in options:
        return None
    (option,) = (each for each in options if each is not type(None))
    return _read(option, saved, where, fresh)


def _read_array(saved: object, where: str, fresh: object) -> Any:
    if not isinstance(saved, np.ndarray):
        raise refusal(where, "an array", type(saved).__name__)
    if fresh is None and not saved.ndim:
        raise refusal(where, "an array of values", "a single one")
    if isinstance(fresh, np.ndarray) and (saved.shape != fresh.shape or saved.dtype.kind != fresh.dtype.kind):
        raise refusal(where, f"{fresh.dtype} of shape {fresh.shape}", f"{saved.dtype} of shape {saved.shape}")
    return saved.copy()


def _read_sequence(origin: type, arguments: tuple[Any, ...], saved: object, where: str) -> Any:
    if not isinstance(saved, list | tuple):
        raise refusal(where, "a list", type(saved).__name__)
    has_any_length = origin is list or arguments[-1] is Ellipsis
    kinds = [arguments[0]] * len(saved) if has_any_length else list(arguments)
    if len(kinds) != len(saved):
        raise refusal(where, f"{len(kinds)} values", f"{len(saved)}")
    return origin(_read(kind, each, where, None) for kind, each in zip(kinds, saved, strict=True))


def _read_number(hint: type, saved: object, where: str) -> Any:
    accepted = (int, float) if hint is float else hint
    if not isinstance(saved, accepted) or (isinstance(saved, bool) and hint is not bool):
        raise refusal(where, hint.__name__, f"{type(saved).__name__} {shown(saved)}")
    if hint is float and isinstance(saved, int) and abs(saved) > sys.float_info.max:  # a whole number of 400 digits
        raise refusal(where, "float", shown(saved))
    return saved


def refusal(where: str, expected: str, found: str) -> StateError:
    """Return the error of a state that cannot be read."""
    return StateError(
        f"{where}: expected {expected}, found {found}. This state is of another model or of another version of "
        "gradwatch: resume with the version that saved it, or go on without its state."
    )


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
