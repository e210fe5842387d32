"""A loader that goes back within a running loop: the same batches, in the same order."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from gradwatch import RewindableLoader

DATA = TensorDataset(torch.arange(12.0))


def loaders():
    torch.manual_seed(0)
    return {
        "a list": RewindableLoader([[torch.tensor([float(each)])] for each in range(6)]),
        "shuffled": RewindableLoader(DataLoader(DATA, batch_size=2, shuffle=True)),
        "with a generator": RewindableLoader(
            DataLoader(DATA, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(1))
        ),
    }


def numbers(batch):
    return batch[0].tolist()


def flat(batches):
    return sorted(number for batch in batches for number in batch)


@pytest.mark.parametrize("name", loaders())
def test_a_running_loop_goes_back_and_sees_the_same_batches(name):
    loader = loaders()[name]
    seen, state = [], None
    for batch in loader:
        seen.append(numbers(batch))
        torch.rand(3)  # the model draws random numbers in between
        if len(seen) == 2:
            state = loader.state_dict()
        if len(seen) == 4:
            before = torch.get_rng_state()
            loader.load_state_dict(state)
    assert len(seen) == 8
    assert seen[4:6] == seen[2:4]
    assert flat([*seen[:4], *seen[6:]]) == flat(map(numbers, loaders()[name]))
    assert len(loader) == 6
    assert before is not None


def test_going_back_leaves_the_random_state_alone():
    loader = loaders()["shuffled"]
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    next(batches)
    before = torch.get_rng_state()
    loader.load_state_dict(state)
    next(batches)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_are_left_out_where_asked_and_counted():
    loader = RewindableLoader(list(range(8)))
    batches = iter(loader)
    assert [next(batches), next(batches)] == [0, 1]
    loader.leave_out(2, after=1)
    assert list(batches) == [2, 5, 6, 7]
    assert loader.drawn == 8
    assert list(loader) == list(range(8))  # the next epoch has them all


def test_more_batches_than_there_are_end_the_epoch():
    loader = RewindableLoader([1, 2, 3])
    batches = iter(loader)
    next(batches)
    loader.leave_out(10)
    assert list(batches) == []


def test_a_resumed_program_goes_on_within_the_epoch():
    first = loaders()["shuffled"]
    batches = iter(first)
    next(batches)
    state = first.state_dict()
    rest = [numbers(batch) for batch in batches]
    second = RewindableLoader(DataLoader(DATA, batch_size=2, shuffle=True))
    second.load_state_dict(state)
    assert [numbers(batch) for batch in second] == rest


def test_a_state_before_the_first_epoch_begins_it_anew():
    loader = RewindableLoader([1, 2])
    state = loader.state_dict()
    assert list(loader) == [1, 2]
    loader.load_state_dict(state)
    assert list(loader) == [1, 2]
