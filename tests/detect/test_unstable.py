import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwatch.detect.unstable import JUMP, JUMPS, WINDOW, Unstable
from gradwatch.findings import Thresholds
from tests.reports import INF, NAN, examine_all, findings, kinds, run_of, times


def reports_of(losses):
    return run_of([[1.0]] * len(losses), losses)


def slow_unstable(losses):
    """The default rule: for each step (sick, largest rise if it is), None where the step says nothing."""
    told, rises = [], []
    first = last = None
    negative = positive = False
    for loss in losses:
        if loss is None or not math.isfinite(loss):
            told.append(None)
            continue
        negative, positive = negative or loss < 0, positive or loss > 0
        if first is None:
            first = last = loss
            told.append(None)
            continue
        rises.append((loss - last) / abs(first) if first != 0 else 0.0)
        last = loss
        jumps = 0
        for place, rise in list(enumerate(rises))[-WINDOW:]:
            if rise > JUMP and (place == 0 or rises[place - 1] <= 0):
                jumps += 1
        is_sick = jumps >= JUMPS and not (negative and positive)
        told.append((is_sick, max(rises[-WINDOW:]) if is_sick else 0.0))
    return told


def vectorised(losses):
    told = examine_all(Unstable(Thresholds()), reports_of(losses))
    return [None if result is None else (bool(result.sick[0]), float(result.value[0])) for result in told]


def test_agrees_with_the_slow_loop_on_random_walks():
    sick_steps = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        losses = (10.0 ** rng.normal(0, 0.1 * (seed % 8), 80)).tolist()
        slow = slow_unstable(losses)
        assert vectorised(losses) == slow
        sick_steps += sum(told is not None and told[0] for told in slow)
    assert sick_steps > 50  # else this test would show nothing


losses = st.one_of(st.floats(0, 5), st.sampled_from([None, NAN, INF, 0.0, 1.0, 9.0, 9.0, -1.0]))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(losses, min_size=1, max_size=60))
def test_agrees_with_the_slow_loop_on_anything(sequence):
    assert vectorised(sequence) == slow_unstable(sequence)


LEAPING = [1.0, 5.0] * 10


def test_a_loss_that_jumps_again_and_again_is_unstable():
    (finding,) = findings(reports_of(LEAPING))
    assert (finding.kind, finding.severity, finding.layer, finding.layers) == ("unstable", "warning", "", ("",))
    assert finding.step == finding.raised_step == 2 * JUMPS - 1
    assert (finding.value, finding.threshold) == (4.0, 1.0)
    assert "jumped up 6 times in the last 11 steps, by up to 4 times its first value of 1" in finding.measured


@pytest.mark.parametrize(
    "sequence",
    [
        pytest.param([1.0] * 10 + [50.0] + [1.0] * 10, id="a single spike"),
        pytest.param(LEAPING[: 2 * JUMPS - 2] + [1.0] * 30, id="one jump too few"),
        pytest.param(([1.0] * 9 + [5.0]) * 20, id="jumps far apart"),
        pytest.param([1.0 + 0.9 * step for step in range(30)], id="a steady climb"),
        pytest.param([10.0] + [1e-6, 1e-3] * 30, id="a converged loss that jumps by many times its level"),
        pytest.param([-1.0, 5.0] * 20, id="a loss that changes sign"),
        pytest.param([0.0] + [1.0, 9.0] * 20, id="a loss that began at zero"),
        pytest.param([None] * 40, id="no loss"),
        pytest.param([1.0, NAN, 1.0, INF] * 10, id="a loss that is not finite"),
        pytest.param(np.logspace(0, -9, 400).tolist(), id="a converging run"),
    ],
)
def test_healthy_losses_raise_nothing(sequence):
    assert "unstable" not in kinds(reports_of(sequence))


@pytest.mark.parametrize("factor", [1e-8, 1e5, -1.0])
def test_the_scale_of_the_loss_changes_no_finding(factor):
    assert kinds(reports_of(times(factor, LEAPING))) == ["unstable"]


@pytest.mark.parametrize(("jump", "is_sick"), [(3.9, True), (4.0, False)])
def test_a_jump_that_the_user_sets_holds_literally(jump, is_sick):
    told = findings(reports_of(LEAPING), Thresholds(unstable_jump=jump))
    assert [finding.threshold for finding in told] == [jump] * is_sick


@pytest.mark.parametrize("patience", [1, 4])
def test_patience_is_honoured(patience):
    (finding,) = findings(reports_of(LEAPING), Thresholds(patience=patience))
    assert (finding.step, finding.raised_step) == (2 * JUMPS - 1, 2 * JUMPS - 2 + patience)


def test_patience_counts_steps_in_a_row_though_the_only_layer_has_no_gradient():
    sequence = LEAPING[: 2 * JUMPS] + [5.0] * (WINDOW - 11) + LEAPING[: 2 * JUMPS]
    sick = [told is not None and told[0] for told in vectorised(sequence)]
    longest = max(map(len, "".join("x" if is_sick else " " for is_sick in sick).split()))
    rows = [[1.0] if is_sick else [NAN] for is_sick in sick]
    assert sick.count(True) > longest
    assert kinds(run_of(rows, sequence), Thresholds(patience=longest + 1)) == []


def test_a_loss_that_climbs_without_coming_down_diverges_and_is_no_oscillation():
    assert kinds(run_of([[1.0]] * 30, [2.0**step for step in range(30)])) == []
