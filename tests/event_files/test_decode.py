import numpy as np
import pytest
from tensorboard.util.tensor_util import make_tensor_proto

from gradwatch.event_files.decode import layer_rows_at_once, layer_rows_of, totals_at_once, totals_of
from tests.written import totals

SIGNALLING = np.array([0x7F800001], dtype="<u4").view("<f4")[0]


def rows(count, shape):
    return list(np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32))


@pytest.mark.parametrize(("name", "shape"), [("grad_norm", (3, 4)), ("update_ratio", (4,))])
def test_rows_decoded_at_once_are_those_decoded_one_by_one_and_can_be_written(name, shape):
    arrays = rows(5, shape)
    arrays[2][..., 1], arrays[3][..., 0] = np.inf, SIGNALLING
    tensors = [make_tensor_proto(each) for each in arrays]
    found = layer_rows_at_once(name, tensors, 4)
    np.testing.assert_array_equal(found, [layer_rows_of(name, each) for each in tensors])
    found[:] = 0


def test_totals_decoded_at_once_are_those_decoded_one_by_one():
    tensors = [make_tensor_proto(each) for each in (totals(), totals())]
    np.testing.assert_array_equal(totals_at_once(tensors), [totals_of(each) for each in tensors])


def test_rows_that_are_not_alike_are_left_to_be_decoded_one_by_one():
    alike = make_tensor_proto(rows(1, (3, 4))[0])
    cut = make_tensor_proto(rows(1, (3, 4))[0])
    cut.tensor_content = cut.tensor_content[:-3]
    one_value = make_tensor_proto(np.float32(1), shape=(3, 4))  # keeps its entries elsewhere
    for other in (cut, one_value, make_tensor_proto(rows(1, (3, 5))[0]), make_tensor_proto(np.ones((3, 4)))):
        assert layer_rows_at_once("grad_norm", [alike, other], 4) is None
    assert layer_rows_at_once("grad_norm", [alike], 5) is None
