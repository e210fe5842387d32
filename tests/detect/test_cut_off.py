"""Weights that the loss depends on and that never get a gradient."""

import numpy as np
import pytest
import torch

from gradwatch.detect.cut_off import LASTING, LOOKS, CutOff
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import of_tensors
from gradwatch.measure.report import Ownership
from gradwatch.watcher.ownership_survey import LOOKS as UPDATES
from tests.reports import NAN, findings, report

LAYERS = of_tensors({"encoder": torch.ones(8, 8), "bias": torch.ones(8), "head": torch.ones(2, 8)})
SIZES = np.array([64, 8, 16])


def looks_of(seen, norms=(NAN, NAN, 1.0), updates=400):
    """Reports of a run; ``seen`` says for the number of a look which columns are cut off, and which left out."""
    reports, looks = [], 0
    for step in range(0, updates, 10):
        ownership = None
        if step in UPDATES:
            cut_off, left_out = seen(looks)
            no, yes = np.zeros(3, dtype=bool), np.ones(3, dtype=bool)
            ownership = Ownership(yes, no, no, no, 0, 0, cut_off, left_out)
            looks += 1
        reports.append(report(list(norms), step, 2.0 * 0.99**step, sampled=True, size=SIZES, ownership=ownership))
        reports[-1].figures["update_ratio"] = np.full(3, 1e-3)
    return reports


def told(reports, thresholds=None):
    return [each for each in findings(reports, thresholds, LAYERS) if each.kind == "stalled"]


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        pytest.param(((0, 1), ()), "as numbers without a graph", id="cut off"),
        pytest.param(((), (0, 1)), "A loss is computed from them and left out", id="left out"),
    ],
)
def test_a_weight_that_the_loss_misses_is_told_with_its_reason(seen, words):
    (finding,) = told(looks_of(lambda look: seen))
    assert (finding.layer, finding.layers) == ("encoder", ("encoder", "bias"))
    assert finding.raised_step == LASTING
    assert "2 layers have had no gradient in 91 updates: encoder, bias" in finding.measured
    assert words in finding.cause
    assert finding.remedies[0].name == "own-parameters"


def test_looks_must_agree_in_a_row():
    assert told(looks_of(lambda look: ((0,) * (look % LOOKS > 0), ()))) == []


def test_what_has_ever_had_a_gradient_is_no_finding():
    reports = looks_of(lambda look: ((0,), ()))
    reports[1].measured[0] = True
    assert told(reports) == []


def test_a_short_run_says_nothing():
    assert told(looks_of(lambda look: ((0,), ()), updates=LASTING)) == []


def test_a_ratio_that_the_user_sets_replaces_the_rule():
    assert told(looks_of(lambda look: ((0,), ())), Thresholds(stalled_update_ratio=1e-12)) == []


def sick_by_definition(history, column):
    """Return True if a column was seen at each of the last looks and never measured; the slow twin."""
    if any(each.measured[column] for each in history) or history[-1].update < LASTING:
        return False
    last = [each.ownership for each in history if each.ownership is not None][-LOOKS:]
    always_cut = len(last) == LOOKS and all(column in each.cut_off for each in last)
    return always_cut or (len(last) == LOOKS and all(column in each.left_out for each in last))


@pytest.mark.parametrize("seed", range(20))
def test_a_slow_twin_finds_the_same(seed):
    random = np.random.default_rng(seed)
    draw = lambda: tuple(np.flatnonzero(random.random(3) < 0.8).tolist())
    reports = looks_of(lambda look: (draw(), draw()), updates=3000)
    reports[int(random.integers(300))].measured[0] = True
    detector = CutOff(LAYERS, Thresholds())
    for number, each in enumerate(reports):
        each.measured[1] = False
        result = detector.examine(each)
        assert (result is None) == (each.ownership is None)
        if result is not None:
            assert result.sick.tolist() == [sick_by_definition(reports[: number + 1], column) for column in range(3)]
