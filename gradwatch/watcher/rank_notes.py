"""Tell the first rank what the others have found, and whose step it was.

Averaged gradients turn sick on every rank at one step, and only the rank that made it has seen why. Each rank leaves a
note of every finding that opens or ends, and of its own loss where that leaps: a batch that one rank had makes the
gradients of all explode. The first rank looks for notes at later steps: while it has a finding whose origin is not
known, and otherwise now and then. It then knows its own finding better, or has one that it has not seen itself. Nobody
waits for a note. Where the process group is gone, there is a debug line.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradwatch.findings import Finding
from gradwatch.hooks.logger import logger
from gradwatch.ranks.group import Group, current_group
from gradwatch.ranks.notes import NoteBoard
from gradwatch.watcher.diagnosis import FindingUpdate

__all__ = ["LossLeap", "Note", "RankNotes"]

PAUSE = 0.5
"""Seconds between two looks while nothing is known to be missing: a look costs a tenth of a millisecond."""

LOOKS = 20
"""Steps, one after the other, at which the first rank looks for notes after it has found something."""

LEAP = 10.0
"""Times the largest of a rank's last losses, beyond which a loss has leapt: batches of one task differ by less."""

REMEMBERED = 30
"""Losses that a leap is measured against; as many as a level of the gradients remembers."""

MOST_LEAPS = 256
"""Leaps that are kept: the latest of all ranks."""

FEWEST = 5
"""Losses before the first leap: those of a run's first steps tell little of what is usual."""

AHEAD = 2.0
"""Seconds for which a note waits until the first rank has judged the same step, too. Ranks that train together are
milliseconds apart; of others each has a finding of its own."""

_Identity = tuple[str, str, int]

_watchers = itertools.count()  # each rank makes its watchers in the same order


@dataclass(frozen=True)
class Note:
    """A finding of one rank.

    Attributes:
        rank: that has found it.
        finding: as it is.
        ended: whether it has ended.
        is_own: the rank itself has made it, as far as it can tell.
    """

    rank: int
    finding: Finding
    ended: bool
    is_own: bool

    @property
    def step(self) -> int:
        """The step at which it was found."""
        return self.finding.raised_step

    def as_text(self) -> str:
        """Return the note for the store."""
        return json.dumps({**vars(self), "finding": self.finding.as_dict()})


@dataclass(frozen=True)
class LossLeap:
    """A finite loss of one rank far above its last ones.

    Attributes:
        rank: that had it.
        step: at which.
        loss: of that rank alone.
        largest: absolute value of its last losses.
    """

    rank: int
    step: int
    loss: float
    largest: float

    def as_text(self) -> str:
        """Return the leap as a note for the store."""
        return json.dumps(vars(self))


def _from_text(text: str) -> Note | LossLeap:
    """Return the note whose ``as_text`` gave ``text``."""
    values: dict[str, Any] = json.loads(text)
    if "finding" not in values:
        return LossLeap(**values)
    return Note(**{**values, "finding": Finding.from_dict(values["finding"])})


class RankNotes:
    """The notes about one watched model, and what they make of the findings of the first rank.

    Attributes:
        about: a name of the watcher, the same on every rank.
        elsewhere: findings that other ranks have and the first has not, and those that are no detector's.
    """

    def __init__(self) -> None:
        self.elsewhere: dict[_Identity, Finding] = {}
        self.about = str(next(_watchers))
        self._board: NoteBoard | None = None
        self._looks_left = 0
        self._looked_at = -math.inf
        self._ahead: list[tuple[float, Note]] = []  # when each note came about a step that this rank has not judged
        self._losses: deque[float] = deque(maxlen=REMEMBERED)  # absolute values of the last ones of this rank
        self._leaps: deque[LossLeap] = deque(maxlen=MOST_LEAPS)  # of all ranks, on the first; else of this one
        self._told: dict[_Identity, tuple[Finding, set[int]]] = {}  # explosions as found here, and who has them as well
        self._heard: set[tuple[int, int]] = set()  # (rank, step) of each NaN or Inf that another rank has seen

    def group(self) -> Group | None:
        """Return the process group, if there are other ranks."""
        group = current_group(None if self._board is None else self._board.group)
        if group is None:
            self._board = None
        elif self._board is None or self._board.group is not group:
            self._board = NoteBoard(group, self.about)
        return group

    def note_own(self, group: Group, finding: Finding, *, is_own: bool) -> Finding:
        """Return a new finding of this rank with its ``ranks``: none where another rank may have made it.

        Args:
            group: of this process.
            finding: that has just been raised.
            is_own: this rank made it, as far as it can tell.
        """
        self._looks_left = LOOKS
        found = replace(finding, ranks=(group.rank,) if is_own else ())
        if finding.kind != "exploding":
            return found
        self._told[finding.identity] = found, {group.rank}
        return self._with_leaps(found)

    def note_loss(self, group: Group, step: int, loss: float | None) -> None:
        """Take the loss that this rank alone had in a step; where it leaps, leave a note for the first rank."""
        if loss is None or not math.isfinite(loss):
            return
        largest, is_usual = max(self._losses, default=0.0), len(self._losses) < FEWEST
        self._losses.append(abs(loss))
        if is_usual or abs(loss) <= LEAP * largest:
            return
        leap = LossLeap(group.rank, step, loss, largest)
        self._leaps.append(leap)
        self._leave(group, leap)

    def add(self, finding: Finding) -> FindingUpdate:
        """Take a finding that is no detector's; return how it is written."""
        earlier = self.elsewhere.get(finding.identity)
        if earlier is not None:
            finding = replace(earlier, last_step=finding.last_step, layers=finding.layers)
        self.elsewhere[finding.identity] = finding
        return FindingUpdate(finding, ended=False, is_new=earlier is None)

    def write(self, group: Group, finding: Finding, *, ended: bool) -> None:
        """Leave a note for the first rank, unless this is the first rank."""
        self._leave(group, Note(group.rank, finding, ended, bool(finding.ranks)))

    def _leave(self, group: Group, note: Note | LossLeap) -> None:
        if self._board is None or group.rank == 0:
            return
        try:
            self._board.write(note.as_text())
        except Exception as error:
            logger.debug("gradwatch: a note for rank 0 could not be left (%s).", error)

    def is_due(self) -> bool:
        """Return whether to look now: on the first rank, if others may have left something."""
        if self._looks_left > 0:
            self._looks_left -= 1
        elif time.monotonic() < self._looked_at + PAUSE:
            return False
        self._looked_at = time.monotonic()
        group = self.group()
        return group is not None and group.rank == 0

    def read(self, judged: int | None = None) -> list[Note | LossLeap]:
        """Return what other ranks have left, and what has waited until this rank has judged the same step.

        It waits for nobody.

        Args:
            judged: the last step that was judged here; None returns what waits, too.
        """
        arrived, now = self._read_board(), time.monotonic()
        ready: list[Note | LossLeap] = [note for note in arrived if isinstance(note, LossLeap)]
        waiting = self._ahead + [(now, note) for note in arrived if isinstance(note, Note)]
        self._ahead = []
        for came, note in waiting:
            if judged is None or note.step <= judged or now > came + AHEAD:
                ready.append(note)
            else:
                self._ahead.append((came, note))
        return ready

    def _read_board(self) -> Sequence[Note | LossLeap]:
        if self._board is None:
            return []
        try:
            return [_from_text(text) for text in self._board.read()]
        except Exception as error:
            logger.debug("gradwatch: notes of other ranks could not be read (%s).", error)
            return []

    def are_missing(self, group: Group, findings: Iterable[Finding]) -> bool:
        """Return whether a rank that was not heard yet may know who made a NaN or Inf among ``findings``."""
        unknown = [finding.step for finding in findings if finding.kind == "nonfinite" and not finding.ranks]
        return any(sum(at == step for _, at in self._heard) < group.size - 1 for step in unknown)

    def take(self, note: Note, known: Iterable[tuple[Finding, bool]]) -> FindingUpdate | None:
        """Return what becomes known by ``note``; None where that is nothing new.

        Args:
            note: of another rank.
            known: findings of this rank, and whether each has ended.
        """
        told = note.finding
        if told.kind == "nonfinite":
            self._heard.add((note.rank, told.step))
        for finding, ended in known:
            if _is_same_sickness(finding, told, ended):
                joined = self._joined(finding, note)
                if joined.ranks and not finding.ranks:
                    logger.warning("gradwatch: %s", joined.message)
                return None if joined == finding else FindingUpdate(joined, ended, is_new=False, is_amended=True)
        earlier = self.elsewhere.get(told.identity)
        ranks = {note.rank, *told.ranks, *(() if earlier is None else earlier.ranks)}
        self.elsewhere[told.identity] = replace(told, ranks=tuple(sorted(ranks)))
        is_amended = earlier is not None and not note.ended
        return FindingUpdate(self.elsewhere[told.identity], note.ended, earlier is None, is_amended)

    def take_leap(self, leap: LossLeap, known: Iterable[tuple[Finding, bool]]) -> list[FindingUpdate]:
        """Return the explosions, open or ended, that are known better by the ``leap`` of another rank's loss."""
        self._leaps.append(leap)
        updates = []
        for finding, ended in known:
            amended = self._with_leaps(finding)
            if amended != finding:
                updates.append(FindingUpdate(amended, ended, is_new=False, is_amended=True))
        return updates

    def _joined(self, finding: Finding, note: Note) -> Finding:
        """Return what is known of ``finding``, which the first rank has, with what another rank says of the same."""
        ranks = tuple(sorted({*finding.ranks, note.rank}))
        if finding.kind == "nonfinite":
            return _with_maker(finding, note, ranks) if note.is_own else finding
        if finding.identity in self._told:
            self._told[finding.identity][1].add(note.rank)
            return self._with_leaps(finding)
        return replace(finding, ranks=ranks)

    def _with_leaps(self, finding: Finding) -> Finding:
        """Return an explosion with the ranks whose losses leapt first: averaged gradients carry it to all others."""
        if finding.identity not in self._told:
            return finding
        as_found, having = self._told[finding.identity]
        near = [leap for leap in self._leaps if finding.step - 1 <= leap.step <= finding.raised_step]
        first = [leap for leap in near if leap.step == min(each.step for each in near)]
        ranks = {leap.rank for leap in first}
        if not ranks:
            return replace(finding, ranks=tuple(sorted(having)))
        is_elsewhere = bool(having - ranks)  # a rank that has it, too, whose own loss had not leapt
        words = f"It {_leapt(first)}. " if is_elsewhere else ""
        return replace(finding, ranks=tuple(sorted(ranks)), cause=words + as_found.cause)


def _leapt(first: Sequence[LossLeap]) -> str:
    """Return on which ranks an explosion began, and what the loss of one of them has done."""
    largest, ranks = max(first, key=lambda leap: abs(leap.loss)), sorted({leap.rank for leap in first})
    where = (
        f"rank {ranks[0]}, whose loss" if len(ranks) == 1 else f"{len(ranks):,} ranks. The loss of rank {largest.rank}"
    )
    return f"began on {where} leapt to {largest.loss:.3g} at step {largest.step}, from at most {largest.largest:.3g}"


def _is_same_sickness(finding: Finding, told: Finding, ended: bool) -> bool:
    """Return whether two ranks mean the same: NaN of one step, or what goes on in one layer."""
    if finding.kind != told.kind:
        return False
    if finding.kind == "nonfinite":
        return finding.step == told.step
    return finding.layer == told.layer and (not ended or finding.step == told.step)


def _with_maker(finding: Finding, note: Note, ranks: tuple[int, ...]) -> Finding:
    """Return a NaN or Inf with the rank that made it; the first that says so tells why.

    What was measured is that of the layer which the finding names: the rank that made it may name another one.
    """
    if finding.ranks:
        return replace(finding, ranks=ranks)
    told = note.finding
    measured = told.measured if told.layer == finding.layer else finding.measured
    cause = f"It began on rank {note.rank}. {told.cause}"
    return replace(finding, ranks=(note.rank,), measured=measured, cause=cause, remedies=told.remedies)
