"""Running a sick step again changes nothing of the run, whatever its forward pass reads, counts or waits for."""

import copy
import itertools
import queue
import random
import threading
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import gradwatch
from gradwatch.explain import operations, recorded_call, replay

STEPS, SICK = 8, 4
COUNTS = []


class Net(nn.Module):
    """A layer, and the logarithm of something that is negative in the sick step."""

    def __init__(self, source):
        super().__init__()
        self.layer, self.source = nn.Linear(4, 4), source

    def forward(self, x):
        return self.layer(x + 0.1 * self.source(x)).add(x.sum()).log()


class DrawsFromTorch:
    def __init__(self, path):
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, x):
        return torch.randn(x.shape, generator=self.generator)


class DrawsFromPython:
    def __init__(self, path):
        self.random = random.Random(0)

    def __call__(self, x):
        return self.random.gauss(0, 1)


class DrawsFromNumpy:
    def __init__(self, path):
        self.random = np.random.default_rng(0)

    def __call__(self, x):
        return float(self.random.standard_normal())


class Iterates:
    def __init__(self, path):
        self.numbers = itertools.count()

    def __call__(self, x):
        return next(self.numbers)


class CountsOnItself:
    def __init__(self, path):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return self.calls


class CountsGlobally:
    def __init__(self, path):
        COUNTS.clear()

    def __call__(self, x):
        COUNTS.append(1)
        return len(COUNTS)


class WritesLines:
    def __init__(self, path):
        self.path, self.lines = path, 0

    def __call__(self, x):
        with self.path.open("a", encoding="utf-8") as file:
            file.write("a call\n")
        return len(self.path.read_text(encoding="utf-8").splitlines())


class WritesIntoAnOpenFile:
    def __init__(self, path):
        self.file = path.open("w", encoding="utf-8")

    def __call__(self, x):
        self.file.write("a call\n")
        self.file.flush()
        return self.file.tell()


class Follows(nn.Module):
    """An average of the weights that the forward pass itself moves, as in MoCo (He et al. 2020, arXiv:1911.05722)."""

    def __init__(self, path):
        super().__init__()
        self.followed = nn.Linear(4, 4)
        self.average = copy.deepcopy(self.followed).requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            for mean, weight in zip(self.average.parameters(), self.followed.parameters(), strict=True):
                mean.mul_(0.9).add_(weight, alpha=0.1)
        return self.followed(x) - self.average(x)


class SharesItsCount(nn.Module):
    """A count that other processes see, as in Hogwild."""

    def __init__(self, path):
        super().__init__()
        self.count = nn.Parameter(torch.zeros(1).share_memory_(), requires_grad=False)

    def forward(self, x):
        self.count.add_(1)
        return self.count.clone()


SOURCES = [DrawsFromTorch, DrawsFromPython, DrawsFromNumpy, Iterates, CountsOnItself, CountsGlobally, WritesLines,
           WritesIntoAnOpenFile, Follows, SharesItsCount]  # fmt: skip


def trained(make, path=None, *, watched):
    """The weights that a run leaves, and its findings."""
    torch.manual_seed(0)
    source = make(path)
    model = Net(source)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    watcher = gradwatch.watch(model, optimizer, on_nonfinite="skip") if watched else None
    for step in range(STEPS):
        x = torch.rand(2, 4) + (-100 if step == SICK else 10)
        optimizer.zero_grad()
        model(x).sum().backward()
        if watched or step != SICK:
            optimizer.step()
    if watcher is not None:
        watcher.close()
    if isinstance(source, WritesIntoAnOpenFile):
        source.file.close()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return weights, [] if watcher is None else watcher.findings


@pytest.mark.parametrize("make", SOURCES)
def test_the_run_is_bit_for_bit_what_it_is_without(make, tmp_path):
    bare, _ = trained(make, tmp_path / "bare", watched=False)
    left, (finding, *_) = trained(make, tmp_path / "watched", watched=True)
    assert {name: value.tolist() for name, value in left.items()} == {n: v.tolist() for n, v in bare.items()}
    assert (finding.kind, finding.step) == ("nonfinite", SICK)
    written = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert written.get("watched") == written.get("bare")


@pytest.mark.parametrize("make", [CountsGlobally, Follows])
def test_the_origin_is_observed_where_it_may_count_and_move(make, tmp_path):
    _, (finding, *_) = trained(make, watched=True)
    assert finding.cause.startswith("Observed:")
    assert "log" in finding.cause


class Waits:
    """A batch of noise from another thread for each call."""

    def __init__(self):
        self.ready = queue.Queue()
        self.thread = threading.Thread(target=self.fill, daemon=True)
        self.thread.start()

    def fill(self):
        for _ in range(STEPS):
            self.ready.put(0.5)

    def __call__(self, x):
        return self.ready.get()


def test_a_forward_pass_that_waits_for_another_thread_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(replay, "PATIENCE", 0.5)
    source = Waits()
    source.thread.join()
    _, (finding, *_) = trained(lambda _: source, watched=True)
    assert (finding.kind, finding.step) == ("nonfinite", SICK)
    assert source.ready.qsize() == 0


class Reads:
    """A file that is closed for whoever comes again."""

    def __init__(self, path):
        self.path = path
        path.write_text("0.5", encoding="utf-8")

    def __call__(self, x):
        return float(self.path.read_text(encoding="utf-8"))


def test_a_forward_pass_that_raises_when_it_is_called_again_is_no_fault_of_ours(tmp_path, caplog):
    _, (finding, *_) = trained(Reads, tmp_path / "noise", watched=True)
    assert (finding.kind, finding.step) == ("nonfinite", SICK)
    assert not finding.cause.startswith("Observed: ")
    assert "could not be run again as it was" in finding.cause
    assert "fault in gradwatch" not in caplog.text


def test_a_fault_of_ours_while_a_step_is_run_again_is_said(monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("made to happen")

    monkeypatch.setattr(operations, "_operands", fails)
    _, (finding, *_) = trained(CountsGlobally, watched=True)
    assert (finding.kind, finding.step) == ("nonfinite", SICK)
    assert "a fault in gradwatch itself (replay)" in caplog.text
    assert "made to happen" in caplog.text


class TwoHeads(nn.Module):
    """A network of two outputs. Its loop makes a loss of the first alone."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.first(x), self.second(x)


@pytest.mark.parametrize("traces", [False, True])
def test_an_output_to_which_no_gradient_arrives_is_no_fault(traces, caplog):
    model = TwoHeads()
    model.register_full_backward_hook(lambda *_: None)  # calls hooks of all outputs, with None for the second
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with gradwatch.watch(model, optimizer, trace_nonfinite=traces) as watcher:
        for step in range(3):
            x = torch.ones(8, 4)
            x[2] = torch.nan if step == 2 else 1.0
            optimizer.zero_grad()
            model(x.requires_grad_())[0].square().mean().backward()
            optimizer.step()
    assert "fault in gradwatch" not in caplog.text
    (finding,) = watcher.findings
    assert (finding.kind, finding.step) == ("nonfinite", 2)
    assert finding.cause.startswith("Observed:")


def test_running_a_step_again_keeps_no_gradient_of_the_weights(monkeypatch):
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(6)))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    alive, held, plain = weakref.WeakSet(), [], recorded_call._without_entries

    def without_entries(gradient):
        alive.add(gradient)
        held.append(len(alive))
        return plain(gradient)

    monkeypatch.setattr(recorded_call, "_without_entries", without_entries)
    with gradwatch.watch(model, optimizer, on_nonfinite="skip") as watcher:
        model(torch.ones(4, 16)).mul(0.0).sqrt().sum().backward()  # finite, but the slope of a root at 0 is not
        optimizer.step()
    assert watcher.findings[0].cause.startswith("Observed:")
    assert len(held) == 12  # two weights a layer
    assert max(held) <= 2  # the one that has just arrived, and perhaps one before
