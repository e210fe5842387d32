"""Say how this process was started, in words that may be handed on: without names of users and hosts, and secrets."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from gradwatch.jupyter import is_kernel

__all__ = ["shown_command", "shown_words"]

HIDDEN = "HIDDEN"
_LONGEST = 400  # characters: what is longer is a list of files
_BETWEEN = re.compile(r"([=,;]|:(?!//|\\))")  # of an argument: --data=a,b or host:path, but neither C:\ nor https://
_SECRET = re.compile(r"(key|token|passw(or)?d|secret|credentials?)$", re.IGNORECASE)


def shown_command() -> str:
    """Return the command of this process, of at most a few lines."""
    if is_kernel():
        return "a notebook"
    words = shown_words(sys.orig_argv, Path.cwd(), _own_names())
    return textwrap.shorten(shlex.join(words), _LONGEST, placeholder=" …")


def shown_words(arguments: Sequence[str], folder: Path, names: Sequence[str]) -> list[str]:
    """Return ``arguments``, the first of which is an interpreter, as they may be shown.

    Of an absolute path the part below ``folder`` remains, and otherwise the last name. Code after ``-c``, addresses,
    and what follows an option such as ``--api-key`` are hidden.

    Args:
        arguments: of a process.
        folder: in which it works.
        names: of its user and host, which are hidden.
    """
    words = list(_without_secrets(arguments))
    if len(words) > 1 and Path(words[1]).parent == Path(words[0]).parent != Path():
        words = words[1:]  # a script that was installed beside the interpreter, as ``gradwatch`` is
    shown = ["".join(_shown(part, folder) for part in _BETWEEN.split(word)) for word in words]
    own = re.compile("|".join(rf"(?<![\w-]){re.escape(name)}(?![\w-])" for name in names if name) or r"(?!)")
    return [own.sub(HIDDEN, word) for word in shown]


def _without_secrets(arguments: Sequence[str]) -> Iterator[str]:
    is_secret = False
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if is_secret:
            yield HIDDEN
        else:
            yield f"{option}={HIDDEN}" if equals and value and _SECRET.search(option) else argument
        is_secret = argument == "-c" or (argument.startswith("-") and not equals and bool(_SECRET.search(option)))


def _shown(part: str, folder: Path) -> str:
    if "@" in part or "://" in part:
        return HIDDEN
    path = Path(part)
    if part.startswith("~") or path.is_absolute():
        return str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name
    return part


def _own_names() -> list[str]:
    """Return the names of this user and of this host."""
    users = [os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME")]
    home = os.path.expanduser("~")
    host = platform.node()
    return list(dict.fromkeys([*users, os.path.basename(home), host, host.partition(".")[0]]))
