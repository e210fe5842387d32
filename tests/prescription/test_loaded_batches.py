import itertools
import random
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from gradwatch.prescription import loaded_batches, problem, rate_schedule, trial
from gradwatch.prescription.loaded_batches import ENOUGH, FEWEST, load


def counted(seen, size=1):
    for number in itertools.count():
        seen.append(number)
        yield torch.full((size,), float(number)), torch.tensor([number])


def test_of_a_loader_without_an_end_as_many_are_taken_as_a_trial_can_use():
    seen = []
    found = load(counted(seen))
    assert seen == list(range(ENOUGH))
    assert [int(y) for _, y in found.batches] == seen
    assert found.per_epoch == float("inf")


def test_enough_is_what_trials_train_on_and_what_is_held_out():
    assert trial.LONGEST == rate_schedule.LONGEST
    assert trial.LONGEST + problem.MOST == ENOUGH


def test_large_batches_and_slow_ones_are_fewer(monkeypatch):
    monkeypatch.setattr(loaded_batches, "LARGEST", 4 * 8 * 100)
    assert len(load(counted([], size=7)).batches) == 89  # of 28 + 8 bytes each
    assert len(load(counted([]), until=time.perf_counter()).batches) == FEWEST


def test_all_of_a_sequence_are_taken():
    assert len(load([(1, 2)] * 1000, until=0.0).batches) == 1000


def test_shuffling_moves_no_generator():
    loader = DataLoader(TensorDataset(torch.arange(64.0)), batch_size=4, shuffle=True)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    found = load(loader)
    assert found.per_epoch == len(found.batches) == 16
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert before[2] == random.getstate()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (TensorDataset(torch.ones(3)), r"found a dataset \(TensorDataset\).* Write torch.utils.data.DataLoader\("),
        (torch.ones(3, 2), "a DataLoader or a LightningDataModule, found Tensor"),
        ({"x": torch.ones(2)}, "found dict"),
        (None, "found NoneType"),
        (3, "found int"),
    ],
)
def test_what_gives_no_batches_is_refused(given, said):
    with pytest.raises(TypeError, match=f"^batches: expected a .*{said}"):
        load(given)
