import numpy as np
import pytest

from gradwatch.findings import Thresholds
from tests.reports import INF, NAN, events, findings, report, run_of, table

HEALTHY = [1.0, 1.0, 1.0]


def sick(nonfinite, step=3, loss=None, **rest):
    """A healthy run whose step ``step`` has so many entries per layer that are not finite."""
    return [*run_of([HEALTHY] * step, [loss and 1.0] * step), report(HEALTHY, step, loss, nonfinite=nonfinite, **rest)]


def test_the_sick_layer_nearest_the_output_gives_its_name():
    (finding,) = findings(sick([4, 2, 0]))
    assert (finding.kind, finding.severity, finding.layer) == ("nonfinite", "error", "w1")
    assert finding.layers == ("w0", "w1")
    assert (finding.step, finding.raised_step, finding.last_step) == (3, 3, 3)


def test_nearest_the_output_means_depth_not_registration():
    layers = table(3)
    layers.depth = np.array([2, 0, 1])
    (finding,) = findings(sick([4, 2, 1]), layers=layers)
    assert (finding.layer, finding.layers) == ("w0", ("w0", "w1", "w2"))


def test_the_count_of_entries_is_told():
    (finding,) = findings(sick([4, 2, 0]))
    assert (finding.value, finding.threshold) == (2.0, 0.0)
    assert finding.measured == "2 of 4 gradient entries of w1 are NaN or Inf at step 3; this concerns 2 of 3 layers."
    assert finding.cause.startswith("No weight ")
    assert any(advice.name == "safe-log" for advice in finding.remedies)


@pytest.mark.parametrize(
    ("loss", "weight_nonfinite", "cause"),
    [
        pytest.param(NAN, None, "The loss of this step is nan, while every weight is finite", id="loss"),
        pytest.param(INF, [0, 0, 0], "The loss of this step is inf, while every weight is finite", id="infinite loss"),
        pytest.param(
            NAN, [0, 3, 1],
            "The weight w1 already held 3 entries that are NaN or Inf before this step", id="weight, loss too",
        ),
        pytest.param(0.5, [0, 0, 0], "The loss is finite (0.5): the backward pass made it", id="backward"),
        pytest.param(None, [0, 0, 0], "No weight was sick before this step", id="loss unknown"),
    ],
)  # fmt: skip
def test_the_cause_says_what_went_first(loss, weight_nonfinite, cause):
    weights = None if weight_nonfinite is None else np.array(weight_nonfinite)
    (finding,) = findings(sick([1, 1, 1], loss=loss, weight_nonfinite=weights))
    assert finding.cause == f"{cause}."


def test_the_first_step_can_be_sick():
    assert findings(sick([0, 1, 0], step=0))[0].step == 0


@pytest.mark.parametrize("loss", [NAN, INF, -INF])
def test_a_loss_that_goes_first_is_a_finding_of_the_whole_run(loss):
    (finding,) = findings(run_of([HEALTHY] * 3, [1.0, 1.0, loss]))
    assert (finding.kind, finding.severity, finding.layer, finding.layers) == ("nonfinite", "error", "", ("",))
    assert (finding.step, finding.value, finding.threshold) == (2, 1.0, 0.0)
    assert finding.measured.startswith(f"The loss is {loss} at step 2, while every gradient is still finite.")


def test_a_loss_that_turns_with_its_gradients_is_one_finding():
    (finding,) = findings(
        [*sick([1, 1, 1], loss=NAN), *(report(HEALTHY, s, NAN, nonfinite=[4] * 3) for s in range(4, 9))]
    )
    assert finding.layer == "w2"


def test_a_loss_that_went_first_stays_a_finding_of_its_own_when_gradients_follow():
    run = [*run_of([HEALTHY] * 3, [1.0, 1.0, NAN]), *(report(HEALTHY, s, NAN, nonfinite=[4] * 3) for s in range(3, 6))]
    assert [(finding.layer, finding.step) for finding in findings(run)] == [("", 2), ("w2", 3)]
    assert {(f.layer, f.last_step) for f in latest(run)} == {("", 5), ("w2", 5)}


def latest(run):
    """Every finding as it ends once the run is healthy again."""
    healthy = [report(HEALTHY, len(run) + step, 1.0) for step in range(10)]
    return [event.finding for event in events(run + healthy) if event.ended]


def test_neither_patience_nor_warm_up_delays_it():
    (finding,) = findings(sick([1, 0, 0], step=0), Thresholds(patience=50, warmup_steps=100))
    assert finding.raised_step == 0


@pytest.mark.parametrize("row", [[0.0] * 3, [NAN] * 3, [1e300] * 3, [NAN, 0.0, 1.0]])
def test_no_norm_is_evidence(row):
    assert "nonfinite" not in [finding.kind for finding in findings(run_of([row] * 3, [1.0] * 3))]


def test_a_gradient_that_is_not_finite_hides_no_other_step():
    """One NaN poisons no running level: an explosion twenty steps later is still seen."""
    rows = [*sick([1, 0, 0], step=10, loss=1.0), *(report(HEALTHY, s, 1.0) for s in range(11, 30))]
    rows += [report([1e4] * 3, 30, 1e4), report([1e5] * 3, 31, 1e5)]
    assert [(f.kind, f.step) for f in findings(rows)] == [("nonfinite", 10), ("exploding", 30)]
