import math
import statistics

import numpy as np
import pytest
import torch
from torch import nn

import gradwatch
from gradwatch.detect.stalled import CRAWL, FALLEN, FLAT, FLAT_STEPS, LASTING, RESOLUTION, SAMPLES, Stalled
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import of_model, of_tensors
from tests.reports import NAN, examine_all, findings, kinds, run_of, times

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


# at rest, and crawling

LEARNT = [math.exp(-step / 30) for step in range(300)]
NOISY = [2.3 + 0.2 * math.sin(step * step) for step in range(300)]  # stands still among noise of a tenth
CYCLE = ([1e-3] * 40 + [0.0] * 40) * 4


@pytest.mark.parametrize("losses", [NOISY, times(-1.0, NOISY), times(1e-8, NOISY)], ids=["loss", "negative", "tiny"])
def test_a_run_at_rest_that_has_learned_nothing_is_stalled(losses):
    (finding,) = findings(reports_of([1e-3] * 10 + [0.0] * 290, losses, learning_rate=0.0))
    assert (finding.step, finding.raised_step) == (10, 10 + LASTING)
    assert (finding.value, finding.threshold) == (0.0, RESOLUTION)
    assert "No update has moved any layer for 100 updates, since step 10" in finding.measured
    assert "The learning rate has been 0 since step 10" in finding.cause


def test_a_run_that_crawls_is_stalled():
    (finding,) = findings(reports_of([CRAWL] * 300, NOISY))
    assert finding.step < finding.raised_step == LASTING
    assert (finding.value, finding.threshold) == (CRAWL, CRAWL)


def of_format(dtype, ratios, losses):
    """Findings of a run whose weights are in this format."""
    layers = of_tensors({f"w{column}": torch.zeros(2, 2, dtype=dtype) for column in range(2)})
    return findings(reports_of(ratios, losses), layers=layers)


@pytest.mark.parametrize(
    ("dtype", "limit"),
    [
        pytest.param(torch.bfloat16, 2.0**-8, id="bfloat16"),
        pytest.param(torch.float16, 2.0**-11, id="float16"),
        pytest.param(torch.float32, CRAWL, id="float32"),
        pytest.param(torch.float64, CRAWL, id="float64"),
    ],
)
def test_how_little_is_too_little_depends_on_the_number_format(dtype, limit):
    (finding,) = of_format(dtype, [0.99 * limit] * 300, NOISY)
    assert (finding.kind, finding.threshold) == ("stalled", limit)
    assert ("round away" in finding.cause) == (dtype.itemsize == 2)
    assert of_format(dtype, [1.01 * limit] * 300, NOISY) == []
    assert of_format(dtype, [0.99 * limit] * 300, LEARNT) == []


def test_float64_resolves_what_float32_rounds_away():
    assert of_format(torch.float64, [RESOLUTION / 2] * 60, LEARNT[:60]) == []
    assert [finding.kind for finding in of_format(torch.float32, [RESOLUTION / 2] * 60, LEARNT[:60])] == ["stalled"]


def test_clipping_that_leaves_nothing_is_named():
    (finding,) = findings(reports_of([0.0] * 20, grad_norm_clipped_total=1e-9))
    assert "Clipping leaves 7.1e-10 of the gradient, 3.5e-10 per entry" in finding.cause
    assert "Clipping" not in findings(reports_of([0.0] * 20, grad_norm_clipped_total=1e-4))[0].cause


def test_clipping_below_what_adam_resolves_is_stalled_though_the_weights_move():
    (finding,) = findings(reports_of([1e-4] * 150, NOISY[:150], grad_norm_clipped_total=1e-9))
    assert "Clipping leaves" in finding.cause
    assert kinds(reports_of([1e-4] * 150, LEARNT[:150], grad_norm_clipped_total=1e-9)) == []
    assert kinds(reports_of([1e-4] * 150, NOISY[:150], grad_norm_clipped_total=1e-4)) == []


def test_a_layer_that_grows_out_of_nothing_does_not_count_as_moving():
    reports = reports_of([0.0] * 20)
    for step in reports:
        step.figures["update_ratio"][1] = NAN if step.step == 0 else 1 / step.step  # 0, u, 2u, 3u, …
        step.figures["weight_norm"] = np.array([1.0, 1e-9 * step.step])
    assert kinds(reports) == ["stalled"]
    for step in reports:
        step.figures["weight_norm"] = np.array([1.0, 1.0 + 1e-9 * step.step])
    assert kinds(reports) == []


@pytest.mark.parametrize(("rows", "rate", "is_sick"), [(1000, 0.1, False), (1000, 0.0, True), (4, 0.1, True)])
def test_a_large_embedding_that_has_not_moved_says_nothing(rows, rate, is_sick):
    layers = of_model(torch.nn.Embedding(rows, 8))
    reports = run_of([[1.0]] * 30, sampled=True, learning_rate=rate)
    for step in reports:
        step.figures["update_ratio"] = np.zeros(1)
    assert [finding.kind for finding in findings(reports, layers=layers)] == ["stalled"] * is_sick


def test_layers_that_all_began_at_zero_are_judged_by_themselves():
    reports = reports_of([NAN] + [0.1] * 30)
    for step in reports:
        step.figures["update_ratio"][1] = step.figures["update_ratio"][0]
        step.figures["weight_norm"] = np.full(2, float(step.step))
    assert kinds(reports) == []


@pytest.mark.parametrize(
    ("ratios", "losses", "rest"),
    [
        pytest.param([1e-3] * 10 + [0.0] * 290, LEARNT[:10] + [LEARNT[10]] * 290, {}, id="learned, then at rest"),
        pytest.param([1e-3] * 180 + [0.0] * 120, NOISY, {}, id="trained for longer than it rests"),
        pytest.param(CYCLE[:300], NOISY, {}, id="a cyclic rate with zeros"),
        pytest.param([1e-3] * 10 + [0.0] * 90, NOISY[:100], {}, id="at rest for a while"),
        pytest.param([1e-3] * 10 + [0.0] * 290, None, {}, id="no loss is observed"),
        pytest.param([1e-3] * 10 + [0.0] * 290, [1.0, -1.0] * 150, {}, id="a loss that changes sign is no distance"),
        pytest.param([CRAWL / 2] * 300, [2 - step / 200 for step in range(300)], {}, id="slow, but it learns"),
        pytest.param([1e-7 * n for n in range(300)], NOISY, {}, id="a slow warm-up"),
        pytest.param([0.0] * 300, [0.8**step for step in range(300)], {"learning_rate": 0.0}, id="others train"),
    ],
)
def test_rest_and_slowness_of_healthy_runs_raise_nothing(ratios, losses, rest):
    assert kinds(reports_of(ratios, losses, **rest)) == []


def slow_verdict(report, earlier, losses):
    """Rules 3 and 4 in the plainest words, for float32 weights none of which began at zero."""
    beginning = max(losses[0], statistics.fmean(losses[:10]))
    recent = losses[0]
    for count, loss in enumerate(losses, 1):
        recent += (loss - recent) / min(count, 50)
    judges = len(losses) > 10 and not min(losses) < 0 < max(losses)
    fallen = not judges or beginning - recent > FALLEN * abs(beginning)
    fallen_slowly = not judges or statistics.fmean(losses[:10]) - recent > FALLEN * abs(statistics.fmean(losses[:10]))
    ratios = [float(step.figures["update_ratio"][0]) for step in [*earlier, report]]
    still = [step for step in range(len(ratios)) if max(ratios[step:]) <= RESOLUTION]
    rests_since = still[0] if still else None
    moved = max(ratios) > RESOLUTION
    rests = moved and rests_since is not None and not fallen
    crawls = moved and max(ratios) <= CRAWL and not fallen_slowly
    return rests or crawls


@pytest.mark.parametrize("seed", range(12))
def test_a_slow_twin_finds_the_same(seed):
    random = np.random.default_rng(seed)
    count = 130
    scale = random.choice([1e-3, CRAWL / 3, CRAWL])
    ratios = scale * random.random(count) * (random.random(count) < 0.9)
    if random.random() < 0.7:
        ratios[random.integers(5, 60) :] = 0.0
    losses = (2.0 - random.choice([0.0, 0.005, 0.01]) * np.arange(count) + random.normal(0, 0.05, count)).tolist()
    reports = reports_of(ratios.tolist(), losses)
    results = examine_all(Stalled(of_tensors({"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}), Thresholds()), reports)
    moved = np.flatnonzero(ratios > RESOLUTION)
    first = int(moved[0]) if len(moved) else count
    for step in range(first, count):
        expected = slow_verdict(reports[step], reports[:step], losses[: step + 1])
        assert results[step].is_sick == expected, step


def test_normalised_gradients_of_one_batch_that_has_nothing_to_learn_from_are_not_cleared():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(60):
            x = torch.randn(32, 4)
            optimizer.zero_grad()
            loss = ((model(x) - x[:, :1]).square() * (step != 30)).mean()
            loss.backward()
            total = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            for parameter in model.parameters():
                parameter.grad.div_(total + 1e-8)
            optimizer.step()
    assert watcher.findings == []


def test_plain_descent_that_clipping_stops_altogether_names_the_clipping():
    def of_gradient(share):
        reports = reports_of([0.0] * 20, learning_rate=0.1, grad_norm_clipped_total=share * math.sqrt(2))
        for step in reports:
            step.figures["weight_norm"] = np.array([1.0, 1.0])
        return findings(reports)[0]

    assert "Clipping leaves 9e-08 of the gradient" in of_gradient(9e-8).cause
    assert of_gradient(9e-8).remedies[0].name == "looser-clip"
    assert "Clipping" not in of_gradient(1e-6).cause  # 1e-7 of a weight is more than float32 rounds away
