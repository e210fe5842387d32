"""The recovery benchmark counts what it says: on one seed of two faults, and by hand-made outcomes."""

import math

import pytest

from benchmarks.recovery.__main__ import has_recovered, table
from benchmarks.recovery.programs import FAULT, IMPOSSIBLE, RECOVERABLE, healthy_run, none
from benchmarks.recovery.ways import WAYS, Outcome, is_sick, nothing, recover


def test_a_run_counts_as_recovered_within_two_percent_of_the_faultless_loss():
    assert has_recovered(Outcome(1.019), 1.0)
    assert not has_recovered(Outcome(1.021), 1.0)
    assert not has_recovered(Outcome(math.nan), 1.0)


def test_a_snapshot_from_after_the_fault_is_sick():
    assert is_sick(Outcome(1.0, restored=(FAULT + 1,)))
    assert not is_sick(Outcome(1.0, restored=(FAULT,)))


def test_the_table_shows_each_fault_and_way():
    end = [(Outcome(2.0), 1.0), (Outcome(1.0), 1.0)]
    shown = table({("bit_flip", way): end for way in WAYS}, ["bit_flip"], 2)
    assert shown.splitlines()[-1] == f"| bit flip {'| 1 of 2 (× 2) ' * len(WAYS)}|"


@pytest.mark.slow
def test_a_run_saves_itself_from_a_flipped_bit_and_gives_up_where_nothing_helps():
    faultless = nothing(healthy_run(0), none).loss
    saved = recover(healthy_run(0), RECOVERABLE["bit_flip"])
    assert has_recovered(saved, faultless)
    assert saved.restored
    assert not is_sick(saved)
    assert not has_recovered(nothing(healthy_run(0), RECOVERABLE["bit_flip"]), faultless)
    assert recover(healthy_run(0), IMPOSSIBLE["rate_too_high"]).gave_up
