"""A sickness that keeps coming back is told twenty times, and then in one finding that goes on."""

import torch
from torch import nn

import gradwatch
from gradwatch.event_files.reader import read_runs
from gradwatch.watcher.recurrences import MOST_ALIKE

HEALTHY_STEPS = 24  # after so many in a row a finding has ended


def small_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    return model, torch.optim.SGD(model.parameters(), lr=1e-3)


def train(model, optimizer, times, *, ends_healthy=True):
    """Make a sick update ``times`` times, with healthy ones between."""
    for time in range(times):
        last = HEALTHY_STEPS if ends_healthy or time < times - 1 else 0
        for is_sick in (True, *[False] * last):
            optimizer.zero_grad()
            model(torch.full((8, 4), torch.nan if is_sick else 0.5)).square().mean().backward()
            optimizer.step()


def test_a_sickness_that_comes_back_keeps_its_last_finding_open_to_all_that_follow(tmp_path):
    model, optimizer = small_model()
    with gradwatch.watch(model, optimizer, on_nonfinite="skip", log_dir=tmp_path) as watcher:
        train(model, optimizer, 50)
    period = HEALTHY_STEPS + 1
    assert [finding.step for finding in watcher.findings] == [period * time for time in range(MOST_ALIKE)]
    assert watcher.findings[-1].last_step == period * 49
    assert watcher.findings[-1].cause.endswith(
        "It came 50 times by step 1,225; from time 20 on, this finding tells of all of them."
    )
    assert "times" not in watcher.findings[-2].cause
    (run,) = read_runs(tmp_path)
    assert list(run.findings) == watcher.findings
    assert all(run.ended)


def test_what_is_open_when_the_run_ends_is_written_with_its_count(tmp_path):
    model, optimizer = small_model()
    with gradwatch.watch(model, optimizer, on_nonfinite="skip", log_dir=tmp_path) as watcher:
        train(model, optimizer, 30, ends_healthy=False)
    (run,) = read_runs(tmp_path)
    assert list(run.findings) == watcher.findings
    assert "It came 30 times" in run.findings[-1].cause
    assert list(run.ended) == [True] * (MOST_ALIKE - 1) + [False]


def test_the_state_of_a_run_stops_growing_and_a_resumed_one_counts_on():
    model, optimizer = small_model()
    with gradwatch.watch(model, optimizer, on_nonfinite="skip") as watcher:
        train(model, optimizer, 30)
        state = watcher.state_dict()
        known = len(repr(state))
        train(model, optimizer, 30)
        assert len(repr(watcher.state_dict())) < 1.02 * known
    with gradwatch.watch(model, optimizer, on_nonfinite="skip") as resumed:
        resumed.load_state_dict(state)
        train(model, optimizer, 5)
    assert len(resumed.findings) == MOST_ALIKE
    assert "It came 35 times" in resumed.findings[-1].cause


def test_every_recurrence_is_still_skipped_and_told_to_on_finding():
    model, optimizer = small_model()
    told = []
    with gradwatch.watch(model, optimizer, on_nonfinite="skip", on_finding=told.append):
        train(model, optimizer, 30)
    assert len(told) == 30
    unwatched, its_optimizer = small_model()
    for _ in range(30 * HEALTHY_STEPS):
        its_optimizer.zero_grad()
        unwatched(torch.full((8, 4), 0.5)).square().mean().backward()
        its_optimizer.step()
    for own, expected in zip(model.parameters(), unwatched.parameters(), strict=True):
        assert torch.equal(own, expected)
