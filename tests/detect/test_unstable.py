import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradwatch
from gradwatch.detect.unstable import HORIZON, JUMP, JUMPS, MOVED, SAMPLES, SMALL, WINDOW, Unstable
from gradwatch.findings import Thresholds
from tests.detect.test_loss_evidence import moving_run, slow_reaches
from tests.reports import INF, NAN, examine_all, findings, kinds, report, run_of, table, times


def reports_of(losses):
    return run_of([[1.0]] * len(losses), losses)


def slow_unstable(reports):
    """The default rule: for each step (sick, largest jump if it is), None where the step says nothing."""
    told, jumps, beyond, means, moved = [], [], [], [], []
    first = last = None
    negative = positive = False
    before = 0.0
    for step, reach in zip(reports, slow_reaches(reports), strict=True):
        loss = step.loss
        if step.sampled and not step.skipped:
            pairs = zip(step.figures.get("update_ratio", ()), step.figures.get("weight_norm", ()), strict=True)
            ratios = [ratio * norm / max(norm, SMALL * math.sqrt(2)) for ratio, norm in pairs if math.isfinite(ratio)]
            moved += [max(ratios)] if ratios else []
        if loss is None or not math.isfinite(loss):
            negative, positive = negative or loss == -INF, positive or loss == INF
            told.append(None)
            continue
        negative, positive = negative or loss < 0, positive or loss > 0
        if first is None:
            first = last = loss
            means.append(loss)
            told.append(None)
            continue
        rise, last = loss - last, loss
        jump, limit = 0.0, JUMP * abs(first)
        past = [each for each in beyond[-WINDOW:] if each > 0]
        if past:
            limit = max(limit, JUMP * float(np.median(past)))
        limit = max(limit, JUMP * (first - min(means)))
        if first != 0 and before <= 0 and limit < rise <= reach.rise:
            jump = rise / abs(first)
        jumps.append(jump)
        beyond.append(max(0.0, rise - reach.rise))
        before = rise
        means.append(means[-1] + (loss - means[-1]) / min(len(means) + 1, HORIZON))
        recent = [each for each in jumps[-WINDOW:] if each > 0]
        is_sick = len(recent) >= JUMPS and not (negative and positive) and (not moved or max(moved[-SAMPLES:]) >= MOVED)
        told.append((is_sick, max(recent) if is_sick else 0.0))
    return told


def vectorised(reports):
    told = examine_all(Unstable(table(1), Thresholds()), reports)
    return [None if result is None else (bool(result.sick[0]), float(result.value[0])) for result in told]


def test_agrees_with_the_slow_loop_on_random_walks():
    sick_steps = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        reports = reports_of((10.0 ** rng.normal(0, 0.1 * (seed % 8), 80)).tolist())
        slow = slow_unstable(reports)
        assert vectorised(reports) == slow
        sick_steps += sum(told is not None and told[0] for told in slow)
    assert sick_steps > 50  # else this test would show nothing


def test_agrees_with_the_slow_loop_where_updates_have_a_reach():
    sick_steps = beyond = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        losses = (10.0 ** rng.normal(0, 0.3, 120)).tolist()
        reports = moving_run(rng, losses)
        slow = slow_unstable(reports)
        assert [each and each[0] for each in vectorised(reports)] == [each and each[0] for each in slow]
        values = [[each[1] if each else NAN for each in run] for run in (vectorised(reports), slow)]
        np.testing.assert_allclose(*values, rtol=1e-9)
        sick_steps += sum(told is not None and told[0] for told in slow)
        beyond += slow != slow_unstable(reports_of(losses))
    assert sick_steps > 50
    assert beyond > 10


losses = st.one_of(st.floats(0, 5), st.sampled_from([None, NAN, INF, 0.0, 1.0, 9.0, 9.0, -1.0]))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(losses, min_size=1, max_size=60))
def test_agrees_with_the_slow_loop_on_anything(sequence):
    assert vectorised(reports_of(sequence)) == slow_unstable(reports_of(sequence))


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
    sick = [told is not None and told[0] for told in vectorised(reports_of(sequence))]
    longest = max(map(len, "".join("x" if is_sick else " " for is_sick in sick).split()))
    rows = [[1.0] if is_sick else [NAN] for is_sick in sick]
    assert sick.count(True) > longest
    assert kinds(run_of(rows, sequence), Thresholds(patience=longest + 1)) == []


def test_a_loss_that_climbs_without_coming_down_diverges_and_is_no_oscillation():
    assert kinds(run_of([[1.0]] * 30, [2.0**step for step in range(30)])) == []


def jumping(rise, reach):
    """A loss of 1 that jumps by ``rise`` at every second step, whose updates can change it by ``reach``."""
    losses = [1.0, 1.0 + rise] * 30
    figures = {"update_ratio": np.array([reach]), "weight_norm": np.array([1.0])}
    return [report([1.0], step, loss, sampled=step % 10 == 0, figures=figures) for step, loss in enumerate(losses)]


@pytest.mark.parametrize(("reach", "is_sick"), [(4.1, True), (3.9, False), (0.0, False)])
def test_jumps_that_no_update_can_have_made_came_with_the_data(reach, is_sick):
    assert kinds(jumping(4.0, reach)) == ["unstable"] * is_sick


def test_a_jump_must_stand_out_from_those_that_the_data_makes():
    """The first batch was an easy one: the loss goes up and down by 50 with the data, and by 5 with the updates."""
    losses = [0.01] + [5.0, 0.1, 50.0, 0.1] * 20
    figures = {"update_ratio": np.array([6.0]), "weight_norm": np.array([1.0])}
    run = [report([1.0], step, loss, sampled=True, figures=figures) for step, loss in enumerate(losses)]
    assert kinds(run) == []
    assert kinds(reports_of(losses)) == ["unstable"]  # no update was measured: nobody can tell


@pytest.mark.parametrize(("ratio", "is_sick"), [(0.031, True), (0.029, False)])
def test_updates_that_move_no_weight_far_overshoot_nothing(ratio, is_sick):
    figures = {"update_ratio": np.array([ratio]), "weight_norm": np.array([1e4])}  # so that their reach is long
    run = [report([1.0], step, loss, sampled=step % 10 == 0, figures=figures) for step, loss in enumerate(LEAPING)]
    assert kinds(run) == ["unstable"] * is_sick


@pytest.mark.parametrize(("norm", "is_sick"), [(0.3, True), (0.01, False)])
def test_a_weight_that_began_at_zero_is_not_judged_against_itself(norm, is_sick):
    figures = {"update_ratio": np.array([0.1]), "weight_norm": np.array([norm])}
    run = [report([1e4], step, loss, sampled=step % 10 == 0, figures=figures) for step, loss in enumerate(LEAPING)]
    assert kinds(run) == ["unstable"] * is_sick


def test_a_likelihood_jumps_by_less_than_it_has_gained():
    """It begins close to zero, by accident, and falls to -4, from where single batches throw it back by 1."""
    losses = [-0.01 - 0.1 * step for step in range(40)] + [-4.0, -3.0] * 30
    assert kinds(reports_of(losses)) == []
    assert kinds(reports_of(losses[:40] + [-9.0, 0.0] * 30)) == ["unstable"]  # all that was gained is lost again


# --- whole runs


def train(model, optimizer, draw, loss_of, steps):
    """Findings of a plain loop."""
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(steps):
            inputs, targets = draw(step)
            loss = loss_of(model(inputs), targets)
            watcher.observe_loss(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return [finding.kind for finding in watcher.findings]


def perceptron(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs))


def clusters(size, noise=1.0):
    """``size`` points of four clusters in 16 dimensions, and their numbers."""
    centres = torch.randn(4, 16, generator=torch.Generator().manual_seed(7))
    classes = torch.randint(4, (size,))
    return centres[classes] + noise * torch.randn(size, 16), classes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate", [3.0, 1.0])
def test_adam_at_a_rate_that_is_too_high_overshoots(rate, seed):
    torch.manual_seed(seed)
    model = perceptron(16, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.0, 0.9))
    inputs = torch.randn(64, 16)
    targets = inputs[:, :1] - inputs[:, 1:2]
    said = train(model, optimizer, lambda step: (inputs, targets), nn.functional.mse_loss, 120)
    assert {"exploding", "unstable"} & set(said)


@pytest.mark.parametrize("seed", range(3))
def test_a_linear_classifier_at_a_rate_of_200_overshoots(seed):
    torch.manual_seed(seed)
    model = nn.Linear(16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=200.0)
    assert "unstable" in train(model, optimizer, lambda step: clusters(64, 2.0), nn.functional.cross_entropy, 150)


@pytest.mark.parametrize("seed", range(3))
def test_a_second_stage_whose_first_batch_was_easy_is_quiet(seed):
    """A good classifier goes on at a low rate with batches of four, some of whose labels are wrong."""
    torch.manual_seed(seed)
    model = perceptron(16, 4)
    first = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        inputs, classes = clusters(64, 0.5)
        nn.functional.cross_entropy(model(inputs), classes).backward()
        first.step()
        first.zero_grad()

    def draw(step):
        inputs, classes = clusters(4, 0.5)
        is_wrong = torch.rand(4) < (0.1 if step else 0.0)
        return inputs, torch.where(is_wrong, torch.randint(4, (4,)), classes)

    second = torch.optim.Adam(model.parameters(), lr=1e-4)
    assert train(model, second, draw, nn.functional.cross_entropy, 300) == []


def test_a_likelihood_of_narrow_targets_is_quiet():
    """Its loss begins at -0.008, and falls to -4; what a batch undoes of that is many times its first value."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 2))
    x = torch.rand(1024, 1) * 4 - 2
    y = 0.01 * torch.sin(3 * x) + 0.0005 * torch.randn_like(x)

    def draw(step):
        chosen = torch.randint(1024, (64,))
        return x[chosen], y[chosen]

    def loss_of(outputs, targets):
        mean, log_deviation = outputs.chunk(2, 1)
        return (log_deviation + 0.5 * ((targets - mean) * (-log_deviation).exp()).square()).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    assert "unstable" not in train(model, optimizer, draw, loss_of, 300)


def test_heavy_tailed_targets_in_batches_of_one_are_quiet():
    torch.manual_seed(0)
    model = nn.Linear(8, 1)

    def draw(step):
        inputs = torch.randn(1, 8)
        return inputs, inputs[:, :1] + torch.distributions.StudentT(2.0).sample((1, 1))

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    assert train(model, optimizer, draw, nn.functional.mse_loss, 200) == []


def test_a_constant_output_in_small_batches_is_called_what_it_is():
    """The softmax over one entry passes no gradient, so no weight moves and no update can overshoot."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1), nn.Softmax(1))

    def draw(step):
        inputs = torch.randn(4, 8)
        return inputs, (inputs[:, :1] > -1).float()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    assert "unstable" not in train(model, optimizer, draw, nn.functional.binary_cross_entropy, 100)


def test_two_tasks_in_turns_are_quiet():
    torch.manual_seed(0)
    model = perceptron(16, 2)

    def loss_of(outputs, targets):
        value, is_second = targets
        return nn.functional.mse_loss(outputs[:, int(is_second)], 20 * value + 5 if is_second else 0.1 * value)

    def draw(step):
        inputs = torch.randn(32, 16)
        return inputs, (inputs[:, 0].sin(), step % 2)

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    assert train(model, optimizer, draw, loss_of, 150) == []
