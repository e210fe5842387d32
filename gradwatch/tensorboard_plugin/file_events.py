"""Read what gradwatch has written straight from the event files below TensorBoard's directory.

TensorBoard's own reader in Python takes minutes for a large run: it sums each byte by itself. Its fast one exists on
some systems only, and hands over at most 256 MiB at once. Here only places in the files are kept; a tensor is read
where it is asked for.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event

from gradwatch.event_files import format
from gradwatch.event_files.assemble import last_course
from gradwatch.event_files.reader import event_files
from gradwatch.event_files.records import Damage, records_in
from gradwatch.tensorboard_plugin.provider import ProviderEvents, RunKey, TagVersion

__all__ = ["FileEvents"]

FRESH = 1.0
"""Seconds for which nobody looks whether files have grown: the tab asks several questions at once."""

_LENGTH = struct.Struct("<Q")
_FRAME = 12, 4
"""Bytes of a record before its content, and after it."""


class FileEvents:
    """The events of all runs below a directory, as their files are now; those of other plugins from TensorBoard.

    Args:
        directory: TensorBoard's.
        others: where tensors of other plugins come from.
    """

    def __init__(self, directory: Path, others: ProviderEvents) -> None:
        self._directory, self._others = directory, others
        self._runs: dict[str, _IndexedRun] = {}
        self._looked_at = -FRESH
        self._lock = threading.Lock()

    def versions(self, context: Any = None, experiment: str = "") -> dict[str, dict[str, TagVersion]]:
        """Return the tags of gradwatch's, by run and name; runs are named as TensorBoard names them."""
        with self._lock:
            if time.monotonic() - self._looked_at >= FRESH:
                self.look_again()
            found = {name: run.versions() for name, run in self._runs.items()}
        return {name: tags for name, tags in found.items() if tags}

    def tensors(self, key: RunKey, tag: str, plugin: str = format.PLUGIN) -> list[tuple[int, Any]]:
        """Return (step, TensorProto) of every event, in order of steps; what a resumed run wrote anew replaces the old.

        Raises:
            UnreadableError: if TensorBoard cannot hand over tensors of another plugin.
        """
        if plugin != format.PLUGIN:
            return self._others.tensors(key, tag, plugin)
        with self._lock:
            places = self._runs[key.run].places(tag) if key.run in self._runs else []
        return last_course(_tensors_at(places, tag))

    def look_again(self) -> None:
        """Read what is new in the files."""
        by_directory, _ = event_files(self._directory)
        known = {_name_of(where, self._directory): files for where, files in by_directory.items()}
        self._runs = {name: self._runs.get(name) or _IndexedRun() for name in known}
        for name, files in known.items():
            self._runs[name].read(files)
        self._looked_at = time.monotonic()


class _IndexedRun:
    """The places of the tensors of one run."""

    def __init__(self) -> None:
        self._files: dict[Path, _IndexedFile] = {}

    def read(self, files: list[Path]) -> None:
        """Read what is new in ``files``, which are in the order in which they were begun."""
        self._files = {path: self._files.get(path) or _IndexedFile(path) for path in files}
        for file in self._files.values():
            file.read()

    def versions(self) -> dict[str, TagVersion]:
        """Return the tags of gradwatch's, each as it is in the last file that has it."""
        tags: dict[str, TagVersion] = {}
        for file in self._files.values():
            for tag, version in file.versions.items():
                before = tags.get(tag, version)
                latest = max(before.last_wall_time, version.last_wall_time)
                tags[tag] = TagVersion(version.last_step, latest, max(before.content, version.content))
        return tags

    def places(self, tag: str) -> list[tuple[Path, list[int]]]:
        """Return the files that have a tag, and where in each the records with it begin."""
        return [(path, [*file.places[tag]]) for path, file in self._files.items() if tag in file.places]


class _IndexedFile:
    """The places of the tensors of one event file, as far as it was read.

    Attributes:
        places: where the records with each tag of gradwatch's begin.
        versions: what is known of each tag.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self.places: dict[str, list[int]] = {}
        self.versions: dict[str, TagVersion] = {}

    def read(self) -> None:
        """Go on from where the file ended before; what is damaged is passed over, as it is by a report."""
        try:
            if self._path.stat().st_size == self._at:
                return
            with self._path.open("rb") as file:
                file.seek(self._at)
                for record in records_in(file):
                    if isinstance(record, Damage):
                        self._at = record.at if record.is_end else file.tell()
                        continue
                    self._at = file.tell()
                    self._note(record, self._at - len(record) - sum(_FRAME))
        except OSError:
            return  # it is gone, or somebody else's; the next look tries again

    def _note(self, record: bytes, place: int) -> None:
        try:
            event = Event.FromString(record)
        except DecodeError:
            return
        for value in event.summary.value:
            is_own = value.metadata.plugin_data.plugin_name == format.PLUGIN  # only a tag's first event says it
            if is_own or value.tag in self.places:
                content = value.metadata.plugin_data.content if is_own else self.versions[value.tag].content
                self.places.setdefault(value.tag, []).append(place)
                self.versions[value.tag] = TagVersion(event.step, event.wall_time, content)


def _tensors_at(places: list[tuple[Path, list[int]]], tag: str) -> Iterator[tuple[int, Any]]:
    """Yield (step, TensorProto) of the records at ``places``, whose checksums were found right."""
    for path, begins in places:
        try:
            with path.open("rb") as file:
                for begin in begins:
                    file.seek(begin)
                    (length,) = _LENGTH.unpack(file.read(_FRAME[0])[: _LENGTH.size])
                    event = Event.FromString(file.read(length))
                    yield from ((event.step, value.tensor) for value in event.summary.value if value.tag == tag)
        except (OSError, DecodeError, struct.error):
            continue  # the file was removed, or written anew, since it was looked at


def _name_of(where: Path, directory: Path) -> str:
    """Return the name that TensorBoard gives the run in a directory: ``"."`` for its own."""
    return where.relative_to(directory).as_posix()
