"""Policies that remember the latest steps, against their slow twins."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies

from gradwatch import clip
from gradwatch.measure import statistics
from tests import reference

deterministic = settings(deadline=None, derandomize=True, max_examples=50)
figures = strategies.sampled_from([0.0, math.nan, math.inf]) | strategies.floats(1e-3, 1e6)


def totals_after(policy, totals):
    """The totals that ``policy`` makes of a series of them."""
    gradients = [torch.tensor([total], dtype=torch.float64) for total in totals]
    return [policy.clip_([each], statistics.measure([each]), (), None).item() for each in gradients]


def left_out(policy, totals, losses=None):
    """Whether each of a series of updates is left out."""
    pairs = zip(totals, losses or [None] * len(totals), strict=True)
    return [bool(policy.is_spike(torch.tensor(total, dtype=torch.float64), loss)) for total, loss in pairs]


@deterministic
@given(strategies.lists(figures, max_size=30), strategies.floats(1, 99), strategies.integers(1, 12))
def test_percentile_agrees_with_its_twin(totals, percent, window):
    twin = reference.Percentile(percent, window)
    expected = [twin.clip(total) for total in totals]
    after = totals_after(clip.percentile(percent, window=window), totals)
    assert after == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_percentile_clips_plainly_by_what_it_knew_last():
    policy, gradient = clip.percentile(50), torch.tensor([100.0])
    clip.clip_plainly_(policy, [gradient], None)
    assert gradient.item() == 100  # nothing is known yet
    totals_after(policy, [1.0, 2.0, 3.0])
    known = policy.memory.state()
    clip.clip_plainly_(policy, [gradient], None)
    assert gradient.item() == pytest.approx(2, rel=1e-5)
    assert policy.memory.state()["count"] == known["count"]


@deterministic
@given(strategies.lists(strategies.tuples(figures, figures), max_size=40), strategies.floats(0.5, 6))
def test_skip_spikes_agrees_with_its_twin(steps, deviations):
    twin = reference.SkipSpikes(deviations, 8)
    expected = [twin.is_spike(*step) for step in steps]
    policy = clip.skip_spikes(deviations, window=8)
    assert left_out(policy, [step[0] for step in steps], [step[1] for step in steps]) == expected


def test_skip_spikes_leaves_out_a_spike_of_either_and_learns_first():
    noise = torch.rand(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    spiky = [*noise[:90], 50.0, *noise[90:]]
    assert [at for at, is_out in enumerate(left_out(clip.skip_spikes(), spiky)) if is_out] == [90]
    calm = [1.0] * len(spiky)
    assert [at for at, is_out in enumerate(left_out(clip.skip_spikes(), calm, spiky)) if is_out] == [90]
    assert not any(left_out(clip.skip_spikes(), [1.0, 2.0, 1e6, 1.0]))


def test_skip_spikes_accepts_a_new_level():
    is_out = left_out(clip.skip_spikes(), [*[1.0, 1.1] * 64, *[100.0] * 20])
    assert is_out[128]
    assert not any(is_out[128 + 8 :])


def test_skip_spikes_leaves_out_nothing_of_a_loss_that_stays_the_same_to_its_last_digit():
    losses = [math.log(2)] * 100 + [math.log(2) * (1 + 1e-9)]
    assert not any(left_out(clip.skip_spikes(), [1.0] * len(losses), losses))


@pytest.mark.parametrize("make", [clip.percentile, clip.skip_spikes])
def test_a_saved_state_goes_on_as_the_original(make):
    original, restored = make(), make()
    series = torch.rand(80, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist()
    use = totals_after if make is clip.percentile else left_out
    use(original, series)
    restored.memory.restore(original.memory.state())
    assert use(restored, [9.0, 0.5]) == use(original, [9.0, 0.5])
    assert original.renew().memory.state() == {"version": 1, "count": 0}


@pytest.mark.parametrize(
    "state",
    [{}, {"version": 0, "count": 1}, {"version": 1}, {"version": 1, "count": 1, "rows": torch.ones(3, 1)}],
)
def test_a_state_that_cannot_be_read_is_refused(state):
    with pytest.raises(ValueError, match=r"expected the latest 1000 steps of clip=percentile\(10.0\), version 1"):
        clip.percentile().memory.restore(state)


@pytest.mark.parametrize(
    "make",
    [
        lambda: clip.percentile(0),
        lambda: clip.percentile(100),
        lambda: clip.percentile(True),
        lambda: clip.percentile(window=0),
        lambda: clip.skip_spikes(0),
        lambda: clip.skip_spikes(window=3),
    ],
)
def test_what_is_out_of_range_is_refused(make):
    with pytest.raises(ValueError, match=r"^(percent|window|deviations)=.*: expected"):
        make()
