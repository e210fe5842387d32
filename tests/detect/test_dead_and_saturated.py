"""``dead`` and ``saturated`` against slow twins that go through the whole run again at every sample."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradwatch
from gradwatch.detect.dead import Dead
from gradwatch.detect.saturated import Saturated
from gradwatch.explain.background import Background
from gradwatch.findings import Thresholds
from tests.detect.training import train
from tests.reports import NAN, findings, run_of, table


def a_run(seed):
    """Reports of 60 steps with random shares, losses that fall or stay, and layers that are not measured."""
    random = np.random.default_rng(seed)
    falls = random.random() < 0.5
    losses = [float(np.exp(-0.05 * step * falls) + 0.05 * random.random()) for step in range(60)]
    if random.random() < 0.2:
        losses = None
    if random.random() < 0.2 and losses:
        losses[30] = -losses[30]
    reports = run_of(10.0 ** random.uniform(-1.5, 0, (60, 3)), losses)
    level = random.random(3)
    for step, report in enumerate(reports):
        if step % 3 == 1:
            level = np.clip(level + 0.25 * random.standard_normal(3), 0, 1)
            for name in ("dead_share", "saturated_share", "saturated_output_share"):
                if random.random() < 0.9:
                    values = np.where(random.random(3) < 0.1, NAN, np.clip(level + 0.05 * random.random(3), 0, 1))
                    report.figures[name] = values
            if "dead_share" in report.figures:
                report.figures["shut_samples"] = np.where(random.random(3) < 0.5, 0, random.integers(0, 6, 3))
                report.figures["weight_norm"] = random.integers(0, 4, 3).astype(float)
    return reports


def twin_of_dead(reports, at):
    share = reports[at].figures.get("dead_share")
    if share is None:
        return None
    samples = [report.step for report in reports[: at + 1] if "dead_share" in report.figures]
    return [value >= 0.8 for value in share], samples[-5:][0]


def twin_of_saturated(reports, at):
    if not {"saturated_share", "saturated_output_share"} & set(reports[at].figures):
        return None
    past = reports[: at + 1]
    losses = [report.loss for report in past if report.loss is not None]
    stays = bool(losses) and min(losses) > 0 and np.mean(losses[-10:]) >= 0.9 * np.mean(losses[:3])
    sick = []
    passed = lambda report, column: (
        report.grad_norm[column] / max(report.grad_norm[column + 1 :]) if column < 2 else NAN
    )
    for column in range(3):
        of = lambda name, report, column=column: report.figures.get(name, [NAN] * 3)[column]
        sampled = [r for r in past if {"saturated_share", "saturated_output_share"} & set(r.figures)]
        hidden = [of("saturated_share", report) for report in sampled]
        output = [of("saturated_output_share", report) >= 0.8 for report in sampled]
        steep = [report for report, share in zip(sampled, hidden, strict=True) if share < 0.5]
        is_trained = bool(steep)
        has_faded = not (steep and passed(past[-1], column) > 0.1 * passed(steep[-1], column))
        long_output = len(output) >= 10 and all(output[-10:])
        sick.append((hidden[-1] >= 0.8 and (not is_trained or (stays and has_faded))) or (long_output and stays))
    return sick


@pytest.mark.parametrize("seed", range(30))
def test_dead_is_what_its_twin_says(seed):
    reports = a_run(seed)
    detector = Dead(table(3), Thresholds())
    for at, report in enumerate(reports):
        result, expected = detector.examine(report), twin_of_dead(reports, at)
        assert (result is None) == (expected is None)
        if result is not None:
            assert (result.sick.tolist(), result.onset[0]) == expected


@pytest.mark.parametrize("seed", range(30))
def test_saturated_is_what_its_twin_says(seed):
    reports = a_run(seed)
    detector = Saturated(table(3), Thresholds())
    for at, report in enumerate(reports):
        result, expected = detector.examine(report), twin_of_saturated(reports, at)
        assert (result is None) == (expected is None)
        if result is not None:
            assert result.sick.tolist() == expected


def test_both_are_met_among_the_runs():
    sick = {Dead: 0, Saturated: 0}
    for seed in range(30):
        for kind in sick:
            detector = kind(table(3), Thresholds())
            result = [detector.examine(report) for report in a_run(seed)]
            sick[kind] += any(each is not None and each.sick.any() for each in result)
    assert all(5 <= count <= 30 for count in sick.values())


def test_the_background_goes_on_from_its_state():
    reports = a_run(3)
    whole, first, second = (Background(table(3)) for _ in range(3))
    for report in reports:
        whole.observe(report)
    for report in reports[:30]:
        first.observe(report)
    second.restore(first.state())
    for report in reports[30:]:
        second.observe(report)
    for kind in ("vanishing", "exploding", "nonfinite", "dead", "saturated", "stalled", "unstable"):
        assert whole.facts(kind, reports[-1], 0) == second.facts(kind, reports[-1], 0)


def twin_of_shut(reports, at, columns, since):
    """Columns without a living unit at the latest sample up to ``at``, if that is not older than ``since``."""
    sampled = [report for report in reports[: at + 1] if "dead_share" in report.figures]
    if not sampled or sampled[-1].step < since:
        return None
    latest = sampled[-1].figures
    return [c for c in columns if latest["shut_samples"][c] >= 1 and latest["weight_norm"][c] > 0] or None


def test_layers_that_are_shut_are_those_of_its_twin():
    answers = set()
    for seed in range(30):
        reports, random = a_run(seed), np.random.default_rng(seed)
        detector = Dead(table(3), Thresholds())
        for at, report in enumerate(reports):
            detector.examine(report)
            columns, since = np.flatnonzero(random.random(3) < 0.6).tolist(), int(random.integers(at - 6, at + 1))
            result, expected = detector.shut_among(columns, since), twin_of_shut(reports, at, columns, since)
            assert (None if result is None else np.flatnonzero(result.sick).tolist()) == expected
            answers.add(expected is None)
    assert answers == {False, True}


def living_units(model: nn.Sequential, x: Tensor) -> dict[str, int]:
    """How many units of each rectifier pass a gradient on any input, in float64, by differentiating it."""
    counts, x = {}, x.double()
    for place, module in enumerate(model.double()):
        if isinstance(module, nn.ReLU | nn.GELU):
            entries = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(module(entries).sum(), entries)
            counts[f"{place - 1}.weight"] = int((slope.abs() > 1e-3).any(0).sum())
        x = module(x)
    return counts


INPUTS = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def a_stack(function: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16), function(), nn.Linear(16, 16), function(), nn.Linear(16, 16), function()]
    return nn.Sequential(*layers, nn.Linear(16, 4))


def findings_of(model, steps=60):
    loss_of = lambda step: F.cross_entropy(model(INPUTS), INPUTS[:, :4].argmax(1))
    return train(model, torch.optim.SGD(model.parameters(), 0.1), loss_of, steps)


@pytest.mark.parametrize("function", [nn.ReLU, nn.GELU])
def test_a_layer_whose_units_are_all_dead_is_the_one_finding_of_what_vanishes_before_it(function):
    model = a_stack(function)
    nn.init.constant_(model[2].bias, -20.0)
    (finding,) = findings_of(model)
    assert (finding.kind, finding.layer, finding.step, finding.raised_step) == ("dead", "2.weight", 0, 9)
    assert (finding.value, finding.last_step) == (1.0, 50)
    assert "No unit after 2.weight passed a gradient" in finding.measured
    assert "2.bias is -20 on average" in finding.cause
    living = living_units(model, INPUTS)
    assert (living["0.weight"] > 0, living["2.weight"]) == (True, 0)


def test_of_several_dead_layers_that_nearest_the_input_gives_the_name():
    model = a_stack()
    for place in (2, 4):
        nn.init.constant_(model[place].bias, -20.0)
    (finding,) = findings_of(model)
    assert (finding.layer, finding.layers) == ("2.weight", ("2.weight", "4.weight"))


def test_gradients_that_a_living_unit_still_passes_fade_and_are_not_of_dead_units():
    torch.manual_seed(0)
    hidden = [part for _ in range(8) for part in (nn.Linear(16, 16), nn.Sigmoid())]
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), *hidden, nn.Linear(16, 4))
    assert [finding.kind for finding in findings_of(model)] == ["vanishing"]


def test_a_weight_of_zeros_is_not_said_to_have_died():
    model = a_stack()
    for tensor in (model[2].weight, model[2].bias):
        nn.init.zeros_(tensor)
    assert not [f for f in findings_of(model) if f.kind == "dead" and f.raised_step < 20]


def test_a_norm_that_the_user_has_set_is_what_vanishing_means():
    reports = run_of([[0.0, 0.0, 1.0]] * 20)
    for step in (1, 2, 4, 8, 10):
        of_three = {"dead_share": [0, step >= 10, 0], "shut_samples": [0, 1, 0], "weight_norm": [1, 1, 1]}
        reports[step].figures.update({name: np.array(values, dtype=float) for name, values in of_three.items()})
    assert [(f.kind, f.layer) for f in findings(reports)] == [("dead", "w1")]
    literal = findings(reports, Thresholds(vanishing_norm=1e-3))
    assert [finding.kind for finding in literal] == ["vanishing"]


def a_run_that_dies(at, cuts=(0, 120), spoiled=-1, **settings):
    """Findings of 120 steps of a small regression whose hidden layer is dead from step ``at`` on.

    The loss of step ``spoiled`` is NaN. At each of ``cuts`` but the last another watcher goes on from the state of the
    one before it.
    """
    torch.manual_seed(0)
    model, state = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)), None
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for first, last in itertools.pairwise(cuts):
        with gradwatch.watch(model, optimizer, **settings) as watcher:
            if state is not None:
                watcher.load_state_dict(state)
            for step in range(first, last):
                if step == at:
                    nn.init.constant_(model[0].bias, -100.0)
                x = torch.randn(16, 8)
                loss = F.mse_loss(model(x), x.sum(1, keepdim=True))
                optimizer.zero_grad()
                (loss * math.nan if step == spoiled else loss).backward()
                optimizer.step()
            state = watcher.state_dict()
    return watcher.findings


@pytest.mark.parametrize("at", range(28, 42))
def test_a_layer_that_dies_is_one_finding_however_its_death_lies_to_the_samples(at):
    (finding,) = a_run_that_dies(at)
    assert (finding.kind, finding.layer, finding.step, finding.raised_step) == ("dead", "0.weight", at, at + 9)


@pytest.mark.parametrize("spoiled", [50, 54, 59])
def test_a_step_that_is_skipped_does_not_make_a_dead_layer_a_second_finding(spoiled):
    assert [f.kind for f in a_run_that_dies(0, spoiled=spoiled, on_nonfinite="skip")] == ["dead", "nonfinite"]


def test_a_patience_shorter_than_the_time_between_samples_makes_no_second_finding():
    assert [f.kind for f in a_run_that_dies(0, thresholds=Thresholds(patience=7))] == ["dead"]


def test_a_resumed_run_with_a_dead_layer_has_the_findings_of_one_that_was_not_cut():
    whole = a_run_that_dies(0)
    assert [finding.kind for finding in whole] == ["dead"]
    assert a_run_that_dies(0, cuts=(0, 60, 120)) == whole


@pytest.mark.parametrize(
    ("vanish", "shut", "expected"),
    [([0, 1], True, ["dead"]), ([0, 1], False, ["dead", "vanishing"]), ([0], True, ["dead", "vanishing"])],
    ids=["shut", "a unit is alive", "elsewhere"],
)
def test_an_open_finding_of_dead_units_tells_of_what_vanishes_where_its_layer_is_shut(vanish, shut, expected):
    reports = run_of([[1.0, 1.0, 1.0]] * 12 + [[float(column not in vanish) for column in range(3)]] * 20)
    for step in (2, 4, 6, 8):
        of_three = {"dead_share": [0, 1, 0], "shut_samples": [0, shut, 0], "weight_norm": [1, 1, 1]}
        reports[step].figures.update({name: np.array(values, dtype=float) for name, values in of_three.items()})
    assert [finding.kind for finding in findings(reports)] == expected
