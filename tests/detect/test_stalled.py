import numpy as np
import pytest

from gradwatch.detect.stalled import FLAT, FLAT_STEPS, RESOLUTION, SAMPLES
from gradwatch.findings import Thresholds
from tests.reports import NAN, findings, kinds, run_of, times

LEARNING = [0.99**step for step in range(200)]


def reports_of(ratios, losses=None, norms=(1.0, 1.0), **rest):
    """A run each of whose steps is sampled; ``ratios`` holds each step's largest update ratio."""
    reports = run_of([norms] * len(ratios), losses, sampled=True, **rest)
    for step, ratio in zip(reports, ratios, strict=True):
        step.figures["update_ratio"] = np.array([ratio, 0.0 if ratio == ratio else NAN])
    return reports


def test_weights_that_never_move_are_stalled():
    (finding,) = findings(reports_of([0.0] * 20, LEARNING[:20]))
    assert (finding.kind, finding.severity, finding.layer, finding.layers) == ("stalled", "warning", "", ("",))
    assert (finding.step, finding.raised_step) == (0, SAMPLES - 1)
    assert (finding.value, finding.threshold) == (0.0, RESOLUTION)
    assert "The largest update of any layer at step 9 is 0 of its weights" in finding.measured
    assert "total norm 1.41" in finding.cause


def test_updates_that_rounding_swallows_are_stalled():
    assert kinds(reports_of([RESOLUTION] * 20)) == ["stalled"]
    assert kinds(reports_of([1.1 * RESOLUTION] * 20)) == []


def test_a_loss_that_stays_within_a_thousandth_is_stalled():
    losses = [2.0 + FLAT * (step % 2) for step in range(FLAT_STEPS + SAMPLES)]
    (finding,) = findings(reports_of([1e-3] * len(losses), losses))
    assert (finding.step, finding.raised_step) == (FLAT_STEPS - 1, FLAT_STEPS + SAMPLES - 2)
    assert finding.value == pytest.approx(FLAT / 2)
    assert finding.threshold == FLAT
    assert "In 109 steps the loss has moved by at most 0.0005 of its first value, 2 (a run" in finding.measured


@pytest.mark.parametrize("seen_at", [0, 1])
def test_a_flat_loss_is_told_of_though_this_step_observed_none(seen_at):
    losses = [2.0 if step % 2 == seen_at else None for step in range(3 * FLAT_STEPS)]
    (finding,) = findings(reports_of([1e-3] * len(losses), losses))
    assert "the loss has moved by at most 0 of its first value, 2" in finding.measured


@pytest.mark.parametrize(
    ("ratios", "losses"),
    [
        pytest.param([1e-3] * 200, LEARNING, id="a run that learns"),
        pytest.param([1e-3] + [0.0] * 199, LEARNING, id="a run that moved once"),
        pytest.param([0.0] * 4 + [1e-3] * 196, LEARNING, id="a warm-up that begins at zero"),
        pytest.param([1e-3] * 200, [1.0] * 50 + [0.5] * 150, id="a plateau that is left within 100 steps"),
        pytest.param([1e-3] * 200, [1.0, 2.0] * 100, id="a noisy loss"),
        pytest.param([1e-3] * 20 + [0.0] * 180, LEARNING[:20] + [LEARNING[20]] * 180, id="a converged run"),
        pytest.param([NAN] * 200, LEARNING, id="nothing measured"),
        pytest.param([1e-3] * 200, [NAN] * 200, id="a loss that is never finite"),
    ],
)
def test_healthy_runs_raise_nothing(ratios, losses):
    assert "stalled" not in kinds(reports_of(ratios, losses))


def test_a_run_without_gradients_is_vanishing_not_stalled():
    assert kinds(reports_of([0.0] * 30, norms=(0.0, 0.0))) == ["vanishing"]


@pytest.mark.parametrize("rest", [{"skipped": True}, {"sampled": False}], ids=["skipped", "not sampled"])
def test_steps_that_say_nothing_of_the_weights_raise_nothing(rest):
    reports = run_of([[1.0]] * 30, **({"sampled": True} | rest))
    for step in reports:
        step.figures["update_ratio"] = np.zeros(1)
    assert kinds(reports) == []


@pytest.mark.parametrize("factor", [1e-8, 1e5, -1.0])
@pytest.mark.parametrize("losses", [[2.0] * 200, LEARNING], ids=["flat", "learning"])
def test_the_scale_of_the_loss_changes_no_finding(factor, losses):
    assert kinds(reports_of([1e-3] * 200, times(factor, losses))) == kinds(reports_of([1e-3] * 200, losses))


@pytest.mark.parametrize(("ratio", "is_sick"), [(0.9e-4, True), (1e-4, False)])
def test_a_ratio_that_the_user_sets_holds_literally_at_any_time(ratio, is_sick):
    ratios = [0.1] * 10 + [ratio] * SAMPLES
    told = findings(reports_of(ratios, LEARNING[: len(ratios)]), Thresholds(stalled_update_ratio=1e-4))
    assert [(finding.step, finding.threshold) for finding in told] == [(10, 1e-4)] * is_sick


@pytest.mark.parametrize("patience", [1, 3, 12])
def test_patience_counts_samples(patience):
    (finding,) = findings(reports_of([0.0] * 20), Thresholds(patience=patience))
    assert (finding.step, finding.raised_step) == (0, patience - 1)


def test_the_first_movement_ends_it():
    (finding,) = findings(reports_of([0.0] * SAMPLES + [1e-2] * 30 + [0.0] * 30))
    assert finding.raised_step == SAMPLES - 1
