"""Loops that clip by themselves before ``step()``: figures and findings are still those before clipping."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.amp import GradScaler

import gradwatch

STEPS = 12
CLIPS = {
    "norm": lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.1),
    "norm, one by one": lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.1, foreach=False),
    "value": lambda parameters: nn.utils.clip_grad_value_(parameters, 0.01),
    "never reached": lambda parameters: nn.utils.clip_grad_norm_(parameters, 1e6),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def loss_of(model, step, growth=0.0):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 4, generator=generator)
    return (model(x) - x.sum(1, keepdim=True)).square().mean() * 10 ** (growth * max(0, step - 20))


def train(clip_, steps=STEPS, accumulate=1, scaler=None, begins=0, growth=0.0, **options):
    """(watcher, norms before clipping, totals after it, weights)"""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    parameters, before, after = list(model.parameters()), [], []
    watcher = gradwatch.watch(model, optimizer, scaler=scaler, **options)
    with watcher:
        for step in range(steps):
            optimizer.zero_grad()
            for part in range(accumulate):
                loss = loss_of(model, step * accumulate + part, growth) / accumulate
                watcher.observe_loss(loss)
                (loss if scaler is None else scaler.scale(loss)).backward()
            if scaler is not None:
                scaler.unscale_(optimizer)
            before.append([p.grad.norm().item() for p in parameters])
            if step >= begins:
                clip_(parameters)
            after.append(np.linalg.norm([p.grad.norm().item() for p in parameters]))
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
    return watcher, np.array(before), np.array(after), [p.detach().clone() for p in parameters]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip_", CLIPS.values(), ids=CLIPS)
def test_figures_are_those_before_the_loop_clips(clip_, accumulate):
    watcher, before, after, _ = train(clip_, accumulate=accumulate)
    np.testing.assert_allclose(watcher.history["grad_norm"], before, rtol=1e-4)
    np.testing.assert_allclose(watcher.history["grad_norm_total"], np.linalg.norm(before, axis=1), rtol=1e-4)
    np.testing.assert_allclose(watcher.history["grad_norm_clipped_total"], after, rtol=1e-4)


@pytest.mark.parametrize("clip_", CLIPS.values(), ids=CLIPS)
def test_under_a_scaler_they_are_unscaled_too(clip_):
    watcher, before, after, _ = train(clip_, scaler=GradScaler("cpu", init_scale=1024.0))
    np.testing.assert_allclose(watcher.history["grad_norm"], before, rtol=1e-4)
    np.testing.assert_allclose(watcher.history["grad_norm_clipped_total"], after, rtol=1e-4)
    assert not watcher.history["skipped"].any()


def test_a_scaler_that_nobody_told_of_is_no_clipping():
    model, scaler = net(), GradScaler("cpu", init_scale=1024.0)
    optimizer, expected = torch.optim.SGD(model.parameters(), lr=0.01), []
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            watcher.observe_loss(loss)
            scaler.scale(loss).backward()
            expected.append([p.grad.norm().item() / scaler.get_scale() for p in model.parameters()])
            scaler.step(optimizer)
            scaler.update()
    np.testing.assert_allclose(watcher.history["grad_norm"], expected, rtol=1e-4)


def test_figures_of_entries_are_before_clipping_too():
    clipped, *_ = train(CLIPS["norm"], log_every_n_steps=1, layer_scalars=True, thresholds=None)
    model = net()
    loss_of(model, 0).backward()
    weight = model[0].weight.grad.double()
    for name, expected in (("grad_max", weight.abs().max()), ("grad_mean", weight.mean()), ("grad_std", weight.std())):
        np.testing.assert_allclose(clipped.history[name][0, 0], expected.item(), rtol=1e-3, err_msg=name)


def test_clipping_that_begins_late_is_seen_past_from_the_next_step_on(caplog):
    watcher, before, after, _ = train(CLIPS["norm"], begins=5)
    known = np.arange(STEPS) != 5
    np.testing.assert_allclose(watcher.history["grad_norm"][known], before[known], rtol=1e-4)
    np.testing.assert_allclose(watcher.history["grad_norm_clipped_total"], after, rtol=1e-4)
    assert watcher.history["already_clipped"].tolist() == (~known).tolist()
    assert [record.message for record in caplog.records if "already clipped" in record.message] == [
        "gradwatch: the gradients of step 5 were already clipped, or changed otherwise, between backward() and step(); "
        "its figures are those after (history['already_clipped']). Use clip=… here instead."
    ]


def test_an_explosion_behind_clipping_is_found():
    watcher, *_ = train(CLIPS["norm"], steps=30, growth=1.0)
    assert "exploding" in {finding.kind for finding in watcher.findings}


def test_two_that_clip_are_told_so_once(caplog):
    watcher, before, *_ = train(CLIPS["norm"], clip=0.05)
    assert [record.message for record in caplog.records if "Keep one of them" in record.message] == [
        "gradwatch: this loop clips its gradients between backward() and step() (clip_grad_norm_?), and "
        "clip=by_norm(0.05) clips what is left. Keep one of them."
    ]
    np.testing.assert_allclose(watcher.history["grad_norm"], before, rtol=1e-4)
    np.testing.assert_allclose(watcher.history["grad_norm_clipped_total"], 0.05, rtol=1e-3)


@pytest.mark.parametrize("limit", [1e6, np.inf])
def test_a_loop_that_calls_the_clipping_to_log_the_norm_clips_nothing(limit, caplog):
    watcher, before, *_ = train(lambda parameters: nn.utils.clip_grad_norm_(parameters, limit), clip=0.05)
    assert caplog.records == []
    np.testing.assert_allclose(watcher.history["grad_norm"], before, rtol=1e-4)
    np.testing.assert_allclose(watcher.history["grad_norm_clipped_total"], 0.05, rtol=1e-3)


def test_each_optimizer_that_clips_is_seen_past():
    generator, critic = nn.Linear(4, 4), nn.Linear(4, 1)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.01) for part in (critic, generator)]
    expected = []
    with gradwatch.watch({"g": generator, "c": critic}, optimizers) as watcher:
        for step in range(5):
            for part, optimizer in zip((critic, generator), optimizers, strict=True):
                optimizer.zero_grad()
                loss = critic(generator(torch.ones(2, 4) * (step + 1))).square().mean()
                watcher.observe_loss(loss)
                loss.backward()
                expected.append(np.linalg.norm([p.grad.norm().item() for p in part.parameters()]))
                if part is generator:
                    nn.utils.clip_grad_norm_(part.parameters(), 1e-3)
                optimizer.step()
    np.testing.assert_allclose(watcher.history["grad_norm_total"], expected, rtol=1e-4)


def test_parameters_that_are_not_watched_count_in_the_total():
    watcher, before, _, _ = train(CLIPS["norm"], include="0.*")
    np.testing.assert_allclose(watcher.history["grad_norm"], before[:, :2], rtol=1e-4)
    np.testing.assert_allclose(watcher.history["grad_norm_total"], np.linalg.norm(before, axis=1), rtol=1e-4)


def test_nan_is_counted_before_clipping_spreads_it():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(3):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            watcher.observe_loss(loss)
            (loss if step < 2 else loss + 0 * nn.functional.relu(model[2].bias * torch.nan).sum()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
    assert watcher.history["nonfinite"][-1].tolist() == [0, 0, 0, 1]
    (finding,) = watcher.findings
    assert (finding.kind, finding.layers, finding.step) == ("nonfinite", ("2.bias",), 2)


def test_a_gradient_that_turns_nan_between_backward_and_update_is_found():
    def spoil(parameters):
        parameters[2].grad[0, 0] = torch.nan

    watcher, *_ = train(spoil, steps=1)
    assert [(finding.kind, finding.layers) for finding in watcher.findings] == [("nonfinite", ("2.weight",))]


def test_a_loop_that_does_not_clip_is_measured_once_a_step_only(monkeypatch):
    from gradwatch.measure.backward import BackwardPass

    ends = []
    end = BackwardPass._end
    monkeypatch.setattr(BackwardPass, "_end", lambda self: (ends.append(1), end(self)))
    train(lambda parameters: None)
    assert len(ends) == 2  # the first two backward passes: after them every optimizer of a loop had its turn


def test_watching_changes_no_weight_of_a_loop_that_clips():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    *_, weights = train(CLIPS["norm"])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))


def train_by_hand(change_, steps=STEPS, **options):
    """(watcher, totals before ``change_``): gradients of ``torch.autograd.grad``, put into ``.grad``."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    parameters, before = list(model.parameters()), []
    with gradwatch.watch(model, optimizer, **options) as watcher:
        for step in range(steps):
            loss = loss_of(model, step)
            watcher.observe_loss(loss)
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            before.append(np.linalg.norm([p.grad.norm().item() for p in parameters]))
            change_(parameters)
            optimizer.step()
    return watcher, np.array(before)


def said_of_gradients_by_hand(caplog):
    return [record.getMessage() for record in caplog.records if "set by hand" in record.getMessage()]


def test_gradients_that_are_set_by_hand_and_clipped_are_labelled_from_the_second_on(caplog):
    watcher, before = train_by_hand(lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.1))
    assert (before > 0.1).all()
    assert watcher.history["already_clipped"].tolist() == [False] + [True] * (STEPS - 1)
    assert said_of_gradients_by_hand(caplog) == [
        "gradwatch: gradients that are set by hand have the same total norm, 0.1, at step 1 as before: they seem to be "
        "clipped before step(), and figures are those after (history['already_clipped']). Use clip=… here instead."
    ]


@pytest.mark.parametrize(
    "change_",
    [
        lambda parameters: None,
        lambda parameters: nn.utils.clip_grad_norm_(parameters, 1e6),  # never reached
        lambda parameters: [p.grad.mul_(0.5) for p in parameters],
        lambda parameters: [p.grad.zero_() for p in parameters],
        lambda parameters: [p.grad.fill_(torch.inf) for p in parameters],
    ],
)
def test_gradients_that_are_set_by_hand_and_not_clipped_are_not_labelled(change_, caplog):
    watcher, _ = train_by_hand(change_)
    assert not watcher.history["already_clipped"].any()
    assert said_of_gradients_by_hand(caplog) == []


def test_gradients_of_a_constant_norm_that_nobody_changes_are_not_labelled():
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.01)
    with gradwatch.watch(nn.ParameterList([weight]), optimizer) as watcher:
        for _ in range(STEPS):
            weight.grad = torch.ones(3)
            optimizer.step()
    assert not watcher.history["already_clipped"].any()
