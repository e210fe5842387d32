"""What is left of a watcher that was closed: its findings and its history, and nothing that holds the model."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import gradwatch

STEPS, SICK = 14, 12
LOADER = gradwatch.RewindableLoader(torch.utils.data.DataLoader([torch.zeros(1)]))


def net(last=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), nn.Tanh(), last or nn.Linear(4, 1))


def train(model, optimizer):
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 8)).square().mean()
        (loss * (torch.nan if step == SICK else 1.0)).backward()
        optimizer.step()


def gone_of(model):
    """Return a weak reference to each module and parameter."""
    return [weakref.ref(each) for each in (*model.modules(), *model.parameters())]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip": "auto"},
        {"on_nonfinite": "skip"},
        {"trace_nonfinite": True},
        {"histograms": True, "layer_scalars": True},
        {"find_loss": False},
        {"include": "*.weight"},
        {"black_box": True, "recover": gradwatch.Rewind(every=3, confirm=3, skip=1, state=[LOADER])},
    ],
    ids=", ".join,
)
@pytest.mark.parametrize("optimizer_of", [torch.optim.SGD, torch.optim.AdamW])
def test_the_model_goes_while_findings_history_and_state_are_read(options, optimizer_of, tmp_path):
    model = net()
    if "black_box" in options:
        options = {**options, "black_box": tmp_path / "failed.pt"}
    optimizer = optimizer_of(model.parameters(), lr=0.01)
    with gradwatch.watch(model, optimizer, **options) as watcher:
        train(model, optimizer)
        findings = [(each.kind, each.layer, each.step, each.cause) for each in watcher.findings]
        history = {name: watcher.history[name].copy() for name in watcher.history.keys()}  # noqa: SIM118
    state, gone = watcher.state_dict(), gone_of(model)
    del model, optimizer
    gc.collect()
    assert [each() for each in gone] == [None] * len(gone)
    assert findings
    assert [(each.kind, each.layer, each.step, each.cause) for each in watcher.findings] == findings
    for name, figures in history.items():
        np.testing.assert_array_equal(watcher.history[name], figures)
    assert str(watcher.state_dict()) == str(state)
    assert f"{STEPS} steps" in repr(watcher)
    assert "4.weight" in watcher._repr_html_()
    watcher.close()


def test_a_found_optimizer_and_a_layer_without_a_shape_go_too():
    model = nn.ModuleList([net(), nn.LazyLinear(2)])
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.01)
    watcher = gradwatch.watch(model)
    train(model[0], optimizer)
    watcher.close()
    gone = gone_of(model)
    del model, optimizer
    gc.collect()
    assert [each() for each in gone] == [None] * len(gone)
    assert len(watcher.history) == STEPS


def test_tensors_go_and_a_step_after_the_end_is_refused_in_one_line(caplog):
    tensors = {"w": torch.randn(3, 3), "b": torch.randn(3)}
    watcher = gradwatch.watch_tensors(tensors, clip=1.0)
    watcher.step(grads={name: torch.full_like(tensor, 9.0) for name, tensor in tensors.items()}, loss=1.0)
    watcher.close()
    gone = [weakref.ref(tensor) for tensor in tensors.values()]
    del tensors
    gc.collect()
    assert [each() for each in gone] == [None, None]
    gradient = torch.full((3,), 9.0)
    caplog.clear()
    for _ in range(2):
        watcher.step(grads={"b": gradient}, loss=1.0)
    assert caplog.messages == ["gradwatch: step() was called after close(): nothing is measured or clipped any more."]
    assert gradient.tolist() == [9.0] * 3
    assert len(watcher.history) == 1
