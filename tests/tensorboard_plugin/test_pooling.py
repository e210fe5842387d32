import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwatch.tensorboard_plugin.pooling import cells, count, largest, smallest

STEPS = st.lists(st.integers(0, 500), min_size=1, max_size=60, unique=True).map(sorted)


def slow_largest(steps, values, edges):
    """Step by step: which row stands for it, and the largest of those in each cell."""
    pooled = []
    for start, end in itertools.pairwise(edges):
        rows = {int(np.searchsorted(steps, step)) for step in range(start, end)}
        shown = [values[row] for row in rows if not np.isnan(values[row])]
        pooled.append(max(shown, default=np.nan))
    return pooled


@given(STEPS, st.integers(0, 600), st.integers(0, 600), st.integers(1, 20), st.randoms())
def test_every_cell_holds_the_largest_of_the_steps_it_stands_for(steps, start, end, width, random):
    steps, start, end = np.array(steps), min(start, end), max(start, end)
    choices = [0.5, 2.0, 7.0, np.inf, np.nan]
    values = np.array([random.choice(choices) for _ in steps], dtype=np.float32)
    into = cells(steps, start, end, width)
    assert len(into.edges) == len(into.starts) + 1 <= width + 1
    assert (np.diff(into.edges) > 0).all()
    np.testing.assert_array_equal(largest(values, into), np.float32(slow_largest(steps, values, into.edges)))
    np.testing.assert_array_equal(smallest(-values, into), -largest(values, into))
    shown = [step for step in range(start, end + 1) if steps[0] <= step <= steps[-1]]
    if shown:
        assert into.edges[0] <= shown[0]
        assert shown[-1] < into.edges[-1]


def test_a_spike_of_one_step_shows_at_any_zoom():
    steps = np.arange(20_000)
    values = np.ones((20_000, 2), dtype=np.float32)
    values[12_345, 1] = 1e6
    for start, end, width in [(0, 19_999, 800), (0, 19_999, 1), (12_000, 13_000, 100), (12_345, 12_345, 800)]:
        into = cells(steps, start, end, width)
        pooled = largest(values, into)
        (hit,) = np.flatnonzero(pooled[:, 1] == 1e6)
        assert into.edges[hit] <= 12_345 < into.edges[hit + 1]
        assert pooled[:, 0].max() == 1


def test_a_row_stands_for_the_steps_since_the_one_before():
    into = cells(np.array([0, 50, 100]), 0, 100, 10)
    assert into.edges.tolist() == [0, 1, 51, 101]
    assert cells(np.array([0, 50, 100]), 60, 70, 10).edges.tolist() == [51, 101]
    assert cells(np.array([0, 50, 100]), 200, 300, 10).edges.tolist() == [0]  # none


@pytest.mark.parametrize("counts", [[1.0, 0.0, 2.0, 5.0], [1.0, np.nan, 2.0, 5.0], [1.0, -3.0, 2.0, 5.0]])
def test_counts_are_summed_over_the_rows_of_a_cell(counts):
    steps = np.array([0, 10, 20, 30])
    assert count(steps, np.array(counts), cells(steps, 0, 30, 2)) == [1, 7]
