"""Clipping that leaves too little for any update to lower the loss, and runs that clip as hard and learn."""

import math
import statistics

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradwatch
from gradwatch.detect.throttled import FALLEN, GAIN, MOST, REACH, TIGHT, WINDOW, WITHOUT, Throttled
from gradwatch.findings import Thresholds
from tests.detect.training import perceptron
from tests.reports import examine_all, findings, report, table

NOISY = [2.3 + 0.1 * math.sin(step * step) for step in range(300)]  # stands still among noise
WEIGHTS = np.array([4.0, 3.0])  # together a norm of 5


def clipped_run(
    share=1e-3,
    rate=0.1,
    total=1.0,
    losses=NOISY,
    gain=1.0,
    updates=200,
    rates=None,
    shares=None,
    *,
    knows_rate=True,
    **rest,
):
    """Plain descent whose clipping leaves ``share`` of a gradient of norm ``total``, or ``shares``, one an update."""
    reports = []
    for step in range(updates):
        left, now = (share if shares is None else shares[step]) * total, rate if rates is None else rates[step]
        norms = (0.6 * total, 0.8 * total)
        is_sampled = step in (0, 1, 2, 4, 8) or step % 10 == 0
        rest |= {"learning_rate": now if knows_rate else None, "grad_norm_clipped_total": left}
        each = report(norms, step, losses[step], sampled=is_sampled, **rest)
        if is_sampled:
            each.figures["update_ratio"] = np.array([0.6, 0.8]) * now * left * gain / WEIGHTS
            each.figures["weight_norm"] = WEIGHTS
        reports.append(each)
    return reports


def told(reports, thresholds=None):
    found = findings(reports, thresholds)
    return [finding for finding in found if "leaves too little" in finding.figure]


def test_plain_descent_that_is_clipped_to_a_thousandth_is_stalled():
    (finding,) = told(clipped_run())
    assert (finding.kind, finding.severity, finding.layer) == ("stalled", "warning", "")
    assert (finding.step, finding.raised_step) == (1, WINDOW)
    assert finding.value == pytest.approx(1e-3)
    assert finding.threshold == TIGHT
    assert "Clipping leaves 0.001 of the gradient in the last 100 updates" in finding.measured
    assert (
        "together they can lower the loss by 0.0044 of it at most. Unclipped ones could by 1 or more" in finding.cause
    )
    assert finding.remedies[0].name == "looser-clip"


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param({"share": 2 * TIGHT}, id="a guard against spikes"),
        pytest.param({"losses": [2.3 * 0.999**step for step in range(300)]}, id="the loss comes down"),
        pytest.param({"rate": 10.0, "share": 1e-3}, id="a rate that makes up for the limit"),
        pytest.param({"total": 300.0, "share": 1 / 300}, id="a total of 300 that is clipped to 1"),
        pytest.param({"gain": 3 * GAIN, "rate": 1e-4}, id="an optimizer that divides by the size of the gradient"),
        pytest.param({"rate": 1e-6}, id="a rate that is too small without clipping, too"),
        pytest.param({"rates": [1e-6 * step for step in range(200)]}, id="a warm-up from zero"),
        pytest.param({"losses": [None] * 300}, id="no loss"),
        pytest.param({"losses": [(-1.0) ** step for step in range(300)]}, id="a loss of both signs"),
        pytest.param({"knows_rate": False}, id="no learning rate"),
        pytest.param({"skipped": True}, id="no update was made"),
        pytest.param({"updates": WINDOW}, id="too few updates"),
        pytest.param({"shares": [1e-3, 1e-3, 1e-3, 1e-3, 1.0] * 40}, id="every fifth update is not clipped"),
    ],
)
def test_healthy_runs_raise_nothing(rest):
    assert told(clipped_run(**rest)) == []


def test_a_warm_up_is_judged_once_its_rate_rises_no_more():
    rates = [min(1e-3 * step, 0.1) for step in range(300)]
    (finding,) = told(clipped_run(rates=rates, updates=300))
    assert (finding.step, finding.raised_step) == (101, 200)


def test_a_few_gradients_that_are_not_clipped_change_nothing():
    shares = [1e-3 if step % 20 else 0.02 for step in range(200)]
    assert len(told(clipped_run(shares=shares))) == 1


def test_a_threshold_that_the_user_sets_replaces_the_rule():
    assert told(clipped_run(), Thresholds(stalled_update_ratio=1e-12)) == []


@pytest.mark.parametrize("factor", [1e-8, 1e5])
def test_the_scale_of_the_loss_changes_nothing(factor):
    """A loss times a factor has gradients times that factor; clipping to the same limit leaves the same updates."""
    losses = [factor * loss for loss in NOISY]
    reports = clipped_run(share=1e-3 / factor, total=factor, losses=losses)
    assert len(told(reports)) == (factor == 1e5)  # times 1e-8 it is not clipped at all


def slow_verdict(reports):
    """The rule at the last report in the plainest words."""
    made = [each for each in reports if not each.skipped]
    window, highest = [], 0.0
    length = used = math.nan
    for each in made:
        if each.sampled:
            moved = [r * w for r, w in zip(each.figures["update_ratio"], each.figures["weight_norm"], strict=True)]
            if math.hypot(*moved) > 0:
                length, used = math.hypot(*moved), each.grad_norm_clipped_total
        if each.learning_rate > highest:
            highest, window = each.learning_rate, []
        share = each.grad_norm_clipped_total / each.grad_norm_total
        window.append((share, length * each.grad_norm_clipped_total / used * each.grad_norm_total))
    window = window[-WINDOW:]
    losses = [each.loss for each in reports]
    beginning, recent = statistics.fmean(losses[:10]), 0.0
    for count, loss in enumerate(losses, 1):
        recent += (loss - recent) / min(count, 50)
    level = min(abs(beginning), abs(recent))
    is_tight = sum(share < TIGHT for share, _ in window) >= MOST * len(window)
    has_fallen = beginning - recent > FALLEN * abs(beginning)
    reach, without = sum(reach for _, reach in window), sum(reach / share for share, reach in window)
    follows = length <= GAIN * made[-1].learning_rate * used
    is_short = reach < REACH * level and without > WITHOUT * level
    return len(window) == WINDOW and is_tight and follows and is_short and not has_fallen


def random_run(seed):
    random = np.random.default_rng(seed)
    shares = np.minimum(1, 10 ** random.normal(random.uniform(-3.5, -1.7), 0.4, 250))
    fall = random.choice([0.0, 2e-4, 1e-3])
    losses = (2.3 * np.exp(-fall * np.arange(250)) + random.normal(0, 0.01, 250)).tolist()
    rates = [0.1 if step >= random.choice([0, 60]) else 1e-3 for step in range(250)]
    return clipped_run(shares=shares.tolist(), losses=losses, rates=rates, updates=250, gain=random.uniform(0.5, 5))


@pytest.mark.parametrize("seed", range(12))
def test_a_slow_twin_finds_the_same(seed):
    reports = random_run(seed)
    results = examine_all(Throttled(table(2), Thresholds()), reports)
    for step, result in enumerate(results):
        if result is not None:
            assert bool(result.sick[0]) == slow_verdict(reports[: step + 1]), step


def test_the_twin_was_asked_of_sick_and_of_healthy_runs():
    assert {slow_verdict(random_run(seed)) for seed in range(12)} == {True, False}


# real training

INPUTS = torch.linspace(-1, 1, 512).view(64, 8)


def trained(make, limit, *, own=True, updates=220, scale=1.0, schedule=None, passes=1, seed=0, loss_scale=None):
    """The findings of a classifier, clipped by the loop itself or by gradwatch, and the fall of its loss."""
    torch.manual_seed(seed)
    model = perceptron(8, 32, 4)
    optimizer = make(model.parameters())
    follows = None if schedule is None else torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    scaler = torch.amp.GradScaler("cpu", init_scale=loss_scale or 1.0, enabled=loss_scale is not None)
    truth = torch.randn(8, 4)
    losses = []
    with gradwatch.watch(model, optimizer, clip=None if own else limit) as watcher:
        for _ in range(updates):
            for _ in range(passes):
                inputs = torch.randn(32, 8)
                loss = scale * F.cross_entropy(model(inputs), (inputs @ truth).argmax(1))
                scaler.scale(loss / passes).backward()
                losses.append(loss.item())
            if own:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), limit)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if follows is not None:
                follows.step()
    return watcher.findings, statistics.fmean(losses[-20:]) / statistics.fmean(losses[:10])


def descent(rate, **rest):
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, **rest)


def adam(rate, **rest):
    return lambda parameters: torch.optim.AdamW(parameters, lr=rate, **rest)


class Lion(torch.optim.Optimizer):
    """The sign of a running mean, Chen et al. 2023, arXiv:2302.06675."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                    parameter.sub_(mean.lerp(parameter.grad, 0.1).sign_(), alpha=group["lr"])
                    mean.lerp_(parameter.grad, 0.01)


@pytest.mark.parametrize("own", [True, False], ids=["the loop clips", "gradwatch clips"])
@pytest.mark.parametrize(
    ("make", "limit"),
    [
        pytest.param(descent(0.1), 1e-3, id="a limit of 0.001"),
        pytest.param(descent(0.01, momentum=0.9), 1e-3, id="momentum"),
        pytest.param(descent(0.1, weight_decay=1e-4), 1e-3, id="weight decay"),
    ],
)
def test_plain_descent_that_cannot_learn_is_stalled(make, limit, own):
    (finding,), _ = trained(make, limit, own=own)
    assert (finding.kind, finding.remedies[0].name) == ("stalled", "looser-clip")
    assert "These updates follow what is left of the gradient" in finding.cause


@pytest.mark.parametrize("own", [True, False], ids=["the loop clips", "gradwatch clips"])
@pytest.mark.parametrize(
    ("make", "limit", "rest"),
    [
        pytest.param(adam(5e-3), 1e-3, {}, id="Adam does not mind a limit of 0.001"),
        pytest.param(Lion, 1e-3, {}, id="nor does Lion"),
        pytest.param(descent(100.0), 1e-3, {}, id="descent by the direction alone, at a rate that fits"),
        pytest.param(descent(0.1), 1.0, {"scale": 300.0}, id="a summed loss, clipped to 1, with a rate that learns"),
        pytest.param(adam(5e-3), 1e-3, {"passes": 4}, id="accumulation"),
        pytest.param(
            descent(10.0), 1e-2, {"schedule": lambda step: min(1, step / 120), "updates": 300}, id="a warm-up from zero"
        ),
    ],
)
def test_runs_that_clip_as_hard_and_learn_are_no_finding(make, limit, rest, own):
    make = (lambda parameters: Lion(parameters, 2e-3)) if make is Lion else make
    found, fall = trained(make, limit, own=own, **rest)
    assert fall < 0.9
    assert [finding for finding in found if finding.kind == "stalled"] == []


@pytest.mark.parametrize("rate", [1e-6, 1e-7])
def test_fine_tuning_at_a_tiny_rate_is_no_case_of_clipping(rate):
    torch.manual_seed(0)
    model = perceptron(8, 32, 4)
    inputs = torch.randn(256, 8)
    targets = (inputs @ torch.randn(8, 4)).argmax(1)
    pretraining = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        pretraining.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        pretraining.step()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    with gradwatch.watch(model, optimizer, clip=1e-5) as watcher:
        for _ in range(220):
            chosen = torch.randint(256, (16,))
            F.cross_entropy(model(inputs[chosen]), targets[chosen]).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [finding for finding in watcher.findings if "clip" in finding.cause.lower()] == []


class ActorCritic(nn.Module):
    """A policy over two actions and a value, apart."""

    def __init__(self):
        super().__init__()
        self.actor, self.critic = perceptron(4, 32, 2), perceptron(4, 32, 1)

    def forward(self, states):
        return torch.distributions.Categorical(logits=self.actor(states)), self.critic(states).squeeze(-1)


def balance(states, actions):
    """Move 64 poles on carts by one step; return states (64, 4), rewards, and which poles fell and began anew."""
    x, speed, angle, turn = states.unbind(1)
    force = 10.0 * (2 * actions - 1)
    push = (force + 0.05 * turn.square() * angle.sin()) / 1.1
    faster = (9.8 * angle.sin() - angle.cos() * push) / (0.5 * (4 / 3 - 0.1 * angle.cos().square() / 1.1))
    new = torch.stack(
        [
            x + 0.02 * speed,
            speed + 0.02 * (push - 0.05 * faster * angle.cos() / 1.1),
            angle + 0.02 * turn,
            turn + 0.02 * faster,
        ],
        1,
    )
    fell = (new[:, 2].abs() > 0.21) | (new[:, 0].abs() > 2.4)
    return torch.where(fell[:, None], 0.05 * torch.randn_like(new), new), torch.where(fell, -100.0, 1.0), fell


@pytest.mark.parametrize("own", [True, False], ids=["the loop clips", "gradwatch clips"])
def test_proximal_policy_optimisation_clips_returns_of_hundreds_to_a_half_and_learns(own):
    """PPO (Schulman et al. 2017, arXiv:1707.06347): its loss falls little, and its clip of 0.5 leaves a thousandth."""
    torch.manual_seed(0)
    model = ActorCritic()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-5)
    states, falls = 0.05 * torch.randn(64, 4), []
    with gradwatch.watch(model, optimizer, clip=None if own else 0.5) as watcher:
        for _ in range(25):
            seen = []
            with torch.no_grad():
                for _ in range(32):
                    policy, value = model(states)
                    actions = policy.sample()
                    after, reward, fell = balance(states, actions)
                    seen.append((states, actions, policy.log_prob(actions), value, reward, fell))
                    states = after
                gain, advantages = model(states)[1], []
                for _, _, _, value, reward, fell in reversed(seen):
                    gain = reward + 0.99 * gain * ~fell
                    advantages.insert(0, gain - value)
            falls.append(statistics.fmean(fell.float().mean().item() for *_, fell in seen))
            inputs, chosen, before, values = (torch.cat([each[place] for each in seen]) for place in range(4))
            advantage = torch.cat(advantages)
            returns, advantage = advantage + values, (advantage - advantage.mean()) / advantage.std()
            for part in torch.randperm(len(inputs)).chunk(8):
                policy, value = model(inputs[part])
                ratio = (policy.log_prob(chosen[part]) - before[part]).exp()
                gains = torch.minimum(ratio * advantage[part], ratio.clamp(0.8, 1.2) * advantage[part])
                loss = (value - returns[part]).square().mean() - gains.mean() - 0.01 * policy.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                if own:
                    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
    shares = watcher.history["grad_norm_clipped_total"] / watcher.history["grad_norm_total"]
    assert np.median(shares) < TIGHT
    assert statistics.fmean(falls[-5:]) < 0.75 * statistics.fmean(falls[:5])
    assert watcher.findings == []


@pytest.mark.parametrize("own", [True, False], ids=["the loop clips", "gradwatch clips"])
def test_a_loss_scale_is_no_part_of_what_clipping_leaves(own):
    found, fall = trained(descent(0.1, momentum=0.9), 1.0, own=own, loss_scale=2.0**16)
    assert fall < 0.9
    assert found == []
