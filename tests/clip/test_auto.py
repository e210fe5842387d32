"""``clip="auto"``: a ceiling that fits the optimizer, against slow twins."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings, strategies
from torch import nn

from gradwatch import clip
from gradwatch.measure import statistics

deterministic = settings(deadline=None, derandomize=True, max_examples=50)
totals_ = strategies.lists(
    strategies.sampled_from([0.0, math.nan, math.inf]) | strategies.floats(1e-3, 1e6), max_size=20
)


def run(policy, optimizer, weight, totals, is_whole=False):
    """The totals that are left of a series of them, which an update moves nothing after."""
    left = []
    for total in totals:
        gradient = torch.zeros_like(weight)
        gradient[0] = total
        magnitudes = statistics.measure([gradient])
        magnitudes = dataclasses.replace(magnitudes, of_whole=True) if is_whole else magnitudes
        left.append(policy.clip_([gradient], magnitudes, [weight], optimizer).item())
        assert gradient[0].item() == pytest.approx(left[-1], rel=1e-6, nan_ok=True)
    return left


def weight_of(*entries):
    return nn.Parameter(torch.tensor(entries, dtype=torch.float64))


def steady(totals, epsilon=1e-8, entries=2):
    """What Adam gets: a tenth of the largest level so far, and at least a hundred epsilons an entry."""
    logs, largest, left = [], -math.inf, []
    for total in totals:
        if 0 < total < math.inf:
            logs.append(math.log(total) if not logs else min(math.log(total), average(logs) + 1))
            largest = max(largest, average(logs))
        ceiling = max(0.1 * math.exp(largest), 100 * epsilon * math.sqrt(entries)) if logs else math.inf
        is_clipped = math.isfinite(total) and total + 1e-6 > ceiling
        left.append(total * min(1.0, ceiling / (total + 1e-6)) if is_clipped else total)
    return left


def average(values):
    weights = [0.9**age for age in reversed(range(len(values)))]
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RAdam, torch.optim.NAdam])
@deterministic
@given(totals_)
def test_adam_gets_gradients_of_one_size(make, totals):
    weight = weight_of(3.0, 4.0)
    assert run(clip.auto(), make([weight]), weight, totals) == pytest.approx(steady(totals), rel=1e-6, nan_ok=True)


def test_nothing_is_brought_down_to_adams_epsilon():
    weight = weight_of(*[1.0] * 100)
    adam = torch.optim.Adam([weight], eps=1e-4)
    assert run(clip.auto(), adam, weight, [1e-9, 50.0]) == pytest.approx([1e-9, 100 * 1e-4 * 10])


def test_adams_ceiling_follows_growth_and_neither_decay_nor_a_spike():
    weight = weight_of(3.0, 4.0)
    adam = torch.optim.Adam([weight])
    totals = [1.0] * 50 + [1e6] + [10.0] * 50 + [0.5] * 50
    left = run(clip.auto(), adam, weight, totals)
    assert left[49] == pytest.approx(0.1, rel=1e-3)
    assert left[50] < 0.12
    assert left[100] == pytest.approx(1.0, rel=0.05)
    assert left[-1] == 0.5


@deterministic
@given(totals_, strategies.floats(1e-3, 10), strategies.sampled_from([0.0, 0.9]))
def test_plain_descent_moves_weights_by_a_share_of_their_norm(totals, rate, momentum):
    weight = weight_of(3.0, 4.0)
    ceiling = 0.16 * (1 - momentum) * 5 / rate
    expected = [
        total * ceiling / (total + 1e-6) if math.isfinite(total) and total + 1e-6 > ceiling else total
        for total in totals
    ]
    sgd = torch.optim.SGD([weight], lr=rate, momentum=momentum)
    assert run(clip.auto(), sgd, weight, totals) == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_the_ceiling_follows_a_rate_that_rises_and_stays_where_it_falls():
    weight = weight_of(3.0, 4.0)
    sgd = torch.optim.SGD([weight], lr=0.1)
    left = []
    for rate in (0.1, 0.2, 0.01, 0.0):
        sgd.param_groups[0]["lr"] = rate
        left += run(clip.auto(), sgd, weight, [1e6])
    assert left == pytest.approx([8, 4, 8, 8], rel=1e-6)


def test_a_rate_that_is_a_tensor_counts():
    weight = weight_of(3.0, 4.0)
    sgd = torch.optim.SGD([weight], lr=torch.tensor(0.1))
    assert run(clip.auto(), sgd, weight, [1e6]) == pytest.approx([8], rel=1e-6)


def test_a_model_of_zeros_may_move():
    weight = weight_of(*[0.0] * 100)
    sgd = torch.optim.SGD([weight], lr=0.1)
    assert run(clip.auto(), sgd, weight, [1e6]) == pytest.approx([0.16 * 0.01 * 10 / 0.1], rel=1e-6)


def test_the_weights_are_looked_at_again_after_fifty_updates():
    weight = weight_of(3.0, 4.0)
    sgd, policy = torch.optim.SGD([weight], lr=0.1), clip.auto()
    run(policy, sgd, weight, [1.0])
    weight.data.mul_(10)
    left = run(policy, sgd, weight, [1e6] * 50)
    assert left[:49] == pytest.approx([8] * 49, rel=1e-6)
    assert left[49] == pytest.approx(80, rel=1e-6)


SPIKY = [1.0] * 20 + [1e4]


@pytest.mark.parametrize(
    "make",
    [
        lambda weight: None,
        lambda weight: torch.optim.RMSprop([weight]),
        lambda weight: torch.optim.LBFGS([weight]),
        lambda weight: torch.optim.Adagrad([weight]),
    ],
    ids=["none", "RMSprop", "LBFGS", "Adagrad"],
)
def test_others_have_their_spikes_brought_down(make):
    weight = weight_of(3.0, 4.0)
    left = run(clip.auto(), make(weight), weight, SPIKY)
    assert left[:20] == [1.0] * 20
    assert 1 < left[20] < 2


def test_weights_in_parts_have_their_spikes_brought_down():
    weight = weight_of(3.0, 4.0)
    left = run(clip.auto(), torch.optim.SGD([weight], lr=10.0), weight, SPIKY, is_whole=True)
    assert left[:20] == [1.0] * 20
    assert 1 < left[20] < 2


@pytest.mark.parametrize(
    "make", [torch.optim.Adam, lambda weights: torch.optim.SGD(weights, lr=1.0)], ids=["Adam", "SGD"]
)
def test_a_saved_state_goes_on_and_plain_clipping_knows_the_ceiling(make):
    weight = weight_of(3.0, 4.0)
    first, second = clip.auto(), clip.auto()
    run(first, make([weight]), weight, [2.0, 5.0])
    second.memory.restore(first.memory.state())
    weight.data.mul_(1.5)  # it is looked at seldom, so that both know the norm of before
    left = run(second, make([weight]), weight, [7.0])
    assert left == run(first, make([weight]), weight, [7.0])
    gradient = torch.tensor([0.0, 7.0], dtype=torch.float64)
    clip.clip_plainly_(first, [gradient], None)
    assert gradient.norm().item() == pytest.approx(left[0], rel=1e-6)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"version": 1, "updates": 0},
        {"version": 2},
        {"version": 2, "updates": 0, "mean": torch.ones(())},
        {"version": 2, "updates": 0, "median": torch.ones(())},
        {"version": 2, "updates": 0, "weight_norm": 3},
    ],
)
def test_a_state_that_cannot_be_read_is_refused(state):
    with pytest.raises(ValueError, match="expected what clip='auto' remembers, version 2"):
        clip.auto().memory.restore(state)


def test_a_state_before_the_first_step_is_restored():
    policy = clip.auto()
    policy.memory.restore(clip.auto().memory.state())
    assert policy.memory.state() == {"version": 2, "updates": 0}
