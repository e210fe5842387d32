"""Read an event file as it grows: each call goes on where the last one has stopped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gradwatch.event_files.assemble import RunAssembler
from gradwatch.event_files.decode import UnreadableError
from gradwatch.event_files.event import decode_event
from gradwatch.event_files.legible import legible
from gradwatch.event_files.records import Damage, records_in
from gradwatch.event_files.run import FindingEvent, LoggedRow, Written

__all__ = ["GrowingFile"]


class GrowingFile:
    """An event file, read once from its begin to wherever it ends by now, and on from there.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0  # bytes that were read
        self._has_begun = False
        self._damage: Counter[str] = Counter()
        self._hindrance = ""  # what may be otherwise at the next call

    def read_into(self, assembler: RunAssembler) -> bool:
        """Add what is new in the file to ``assembler``; return whether there was anything.

        A later file of the same run wins from its first step on.
        """
        found = self._new()
        steps = [step for each in found if (step := _first_step(each)) is not None]
        if steps and not self._has_begun:
            self._has_begun = True
            assembler.begin_anew(min(steps))
        for each in found:
            try:
                assembler.add(each)
            except UnreadableError as error:
                self._damage[_problem(error)] += 1
        return bool(found)

    def problems(self, *, is_being_written: bool = False) -> list[str]:
        """Return what could not be read, for people.

        Args:
            is_being_written: leave out that the file ends within a record.
        """
        damage = Counter(self._damage)
        if self._hindrance and not is_being_written:
            damage[self._hindrance] += 1
        file = legible(self._path.name)
        return [f"{file}: {words}" + (f" ({count} times)" if count > 1 else "") for words, count in damage.items()]

    def _new(self) -> Sequence[Written]:
        self._hindrance = ""
        found: list[Written] = []
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                for record in records_in(file):
                    if isinstance(record, Damage):
                        self._note(record)
                    elif (decoded := self._decoded(record)) is not None:
                        found.append(decoded)
                    self._at = record.at if isinstance(record, Damage) and record.is_end else file.tell()
        except OSError as error:
            self._hindrance = f"cannot be read: {error.strerror}"
        return found

    def _note(self, damage: Damage) -> None:
        if damage.is_end:
            self._hindrance = damage.words
        else:
            self._damage[damage.words] += 1

    def _decoded(self, record: bytes) -> Written | None:
        try:
            return decode_event(record)
        except UnreadableError as error:
            self._damage[_problem(error)] += 1
            return None


def _first_step(found: Written) -> int | None:
    """Return from which step on this file tells it; None for what may be older than the file.

    The finding of an update or an end may have opened before the run was cut, and a count covers the whole run.
    """
    if isinstance(found, LoggedRow):
        return found.step
    return found.finding.raised_step if isinstance(found, FindingEvent) and found.is_opening else None


def _problem(error: UnreadableError) -> str:
    return str(error).removesuffix(".")
