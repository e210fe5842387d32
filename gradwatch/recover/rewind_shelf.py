"""Keep snapshots: in memory, or as files in a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from gradwatch.ranks.group import current_group
from gradwatch.recover.rewind_snapshot import Snapshot, read_snapshot, write_snapshot

__all__ = ["SnapshotShelf"]


class SnapshotShelf:
    """The snapshots of one run, by the steps that it had made. The files are those of the process that made the shelf.

    Args:
        path: a folder for files; None keeps them in memory.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._folder = None if path is None else Path(path)
        self._kept: dict[int, Snapshot | Path] = {}
        self._process = os.getpid()

    def put(self, snapshot: Snapshot) -> None:
        """Keep ``snapshot``; in memory, too, in a forked child, which would write over the files of its parent.

        Raises:
            OSError: where its file cannot be written.
        """
        if self._folder is None or os.getpid() != self._process:
            self._kept[snapshot.steps] = snapshot
            return
        group = current_group()
        rank = "" if group is None else f"-rank-{group.rank}"
        path = self._folder / f"snapshot-{snapshot.steps}{rank}.pt"
        write_snapshot(snapshot, path)
        self._kept[snapshot.steps] = path

    def get(self, steps: int) -> Snapshot:
        """Return a snapshot.

        Raises:
            KeyError: where none is kept.
            OSError, ValueError: where its file cannot be read.
        """
        kept = self._kept[steps]
        return kept if isinstance(kept, Snapshot) else read_snapshot(kept)

    def keep_only(self, steps: Collection[int]) -> None:
        """Let go of all others, and remove their files."""
        for each in [each for each in self._kept if each not in steps]:
            kept = self._kept.pop(each)
            if isinstance(kept, Path) and os.getpid() == self._process:
                with contextlib.suppress(OSError):
                    kept.unlink(missing_ok=True)
