"""Each remedy does to a module that computes its own loss what it does to the same model in a plain loop."""

import functools

import lightning.pytorch
import pytest
import torch
from torch import nn

from gradwatch.prescription.problem import Problem
from gradwatch.prescription.treatments import TREATMENTS
from gradwatch.prescription.trial import run
from gradwatch.remedies import NotApplicableError


def make_body():
    return nn.Sequential(
        nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Sigmoid(),
        nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 3),
    )  # fmt: skip


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = make_body()

    def forward(self, x):
        return self.body(x)


class Step(lightning.pytorch.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = make_body()

    def training_step(self, batch, batch_idx):
        return loss_fn(self.body(batch[0]), batch[1])

    def configure_optimizers(self):
        return descent(self.parameters())


class OwnLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = make_body()

    def forward(self, input_values, labels):
        scores = self.body(input_values)
        return {"logits": scores, "loss": loss_fn(scores, labels)}


def descent(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def loss_fn(scores, y):
    return -(scores.softmax(1) + 1e-6).log().gather(1, y[:, None]).mean() / torch.ones(()).sqrt()


def batches():
    generator = torch.Generator().manual_seed(2)
    made = [
        (5 * torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)) for _ in range(8)
    ]
    made[1][0][3, 2] = torch.nan
    return made


def named(pairs):
    return [{"input_values": x, "labels": y} for x, y in pairs]


PROBLEMS = {
    "plain": lambda: Problem.of(Plain, descent, batches(), loss_fn),
    "lightning": lambda: Problem.of(Step, None, batches(), None),
    "own loss": lambda: Problem.of(OwnLoss, descent, named(batches()), None),
}


NEEDS_OUTPUTS = {
    "gradient-penalty": "the inputs are not a tensor of real numbers",
    "output-probabilities": "expected outputs of shape (N,) or (N, C)",
}
"""Remedies that look at the outputs, and are given the loss: why they do not apply."""


@functools.cache
def outcome(name, treatment):
    """Return (held-out losses before and after four updates, what was not done and why)."""
    try:
        trial = run(PROBLEMS[name](), (treatment,), 0, 4)
    except NotApplicableError as error:
        return (), str(error)
    return (trial.before, trial.after), trial.not_done


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lightning", "own loss"])
@pytest.mark.parametrize("treatment", TREATMENTS, ids=lambda treatment: treatment.remedy + treatment.strength)
def test_a_remedy_does_the_same(name, treatment):
    losses, reason = outcome(name, treatment)
    if treatment.remedy in NEEDS_OUTPUTS:
        assert (losses, reason) == ((), NEEDS_OUTPUTS[treatment.remedy])
    else:
        expected, why = outcome("plain", treatment)
        assert losses == pytest.approx(expected, nan_ok=True, rel=1e-5)
        assert reason == why
