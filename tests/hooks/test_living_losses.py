"""Losses that were computed and that no backward pass began at."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradwatch.hooks.living_losses import columns_of_living_losses


def columns_of(loss_of, since=0, wanted=(0, 1)):
    """Return the columns that are found while what ``loss_of`` returns is alive."""
    torch.manual_seed(0)
    trunk, head = nn.Linear(4, 4), nn.Linear(4, 3)
    table = {id(each): column for column, each in enumerate([*head.parameters(), *trunk.parameters()])}
    alive = loss_of(head(trunk(torch.randn(5, 4)).relu()))
    found, latest = columns_of_living_losses(lambda tensor: table.get(id(tensor)), set(wanted), since)
    return found, latest, alive


LOSSES = {
    "cross-entropy": lambda output: F.cross_entropy(output, torch.zeros(5, dtype=torch.long)),
    "squares": lambda output: F.mse_loss(output, torch.zeros(5, 3)),
    "squares by hand": lambda output: ((output - 1) ** 2).mean(),
    "distances": lambda output: (output - 1).abs().sum(),
    "binary": lambda output: F.binary_cross_entropy_with_logits(output, torch.zeros(5, 3)),
    "weighted": lambda output: 0.3 * F.l1_loss(output, torch.zeros(5, 3)) + 1,
    "likelihood": lambda output: -torch.distributions.Normal(output, 1.0).log_prob(torch.zeros(5, 3)).mean(),
}

NUMBERS = {
    "a mean": lambda output: output.mean(),
    "a value": lambda output: output[0, 0],
    "without a graph": lambda output: F.mse_loss(output, torch.zeros(5, 3)).detach(),
    "a number": lambda output: F.mse_loss(output, torch.zeros(5, 3)).item(),
    "of each item": lambda output: F.cross_entropy(output, torch.zeros(5, dtype=torch.long), reduction="none"),
    "gone": lambda output: F.mse_loss(output, torch.zeros(5, 3)) is None,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_living_loss_is_found(name):
    found, _, _ = columns_of(LOSSES[name])
    assert found == {0, 1}


@pytest.mark.parametrize("name", NUMBERS)
def test_other_numbers_are_no_losses(name):
    found, _, _ = columns_of(NUMBERS[name])
    assert found == set()


def test_only_what_is_wanted_is_found():
    found, _, _ = columns_of(LOSSES["squares"], wanted=(1, 7))
    assert found == {1}


def test_a_loss_of_the_look_before_is_not_new():
    _, latest, alive = columns_of(LOSSES["squares"])
    assert alive.requires_grad
    found, _, _ = columns_of(NUMBERS["a value"], since=latest)
    assert found == set()
    found, _, _ = columns_of(LOSSES["squares"], since=latest)
    assert found == {0, 1}
