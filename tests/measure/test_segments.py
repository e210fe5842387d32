"""Segments of a vector, laid out in rows."""

import pytest
import torch
from hypothesis import given, settings, strategies

from gradwatch.measure.segments import Segments


@settings(deadline=None, derandomize=True, max_examples=50)
@given(strategies.lists(strategies.integers(0, 5), max_size=6))
def test_each_segment_is_a_row_that_the_last_value_fills_up(lengths):
    values = torch.arange(sum(lengths) + 1.0)
    rows = Segments(lengths, torch.device("cpu")).rows(values)
    expected, begin = [], 0
    for length in lengths:
        filled = [float(sum(lengths))] * (max(lengths) - length)
        expected.append([*map(float, range(begin, begin + length)), *filled])
        begin += length
    assert rows.tolist() == expected


def test_several_vectors_are_laid_out_together():
    segments = Segments([2, 1], torch.device("cpu"))
    rows = segments.rows(torch.tensor([[1, 2, 3, 0], [4, 5, 6, 9]]))
    assert rows.tolist() == [[[1, 2], [3, 0]], [[4, 5], [6, 9]]]
    assert segments.counts.tolist() == [2, 1]


def test_a_vector_of_another_length_is_refused():
    with pytest.raises(IndexError):
        Segments([2, 3], torch.device("cpu")).rows(torch.zeros(4))
