"""A step from its gradients to its report, one object at a time."""

import dataclasses

import numpy as np
import pytest
import torch

from gradwatch.measure import layers
from gradwatch.measure.columns import GradientColumns
from gradwatch.measure.measurement import Measurement, StepPlan

EVERY_FIGURE = frozenset(
    ("grad_max", "grad_mean", "grad_std", "grad_zero_fraction", "weight_norm", "weight_std", "update_ratio")
)


def measured(table):
    tensors = table.tensors
    columns = GradientColumns(tensors, np.arange(len(tensors)), len(tensors))
    plan = StepPlan(step=0, optimizer=0, update=0, sampled=True, figures=EVERY_FIGURE, entries=True)
    measurement = Measurement(plan, table, columns, [torch.full_like(tensor, 2.0) for tensor in tensors], [1.5])
    measurement.measure_figures()
    return measurement


def arrays_of(report):
    fields = [getattr(report, field.name) for field in dataclasses.fields(report)]
    lists = [part for parts in report.entries.values() for part in parts]
    return [part for part in [*fields, *report.figures.values(), *lists] if isinstance(part, np.ndarray)]


def test_a_kept_report_does_not_change():
    table = layers.of_tensors({name: torch.ones(3, 2) for name in "abc"})
    report = measured(table).report()
    before = [array.copy() for array in arrays_of(report)]
    assert len(before) >= 12
    table.sort([2, 1, 0])
    for tensor in table.tensors:
        tensor.zero_()
    assert report.depth.tolist() == [0, 1, 2]
    assert table.depth.tolist() == [2, 1, 0]
    for array, kept in zip(arrays_of(report), before, strict=True):
        np.testing.assert_array_equal(array, kept)


def test_what_several_reports_share_cannot_be_written():
    table = layers.of_tensors({name: torch.ones(2) for name in "ab"})
    report = measured(table).report()
    for array in (report.depth, report.size, report.measured):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 7
