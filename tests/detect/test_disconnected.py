"""Weights that belong to no optimizer, and an optimizer whose weights never get a gradient."""

import numpy as np
import pytest
import torch

from gradwatch.detect.disconnected import LASTING, LOOKS
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import of_tensors
from gradwatch.measure.report import Ownership
from gradwatch.watcher.ownership_survey import LOOKS as UPDATES
from tests.reports import NAN, findings, report

LAYERS = of_tensors({"body": torch.ones(8, 8), "bias": torch.ones(8), "head": torch.ones(2, 8)})
SIZES = np.array([64, 8, 16])
FALLING, LEVEL = (lambda step: 0.99**step), (lambda step: 2.0)


def row(*columns):
    found = np.zeros(3, dtype=bool)
    found[list(columns)] = True
    return found


def run_of(norms, unowned=(), loss=FALLING, updates=400, **owners):
    """A run of three layers; ``unowned`` names those that belong to nobody from the second look on."""
    reports = []
    for step in range(0, updates, 10):
        known = {"held": row(0, 1, 2), "frozen": row(), "replaced": row(), "strangers": 0, "others": 0, **owners}
        seen = Ownership(unowned=row(*unowned) if step > 10 else row(), **known) if step in UPDATES else None
        reports.append(report(norms, step, loss(step), sampled=True, size=SIZES, ownership=seen))
        reports[-1].figures["update_ratio"] = np.full(3, 1e-3)
    return reports


def told(*args, **rest):
    return [finding for finding in findings(run_of(*args, **rest), layers=LAYERS) if finding.kind == "stalled"]


def test_an_optimizer_that_holds_other_tensors_is_told_by_what_it_left_out():
    (finding,) = told([1.0, NAN, NAN], unowned=[1, 2], strangers=2)
    assert (finding.layer, finding.layers) == ("head", ("bias", "head"))
    assert finding.step == finding.raised_step == LASTING
    assert "2 layers have a gradient but no optimizer" in finding.measured
    assert "The optimizer holds 2 tensors without a gradient that the model does not" in finding.cause


def test_a_tensor_that_the_model_has_exchanged_is_named():
    (finding,) = told([NAN, 1.0, 1.0], unowned=[0], replaced=row(0))
    assert (finding.layer, finding.layers) == ("body", ("body",))
    assert "The model holds other tensors by these names" in finding.cause


def test_a_small_head_behind_trained_weights_was_forgotten():
    (finding,) = told([1.0, 1.0, NAN], unowned=[2])
    assert finding.layers == ("head",)
    assert "No optimizer of this process was given them" in finding.cause


def connected(*paths):
    """The layers, with what lies after what."""
    layers = of_tensors({"body": torch.ones(8, 8), "bias": torch.ones(8), "head": torch.ones(2, 8)})
    after = np.zeros((3, 3), dtype=bool)
    for first, second in paths:
        after[first, second] = True
    layers.connect(after, np.ones(3, dtype=bool))
    return layers


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("paths", [(), [(0, 2)], [(2, 0)], [(0, 1)]])
@pytest.mark.parametrize("norms", [[NAN, NAN, 1.0], [NAN, 1.0, NAN], [1.0, NAN, 1.0]])
def test_new_layers_before_trained_ones_are_those_of_the_twin(norms, paths, new):
    """The twin asks for each weight without an owner whether some weight with a gradient lies on its way."""
    weights, has_gradient = [0, 2], [not np.isnan(norm) for norm in norms]
    unowned = [column for column in range(3) if not has_gradient[column]]
    left = [column for column in unowned if column in weights]
    before = [any((column, each) in list(paths) for each in weights if has_gradient[each]) for column in left]
    expected = new and bool(left) and all(before)
    reports = run_of(norms, unowned=unowned, unowned_are_new=new)
    found = [each for each in findings(reports, layers=connected(*paths)) if each.kind == "stalled"]
    assert [each.layers for each in found] == [tuple(LAYERS.names[column] for column in unowned)] * expected


def test_an_optimizer_without_any_gradient_is_found():
    (finding,) = told([NAN, NAN, NAN], loss=LEVEL, held=row(0, 1))
    assert (finding.layer, finding.layers) == ("body", ("body", "bias"))
    assert "None of the 2 parameters that this optimizer holds has had a gradient in 91 updates" in finding.measured
    assert "The loss does not depend on them" in finding.cause


def test_frozen_parameters_are_named_and_those_that_get_gradients():
    (finding,) = told([NAN, NAN, NAN], unowned=[0], held=row(2), frozen=row(2))
    assert finding.layers == ("body", "head")
    assert "All of them are frozen" in finding.cause
    assert "Those that get gradients belong to no optimizer: body" in finding.cause


@pytest.mark.parametrize(
    ("norms", "rest"),
    [
        pytest.param([1.0, 1.0, 1.0], {}, id="all is well"),
        pytest.param([NAN, NAN, 1.0], {"unowned": [0, 1]}, id="a backbone under a linear probe"),
        pytest.param([NAN, NAN, 1.0], {"unowned": [0, 1], "loss": LEVEL}, id="... that does not learn"),
        pytest.param([NAN, 1.0, NAN], {"unowned": [0, 2]}, id="only biases are trained"),
        pytest.param([1.0, NAN, NAN], {"unowned": [1]}, id="a bias alone"),
        pytest.param([1.0, 1.0, 1.0], {"strangers": 3}, id="tensors of another model in the optimizer"),
        pytest.param([1.0, 1.0, 1.0], {"replaced": row(0)}, id="a model that was changed with its optimizer"),
        pytest.param([NAN, NAN, NAN], {"others": 1}, id="an optimizer whose turn comes later"),
        pytest.param([1.0, 1.0, NAN], {"unowned": [2], "updates": 70}, id="unfrozen soon"),
    ],
)
def test_what_may_be_meant_is_no_finding(norms, rest):
    assert told(norms, **rest) == []


def test_a_weight_must_belong_to_nobody_at_several_looks_in_a_row():
    reports = run_of([1.0, 1.0, NAN], unowned=[2], updates=1500)
    looks = [each for each in reports if each.ownership is not None]
    for each in looks[:4]:
        each.ownership.unowned[:] = False
    (finding,) = [each for each in findings(reports, layers=LAYERS) if each.kind == "stalled"]
    assert finding.raised_step == looks[4 + LOOKS - 1].step


def test_a_ratio_that_the_user_sets_replaces_the_rule():
    reports = run_of([1.0, NAN, NAN], unowned=[1, 2], strangers=2)
    assert findings(reports, Thresholds(stalled_update_ratio=1e-12), LAYERS) == []
