import math

import pytest
import torch
from hypothesis import given, settings, strategies

from gradwatch.measure import statistics
from tests import reference
from tests.reference import DTYPES, finite_cases, randn, values

deterministic = settings(deadline=None, derandomize=True, max_examples=50)


CASES = {
    **finite_cases(),
    "expanded": [torch.tensor(2.0).expand(5)],
    "float64 beyond float32": [torch.full((3,), 1e100, dtype=torch.float64), randn(2)],
    "nan": [torch.tensor([1.0, math.nan, 2.0]), randn(3)],
    "inf": [torch.tensor([1.0, math.inf, 0.0]), randn(3), torch.tensor([math.nan, math.inf, -math.inf])],
    "-inf": [torch.tensor([1.0, -math.inf], dtype=torch.float16), torch.tensor(-math.inf)],
    "complex nan": [torch.tensor([complex(1, math.nan), complex(2, -3)])],
}
every_case = pytest.mark.parametrize("tensors", CASES.values(), ids=CASES)

reals = strategies.just(0.0) | strategies.floats(1e-15, 1e15) | strategies.floats(-1e15, -1e-15)
real_tensors = strategies.lists(reals, max_size=8).map(torch.tensor)
any_tensors = strategies.builds(
    lambda entries, dtype: torch.tensor(entries, dtype=torch.float64).to(dtype),
    strategies.lists(strategies.floats(), max_size=6),
    strategies.sampled_from(DTYPES),
)


def approx(expected, rel=1e-5, floor=0.0):
    return pytest.approx(expected, rel=rel, abs=floor, nan_ok=True)


def root_mean_square(entries):
    size = reference.l2_norm(entries) / math.sqrt(max(1, len(entries)))
    return size if math.isfinite(size) else 0.0


@every_case
def test_measure_agrees_with_the_loop(tensors):
    magnitudes = statistics.measure(tensors)
    entries = [values(tensor) for tensor in tensors]
    assert magnitudes.l2.tolist() == approx([reference.l2_norm(part) for part in entries])
    assert magnitudes.nonfinite.tolist() == [reference.nonfinite_count(part) for part in entries]
    assert magnitudes.total.item() == approx(reference.total_norm(entries))
    assert magnitudes.total.dtype is torch.float64


@every_case
def test_norms_agree_with_the_loop(tensors):
    assert statistics.norms(tensors).tolist() == approx([reference.l2_norm(values(tensor)) for tensor in tensors])


@every_case
def test_entries_agree_with_the_loop(tensors):
    found = statistics.entries(tensors, statistics.norms(tensors))
    parts = [values(tensor) for tensor in tensors]
    assert found.largest.tolist() == approx([reference.largest(part) for part in parts], rel=0)
    assert found.mean.tolist() == approx([reference.mean(part) for part in parts], floor=1e-6)
    for part, std in zip(parts, found.std.tolist(), strict=True):
        assert std == approx(reference.std(part), rel=1e-4, floor=5e-4 * root_mean_square(part))
    assert found.zero_fraction.tolist() == approx([reference.zero_fraction(part) for part in parts])


@every_case
def test_count_nonfinite_agrees_with_the_loop(tensors):
    assert statistics.count_nonfinite(tensors).tolist() == [
        reference.nonfinite_count(values(tensor)) for tensor in tensors
    ]


@deterministic
@given(strategies.lists(real_tensors, min_size=1, max_size=5))
def test_any_float32_tensors_agree_with_the_loop(tensors):
    magnitudes = statistics.measure(tensors)
    found = statistics.entries(tensors, magnitudes.l2)
    parts = [values(tensor) for tensor in tensors]
    assert magnitudes.total.item() == approx(reference.total_norm(parts))
    assert not magnitudes.nonfinite.any()
    for i, part in enumerate(parts):
        size = root_mean_square(part)
        assert magnitudes.l2[i].item() == approx(reference.l2_norm(part))
        assert found.mean[i].item() == approx(reference.mean(part), floor=1e-6 * size)
        assert found.std[i].item() == approx(reference.std(part), floor=1e-3 * size)


@deterministic
@given(strategies.lists(any_tensors, min_size=1, max_size=5))
def test_nonfinite_and_largest_agree_with_the_loop_whatever_the_entries(tensors):
    magnitudes = statistics.measure(tensors)
    parts = [values(tensor) for tensor in tensors]
    assert magnitudes.nonfinite.tolist() == [reference.nonfinite_count(part) for part in parts]
    largest = statistics.entries(tensors, magnitudes.l2).largest.tolist()
    assert largest == approx([reference.largest(part) for part in parts], rel=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_entries_are_finite_where_their_squares_overflow(dtype):
    magnitudes = statistics.measure([torch.full((4,), 3e19, dtype=dtype)])
    assert magnitudes.l2.item() == magnitudes.total.item() == math.inf
    assert magnitudes.nonfinite.item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("scale", [None, torch.tensor(8.0)])
def test_norms_are_true_where_they_are_asked_for(dtype, scale):
    tensors = [torch.full((4,), 3e38, dtype=dtype), torch.ones(2)]
    magnitudes = statistics.without_overflow(tensors, statistics.measure(tensors, scale))
    expected = [6e38, 2**0.5] if scale is None else [6e38 / 8, 2**0.5 / 8]
    assert magnitudes.l2.tolist() == pytest.approx(expected)
    assert magnitudes.total.item() == pytest.approx(expected[0])


@pytest.mark.parametrize("entry", [1.0, math.inf, math.nan])
def test_norms_that_have_not_overflowed_stay_as_they_are(entry):
    magnitudes = statistics.measure([torch.tensor([entry])])
    assert statistics.without_overflow([torch.tensor([entry])], magnitudes) is magnitudes


def test_largest_is_finite_where_the_squares_overflow():
    tensors = [torch.full((4,), -3e19)]
    assert statistics.entries(tensors, statistics.norms(tensors)).largest.item() == pytest.approx(3e19)


def test_norms_keep_the_order_of_mixed_dtypes_and_widen_where_one_is_float64():
    mixed = [torch.tensor([float(i)], dtype=DTYPES[i % 4]) for i in range(12)]
    assert statistics.norms(mixed).tolist() == list(range(12))
    assert statistics.norms(mixed).dtype is torch.float64
    assert statistics.norms(mixed[:3]).dtype is torch.float32


def test_std_of_a_single_entry_is_0():
    single = [torch.tensor(-3.1), torch.tensor([7.7e-5])]
    assert statistics.entries(single, statistics.norms(single)).std.tolist() == [0, 0]


def test_nothing_has_a_total_of_0():
    magnitudes = statistics.measure([])
    assert (magnitudes.l2.shape, magnitudes.nonfinite.shape, magnitudes.total.item()) == ((0,), (0,), 0)
    assert statistics.entries([], magnitudes.l2).std.shape == (0,)
    assert statistics.count_nonfinite([]).tolist() == []


def test_figures_of_parameters_carry_no_graph():
    weights = [torch.ones(3, requires_grad=True)]
    found = statistics.measure(weights)
    figures = [found.l2, found.total, statistics.entries(weights, found.l2).std]
    assert not any(figure.requires_grad for figure in figures)


positive = strategies.floats(1e-3, 1e3)


@deterministic
@given(strategies.data(), strategies.sampled_from([0.5, 1.0, 2.0**10, 0.1, 3.0]))
def test_norms_before_a_change_agree_with_the_loop(data, factor):
    at_end = data.draw(strategies.lists(positive, min_size=1, max_size=5))
    extra = data.draw(strategies.lists(positive, max_size=3))
    positions = data.draw(strategies.permutations([*range(len(at_end)), *[-1] * len(extra)]))
    rest = iter(extra)
    now = [at_end[position] * factor if position >= 0 else next(rest) for position in positions]
    zeros = lambda norms: torch.zeros(len(norms), dtype=torch.int64)
    magnitudes = lambda norms: statistics.Magnitudes(
        torch.tensor(norms, dtype=torch.float64), zeros(norms), torch.tensor(reference.l2_norm(norms))
    )
    found = statistics.undo_change(magnitudes(now), magnitudes(at_end), torch.tensor(positions))
    expected = reference.norms_before_change(now, at_end, positions)
    assert found.l2.tolist() == pytest.approx(expected, rel=1e-9)
    assert found.total.item() == pytest.approx(reference.l2_norm(expected), rel=1e-9)


def test_scale_by_one_writes_nothing():
    tensors = [torch.ones(3), torch.tensor(math.nan)]
    for scales in (torch.tensor(1.0), torch.ones(2)):
        statistics.scale_(tensors, scales)
    assert [tensor._version for tensor in tensors] == [0, 0]


@every_case
def test_scales_meet_their_own_tensors(tensors):
    scaled = [tensor.clone() for tensor in tensors]
    statistics.scale_(scaled, 2.0 ** -torch.arange(1, len(tensors) + 1))
    for i, (before, after) in enumerate(zip(tensors, scaled, strict=True), start=1):
        assert values(after) == approx([entry / 2**i for entry in values(before)], rel=1e-2)


def test_a_scale_below_float16_keeps_its_precision():
    half = torch.full((2,), 60000.0, dtype=torch.float16)
    statistics.scale_([half, torch.ones(2)], torch.tensor([1e-9, 1.0]))
    assert half.tolist() == pytest.approx([6e-5, 6e-5], rel=1e-2)


def test_a_complex_inf_scaled_by_one_stays_as_it_is():
    numbers = torch.tensor([complex(math.inf, 1), complex(2, 0)])
    statistics.scale_([numbers, numbers.clone()], torch.tensor([1.0, 0.5]))
    assert values(numbers) == [math.inf, 1, 2, 0]
