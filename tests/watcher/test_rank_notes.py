"""What the first rank makes of the losses of others: on which ranks an explosion began."""

import weakref
from dataclasses import replace

import pytest

from gradwatch.findings import Finding
from gradwatch.ranks.group import Group
from gradwatch.watcher.rank_notes import FEWEST, LossLeap, Note, RankNotes

FOUND = Finding("exploding", "warning", "a", ("a",), 50, 52, 52, 100.0, 2.0, "It grew.", "Its own words.")


class World:
    """What a group refers to weakly."""


WORLD = World()


def group_of(rank):
    return Group(rank, 4, weakref.ref(WORLD))


def notes_of_first(losses=()):
    """The notes of rank 0 after these losses, one a step up to the step at which the explosion was found."""
    notes = RankNotes()
    for step, loss in enumerate(losses, FOUND.raised_step + 1 - len(losses)):
        notes.note_loss(group_of(0), step, loss)
    return notes


def leap(rank, step):
    return LossLeap(rank, step, 1e6 * (rank + 1), 2.0)


def told(notes, *heard):
    """The finding of rank 0 once it has heard all this."""
    finding = notes.note_own(group_of(0), FOUND, is_own=True)
    for note in heard:
        if isinstance(note, LossLeap):
            updates = notes.take_leap(note, [(finding, False)])
        else:
            updates = filter(None, [notes.take(note, [(finding, False)])])
        for update in updates:
            finding = update.finding
    return finding


def has_it(rank):
    return Note(rank, replace(FOUND, ranks=(rank,)), ended=False, is_own=True)


def test_the_rank_whose_loss_leapt_is_where_it_began():
    finding = told(notes_of_first(), has_it(2), leap(1, 50))
    assert finding.ranks == (1,)
    words = "It began on rank 1, whose loss leapt to 2e+06 at step 50, from at most 2. Its own words."
    assert finding.cause == words


def test_of_several_leaps_the_first_count_and_what_is_said_once_is_not_repeated():
    finding = told(notes_of_first(), leap(1, 51), leap(3, 50), leap(2, 50), has_it(1))
    assert finding.ranks == (2, 3)
    assert finding.cause.startswith("It began on 2 ranks. The loss of rank 3 leapt to 4e+06 at step 50")
    assert finding.cause.count("It began") == 1


@pytest.mark.parametrize("step", [20, 53])
def test_a_leap_long_before_or_after_says_nothing(step):
    finding = told(notes_of_first(), leap(1, step), has_it(3))
    assert (finding.ranks, finding.cause) == ((0, 3), FOUND.cause)


def test_where_every_rank_that_has_it_leapt_at_once_none_is_blamed():
    notes = notes_of_first([1.0, 2.0, 1.0, 2.0, 1.0, 1e6])
    leaps = [LossLeap(rank, 52, 1e6, 2.0) for rank in (1, 2)]
    finding = told(notes, *leaps, has_it(1), has_it(2))
    assert (finding.ranks, finding.cause) == ((0, 1, 2), FOUND.cause)


def test_the_first_rank_blames_itself_once_another_has_it_whose_loss_did_not_leap():
    finding = told(notes_of_first([1.0, 2.0, 1.0, 2.0, 1.0, 1e6]), has_it(3))
    assert finding.ranks == (0,)
    assert finding.cause.startswith("It began on rank 0, whose loss leapt to 1e+06 at step 52, from at most 2. ")


@pytest.mark.parametrize("losses", [[1.0] * (FEWEST - 1) + [1e6], [1.0] * FEWEST + [9.0], [1.0] * FEWEST + [None]])
def test_few_losses_and_small_or_missing_ones_are_no_leap(losses):
    finding = told(notes_of_first(losses), has_it(3))
    assert (finding.ranks, finding.cause) == ((0, 3), FOUND.cause)
