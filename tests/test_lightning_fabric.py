"""Fabric: what its ``setup`` returns is watched, with the weights and the figures of the run without gradwatch."""

import lightning as L
import numpy as np
import pytest
import torch
from lightning.fabric.plugins.precision import MixedPrecision
from torch import nn

import gradwatch

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]

STEPS = 8


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def batch(step):
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
    return inputs, inputs.sum(1, keepdim=True)


def scaler():
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))


def train(fabric, model, optimizer, *, max_norm=None, accumulate=1, totals=None):
    """Train as Fabric's guide says; append each total norm before clipping to ``totals``."""
    plugin = getattr(fabric.strategy.precision, "scaler", None)
    for step in range(STEPS * accumulate):
        inputs, targets = batch(step)
        is_last = (step + 1) % accumulate == 0
        with fabric.no_backward_sync(model, enabled=not is_last):
            loss = (model(inputs) - targets).square().mean()
            fabric.backward(loss / accumulate)
        if not is_last:
            continue
        if totals is not None:
            scale = 1 if plugin is None else plugin.get_scale()
            squares = [parameter.grad.double().square().sum().item() for parameter in model.parameters()]
            totals.append(np.sqrt(np.sum(squares)) / scale)
        if max_norm is not None:
            fabric.clip_gradients(model, optimizer, max_norm=max_norm)
        optimizer.step()
        optimizer.zero_grad()


def made(**options):
    fabric, model = L.Fabric(accelerator="cpu", devices=1, **options), network()
    return fabric, *fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.05))


SETTINGS = {
    "plain": ({}, {}),
    "clipping by Fabric": ({}, {"max_norm": 0.1}),
    "accumulation": ({}, {"accumulate": 3}),
    "64-true": ({"precision": "64-true"}, {}),
    "bf16-mixed": ({"precision": "bf16-mixed"}, {}),
    "bf16-true": ({"precision": "bf16-true"}, {}),
}


def assert_watched(make, how, rtol=1e-5):
    bare, watched, totals = make(), make(), []
    train(*bare, **how, totals=totals)
    with gradwatch.watch(*watched[1:]) as watcher:
        train(*watched, **how)
    history = watcher.history
    assert all(torch.equal(a, b) for a, b in zip(bare[1].parameters(), watched[1].parameters(), strict=True))
    assert history.layers == ("0.weight", "0.bias", "2.weight", "2.bias")
    np.testing.assert_allclose(history["grad_norm_total"], totals, rtol=rtol)
    assert watcher.findings == []
    return history


@pytest.mark.parametrize("name", SETTINGS)
def test_a_loop_is_that_without_the_watcher(name):
    options, how = SETTINGS[name]
    history = assert_watched(lambda: made(**options), how, rtol=1e-2 if "bf16" in name else 1e-5)
    if name == "clipping by Fabric":
        np.testing.assert_allclose(history["grad_norm_clipped_total"], 0.1, rtol=1e-4)


@pytest.mark.parametrize("how", [{}, {"max_norm": 0.1}], ids=["plain", "clipping by Fabric"])
def test_a_loss_scale_is_not_in_the_figures(how):
    history = assert_watched(lambda: made(plugins=scaler()), how)
    with torch.autocast("cpu", torch.float16), torch.no_grad():
        first = (network()(batch(0)[0]) - batch(0)[1]).square().mean().item()
    np.testing.assert_allclose(history["loss"][0], first, rtol=1e-5)


def test_an_update_that_the_scaler_leaves_out_is_a_skipped_step():
    fabric, model, optimizer = made(plugins=scaler())
    with gradwatch.watch(model, optimizer) as watcher:
        for factor in (1.0, 1e30, 1.0):
            inputs, targets = batch(0)
            fabric.backward(factor * (model(inputs) - targets).square().mean())
            optimizer.step()
            optimizer.zero_grad()
    assert watcher.history["skipped"].tolist() == [False, True, False]


def test_clip_and_a_watcher_in_a_checkpoint_of_fabric(tmp_path):
    fabric, model, optimizer = made()
    with gradwatch.watch(model, optimizer, clip=0.1) as watcher:
        train(fabric, model, optimizer)
        fabric.save(tmp_path / "saved.ckpt", {"model": model, "optimizer": optimizer, "watcher": watcher})
    np.testing.assert_allclose(watcher.history["grad_norm_clipped_total"], 0.1, rtol=1e-4)
    with gradwatch.watch(model, optimizer, clip=0.1) as resumed:
        fabric.load(tmp_path / "saved.ckpt", {"model": model, "optimizer": optimizer, "watcher": resumed})
        train(fabric, model, optimizer)
    assert resumed.history.steps[0] == STEPS
