import pytest
import torch

from gradwatch.measure.host_copy import HostCopy

CPU = torch.device("cpu")


def read(*vectors):
    return [part.tolist() for part in HostCopy(vectors, CPU).read()]


def test_vectors_of_all_lengths_arrive_in_their_order():
    assert read(torch.tensor([1.0, 2.0]), torch.tensor(3.0), torch.empty(0), torch.tensor([4.0])) == [
        [1, 2],
        [3],
        [],
        [4],
    ]


@pytest.mark.parametrize(
    "vector",
    [
        torch.tensor([0.1], dtype=torch.float64),
        torch.tensor([0.1], dtype=torch.float32),
        torch.tensor([65504.0], dtype=torch.float16),
        torch.tensor([3e38], dtype=torch.bfloat16),
        torch.tensor([2**24 + 1, -7]),
        torch.tensor([True, False]),
    ],
    ids=lambda vector: str(vector.dtype),
)
def test_every_dtype_arrives_exact_beside_others(vector):
    assert read(torch.ones(1), vector)[1] == vector.tolist()


def test_nan_and_inf_arrive():
    nan, inf, minus = read(torch.tensor([torch.nan, torch.inf, -torch.inf]))[0]
    assert nan != nan
    assert (inf, minus) == (torch.inf, -torch.inf)


def test_non_contiguous_vectors_arrive_in_order():
    assert read(torch.arange(6.0)[::2], torch.ones(()).expand(2)) == [[0, 2, 4], [1, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_written_after_sending_is_not_seen(dtype):
    vector = torch.ones(2, dtype=dtype)
    copy = HostCopy([vector], CPU)
    vector.zero_()
    assert copy.read()[0].tolist() == [1, 1]


def test_reading_twice_gives_the_same():
    copy = HostCopy([torch.tensor([1.0, 2.0])], CPU)
    assert copy.read()[0].tolist() == copy.read()[0].tolist() == [1, 2]
