import math
import random
import re
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradwatch
from gradwatch.prescription import ranking
from gradwatch.prescription.trial import Run


def descent(rate):
    return lambda parameters: torch.optim.SGD(parameters, lr=rate)


def classes(count=640, features=16, batch=64):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(count, features, generator=generator)
    y = (x @ torch.randn(features, 4, generator=generator)).argmax(1)
    return list(zip(x.split(batch), y.split(batch), strict=True))


def stack(depth, activation, width=24):
    layers = [nn.Linear(16, width), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 4))


class Functional(nn.Module):
    """Five layers whose activation functions are calls inside ``forward``."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 24), *(nn.Linear(24, 24) for _ in range(6))])
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return self.head(x)


class LongMemory(nn.Module):
    """A vanilla RNN whose recurrent weights treble what they carry."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.RNN(2, 16, nonlinearity="relu", batch_first=True), nn.Linear(16, 1)
        nn.init.orthogonal_(self.cell.weight_hh_l0, 1.6)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


def sequences():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(320, 12, 2, generator=generator)
    y = x[..., :1].mean(1)
    return list(zip(x.split(32), y.split(32), strict=True))


@pytest.mark.parametrize("make_model", [lambda: stack(8, nn.Sigmoid), Functional], ids=["modules", "functions"])
def test_deep_sigmoids_are_cured(make_model):
    found = gradwatch.prescribe(make_model, descent(0.1), classes(), F.cross_entropy, seeds=1, budget_seconds=8)
    assert found.best is not None, str(found)
    assert found.best is found.ranking[0]
    assert {finding.kind for finding in found.findings} == {"vanishing"}
    assert found.best.loss <= 0.9 * found.best.baseline_loss
    assert found.best.code in str(found)
    assert "vanishing is cured by" in found.note
    assert 0 < found.controls["random choice"][0] < 1
    assert found.controls["do nothing"] == (0.0, pytest.approx(found.best.baseline_loss))


def test_an_exploding_recurrent_network_is_cured():
    found = gradwatch.prescribe(LongMemory, descent(0.05), sequences(), F.mse_loss, seeds=2, budget_seconds=7)
    assert found.best is not None, str(found)
    assert not any(finding.severity == "error" for finding in found.best.findings)


def test_a_loss_that_turns_nan_is_cured():
    def likelihood(output, y):
        return -F.relu(output).log().gather(1, y[:, None]).mean() + output.square().mean()

    found = gradwatch.prescribe(
        lambda: stack(1, nn.ReLU), descent(0.05), classes(), likelihood, seeds=1, budget_seconds=5
    )
    assert found.ranking, str(found)
    assert any(trial.remedy == "safe-log" and not trial.findings for trial in found.ranking)


class Gaussian(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x):
        mean, log_deviation = self.body(x).split(1, dim=1)
        return mean, log_deviation.exp()


def large_sums():
    x = torch.randn(640, 8, generator=torch.Generator().manual_seed(5))
    return list(zip(x.split(32), (100 * x.sum(1, keepdim=True)).split(32), strict=True))


def test_a_loss_that_raises_where_it_meets_nan_is_a_loss_that_is_not_finite():
    def likelihood(output, y):
        return -torch.distributions.Normal(*output, validate_args=True).log_prob(y).mean()

    found = gradwatch.prescribe(Gaussian, descent(0.05), large_sums(), likelihood, seeds=1, budget_seconds=5)
    assert {"nonfinite"} <= {finding.kind for finding in found.findings}
    assert math.isnan(found.controls["do nothing"][1])
    assert found.ranking, str(found)
    assert not any("raised" in why for name, why in found.not_applicable.items() if "learning-rate" in name)


def test_a_batch_that_the_untrained_model_cannot_take_is_no_loss():
    batches = classes()
    batches[3] = (batches[3][0][:, :15], batches[3][1])
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        gradwatch.prescribe(lambda: stack(1, nn.ReLU), descent(0.1), batches, F.cross_entropy, budget_seconds=3)


def test_a_broken_row_in_every_batch_is_cured_by_leaving_it_out():
    batches = classes()
    for x, _ in batches:
        x[7, 3] = math.nan
    found = gradwatch.prescribe(
        lambda: stack(1, nn.ReLU), descent(0.1), batches, F.cross_entropy, seeds=1, budget_seconds=4
    )
    assert found.best is not None, str(found)
    assert "clean-data" in found.best.remedy
    assert any(trial.remedy == "clean-data" and trial.cured for trial in found.ranking)


def test_large_targets_that_stay_unscaled_are_told():
    batches = [(50 * x, y) for x, y in large_sums()]
    found = gradwatch.prescribe(
        Gaussian, descent(0.05), batches, lambda output, y: F.mse_loss(output[0], y), seeds=1, budget_seconds=4
    )
    assert any(trial.remedy == "scaled-inputs" for trial in found.ranking), str(found)
    assert found.not_applicable["scaled-inputs"].startswith("only the inputs were scaled; targets have a deviation")
    assert "Not tried, or not in full:" in str(found)


def test_where_nothing_is_sick_nothing_is_tried():
    found = gradwatch.prescribe(lambda: stack(2, nn.ReLU), descent(0.1), classes(), F.cross_entropy, seeds=1)
    assert (found.ranking, found.best, found.findings) == ([], None, ())
    assert found.note.startswith("Nothing was sick")


def test_where_nothing_helps_it_is_said():
    def make_model():
        return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 1), nn.Softmax(1))

    def loss_fn(output, y):
        return F.binary_cross_entropy(output, (y > 1).float()[:, None])

    found = gradwatch.prescribe(make_model, descent(0.1), classes(), loss_fn, seeds=1, budget_seconds=3)
    assert found.best is None
    assert found.ranking
    assert found.note.startswith("Nothing helped")


class Slow(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.body, self.seconds = stack(8, nn.Sigmoid), seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return self.body(x)


def test_the_budget_is_kept():
    begin = time.perf_counter()
    found = gradwatch.prescribe(lambda: Slow(0.01), descent(0.1), classes(), F.cross_entropy, budget_seconds=3)
    assert time.perf_counter() - begin < 3.5
    assert found.ranking, str(found)
    assert found.steps >= 30


def test_a_budget_that_is_too_small_is_called_so():
    begin = time.perf_counter()
    found = gradwatch.prescribe(lambda: Slow(0.2), descent(0.1), classes(), F.cross_entropy, budget_seconds=2)
    assert time.perf_counter() - begin < 2.7
    assert (found.ranking, found.best) == ([], None)
    assert found.note.startswith("budget_seconds=2 was too small")


def test_the_budget_is_kept_where_the_held_out_batches_take_long():
    class SlowToJudge(Slow):
        def forward(self, x):
            time.sleep(0 if self.training else self.seconds)
            return self.body(x)

    begin = time.perf_counter()
    gradwatch.prescribe(lambda: SlowToJudge(1.0), descent(0.1), classes(), F.cross_entropy, budget_seconds=1.5)
    assert time.perf_counter() - begin < 3.5


def test_what_is_the_users_stays_as_it_was():
    model = stack(8, nn.Sigmoid)
    batches = classes()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = [(x.clone(), y.clone()) for x, y in batches]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    gradwatch.prescribe(lambda: model, descent(0.1), batches, F.cross_entropy, seeds=1, budget_seconds=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model._forward_hooks
    assert model.training
    assert all(torch.equal(x, a) and torch.equal(y, b) for (x, y), (a, b) in zip(batches, given, strict=True))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_a_model_that_works_in_place_spoils_no_batch():
    batches = [(x.abs(), y) for x, y in classes()]
    given = [x.clone() for x, _ in batches]

    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = stack(8, nn.Sigmoid)

        def forward(self, x):
            return self.body(x.mul_(2.0))

    gradwatch.prescribe(InPlace, descent(0.1), batches, F.cross_entropy, seeds=1, budget_seconds=2)
    assert all(torch.equal(x, before) for (x, _), before in zip(batches, given, strict=True))


def test_batches_may_be_mappings_and_targets_any_structure():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = stack(8, nn.Sigmoid)

        def forward(self, features, scale=1.0):
            return {"logits": self.body(features * scale)}

    batches = [{"inputs": {"features": x}, "targets": {"of": (y, 1.0)}} for x, y in classes()]

    def loss_fn(output, targets):
        y, weight = targets["of"]
        return weight * F.cross_entropy(output["logits"], y)

    found = gradwatch.prescribe(Named, descent(0.1), batches, loss_fn, seeds=1, budget_seconds=3)
    assert found.ranking, str(found)


def test_runs_to_compare_are_written(tmp_path):
    gradwatch.prescribe(
        lambda: stack(8, nn.Sigmoid),
        descent(0.1),
        classes(),
        F.cross_entropy,
        seeds=1,
        budget_seconds=3,
        log_dir=tmp_path,
    )
    runs = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("events.out.tfevents*")}
    assert {run.split("/")[0] for run in runs} > {"do-nothing"}


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"make_model": nn.Linear(2, 2)}, TypeError, "make_model: expected a function that makes a model"),
        ({"make_model": lambda: 3}, TypeError, "make_model: expected it to return an nn.Module, found int"),
        ({"make_optimizer": 3}, TypeError, "make_optimizer: expected something to call, found int. Write lambda"),
        ({"make_optimizer": lambda parameters: None}, TypeError, "make_optimizer: expected a torch.optim.Optimizer"),
        ({"batches": iter(())}, TypeError, "batches: expected a sequence"),
        ({"batches": classes()[:1]}, ValueError, "batches: expected two or more"),
        ({"batches": [torch.ones(2)] * 4}, TypeError, r"batches\[0\]: expected \(inputs, targets\)"),
        (
            {"batches": [(torch.full((4, 16), math.nan), torch.zeros(4))] * 5},
            ValueError,
            r"nothing of those held out \(numbers 4",
        ),
        ({"loss_fn": lambda output, y: output}, TypeError, r"loss_fn: expected it to return a scalar tensor"),
        (
            {"loss_fn": lambda output, y: F.mse_loss(output, y)},
            RuntimeError,
            "the untreated model could not be trained",
        ),
        ({"seeds": 0}, ValueError, "seeds=0: expected a whole number, 1 or more"),
        ({"budget_seconds": -1}, ValueError, "budget_seconds=-1: expected a finite number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_make_no_sense_are_refused(change, error, said):
    arguments = {
        "make_model": lambda: stack(1, nn.ReLU),
        "make_optimizer": descent(0.1),
        "batches": classes(),
        "loss_fn": F.cross_entropy,
        **change,
    }
    with pytest.raises(error, match=said):
        gradwatch.prescribe(**arguments)


def finding(kind, severity="error"):
    return gradwatch.Finding(kind, severity, "w", ("w",), 0, 0, 0, 1.0, 1.0, "", "")


def a_run(after, *findings, before=1.0, seed=0):
    return Run(seed, 300, before, after, findings, 1e-3, True)


@pytest.mark.parametrize(
    ("treated", "untreated", "cured"),
    [
        (a_run(0.5), a_run(1.0, finding("vanishing")), True),
        (a_run(0.95), a_run(1.0, finding("vanishing")), False),  # not by a tenth
        (a_run(0.5, finding("vanishing")), a_run(1.0, finding("vanishing")), False),  # still there
        (a_run(0.5, finding("nonfinite")), a_run(1.0, finding("vanishing")), False),  # another error came
        (a_run(0.5, finding("saturated", "warning")), a_run(1.0, finding("vanishing")), True),
        (a_run(0.95), a_run(math.nan, finding("nonfinite")), False),  # learnt nothing
        (a_run(0.5), a_run(math.nan, finding("nonfinite")), True),
        (a_run(0.5), a_run(math.inf, finding("nonfinite"), before=math.nan), True),
        (a_run(math.nan), a_run(math.nan, finding("vanishing")), False),
        (a_run(-2.0), a_run(-1.0, finding("vanishing")), True),  # losses below zero
        (a_run(-1.05), a_run(-1.0, finding("vanishing")), False),
    ],
)
def test_what_counts_as_a_cure(treated, untreated, cured):
    kind = untreated.findings[0].kind
    assert ranking.is_cured(treated, untreated, kind) == cured


def test_the_table_names_the_controls():
    found = gradwatch.prescribe(
        lambda: nn.Linear(16, 4), descent(3e3), classes(), F.cross_entropy, seeds=1, budget_seconds=3
    )
    assert re.search(r"do nothing +0%", str(found))
    assert re.search(r"random choice +\d+%", str(found))
    assert found.ranking == sorted(found.ranking, key=lambda trial: not trial.cured)
