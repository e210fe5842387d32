"""An update that makes NaN of finite gradients: the optimizer is named, with the reason, in one finding."""

import math

import pytest
import torch
from torch import nn

import gradwatch
from gradwatch.remedies import init_nonfinite_


class Trusting(torch.optim.Optimizer):
    """Moves each weight by a share of its norm: it divides by the norm of the gradient."""

    def __init__(self, parameters, lr=0.01):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight -= group["lr"] * weight.norm() * weight.grad / weight.grad.norm()


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16)).to(dtype)


def findings_of(model, *optimizers, steps=12, before_step=lambda step: None):
    with gradwatch.watch(model, optimizers) as watcher:
        for step in range(steps):
            before_step(step)
            x = torch.randn(32, 16).to(next(model.parameters()).dtype)
            loss = (model(x).float() - x.float().flip(1)).square().mean()
            watcher.observe_loss(loss)
            model.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    return watcher.findings


def names_of(finding):
    return [advice.name for advice in finding.remedies]


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam])
def test_an_epsilon_that_float16_does_not_hold_is_the_reason(make):
    model = network(torch.float16)
    (finding,) = findings_of(model, make(model.parameters(), lr=1e-4))
    assert (finding.kind, finding.step) == ("nonfinite", 1)
    assert f"the update of step 0 by {make.__name__} made" in finding.cause
    assert "in float16 its eps of 1e-08 is 0" in finding.cause
    assert "diverged" not in finding.cause
    assert names_of(finding)[:3] == ["optimizer-epsilon", "float32-weights", "bfloat16"]


def test_what_is_advised_first_cures_it():
    model = network(torch.float16)
    assert findings_of(model, torch.optim.Adam(model.parameters(), lr=1e-4, eps=1e-4)) == []


def begun_at_zero():
    model = network()
    nn.init.zeros_(model[2].weight)
    return model


@pytest.mark.parametrize("steps_first", [True, False])
def test_a_norm_of_a_gradient_that_is_zero_is_the_reason_and_one_finding_tells_it(steps_first):
    model = begun_at_zero()
    trusting = Trusting([model[0].weight])
    others = torch.optim.SGD([model[0].bias, model[2].weight, model[2].bias], lr=0.01)
    (finding,) = findings_of(model, *((trusting, others) if steps_first else (others, trusting)))
    assert "by Trusting made 512 entries of 0.weight NaN or Inf, of a gradient that was 0" in finding.cause
    assert names_of(finding)[0] == "safe-update"


def test_the_finding_names_the_weight_that_the_update_made_nan():
    model = begun_at_zero()
    (finding,) = findings_of(model, Trusting(model.parameters()))
    assert (finding.layer, finding.step) == ("0.weight", 1)


def test_a_rate_that_is_no_number_is_the_reason():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def spoil(step):
        optimizer.param_groups[0]["lr"] = math.nan if step == 5 else 0.01

    (finding,) = findings_of(model, optimizer, before_step=spoil)
    assert "the update of step 5 by SGD made" in finding.cause
    assert "its learning rate was nan" in finding.cause
    assert names_of(finding) == ["finite-rate"]


def test_an_optimizer_of_torch_is_not_accused_of_what_an_assignment_did():
    model = network()

    def assign(step):
        if step == 5:
            model[0].weight.data[0, 0] = math.nan

    (finding,) = findings_of(model, torch.optim.Adam(model.parameters()), before_step=assign)
    assert "the update of step" not in finding.cause
    assert "0.weight already held 1 entry that is NaN or Inf" in finding.cause
    assert "something other than Adam wrote NaN or Inf into 1 entry of 0.weight since step 4" in finding.cause
    assert names_of(finding) == ["initialise"]
    assert finding.remedies[0].text.startswith("restore 0.weight from the last checkpoint")


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_what_is_advised_first_mends_a_weight_that_was_overwritten(make):
    model = network()
    optimizer = make(model.parameters(), lr=1e-3)

    def assign(step):
        if step == 5:
            model[2].weight.data[3] = math.inf

    with gradwatch.watch(model, optimizer, on_nonfinite="skip") as watcher:
        for step in range(12):
            assign(step)
            x = torch.randn(32, 16)
            loss = (model(x) - x.flip(1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step == 5:
                init_nonfinite_(model)
    (finding,) = watcher.findings
    assert names_of(finding) == ["initialise"]
    assert (finding.step, finding.last_step) == (5, 5)
    assert all(bool(each.isfinite().all()) for each in model.parameters())


def test_a_weight_of_which_a_part_is_used_may_have_been_sick_for_long():
    """No one knows when a row of a table turned NaN that no step had read before."""

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.head = nn.Parameter(torch.randn(8, 16)), nn.Linear(16, 16)
            self.length = 4

        def forward(self, x):
            return self.head(x + self.rows[: self.length].mean(0))

    torch.manual_seed(0)
    model = Table()
    model.rows.data[7] = math.nan

    def lengthen(step):
        model.length = 8 if step == 5 else 4

    (finding,) = findings_of(model, torch.optim.SGD(model.parameters(), lr=0.01), steps=6, before_step=lengthen)
    assert "something other" not in finding.cause
    assert finding.remedies[0].text.startswith("restore rows from the last checkpoint")


def test_a_beta_that_a_schedule_takes_to_one_is_the_reason():
    model = network()
    model[0].weight.register_hook(lambda gradient: gradient * torch.arange(16).sign())  # a column of zeros: 0 ÷ 0
    optimizer = torch.optim.Adam(model.parameters())

    def spoil(step):
        if step == 5:
            optimizer.param_groups[0]["betas"] = (0.9, 1.0)

    (finding,) = findings_of(model, optimizer, before_step=spoil)
    assert "the update of step 5 by Adam made" in finding.cause
    assert "its betas are 0.9 and 1" in finding.cause


@pytest.mark.parametrize("rate", [1e30, 1e12])
def test_an_update_that_overflows_is_not_laid_at_strangers(rate):
    model = network()
    found = findings_of(model, torch.optim.SGD(model.parameters(), lr=rate))
    assert found
    assert not any("something other" in finding.cause for finding in found)


def test_a_divergence_is_not_laid_at_the_optimizers_door():
    model = network()
    found = findings_of(model, torch.optim.SGD(model.parameters(), lr=1e3), steps=30)
    assert not any("the update of step" in finding.cause for finding in found)


def test_two_optimizers_with_diseases_of_their_own_have_a_finding_each():
    torch.manual_seed(0)
    parts = nn.ModuleDict({"a": nn.Linear(4, 1), "b": nn.Linear(4, 1)})
    optimizers = {name: torch.optim.SGD(part.parameters(), lr=0.1) for name, part in parts.items()}
    with gradwatch.watch(parts, list(optimizers.values())) as watcher:
        for step in range(6):
            for name, part in parts.items():
                optimizers[name].zero_grad()
                sick = math.nan if step >= {"a": 2, "b": 4}[name] else 1.0
                (part(torch.randn(8, 4)) * sick).sum().backward()
                optimizers[name].step()
    assert sorted(finding.layer.partition(".")[0] for finding in watcher.findings) == ["a", "b"]
