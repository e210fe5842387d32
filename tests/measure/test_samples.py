import math

import pytest
import torch
from hypothesis import given, settings, strategies
from torch import nn

from gradwatch.measure.samples import SAMPLED_ENTRIES, evenly_spaced, relative_change, sample, sample_segments
from tests import reference
from tests.reference import DTYPES, finite_cases, randn, values

deterministic = settings(deadline=None, derandomize=True, max_examples=50)
reals = strategies.just(0.0) | strategies.floats(1e-15, 1e15) | strategies.floats(-1e15, -1e-15)
CASES = finite_cases()
every_case = pytest.mark.parametrize("tensors", CASES.values(), ids=CASES)


def changes(tensors, change):
    """By how much ``change`` moved each of ``tensors``."""
    segments = sample_segments(tensors)
    before = segments.rows(sample(tensors))
    change()
    return relative_change(before, segments.rows(sample(tensors))).tolist()


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 511, 512, 1000])
def test_entries_are_at_most_so_many_and_evenly_spaced(size):
    (entries,) = evenly_spaced([torch.arange(size)], SAMPLED_ENTRIES)
    assert len(entries) <= 256
    assert len(entries) > 128 or len(entries) == size
    assert len(set(entries.diff().tolist())) <= 1
    assert entries.tolist()[:1] == [0][:size]


@every_case
def test_entries_are_those_that_are_stored(tensors):
    for tensor, entries in zip(tensors, evenly_spaced(tensors, 4), strict=True):
        stored = values(tensor)
        assert entries.flatten().tolist() == pytest.approx(stored[:: max(1, math.ceil(len(stored) / 4))], rel=0)


@every_case
def test_what_was_taken_is_a_copy(tensors):
    taken = sample(tensors)
    kept = taken.clone()
    taken.zero_()
    assert torch.equal(sample(tensors), kept)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_change_agrees_with_the_loop(dtype):
    weights = [nn.Parameter(randn(5, 3, dtype=dtype)), randn(4, dtype=dtype)]
    before = [values(weight) for weight in weights]
    with torch.no_grad():
        found = changes(weights, lambda: weights[0].mul_(1.5))
    expected = [reference.relative_change(old, values(new)) for old, new in zip(before, weights, strict=True)]
    assert found == pytest.approx(expected, rel=1e-2 if dtype in DTYPES[:2] else 1e-5)


@deterministic
@given(strategies.lists(strategies.tuples(reals, reals), min_size=1, max_size=8))
def test_any_change_agrees_with_the_loop(pairs):
    before, after = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    weight = before.clone()
    expected = reference.relative_change(values(before), values(after))
    assert changes([weight], lambda: weight.copy_(after)) == [pytest.approx(expected, nan_ok=True)]


def test_a_share_of_nothing_is_nan():
    weights = [torch.zeros(3), torch.empty(0)]
    assert all(map(math.isnan, changes(weights, lambda: weights[0].fill_(1))))


def test_no_tensors_have_no_changes():
    assert changes([], lambda: None) == []


def replaced(weight):
    weight.data = weight.data * 2


def turned(weight):
    weight.data = weight.data.t().contiguous().t() * 2


@pytest.mark.parametrize("change", [replaced, turned, lambda weight: weight.data.mul_(2)], ids=["new", "turned", "old"])
@pytest.mark.parametrize(
    "weight",
    [torch.arange(1.0, 13).view(3, 4), torch.arange(1.0, 13).view(4, 3).t(), torch.arange(1.0, 25)[::2].view(3, 4)],
    ids=["contiguous", "transposed", "strided"],
)
def test_a_change_is_seen_wherever_the_weight_lies(weight, change):
    weight = nn.Parameter(weight.clone(memory_format=torch.preserve_format))
    for _ in range(3):
        assert changes([weight], lambda: change(weight)) == [pytest.approx(1)]


def test_tensors_of_several_types_are_told_apart():
    weights = [torch.ones(300, dtype=dtype) for dtype in (torch.float64, torch.bfloat16, torch.float32)]
    assert changes(weights, lambda: weights[1].mul_(3)) == pytest.approx([0, 2, 0])


def test_entries_of_parameters_carry_no_graph():
    weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, 2).t())]
    assert not any(part.requires_grad for part in [*evenly_spaced(weights, 4), sample(weights)])
