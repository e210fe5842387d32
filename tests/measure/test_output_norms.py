"""The root mean square of what modules return, against a float64 twin."""

import pytest
import torch

from gradwatch.measure.output_norms import ENTRIES, HELD, OutputNorms
from tests import reference
from tests.reference import values


def figures(norms, columns):
    taken = norms.take(columns)
    if taken is None:
        return {}
    rounded = [round(value, 4) for value in (taken.values.numpy() / taken.divisors).tolist()]
    return dict(zip(taken.columns, rounded, strict=True))


OUTPUTS = {
    "vector": torch.randn(7),
    "matrix": torch.randn(5, 3),
    "turned": torch.randn(3, 5).t(),
    "every other": torch.randn(10, 6)[:, ::2],
    "images": torch.randn(2, 3, 4, 4),
    "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "float16": torch.randn(4, 4).half(),
    "bfloat16": torch.randn(4, 4).bfloat16(),
    "float64": torch.randn(4, 4).double(),
}


def test_outputs_of_every_layout_and_type_agree_with_the_loop():
    norms = OutputNorms()
    for column, output in enumerate(OUTPUTS.values()):
        norms.add(column, output)
    found = figures(norms, range(len(OUTPUTS)))
    expected = [reference.root_mean_square(values(output)) for output in OUTPUTS.values()]
    assert [found[column] for column in range(len(OUTPUTS))] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("shape", [(512, 256), (64, 100, 30), (8, 16, 64, 64)])
def test_entries_of_large_outputs_are_of_all_columns(shape):
    output = torch.zeros(shape)
    output[..., ::2] = 2.0
    norms = OutputNorms()
    norms.add(0, output)
    assert figures(norms, [0])[0] == pytest.approx(2**0.5, rel=0.01)
    assert output.numel() > ENTRIES


def test_what_the_model_changes_in_place_is_measured_as_it_was_from_the_second_time_on():
    norms = OutputNorms()
    for expected in ({}, {0: 3.0}, {0: 3.0}):
        output = torch.full((4, 4), 3.0)
        norms.add(0, output)
        output.mul_(100)
        assert figures(norms, [0]) == expected


def test_only_so_much_is_held():
    norms = OutputNorms()
    large = torch.ones(HELD // 4)
    norms.add(0, large)
    norms.add(1, torch.full((2,), 2.0))  # too much by now: both are measured
    large.zero_()
    assert figures(norms, range(2)) == {0: 1.0, 1: 2.0}


def test_others_are_kept_for_whoever_takes_them():
    norms = OutputNorms()
    norms.add(0, torch.ones(2))
    norms.add(1, torch.full((2,), 2.0))
    assert figures(norms, [1]) == {1: 2.0}
    assert figures(norms, [1]) == {}
    assert figures(norms, [0]) == {0: 1.0}


def test_the_latest_output_of_a_layer_counts():
    norms = OutputNorms()
    norms.add(0, torch.ones(2))
    norms.add(0, torch.full((2,), 5.0))
    assert figures(norms, [0]) == {0: 5.0}


def test_tensors_made_in_inference_mode_count_no_changes_and_are_measured_as_they_are():
    norms = OutputNorms()
    with torch.inference_mode():
        output = torch.ones(3)
        norms.add(0, output)
        output.zero_()
    assert figures(norms, [0]) == {0: 1.0}


def test_what_was_cleared_has_no_figure():
    norms = OutputNorms()
    norms.add(0, torch.ones(2))
    norms.clear()
    assert norms.take([0]) is None
