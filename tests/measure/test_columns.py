import numpy as np
import pytest
import torch

from gradwatch.measure.columns import GradientColumns

NAN = np.nan


def placed(columns, layers):
    return GradientColumns(
        [torch.full((1,), float(i)) for i in range(len(columns))], np.array(columns, dtype=np.int64), layers
    )


def slow_row(columns, layers, values, absent):
    row = [absent] * layers
    for column, value in zip(columns, values, strict=True):
        if column >= 0:
            row[column] = value
    return row


@pytest.mark.parametrize(
    ("columns", "layers"), [([0, 1, 2], 3), ([2, 0], 3), ([1, -1, 0], 2), ([-1], 2), ([], 2), ([0, -1, 1], 2)]
)
def test_figures_stand_where_a_loop_would_put_them(columns, layers):
    placement = placed(columns, layers)
    values = np.arange(1.0, 1 + len(columns))
    np.testing.assert_array_equal(placement.spread(values), slow_row(columns, layers, values, NAN))
    np.testing.assert_array_equal(placement.spread(values, absent=0), slow_row(columns, layers, values, 0))
    watched = [value for column, value in zip(columns, values, strict=True) if column >= 0]
    np.testing.assert_array_equal(placement.place(np.array(watched)), slow_row(columns, layers, values, NAN))
    assert placement.list_of(watched) == slow_row(columns, layers, values, None)
    assert placement.measured.tolist() == [column in columns for column in range(layers)]
    assert placement.select(values.tolist()) == watched
    assert [weight.item() for weight in placement.watched] == placement.positions.tolist()
