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


# clipping at the wrong time

LIMIT = 1.0
FROM_IMPORT = nn.utils.clip_grad_norm_  # as a script has it that imported the name before gradwatch was there


def cleared_then_clipped(model, optimizer, take_step):
    optimizer.zero_grad()
    FROM_IMPORT(model.parameters(), LIMIT)
    take_step()
    optimizer.step()


def clipped_then_cleared(model, optimizer, take_step):
    FROM_IMPORT(model.parameters(), LIMIT)
    optimizer.zero_grad(set_to_none=False)
    take_step()
    optimizer.step()


def clipped_after_step(model, optimizer, take_step):
    take_step()
    optimizer.step()
    FROM_IMPORT(model.parameters(), LIMIT)
    optimizer.zero_grad()


def clipped_in_place(model, optimizer, take_step):
    take_step()
    FROM_IMPORT(model.parameters(), LIMIT)
    optimizer.step()
    optimizer.zero_grad()


def norm_is_logged_after_step(model, optimizer, take_step):
    take_step()
    optimizer.step()
    FROM_IMPORT(model.parameters(), float("inf"))
    optimizer.zero_grad()


def accumulated(model, optimizer, take_step):
    for _ in range(3):
        FROM_IMPORT(model.parameters(), LIMIT)  # of the sum so far: the first call finds nothing
        take_step()
    FROM_IMPORT(model.parameters(), LIMIT)
    optimizer.step()
    optimizer.zero_grad()


def clipped_by_a_closure(model, optimizer, take_step):
    def closure():
        optimizer.zero_grad()
        loss = take_step()
        FROM_IMPORT(model.parameters(), LIMIT)
        return loss

    optimizer.step(closure)


def run_of(iterate, rate=1e-3, make=torch.optim.SGD, updates=UPDATES, **options):
    model = net()
    optimizer = make(model.parameters(), lr=rate)

    def take_step():
        loss = loss_of(model)
        loss.backward()
        return loss

    with gradwatch.watch(model, optimizer, **options) as watcher:
        for _ in range(updates):
            iterate(model, optimizer, take_step)
    assert not watcher._loop.guard._faults
    return watcher


WRONG = {
    cleared_then_clipped: "before backward()",
    clipped_then_cleared: "after step()",
    clipped_after_step: "after step()",
}


@pytest.mark.parametrize(("iterate", "where"), WRONG.items())
def test_clipping_out_of_place_is_a_line_where_the_run_learns(iterate, where, caplog):
    assert run_of(iterate).findings == []
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"clip_grad_norm_ was called {where} for the last {UPDATES - 1} updates" in line
    assert "Call it between backward() and step()." in line


@pytest.mark.parametrize(("iterate", "where"), WRONG.items())
def test_it_is_the_cause_of_an_explosion(iterate, where):
    finding = run_of(iterate, rate=3.0).findings[0]
    assert finding.kind == "exploding"
    assert f"clip_grad_norm_ is called {where}, where it has no effect" in finding.cause
    assert finding.remedies[0].name == "clip-before-step"


def test_it_is_no_cause_where_gradwatch_clips():
    for finding in run_of(cleared_then_clipped, rate=3.0, clip=LIMIT).findings:
        assert "clip_grad_norm_" not in finding.cause


@pytest.mark.parametrize(
    "iterate",
    [clipped_in_place, norm_is_logged_after_step, accumulated, clipped_by_a_closure],
    ids=lambda each: each.__name__,
)
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_clipping_in_its_place_says_nothing(iterate, make, caplog):
    assert run_of(iterate, make=make).findings == []
    assert caplog.records == []


def test_clipping_in_its_place_is_never_the_cause():
    for finding in run_of(clipped_in_place, rate=3.0).findings:
        assert "clip_grad_norm_" not in finding.cause


def test_two_models_that_are_clipped_together_are_each_clipped_in_time(caplog):
    torch.manual_seed(0)
    parts = nn.ModuleDict({"first": nn.Linear(3, 2), "second": nn.Linear(3, 2)})
    optimizers = [torch.optim.SGD(part.parameters(), lr=1e-3) for part in parts.values()]
    with gradwatch.watch(parts, optimizers) as watcher:
        for _ in range(UPDATES):
            for part, optimizer in zip(parts.values(), optimizers, strict=True):
                part(torch.randn(8, 3)).square().mean().backward()
                nn.utils.clip_grad_norm_(parts.parameters(), LIMIT)
                optimizer.step()
                optimizer.zero_grad()
    assert watcher.findings == []
    assert caplog.records == []


def test_a_compiled_step_that_clips_is_compiled_as_ever():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def clipped_sum(weight):
        nn.utils.clip_grad_norm_([weight], LIMIT)
        return weight.sum()

    def is_compiled():
        torch.compiler.reset()
        loss_of(model).backward()
        try:  # by a call, since Lightning 2.2 replaces the decorator by one that needs the function
            torch.compile(clipped_sum, fullgraph=True, backend="eager")(model[0].weight)
        except torch._dynamo.exc.Unsupported:  # torch 2.6 knows no clipping in one graph
            return False
        return True

    bare = is_compiled()
    with gradwatch.watch(model, optimizer) as watcher:
        assert is_compiled() == bare
        optimizer.step()
    assert not watcher._loop.guard._faults


def test_nothing_is_wrapped_once_nobody_watches():
    before = nn.utils.clip_grad._clip_grads_with_norm_
    run_of(clipped_in_place, updates=2)
    assert nn.utils.clip_grad._clip_grads_with_norm_ is before
