"""Look up which commit is checked out in a folder. It reads the files of git, and starts no process."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["git_commit"]

_COMMIT = re.compile(r"[0-9a-f]{40,64}")  # SHA-1 or SHA-256


def git_commit(folder: Path) -> str:
    """Return the commit of the repository that ``folder`` is in, ``""`` outside of one or where it cannot be read."""
    try:
        commit = next(
            (_checked_out(each / ".git") for each in (folder, *folder.parents) if (each / ".git").exists()), ""
        )
    except (OSError, ValueError):  # ValueError: no UTF-8
        return ""
    return commit if _COMMIT.fullmatch(commit) else ""


def _checked_out(git: Path) -> str:
    if git.is_file():  # of a further worktree, or of a submodule: it says where the folder is
        git = git.parent / _line_of(git).removeprefix("gitdir: ")
    head = _line_of(git / "HEAD")
    if not head.startswith("ref: "):
        return head
    common = git / _line_of(git / "commondir") if (git / "commondir").exists() else git
    return _commit_of(head.removeprefix("ref: "), common)


def _commit_of(branch: str, git: Path) -> str:
    """Return the commit of ``branch``, which has a file of its own, or a line among the packed ones."""
    if (git / branch).is_file():
        return _line_of(git / branch)
    packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
    return next((line.partition(" ")[0] for line in packed if line.endswith(f" {branch}")), "")


def _line_of(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip()
