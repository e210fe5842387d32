"""What a loss can prove, against a slow loop, and against networks whose loss is measured on the same batch again."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from gradwatch.detect.loss_evidence import SAMPLES, LossEvidence, Reach
from tests.reports import INF, NAN, report, run_of


def slow_reaches(reports):
    """The reach at each step, a step at a time, from all that came before."""
    reaches, lengths, rates = [], [], []
    path, at_last_loss = 0.0, 0.0
    for step in reports:
        total = step.grad_norm_total
        is_known = path is not None and lengths and not math.isnan(total) and not step.already_clipped
        reaches.append(Reach(path * total, path * at_last_loss) if is_known else Reach(INF, INF))
        if step.loss is not None and math.isfinite(step.loss):
            path, at_last_loss = 0.0, total
        if step.skipped:
            continue
        if step.sampled and "update_ratio" in step.figures:
            moved = met = 0.0
            rows = zip(step.figures["update_ratio"], step.figures["weight_norm"], step.grad_norm, strict=True)
            for ratio, size, norm in rows:
                if math.isfinite(ratio * size) and math.isfinite(norm):
                    moved, met = moved + (ratio * size) ** 2, met + norm**2
            used = step.grad_norm_clipped_total
            if met > 0 and 0 < used < INF:
                moved = math.sqrt(moved) * step.grad_norm_total / math.sqrt(met)
                lengths.append(moved)
                rates.append(moved / used)
        used = step.grad_norm_clipped_total
        if not lengths or math.isnan(used) or path is None:
            path = None
        else:
            path += max(max(lengths[-SAMPLES:]), min(rates[-SAMPLES:]) * used)
    return reaches


def moving_run(rng, losses):
    """Reports of three layers whose updates are measured at every tenth step, among them skipped and unseen ones."""
    reports = []
    for step, loss in enumerate(losses):
        norms = (10.0 ** rng.normal(-0.5, 0.3, 3)).tolist()
        ratio = 10.0 ** rng.normal(-0.3, 0.5, 3)
        ratio[rng.random(3) < 0.1] = NAN
        figures = {"update_ratio": ratio, "weight_norm": 10.0 ** rng.normal(0, 0.2, 3)}
        clipped = {"grad_norm_clipped_total": 0.1} if rng.random() < 0.1 else {}
        reports.append(
            report(
                norms, step, loss, sampled=step % 10 == 0, figures=figures, skipped=bool(rng.random() < 0.05),
                already_clipped=bool(rng.random() < 0.05), **clipped,
            )
        )  # fmt: skip
    return reports


def told(reports):
    evidence = LossEvidence()
    return [evidence.take_in(step) for step in reports]


@pytest.mark.parametrize("seed", range(10))
def test_the_reach_agrees_with_the_slow_loop(seed):
    rng = np.random.default_rng(seed)
    losses = [None if draw < 0.2 else NAN if draw < 0.25 else draw for draw in rng.random(120)]
    reports = moving_run(rng, losses)
    found, slow = told(reports), slow_reaches(reports)
    np.testing.assert_allclose(found, slow, rtol=1e-12)
    assert 50 < np.isfinite(np.array(slow)[:, 0]).sum() < 120


def test_the_reach_is_not_known_before_an_update_was_measured():
    assert told(run_of([[1.0]] * 3, [1.0] * 3)) == [Reach(INF, INF)] * 3


@pytest.mark.parametrize(
    ("losses", "measures"),
    [([1.0, 0.0, 3.0], True), ([-1.0, -3.0], True), ([1.0, -1.0, 1.0], False), ([None, -1.0, 2.0], False)],
)
def test_a_loss_that_has_been_on_both_sides_of_zero_measures_no_progress(losses, measures):
    evidence = LossEvidence()
    for step, loss in enumerate(losses):
        evidence.take_in(report([1.0], step, loss))
    assert evidence.measures_progress is measures
    by_sign = LossEvidence()
    for loss in losses:
        by_sign.note_sign(loss)
    assert by_sign.measures_progress is measures


@pytest.mark.parametrize("make", [
    lambda parameters: torch.optim.SGD(parameters, lr=0.5),
    lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    lambda parameters: torch.optim.Adam(parameters, lr=0.3),
    lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
], ids=["sgd", "momentum", "adam, too fast", "adam"])  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_no_update_changes_a_convex_loss_by_more_than_its_reach(seed, make):
    """The whole batch at every step: whatever the loss does is the updates' doing."""
    torch.manual_seed(seed)
    model = nn.Linear(12, 3)
    inputs, classes = torch.randn(90, 12), torch.randint(3, (90,))
    changes, reports = losses_and_reports(model, make(model.parameters()), inputs, classes, 60)
    for change, reach in zip(changes[1:], told(reports)[1:], strict=True):
        assert -reach.fall <= change + 1e-6
        assert change <= 1.05 * reach.rise + 1e-6  # lengths are taken from other updates, nine times in ten


def losses_and_reports(model, optimizer, inputs, classes, steps):
    """(change of the loss into each step, report of each step) of a run on one batch."""
    losses, reports = [], []
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), classes)
        loss.backward()
        before = copy.deepcopy(model)
        optimizer.step()
        weights = list(zip(model.parameters(), before.parameters(), strict=True))
        norms = [old.grad.norm().item() for old in model.parameters()]
        sizes = [old.norm().item() for _, old in weights]
        ratio = [(new - old).norm().item() / old.norm().item() for new, old in weights]
        figures = {"update_ratio": np.array(ratio), "weight_norm": np.array(sizes)}
        reports.append(report(norms, step, loss.item(), sampled=True, figures=figures))
        losses.append(loss.item())
    return np.diff(losses, prepend=losses[0]), reports


def test_a_harder_batch_is_beyond_the_reach_of_a_small_update():
    """Every second batch has targets ten times as large; the weights hardly move."""
    torch.manual_seed(0)
    model, memory = nn.Linear(8, 1), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(40):
        inputs = torch.randn(4, 8)
        targets = inputs[:, :1] * (1 if step % 2 else 10)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        memory.append((loss.item(), *[parameter.grad.norm().item() for parameter in model.parameters()]))
        optimizer.step()
    moved = {"update_ratio": np.array([1e-3, 1e-3]), "weight_norm": np.array([1.0, 1.0])}
    reports = [report(norms, step, loss, sampled=True, figures=moved) for step, (loss, *norms) in enumerate(memory)]
    rises = np.diff([loss for loss, *_ in memory])
    reaches = np.array([reach.rise for reach in told(reports)[1:]])
    assert (rises[1::2] > 3 * reaches[1::2]).all()  # into each batch of large targets
