"""The file of a black box: written atomically, and read without executing anything that it holds.

It is made by ``torch.save`` of dicts, lists, numbers, strings and tensors, and read with ``weights_only=True``.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["FORMAT", "VERSION", "BlackBoxFileError", "read_black_box", "write_atomically"]

FORMAT = "gradwatch black box"
VERSION = 1
"""It rises when a reader of the version before could not understand what is written."""

_KEYS = ("reason", "steps", "state", "about")


class BlackBoxFileError(Exception):
    """The reason why a file cannot be read as that of a black box."""


def write_atomically(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` to ``path``: the file is there whole, or as it was before.

    Raises:
        OSError, RuntimeError: where the disk is full or the folder cannot be written to; nothing is left then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")  # of a process that was killed, the next one overwrites it
    try:
        with part.open("wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    _sync_folder(path.parent)


def read_black_box(path: Path) -> dict[str, Any]:
    """Return what a black box has written to ``path``.

    Raises:
        BlackBoxFileError: saying why it cannot be read.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BlackBoxFileError(f"{path}: there is no such file.") from None
    except IsADirectoryError:
        raise BlackBoxFileError(f"{path} is a folder; expected the file of a black box.") from None
    except OSError as error:
        raise BlackBoxFileError(f"{path} cannot be opened: {error.strerror}.") from error
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise BlackBoxFileError(f"{path} is damaged, or was not written by a black box.") from error
    return _checked(path, content)


def _checked(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BlackBoxFileError(f"{path} was not written by a black box; it may be a checkpoint.")
    if content.get("version") != VERSION:
        raise BlackBoxFileError(
            f"{path} has version {content.get('version')!r} of the format, and this gradwatch reads version {VERSION}. "
            "Read it with the gradwatch that wrote it."
        )
    missing = [key for key in _KEYS if key not in content]
    if missing or not isinstance(content["steps"], list) or not content["steps"]:
        raise BlackBoxFileError(f"{path} lacks {', '.join(missing) or 'every step'}.")
    return content


def _sync_folder(folder: Path) -> None:
    """Have the new name on the disk, too, where the system allows that: not on Windows."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
