"""One watched run of a treated model."""

import dataclasses
import math
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradwatch.prescription.problem import Problem
from gradwatch.prescription.treatments import TREATMENTS, Treatment
from gradwatch.prescription.trial import run
from gradwatch.prescription.trial_program import TrialProgram
from gradwatch.remedies import (
    Change,
    NotApplicableError,
)
from gradwatch.remedies.forward_pass import call_model


def inputs():
    return torch.randn(8, 6)


def sequential(activation=nn.Sigmoid):
    return nn.Sequential(
        nn.Linear(6, 5), activation(), nn.Linear(5, 5), activation(), nn.Linear(5, 5), activation(), nn.Linear(5, 3)
    )


def convolutional():
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 4, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


def transposed(dimensions=1):
    """A convolution down, two transposed ones up, a head."""
    down, up = getattr(nn, f"Conv{dimensions}d"), getattr(nn, f"ConvTranspose{dimensions}d")
    return nn.Sequential(
        nn.Unflatten(1, (1, *(1,) * (dimensions - 1), 6)), down(1, 4, 1), nn.Sigmoid(), up(4, 4, 1), nn.Sigmoid(),
        up(4, 2, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.second(F.relu(self.first(x)))))


MODELS = {"sequential": sequential, "convolutional": convolutional, "transposed": transposed, "custom": Custom}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("treatment", TREATMENTS, ids=lambda treatment: treatment.remedy + treatment.strength)
def test_a_treated_model_keeps_its_shapes_and_passes_gradients(model, treatment):
    batch = inputs(), torch.randint(3, (8,))
    try:
        program = TrialProgram(MODELS[model](), [batch] * 3, F.cross_entropy, [treatment])
    except NotApplicableError:
        return
    output = call_model(program.model, program.batches[0][0])
    assert output.shape == (len(program.batches[0][0]), 3)
    output.square().sum().backward()
    assert any(parameter.grad is not None for parameter in program.model.parameters())


def learn(steps=60, *names, strength=""):
    chosen = tuple(t for t in TREATMENTS if t.remedy in names and t.strength in ("", strength))
    return run(identity(), chosen, 0, steps)


def identity():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(320, 6, generator=generator)
    batches = list(zip(x.split(32), x.split(32), strict=True))
    return Problem.of(
        lambda: nn.Linear(6, 6), lambda p: torch.optim.SGD(p, lr=0.05), batches, lambda out, y: F.mse_loss(out, y)
    )


def of_batches(batches):
    return Problem.of(lambda: nn.Linear(6, 6), lambda p: torch.optim.SGD(p, lr=0.05), batches, F.mse_loss)


def test_held_out_batches_lose_rows_that_are_not_finite_and_never_wild_ones():
    batches = [(torch.randn(8, 6), torch.randn(8, 6)) for _ in range(10)]
    for x, y in batches:
        x[2, 3], y[4, 1], x[5, 0] = math.nan, math.inf, 1e9
    problem = of_batches(batches)
    rows = [0, 1, 3, 5, 6, 7]
    expected = [(x[rows], y[rows]) for x, y in (batches[4], batches[9])]
    torch.testing.assert_close(problem.held_out, expected, rtol=0, atol=0)
    assert [x is batches[number][0] for (x, _), number in zip(problem.training, (0, 1, 2, 3, 5, 6, 7, 8), strict=True)]


def test_held_out_batches_go_whole_where_rows_cannot_be_told():
    batches = [((torch.randn(8, 6), 1.0), torch.randn(8, 6)) for _ in range(10)]
    batches[4][0][0][2, 3] = math.nan
    assert [inputs is batches[9][0] for inputs, _ in of_batches(batches).held_out] == [True]
    numbers = [(number, 0) for number in range(10)]
    assert of_batches(numbers).held_out == [(4, 0), (9, 0)]


@pytest.mark.parametrize(("count", "named"), [(5, "numbers 4"), (10, "numbers 4, 9"), (30, "numbers 4, 9, 14, 3 more")])
def test_held_out_batches_of_which_nothing_is_left_are_named(count, named):
    with pytest.raises(ValueError, match=rf"^batches: NaN or Inf leaves nothing of those held out \({named}\), so"):
        of_batches([(torch.full((8, 6), math.nan), torch.randn(8, 6))] * count)


@pytest.mark.parametrize("remedy", ["safe-log", "safe-sqrt", "safe-division", "masked-softmax"])
def test_a_safe_form_of_what_nothing_calls_does_not_apply(remedy):
    (safe,) = (treatment for treatment in TREATMENTS if treatment.remedy == remedy)
    with pytest.raises(NotApplicableError, match="neither the model nor its loss calls"):
        run(identity(), (safe,), 0, 5)


def test_a_treated_model_that_cannot_be_evaluated_says_so():
    lines = """
def refuse(module, _):
    if not module.training:
        raise ZeroDivisionError("not in eval mode")

model.register_forward_pre_hook(refuse)"""
    broken = Treatment("he", Change("before the optimizer is made", lines))
    with pytest.raises(ZeroDivisionError, match="not in eval mode"):
        run(identity(), (broken,), 0, 5)


def test_a_run_is_the_plain_loop():
    torch.manual_seed(0)
    model = nn.Linear(6, 6)
    x = torch.randn(320, 6, generator=torch.Generator().manual_seed(1)).split(32)
    training = [batch for number, batch in enumerate(x) if number not in (4, 9)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(60):
        optimizer.zero_grad()
        F.mse_loss(model(training[step % 8]), training[step % 8]).backward()
        optimizer.step()
    held_out = [F.mse_loss(model(x[number]), x[number]).item() for number in (4, 9)]
    assert learn(60).after == sum(held_out) / 2


def test_settings_act():
    plain = learn(60).after
    assert learn(60, "lower-learning-rate", strength="-0.1").after > plain
    assert learn(60, "higher-learning-rate", strength="-10").after < plain
    assert learn(60, "weight-regularisation").after != plain
    assert learn(60, "weight-clipping").after > plain
    assert plain < learn(60, "warm-up").after < learn(30).after


@pytest.mark.usefixtures("clock")
def test_a_run_tells_what_it_took_beside_its_loop():
    def make_model():
        time.sleep(0.1)
        return nn.Linear(6, 6)

    problem = dataclasses.replace(identity(), make_model=make_model)
    around = [run(problem, (), seed, 5).seconds_around for seed in range(2)]  # at first it is made twice
    assert all(0.1 <= seconds < 0.19 for seconds in around)


def test_an_optimizer_that_evaluates_the_loss_by_itself_trains():
    problem = of_batches(identity().training)
    found = run(dataclasses.replace(problem, make_optimizer=lambda p: torch.optim.LBFGS(p, lr=0.5)), (), 0, 10)
    assert found.steps == 10
    assert found.after < 0.1 * found.before


def test_a_run_is_the_same_twice():
    first, second = learn(20), learn(20)
    assert (first.before, first.after) == (second.before, second.after)
    assert first.before > first.after


def in_half_precision(make_optimizer):
    batches = [(x.half(), y.half()) for x, y in identity().training]
    return Problem.of(
        lambda: nn.Linear(6, 6).half(), make_optimizer, batches, lambda out, y: F.mse_loss(out.float(), y.float())
    )


def test_a_model_in_half_precision_learns_with_a_scaled_loss_as_in_float32():
    (scaling,) = (treatment for treatment in TREATMENTS if treatment.remedy == "loss-scaling")
    found = run(in_half_precision(lambda p: torch.optim.SGD(p, lr=0.05)), (scaling,), 0, 60)
    exact = run(of_batches(identity().training), (), 0, 60)
    assert found.after == pytest.approx(exact.after, rel=0.01)
    assert not found.findings
    with pytest.raises(NotApplicableError, match="LBFGS evaluates the loss by itself"):
        run(in_half_precision(lambda p: torch.optim.LBFGS(p, lr=0.5)), (scaling,), 0, 10)
