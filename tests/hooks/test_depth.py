"""Watched models may be as deep as bare ones: Python counts frames, and listening adds none to nested calls."""

import sys

import pytest
import torch
from torch import nn

import gradwatch

STEPS = 12  # some of them sampled, some not


class Recursive(nn.Module):
    """A cell that is applied again and again, as a tree of modules is along a chain."""

    def __init__(self, depth):
        super().__init__()
        self.cell, self.depth, self.frames = nn.Linear(4, 4), depth, []

    def forward(self, x, left=None):
        left = self.depth if left is None else left
        if left == 0:
            self.frames.append(frames())
        return torch.tanh(self.cell(x if left == 0 else self(x, left - 1)))


class Nested(nn.Module):
    """Modules within modules."""

    def __init__(self, depth, inner=None):
        super().__init__()
        for _ in range(depth):  # from the inside, since a constructor within itself would be deeper than the calls
            inner = Nested(0, inner)
        self.cell, self.inner, self.frames = nn.Linear(4, 4), inner, []

    def forward(self, x):
        if self.inner is None:
            self.frames.append(frames())
        return torch.tanh(self.cell(x if self.inner is None else self.inner(x)))


def frames():
    frame, count = sys._getframe(1), 0
    while frame is not None:
        frame, count = frame.f_back, count + 1
    return count


def train(model, **options):
    """Return the most frames in a call at the bottom; None where there were too many for Python."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watcher = gradwatch.watch(model, optimizer, **options) if options else None
    try:
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
    except RecursionError:
        return None
    finally:
        if watcher is not None:
            watcher.close()
    (found,) = [part.frames for part in model.modules() if getattr(part, "frames", None)]
    assert watcher is None or len(watcher.history) == STEPS
    return max(found)


WATCHED = {"find_loss": True}  # as it is by default
TRACED = {"trace_nonfinite": True}


@pytest.mark.parametrize(("make", "options", "most"), [
    (Recursive, WATCHED, 0), (Nested, WATCHED, 0), (Recursive, TRACED, 0), (Nested, TRACED, 1),
])  # fmt: skip
def test_a_call_is_at_most_one_frame_deeper_and_none_where_it_may_be_nested(make, options, most):
    added = {depth: train(make(depth), **options) - train(make(depth)) for depth in (10, 60)}
    assert added[60] - added[10] == most * 50


@pytest.mark.parametrize("make", [Recursive, Nested])
def test_a_watched_model_trains_as_deep_as_a_bare_one_within_two_percent(make, caplog):
    shallow, deep = 10, sys.getrecursionlimit()
    while deep - shallow > 1:
        middle = (shallow + deep) // 2
        shallow, deep = (middle, deep) if train(make(middle)) is not None else (shallow, middle)
    assert train(make(int(0.98 * shallow)), **WATCHED) is not None
    assert "fault in gradwatch" not in caplog.text
