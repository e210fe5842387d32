"""Policies beyond a limit on the norm, in whole loops, against the same loop written by hand."""

import math

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

import gradwatch
from gradwatch import clip
from gradwatch.hooks.guard import UnwatchableError
from tests import reference
from tests.clip.test_auto import steady

STEPS = 40


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def loss_of(model, step, spikes=()):
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(16, 4, generator=generator)
    return (model(inputs) - inputs.sum(1, keepdim=True)).square().mean() * (1e4 if step in spikes else 1)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.05)


def watched(policy, make=sgd, spikes=(), scaler=None, **options):
    """(watcher, weights) of a loop that gradwatch clips."""
    model = net()
    optimizer = make(model.parameters())
    with gradwatch.watch(model, optimizer, clip=policy, scaler=scaler, **options) as watcher:
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = loss_of(model, step, spikes)
            watcher.observe_loss(loss)
            (loss if scaler is None else scaler.scale(loss)).backward()
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
    return watcher, [parameter.detach() for parameter in model.parameters()]


def by_hand(before_update, make=sgd, spikes=(), after_update=None):
    """The weights of the same loop, which ``before_update(model, loss) → bool`` clips; False leaves an update out."""
    model = net()
    optimizer = make(model.parameters())
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, step, spikes)
        loss.backward()
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        if before_update(model, loss.item()):
            optimizer.step()
            if after_update is not None:
                after_update(model, weights)
    return [parameter.detach() for parameter in model.parameters()]


def assert_same(weights, expected):
    for found, wanted in zip(weights, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def total_of(model):
    return math.sqrt(sum(parameter.grad.double().square().sum().item() for parameter in model.parameters()))


@pytest.mark.parametrize("make", [sgd, adam])
def test_adaptive_trains_as_the_loop_by_hand(make):
    def clip_(model, _):
        for parameter in model.parameters():
            is_matrix = parameter.ndim > 1
            rows, weights = ((each if is_matrix else each[None]).tolist() for each in (parameter.grad, parameter.data))
            clipped = torch.tensor(reference.clip_units(rows, weights, 0.02))
            parameter.grad.copy_(clipped if is_matrix else clipped[0])
        return True

    watcher, weights = watched(clip.adaptive(0.02), make)
    assert_same(weights, by_hand(clip_, make))
    assert (watcher.history["grad_norm_clipped_total"] < watcher.history["grad_norm_total"]).sum() > STEPS / 2


@pytest.mark.parametrize("make", [sgd, adam])
def test_percentile_trains_as_the_loop_by_hand(make):
    twin = reference.Percentile(30, 1000)

    def clip_(model, _):
        total = total_of(model)
        nn.utils.clip_grad_norm_(model.parameters(), twin.clip(total))
        return True

    watcher, weights = watched(clip.percentile(30), make)
    assert_same(weights, by_hand(clip_, make))
    assert (watcher.history["grad_norm_clipped_total"] < watcher.history["grad_norm_total"]).sum() > STEPS / 4


@pytest.mark.parametrize("make", [sgd, adam])
def test_auto_trains_as_the_loop_by_hand(make):
    known, totals = {}, []

    def clip_(model, _):
        totals.append(total_of(model))
        weights = math.sqrt(sum(parameter.double().square().sum().item() for parameter in model.parameters()))
        limit = known.setdefault("limit", 0.16 * (1 - 0.9) * weights / 0.01) if make is sgd else steady(totals)[-1]
        nn.utils.clip_grad_norm_(model.parameters(), limit)
        return True

    watcher, weights = watched("auto", make, spikes=(20,))
    assert_same(weights, by_hand(clip_, make, spikes=(20,)))
    is_clipped = watcher.history["grad_norm_clipped_total"] < watcher.history["grad_norm_total"]
    assert is_clipped[20]
    assert is_clipped.mean() < 0.5 if make is sgd else is_clipped.mean() > 0.5


@pytest.mark.parametrize("make", [sgd, adam])
def test_skip_spikes_leaves_out_the_updates_that_the_loop_by_hand_leaves_out(make):
    twin, left_out = reference.SkipSpikes(6, 20), []

    def decide(model, loss):
        left_out.append(twin.is_spike(total_of(model), loss))
        return not left_out[-1]

    watcher, weights = watched(clip.skip_spikes(window=20), make, (20, 30))
    assert_same(weights, by_hand(decide, make, (20, 30)))
    assert left_out[20]
    assert watcher.history["skipped"].tolist() == left_out


def fused_adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.05, fused=True)


def test_a_fused_optimizer_leaves_a_spike_out_without_a_read():
    twin, left_out = reference.SkipSpikes(6, 20), []

    def decide(model, loss):
        left_out.append(twin.is_spike(total_of(model), loss))
        return not left_out[-1]

    watcher, weights = watched(clip.skip_spikes(window=20), fused_adam, (25,))
    assert_same(weights, by_hand(decide, adam, (25,)))
    assert left_out[25]
    assert watcher.history["skipped"].tolist() == left_out


def test_a_step_that_fails_leaves_no_flag_on_a_fused_optimizer():
    model = net()
    optimizer = fused_adam(model.parameters())
    watcher = gradwatch.watch(model, optimizer, clip=clip.skip_spikes(window=4))

    def fail(*_):
        raise KeyboardInterrupt

    for step in range(12):
        optimizer.zero_grad()
        loss_of(model, step, spikes=(9,)).backward()
        if step == 9:
            handle = optimizer.register_step_pre_hook(fail)  # it runs after gradwatch has looked
            with pytest.raises(KeyboardInterrupt):
                optimizer.step()
            handle.remove()
        else:
            optimizer.step()
    assert {int(state["step"]) for state in optimizer.state.values()} == {11}
    watcher.close()


@pytest.mark.parametrize("make", [sgd, adam])
def test_by_update_trains_as_the_loop_by_hand(make):
    def shorten(model, before):
        for parameter, old in zip(model.parameters(), before, strict=True):
            entries = reference.shorten_update(old.flatten().tolist(), parameter.detach().flatten().tolist(), 0.01)
            parameter.data.copy_(torch.tensor(entries).view_as(parameter))

    watcher, weights = watched(clip.by_update(0.01), make, log_every_n_steps=1)
    assert_same(weights, by_hand(lambda *_: True, make, after_update=shorten))
    ratios = watcher.history["update_ratio"]
    assert ratios.shape[0] == STEPS
    assert ratios[:, 0].max() < 0.0101  # what was measured is the update that is left


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_under_a_scaler_a_spike_is_left_out_and_the_scale_stays(fused):
    scaler = GradScaler("cpu", init_scale=256.0)
    watcher, weights = watched(
        clip.skip_spikes(window=20), lambda p: torch.optim.SGD(p, lr=0.01, fused=fused), (25,), scaler
    )
    assert watcher.history["skipped"].nonzero()[0].tolist() == [25]
    assert scaler.get_scale() == 256
    twin = reference.SkipSpikes(6, 20)
    expected = by_hand(
        lambda model, loss: not twin.is_spike(total_of(model), loss), lambda p: torch.optim.SGD(p, lr=0.01), (25,)
    )
    assert_same(weights, expected)


@pytest.mark.parametrize("policy", [clip.adaptive(), clip.percentile(), clip.skip_spikes(), clip.by_update(0.01)])
def test_a_step_that_is_not_finite_is_skipped_under_every_policy(policy):
    model = net()
    optimizer = sgd(model.parameters())
    with gradwatch.watch(model, optimizer, clip=policy, on_nonfinite="skip") as watcher:
        for step in range(10):
            optimizer.zero_grad()
            (loss_of(model, step) * (math.nan if step == 5 else 1)).backward()
            optimizer.step()
    assert watcher.history["skipped"].nonzero()[0].tolist() == [5]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_what_the_latest_steps_were_is_in_the_state():
    first, _ = watched(clip.skip_spikes(window=20))
    second = gradwatch.watch(net(), clip=clip.skip_spikes(window=20))
    second.load_state_dict(first.state_dict())
    ours, theirs = (each.state_dict()["optimizers"][0]["clip"] for each in (first, second))
    assert ours["count"] == theirs["count"] == STEPS
    assert torch.equal(ours["rows"], theirs["rows"])
    second.close()


def test_by_update_refuses_an_optimizer_that_evaluates_its_closure_again():
    def lbfgs(parameters):
        return torch.optim.LBFGS(parameters, lr=0.1)

    model = net()
    optimizer = lbfgs(model.parameters())

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    expected = pytest.raises(UnwatchableError, match=r"by_update\(0.1\) .* this LBFGS evaluates its closure several")
    with gradwatch.watch(model, optimizer, clip=clip.by_update(0.1)), expected:
        optimizer.step(closure)


def test_by_update_refuses_an_optimizer_with_weights_of_its_own():
    with pytest.raises(UnwatchableError, match=r"by_update\(0.1\) .* this ASGD keeps weights of its own"):
        watched(clip.by_update(0.1), lambda parameters: torch.optim.ASGD(parameters, lr=0.01))


def test_by_update_refuses_a_loop_without_an_optimizer():
    weight = torch.ones(2)
    with (
        gradwatch.watch_tensors({"w": weight}, clip=clip.by_update(0.1)) as watcher,
        pytest.raises(UnwatchableError, match="without an optimizer nobody says when"),
    ):
        watcher.step(grads={"w": torch.ones(2)})
