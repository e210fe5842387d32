"""Mistakes in the order of a loop's calls are found, and loops that only look like them are not."""

import itertools

import pytest
import torch
from torch import nn

import gradwatch

UPDATES = 40


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))


def loss_of(model):
    x = torch.randn(16, 6)
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


def by_data(optimizer):
    for parameter in itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups):
        if parameter.grad is not None:
            parameter.grad.data.zero_()  # torch counts no change


def by_hand(optimizer):
    for parameter in itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups):
        parameter.grad = None


CLEARING = {
    "to none": lambda optimizer: optimizer.zero_grad(),
    "to zero": lambda optimizer: optimizer.zero_grad(set_to_none=False),
    "by hand": by_hand,
    "by data": by_data,
}


def findings_of(clear, passes=1, where="after", rate=1e-3, clips=False, make=torch.optim.SGD, updates=UPDATES):
    model = net()
    optimizer = make(model.parameters(), lr=rate)
    with gradwatch.watch(model, optimizer) as watcher:
        for _ in range(updates):
            for _ in range(passes):
                loss_of(model).backward()
            if clips:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if where == "between":
                clear(optimizer)
            optimizer.step()
            if where == "after":
                clear(optimizer)
    assert not watcher._loop.guard._faults
    return watcher.findings


@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_gradients_that_are_never_cleared_are_the_cause(make, passes, clips):
    finding = findings_of(lambda optimizer: None, passes, clips=clips, make=make)[0]
    assert (finding.kind, finding.layer, finding.raised_step) == ("unstable", "", 20)
    assert finding.cause.startswith("zero_grad() was not called before any of the last 20 updates")
    assert [advice.name for advice in finding.remedies] == ["zero-grad"]
    assert "zero_grad() is never called" in finding.message


def test_other_findings_of_such_a_run_have_the_same_cause():
    found = findings_of(lambda optimizer: None, rate=0.5, updates=120)
    assert len(found) > 1
    for finding in found:
        if finding.raised_step >= 3:
            assert finding.cause.startswith("zero_grad() was not called"), finding
            assert [advice.name for advice in finding.remedies] == ["zero-grad"]


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("clear", CLEARING.values(), ids=CLEARING)
def test_gradients_that_are_cleared_by_any_means_are_no_finding(clear, passes):
    assert findings_of(clear, passes) == []


def test_clearing_every_tenth_update_is_no_finding():
    count = itertools.count(1)
    assert findings_of(lambda optimizer: optimizer.zero_grad() if next(count) % 10 == 0 else None, rate=1e-5) == []


def test_momentum_that_is_kept_in_the_gradients_is_no_finding():
    def decay(optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad.mul_(0.9)

    assert findings_of(decay) == []


@pytest.mark.parametrize("clear", CLEARING.values(), ids=CLEARING)
@pytest.mark.parametrize("watched", ["both", "the critic"])
def test_a_generators_gradients_in_a_critic_are_no_finding(clear, watched):
    torch.manual_seed(0)
    generator, critic = nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizers = [torch.optim.Adam(part.parameters(), lr=1e-3) for part in (generator, critic)]
    models = {"generator": generator, "critic": critic} if watched == "both" else critic
    with gradwatch.watch(models, optimizers if watched == "both" else optimizers[1]) as watcher:
        for _ in range(UPDATES):
            made, true = generator(torch.randn(16, 3)), torch.randn(16, 2)
            clear(optimizers[1])  # of what the generator's loss has left there
            nn.functional.softplus(critic(made.detach())).mean().backward()
            nn.functional.softplus(-critic(true)).mean().backward()
            optimizers[1].step()
            clear(optimizers[0])
            nn.functional.softplus(-critic(made)).mean().backward()
            optimizers[0].step()
    assert watcher.findings == []


@pytest.mark.parametrize("clear", [CLEARING["to none"], CLEARING["to zero"]], ids=["to none", "to zero"])
def test_gradients_that_are_cleared_before_the_update_are_the_cause(clear):
    finding = findings_of(clear, where="between")[0]
    assert (finding.kind, finding.raised_step) == ("stalled", 10)
    assert "between backward() and step()" in finding.cause
    assert [advice.name for advice in finding.remedies] == ["zero-grad-after-step"]
    assert "zero_grad() between backward() and step()" in finding.message


def test_a_network_that_is_dead_has_no_such_cause():
    model = net()
    with torch.no_grad():
        model[0].bias.fill_(-1e3)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=1e-3)
    with gradwatch.watch(model, optimizer) as watcher:
        for _ in range(UPDATES):
            loss_of(model).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert not any("zero_grad" in finding.cause for finding in watcher.findings)


def clipped(order, make=torch.optim.SGD, limit=1.0, given=True, scale=2.0**16, **options):
    model = net()
    optimizer = make(model.parameters(), lr=0.01, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    with gradwatch.watch(model, optimizer, scaler=scaler if given else None) as watcher:
        for _ in range(UPDATES):
            scaler.scale(loss_of(model)).backward()
            if order == "unscaled first":
                scaler.unscale_(optimizer)
            of = scaler.get_scale() if order == "limit scaled" else 1.0
            nn.utils.clip_grad_norm_(model.parameters(), limit * of)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert not watcher._loop.guard._faults
    return watcher


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_clipping_what_is_still_scaled_is_the_cause(given, fused):
    watcher = clipped("scaled", given=given, fused=fused)
    (finding,) = watcher.findings
    assert (finding.kind, finding.step, finding.raised_step) == ("stalled", 0, 8)
    assert "the loss scale of 65,536 is still in it" in finding.cause
    assert [advice.name for advice in finding.remedies] == ["unscale-first"]
    assert "clipped while the loss scale is in it" in finding.message
    expected = watcher.history["grad_norm_clipped_total"] / watcher.history["grad_norm_total"]
    assert expected.max() < finding.threshold
    assert expected.min() <= finding.value <= expected.max()


@pytest.mark.parametrize("order", ["unscaled first", "limit scaled"])
@pytest.mark.parametrize("limit", [1.0, 1e-2, 1e4])
def test_clipping_of_unscaled_gradients_is_no_finding(order, limit):
    assert clipped(order, limit=limit).findings == []
