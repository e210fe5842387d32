"""``dead`` and ``saturated`` against slow twins that go through the whole run again at every sample."""

import numpy as np
import pytest

from gradwatch.detect.dead import Dead
from gradwatch.detect.saturated import Saturated
from gradwatch.explain.background import Background
from gradwatch.findings import Thresholds
from tests.reports import NAN, run_of, table


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
