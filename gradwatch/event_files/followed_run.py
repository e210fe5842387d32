"""Follow a run while it is being written: each call reads what is new, and nothing twice."""

from __future__ import annotations

from pathlib import Path

from gradwatch.event_files.assemble import RunAssembler
from gradwatch.event_files.growing_file import GrowingFile
from gradwatch.event_files.legible import legible
from gradwatch.event_files.reader import event_files, files_in
from gradwatch.event_files.run import Run

__all__ = ["FollowedRun", "newest_run"]


class FollowedRun:
    """The run in one directory, as far as it has come.

    Args:
        directory: of its event files; those below it are of other runs.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._assembler = RunAssembler()
        self._files: dict[Path, GrowingFile] = {}
        self._run: Run | None = None

    def read(self) -> Run | None:
        """Return the run as it is now, the same object where nothing is new; None where nothing was written yet.

        Raises:
            OSError: if its files cannot be listed.
        """
        paths = files_in(self.directory)
        is_new = False
        for path in paths:
            file = self._files.setdefault(path, GrowingFile(path))
            is_new = file.read_into(self._assembler) or is_new
        if is_new and self._assembler:
            problems = [problem for file in self._files.values() for problem in file.problems(is_being_written=True)]
            written_at = max(path.stat().st_mtime for path in paths)
            self._run = self._assembler.build(legible(str(self.directory)), written_at, problems)
        return self._run


def newest_run(directory: Path) -> FollowedRun | None:
    """Return the run in or below ``directory`` that was written last; None if there is none yet."""
    by_directory, _ = event_files(directory)
    newest_first = sorted(by_directory, key=lambda where: -max(path.stat().st_mtime for path in by_directory[where]))
    for where in newest_first:
        run = FollowedRun(where)
        if run.read() is not None:
            return run
    return None
