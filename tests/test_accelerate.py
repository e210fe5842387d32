"""Watchers in loops of Accelerate: what ``prepare`` returns is watched as what it wraps."""

import contextlib

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.amp import GradScaler
from torch.nn import functional as F

import gradwatch

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:accelerate"),
    pytest.mark.filterwarnings("ignore::FutureWarning:accelerate"),
]
STEPS = 8


@pytest.fixture(autouse=True)
def _every_accelerator_chooses_for_itself():
    """Accelerate keeps the precision of the first one for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def prepared(runner):
    model = net()
    return runner.prepare(model, sgd(model))


def batches(count):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(count, 16, 4, generator=generator)
    return [(x, x.sum(1, keepdim=True)) for x in rows]


def train(runner, model, optimizer, data, limit=None):
    """The loop of Accelerate's documentation."""
    for x, y in data:
        with runner.accumulate(model):
            with runner.autocast():
                loss = F.mse_loss(model(x), y)
            runner.backward(loss)
            if limit is not None and runner.sync_gradients:
                runner.clip_grad_norm_(model.parameters(), limit)
            optimizer.step()
            optimizer.zero_grad()


def by_hand(accumulate=1, limit=None, autocast=False, skipped=()):
    """(norms before clipping, losses, weights) of the same training without Accelerate."""
    model, norms, losses = net(), [], []
    optimizer, data = sgd(model), batches(STEPS * accumulate)
    for first in range(0, len(data), accumulate):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
            parts = [F.mse_loss(model(x), y) for x, y in data[first : first + accumulate]]
        (sum(parts) / accumulate).backward()
        norms.append([p.grad.norm().item() for p in model.parameters()])
        losses.append(np.mean([part.item() for part in parts]))
        if limit is not None:
            nn.utils.clip_grad_norm_(model.parameters(), limit)
        if not any(skipped[len(losses) - 1 : len(losses)]):
            optimizer.step()
    return np.array(norms), np.array(losses), list(model.parameters())


@pytest.mark.parametrize("clips", ["nobody", "the loop", "gradwatch"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_figures_and_weights_are_those_of_the_plain_loop(accumulate, clips, caplog):
    runner = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model, optimizer = prepared(runner)
    limit = None if clips == "nobody" else 0.1
    with gradwatch.watch(model, optimizer, clip=limit if clips == "gradwatch" else None) as watcher:
        train(runner, model, optimizer, batches(STEPS * accumulate), limit if clips == "the loop" else None)
    norms, losses, weights = by_hand(accumulate, limit)
    history = watcher.history
    assert history.layers == ("0.weight", "0.bias", "2.weight", "2.bias")
    np.testing.assert_allclose(history["grad_norm"], norms, rtol=1e-4)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-4)
    np.testing.assert_allclose(history["grad_norm_clipped_total"], limit or history["grad_norm_total"], rtol=1e-4)
    for mine, theirs in zip(model.parameters(), weights, strict=True):
        np.testing.assert_allclose(mine.detach(), theirs.detach(), rtol=1e-4, atol=1e-6)
    assert not caplog.records


def test_autocast_is_that_of_the_plain_loop():
    runner = Accelerator(cpu=True, mixed_precision="bf16")
    model, optimizer = prepared(runner)
    with gradwatch.watch(model, optimizer) as watcher:
        train(runner, model, optimizer, batches(STEPS))
    norms, losses, _ = by_hand(autocast=True)
    np.testing.assert_allclose(watcher.history["grad_norm"], norms, rtol=1e-3)
    np.testing.assert_allclose(watcher.history["loss"], losses, rtol=1e-2)


def test_the_optimizer_that_was_prepared_is_found():
    runner = Accelerator(cpu=True)
    model, optimizer = prepared(runner)
    with gradwatch.watch(model) as watcher:
        train(runner, model, optimizer, batches(STEPS))
    np.testing.assert_allclose(watcher.history["grad_norm"], by_hand()[0], rtol=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_that_the_scaler_skips_are_counted_and_are_no_finding(accumulate):
    runner = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    runner.scaler = GradScaler("cpu", init_scale=2.0**127)  # Accelerate makes one for GPUs alone
    model, optimizer = prepared(runner)
    skipped = []
    with gradwatch.watch(model, optimizer) as watcher:
        data = batches(STEPS * accumulate)
        for first in range(0, len(data), accumulate):
            train(runner, model, optimizer, data[first : first + accumulate])
            skipped.append(optimizer.step_was_skipped)
    history = watcher.history
    assert history["skipped"].tolist() == skipped
    assert True in skipped
    assert False in skipped
    assert watcher.findings == []
    norms, losses, _ = by_hand(accumulate, skipped=skipped)
    np.testing.assert_allclose(history["grad_norm"][~history["skipped"]], norms[~history["skipped"]], rtol=1e-4)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-4)


def test_a_registered_watcher_is_part_of_the_checkpoint(tmp_path):
    uncut, data = net(), batches(2 * STEPS)
    with gradwatch.watch(uncut, sgd_of_uncut := sgd(uncut), clip="auto") as whole:
        train(Accelerator(cpu=True), uncut, sgd_of_uncut, data)
    for part in (data[:STEPS], data[STEPS:]):
        runner = Accelerator(cpu=True)
        model, optimizer = prepared(runner)
        with gradwatch.watch(model, optimizer, clip="auto") as watcher:
            runner.register_for_checkpointing(watcher)
            if part[0] is not data[0]:
                runner.load_state(str(tmp_path / "half"))
            train(runner, model, optimizer, part)
            runner.save_state(str(tmp_path / "half"))
    assert watcher.history.steps.tolist() == list(range(STEPS, 2 * STEPS))
    for name in ("grad_norm", "grad_norm_clipped_total", "loss"):
        np.testing.assert_array_equal(watcher.history[name], whole.history[name][STEPS:], err_msg=name)
