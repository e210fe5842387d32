"""Vectors in a 16-bit format whose updates are each rounded away, while others move."""

import statistics

import numpy as np
import pytest
import torch

from gradwatch.detect.unmoved import LASTING, LEARNED, NOISE, SAMPLES, Unmoved
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import of_tensors
from tests.reports import NAN, examine_all, findings, report, sick_columns

SIZES = (64, 8, 8)  # a matrix, the scale of a normalisation, a bias


def layers_in(dtype):
    shapes = {"matrix": (8, 8), "scale": (8,), "bias": (8,)}
    return of_tensors({name: torch.ones(shape, dtype=dtype) for name, shape in shapes.items()})


def run_of(ratios, norms, updates=300, loss=lambda step: 2.0, weights=(0.5, 3.0, 0.3)):
    """A run sampled at every tenth update; ``ratios`` and ``norms`` are those of the three layers."""
    reports = []
    for step in range(0, updates, 10):
        each = report(norms, step, loss(step), sampled=True, size=np.array(SIZES))
        each.figures["update_ratio"] = np.array(ratios, dtype=float)
        each.figures["weight_norm"] = np.array(weights, dtype=float)
        reports.append(each)
    return reports


ADAM = ([0.02, 0.0, 0.01], [0.8, 0.4, 0.3])
"""Entries of the matrix have a root mean square of 0.0625, and move by 1.25e-3; the scale's entries are near 1."""


def test_a_scale_that_bfloat16_keeps_at_one_is_stalled():
    (finding,) = findings(run_of(*ADAM), layers=layers_in(torch.bfloat16))
    assert (finding.kind, finding.layer, finding.layers) == ("stalled", "scale", ("scale",))
    assert (finding.step, finding.raised_step) == (LASTING, LASTING + 10 * (SAMPLES - 1))
    assert (finding.value, finding.threshold) == (0.0, 2.0**-8)
    assert "No update has changed scale by a bit" in finding.measured
    assert "bfloat16 rounds away what is less than 0.0039 of an entry" in finding.cause


@pytest.mark.parametrize(
    ("ratios", "norms", "rest"),
    [
        pytest.param([0.02, 1e-4, 0.01], ADAM[1], {}, id="it moves"),
        pytest.param([0.0, 0.0, 0.0], ADAM[1], {}, id="nothing moves"),
        pytest.param(ADAM[0], [0.8, 0.9 * NOISE * 0.1 * 8**0.5, 0.3], {}, id="its gradient is noise"),
        pytest.param([2e-7, 0.0, 1e-7], ADAM[1], {"loss": lambda step: 1 / (1 + step)}, id="others hardly move"),
        pytest.param([0.02, NAN, 0.01], ADAM[1], {}, id="it is zero, so that no ratio is known"),
        pytest.param(ADAM[0], ADAM[1], {"loss": lambda step: 2.0 if step < 20 else 1.0}, id="the run learns"),
        pytest.param(ADAM[0], ADAM[1], {"updates": 150}, id="too few updates"),
        pytest.param([0.0, 0.02, 0.01], ADAM[1], {}, id="a matrix, of which only some rows may be in use"),
    ],
)
def test_healthy_runs_raise_nothing(ratios, norms, rest):
    told = findings(run_of(ratios, norms, **rest), layers=layers_in(torch.bfloat16))
    assert [finding for finding in told if finding.layer] == []  # where nothing moves the whole run is stalled


def test_a_scale_that_moved_once_is_left_alone():
    reports = run_of(*ADAM)
    reports[3].figures["update_ratio"][1] = 1e-3
    assert findings(reports, layers=layers_in(torch.bfloat16)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_formats_are_left_alone(dtype):
    assert findings(run_of(*ADAM), layers=layers_in(dtype)) == []


def test_a_ratio_that_the_user_sets_replaces_the_rule():
    thresholds = Thresholds(stalled_update_ratio=1e-12)
    assert findings(run_of(*ADAM), thresholds, layers_in(torch.bfloat16)) == []


def slow_verdict(reports, column):
    """The rule for one vector in bfloat16 in the plainest words."""
    asked, last = 0.0, 0
    for each in reports:
        ratio, norm = each.figures["update_ratio"].tolist(), each.figures["weight_norm"].tolist()
        if ratio[column] > 0:
            return False
        moving = [c for c in range(3) if ratio[c] > 0]
        if moving:
            step = statistics.median(ratio[c] * norm[c] / SIZES[c] ** 0.5 for c in moving)
            typical = statistics.median(float(each.grad_norm[c]) / SIZES[c] ** 0.5 for c in moving)
            strength = float(each.grad_norm[column]) / SIZES[column] ** 0.5 / typical
            if strength >= NOISE:
                asked += (each.update - last) * step * min(strength, 1) * SIZES[column] ** 0.5 / norm[column]
        last = each.update
    losses = [each.loss for each in reports]
    beginning, recent = max(losses[0], statistics.fmean(losses[:10])), 0.0
    for count, loss in enumerate(losses, 1):
        recent += (loss - recent) / min(count, 50)
    learned = len(losses) <= 10 or beginning - recent > LEARNED * beginning
    return asked > 2.0**-8 and reports[-1].update >= LASTING and not learned


@pytest.mark.parametrize("seed", range(10))
def test_a_slow_twin_finds_the_same(seed):
    random = np.random.default_rng(seed)
    speed = 10.0 ** random.uniform(-4, -2)
    falls = random.choice([0.0, 0.002, 0.004])
    reports = run_of([1.0, 0.0, 0.0], [1.0, 1.0, 1.0], loss=lambda step: 2.0 - falls * step)
    for each in reports:
        each.figures["update_ratio"][:] = speed * random.random(), 0.0, random.choice([0.0, 1e-3]) * (seed % 2)
        each.grad_norm[:] = random.random(3) + 0.01
    results = examine_all(Unmoved(layers_in(torch.bfloat16), Thresholds()), reports)
    for end in range(1, len(reports) + 1):
        expected = {column for column in (1, 2) if slow_verdict(reports[:end], column)}
        assert (sick_columns(results[end - 1]) or set()) == expected
