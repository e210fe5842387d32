import pytest

from gradwatch.watcher.cadence import Cadence


def rows_of(steps, every, is_dense):
    cadence = Cadence(every, frozenset(), False, is_dense)
    return [update for update in range(steps) if cadence.is_logged(update)]


def slow_rows_of(steps, every):
    """Regular rows, and 16 of each doubling of the steps while these are at most half as far apart."""
    rows, begin, spacing = set(range(0, steps, every)), 0, 1
    while 2 * spacing <= every and begin < steps:
        end = 32 * spacing
        rows |= set(range(begin, end, spacing))
        begin, spacing = end, 2 * spacing
    return sorted(row for row in rows if row < steps)


@pytest.mark.parametrize("every", [1, 2, 3, 10, 50, 1000])
def test_rows_of_a_dense_begin_agree_with_a_slow_loop(every):
    assert rows_of(5000, every, True) == slow_rows_of(5000, every)
    assert rows_of(5000, every, False) == list(range(0, 5000, every))


def test_a_short_run_has_rows_to_look_at_and_a_long_one_hardly_more_than_before():
    assert len(rows_of(400, 50, False)) == 8
    assert len(rows_of(400, 50, True)) == 93
    regular, dense = len(rows_of(100_000, 50, False)), len(rows_of(100_000, 50, True))
    assert regular < dense <= 1.05 * regular
