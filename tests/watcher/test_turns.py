import threading

import torch
from torch import nn

import gradwatch


def run_of(reads, steps=120):
    """Findings, losses and weights of a run that turns sick, while other threads call ``reads(watcher)``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    stop = threading.Event()
    with gradwatch.watch(model, optimizer, history=steps) as watcher:

        def poll():
            while not stop.is_set():
                reads(watcher)

        readers = [threading.Thread(target=poll) for _ in range(2 if reads else 0)]
        for reader in readers:
            reader.start()
        for step in range(steps):
            inputs = torch.randn(8, 8)
            if step in (80, 100):
                inputs[0] = torch.nan
            loss = (model(inputs) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        stop.set()
        for reader in readers:
            reader.join()
        return watcher.findings, watcher.history["grad_norm_total"], watcher.history["update_ratio"]


def test_findings_are_those_of_a_run_that_nobody_reads():
    alone = run_of(None)
    for reads in (lambda w: w.findings, lambda w: w.state_dict(), lambda w: (w.flush(), w.history)):
        read = run_of(reads)
        assert read[0] == alone[0]
        torch.testing.assert_close(
            torch.from_numpy(read[1]), torch.from_numpy(alone[1]), rtol=0, atol=0, equal_nan=True
        )
        torch.testing.assert_close(
            torch.from_numpy(read[2]), torch.from_numpy(alone[2]), rtol=0, atol=0, equal_nan=True
        )


def test_a_callback_that_waits_for_a_reader_stops_nothing():
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    answers = []

    def ask_in_another_thread(finding):
        reader = threading.Thread(target=lambda: answers.append(watcher.findings))
        reader.start()
        reader.join(20)
        assert not reader.is_alive()

    with gradwatch.watch(model, optimizer, on_finding=ask_in_another_thread) as watcher:
        (model(torch.ones(8, 4)) * torch.nan).sum().backward()
        optimizer.step()
    assert len(answers) == 1
    assert [finding.kind for finding in watcher.findings] == ["nonfinite"]
