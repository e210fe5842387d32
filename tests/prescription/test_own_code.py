"""A change as a person would write it, shown only where it makes what the trial had."""

import lightning.pytorch
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradwatch.prescription.own_code import own_change
from gradwatch.prescription.problem import Problem
from gradwatch.prescription.treatments import TREATMENTS

X = torch.randn(40, 4)
BATCHES = list(zip(X.split(10), X.sum(1, keepdim=True).split(10), strict=True))


def treatments(*names):
    return tuple(next(each for each in TREATMENTS if each.remedy == name) for name in names)


def change(make_model, make_optimizer, *names):
    return own_change(Problem.of(make_model, make_optimizer, BATCHES, F.mse_loss), treatments(*names))


def descent(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def make_sigmoids():
    layers = [nn.Linear(4, 4), nn.Sigmoid()]
    layers += [torch.nn.Linear(4, 4), torch.nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(4, 1))


def make_probability():
    return nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 1), nn.Sigmoid())


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.squash, self.head = nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.squash(self.body(x)))


def changed_lines(diff):
    return [line for line in diff.splitlines() if line[:1] in "-+"]


def test_another_activation_function_is_a_diff_of_make_model():
    found = change(make_sigmoids, descent, "relu")
    assert found.startswith("test_own_code.py, from line ")
    assert changed_lines(found) == [
        "-    layers = [nn.Linear(4, 4), nn.Sigmoid()]",
        "-    layers += [torch.nn.Linear(4, 4), torch.nn.Sigmoid()]",
        "+    layers = [nn.Linear(4, 4), nn.ReLU()]",
        "+    layers += [torch.nn.Linear(4, 4), torch.nn.ReLU()]",
    ]
    assert "gradwatch.remedies" not in found


def test_what_a_diff_cannot_say_is_left_to_paste():
    found = change(make_sigmoids, descent, "selu", "residual")
    assert "+    layers = [nn.Linear(4, 4), nn.SELU()]" in found
    assert "from gradwatch.remedies import add_residuals_, init_lecun_" in found
    assert "replace_activations_" not in found


def test_a_class_and_a_function_within_a_function_are_edited_too():
    width = 4

    def make_local():
        return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))

    assert "+        return nn.Sequential(nn.Linear(4, width), nn.ELU(), nn.Linear(width, 1))" in change(
        make_local, descent, "elu"
    )
    assert "nn.ELU()" in change(Network, descent, "elu")


def test_a_learning_rate_is_a_diff_of_make_optimizer():
    assert changed_lines(change(make_sigmoids, descent, "lower-learning-rate")) == [
        "-    return torch.optim.SGD(parameters, lr=0.1)",
        "+    return torch.optim.SGD(parameters, lr=0.01)",
    ]


def test_the_function_at_the_output_keeps_its_range_so_no_diff_that_replaces_it_is_shown():
    assert change(make_probability, descent, "relu") == ""


RATE = 0.1


@pytest.mark.parametrize(
    ("make_model", "make_optimizer", "name"),
    [
        pytest.param(lambda: make_sigmoids(), descent, "relu", id="a lambda is not executed again"),
        pytest.param(eval("lambda: make_sigmoids()"), descent, "relu", id="no source"),
        pytest.param(make_sigmoids, lambda p: torch.optim.SGD(p, lr=RATE), "lower-learning-rate", id="no number"),
        pytest.param(make_sigmoids, descent, "batch-norm", id="a change that no diff can say"),
    ],
)
def test_where_none_can_be_had_there_is_no_diff(make_model, make_optimizer, name):
    assert change(make_model, make_optimizer, name) == ""


def test_a_rate_that_is_not_the_optimizers_is_left_alone():
    def scheduled(parameters):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        optimizer.param_groups[0]["lr"] = 0.02
        return optimizer

    assert change(make_sigmoids, scheduled, "lower-learning-rate") == ""


class Module(lightning.pytorch.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 1))

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.body(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ByEpoch(Module):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 10)]


class ByCycle(Module):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=300)]


@pytest.mark.parametrize("module", [Module, ByEpoch])
def test_another_rate_is_a_diff_of_configure_optimizers(module):
    found = own_change(Problem.of(module, None, BATCHES, None), treatments("lower-learning-rate"))
    (before, after) = changed_lines(found)
    assert before.endswith("lr=0.1)")
    assert after.endswith("lr=0.01)")


def test_a_cycle_sets_the_rate_so_no_diff_of_the_optimizer_is_shown():
    assert own_change(Problem.of(ByCycle, None, BATCHES, None), treatments("lower-learning-rate")) == ""


def test_another_activation_function_is_a_diff_of_a_lightning_module():
    found = own_change(Problem.of(Module, None, BATCHES, None), treatments("relu"))
    assert [line.count("nn.ReLU()") for line in changed_lines(found)] == [0, 1]
