import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.external import feeds, results, table
from benchmarks.external.execute import Places, run_bare, run_watched
from benchmarks.external.judge import names, reason_not_counted, verdict
from benchmarks.external.program import COMMITS, External, healthy, sick
from benchmarks.external.programs import PROGRAMS
from benchmarks.external.prove import bare_run, fault_shown, is_proven
from gradwatch.findings import KINDS

ADAPTERS = Path(results.__file__).parent / "adapters"


def test_names_of_programs_are_unique():
    assert [name for name, count in Counter(program.name for program in PROGRAMS).items() if count > 1] == []


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_each_program_has_an_origin_and_a_label(program):
    assert program.repository in COMMITS
    assert program.truth.kinds <= set(KINDS)
    counts = not program.not_run and not program.cannot_show
    assert program.suite.startswith("healthy") or program.truth.kinds or not counts
    for reason in (program.not_run, program.cannot_show, program.truth.because):
        assert reason == "" or reason.endswith(".")


def test_at_least_forty_healthy_programs_of_which_ten_are_reinforcement_learning():
    suites = Counter(program.suite for program in PROGRAMS if not program.truth.kinds and not program.not_run)
    assert suites["healthy, reinforcement learning"] >= 10
    assert sum(count for suite, count in suites.items() if suite.startswith("healthy")) >= 40


@pytest.mark.parametrize(
    ("losses", "norms", "shown"),
    [
        ([1.0, 0.5, 0.1], [1.0, 0.5, 0.2], ""),
        ([-1.0, -2.0, -3.0], [1.0, 1.0, 1.0], ""),
        ([1.0, 1.0, 0.99], [1.0, 1.0, 1.0], "the loss does not come down"),
        ([1.0, 1e4, 0.1], [1.0, 1.0, 1.0], "the loss grows beyond all bounds"),
        ([1.0, 0.5, 0.1], [0.0, 0.0, 0.0], "every gradient is exactly zero"),
        ([1.0, 0.5, float("nan")], [1.0, 1.0, 1.0], "a loss or gradient is NaN or Inf"),
        ([1.0, 0.5, 0.1], [1.0, float("inf"), 1.0], "a loss or gradient is NaN or Inf"),
    ],
)
def test_a_bare_run_shows_a_fault(losses, norms, shown):
    tenfold = [value for value in losses for _ in range(10)]
    run = bare_run({"updates": 30, "losses": tenfold, "norms": [value for value in norms for _ in range(10)]})
    assert fault_shown(run) == shown


def test_only_supervised_programs_must_bring_their_loss_down():
    flat = bare_run({"updates": 20, "losses": [1.0] * 20, "norms": [1.0] * 20})
    supervised = External("a", "healthy, supervised", "", "", healthy("It learns."))
    assert not is_proven(supervised, flat)
    assert is_proven(replace(supervised, suite="healthy, reinforcement learning"), flat)
    assert is_proven(replace(supervised, suite="deepmufl", truth=sick("stalled", "It stays.")), flat)


def test_a_list_of_operations_names_none():
    assert names("log returned -Inf for an input of 0.", "log")
    assert names("the loss made of them is not: the logarithm of 0 (the loss is made by log, mul).", "log")
    assert names("LogBackward0 passed on NaN.", "log")
    assert not names("The loss is not finite (the loss is made by pow, mean, log).", "log")
    assert not names("log_softmax returned finite values.", "log")
    assert not names("log returned NaN.", "")


def test_verdict_counts_kind_and_operation():
    program = External("a", "GRIST", "", "", sick("nonfinite", "A zero goes into log.", "log"))
    found = {"kind": "nonfinite", "cause": "log returned -Inf."}
    assert verdict(program, [found]) == verdict(program, [found, {"kind": "dead", "cause": ""}])
    assert verdict(program, [found]).names_operation
    other = verdict(program, [{"kind": "dead", "cause": "log"}])
    assert (other.is_found, other.has_right_kind, other.names_operation) == (True, False, False)


def test_a_program_that_does_not_count_has_a_reason():
    program = External("a", "deepmufl", "", "", sick("stalled", "It stays."))
    learns = bare_run({"updates": 20, "losses": [2.0] * 10 + [1.0] * 10, "norms": [1.0] * 20})
    stays = bare_run({"updates": 20, "losses": [1.0] * 20, "norms": [1.0] * 20})
    assert reason_not_counted(program, None) == "It makes no update here."
    assert reason_not_counted(program, learns).startswith("Its fault does not show here")
    assert reason_not_counted(program, stays) == ""
    assert reason_not_counted(replace(program, cannot_show="It is a metric."), stays) == "It is a metric."


def test_feeds_are_repeatable(tmp_path):
    feeds.write("text:1000", tmp_path / "a" / "text.txt")
    feeds.write("numbers:1000", tmp_path / "numbers.bin")
    text = (tmp_path / "a" / "text.txt").read_text(encoding="utf-8")
    assert len(text) == 1000
    assert (tmp_path / "numbers.bin").stat().st_size == 2000
    assert feeds.lines(5) == feeds.lines(5)


def test_results_keep_the_latest_row(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"name": "a", "count": 1}\n{"name": "a", "count": 2}\n', encoding="utf-8")
    assert results.rows(path) == {"a": {"name": "a", "count": 2}}
    assert results.rows(tmp_path / "none.jsonl") == {}


def test_a_share_has_its_percentage():
    assert table._share(1, 4) == "1 (25 %)"
    assert table._share(0, 0) == "–"


def test_grist_adapter_finds_the_leaves_of_a_loss(monkeypatch):
    monkeypatch.syspath_prepend(str(ADAPTERS))
    from external_adapters.grist import leaves

    weight, bias, constant = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True), torch.ones(2)
    found = leaves(((weight * constant).sum() + bias + weight.sum()).log())
    assert {id(tensor) for tensor in found} == {id(weight), id(bias)}


SCRIPT = """
import torch
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
while True:
    loss = model(torch.ones(4, 3)).square().mean().mul({factor}).log()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


@pytest.mark.process
@pytest.mark.slow
def test_a_program_runs_bare_and_watched_and_ends_by_itself(tmp_path):
    folder = tmp_path / "repositories" / "pytorch" / "examples"
    folder.mkdir(parents=True)
    (folder / "train.py").write_text(SCRIPT.format(factor=0), encoding="utf-8")
    places = Places(tmp_path / "repositories", tmp_path / "scratch", Path(sys.executable))
    places.scratch.mkdir()
    program = External("own/train", "GRIST", "pytorch/examples", "train.py", sick("nonfinite", "A log of 0.", "log"),
                       updates=12)  # fmt: skip
    bare = run_bare(program, places, 100)
    assert (bare.status, bare.record["updates"]) == (0, 12)
    assert fault_shown(bare_run(bare.record)) == "a loss or gradient is NaN or Inf"
    watched = run_watched(program, places, 100)
    assert (watched.status, watched.steps) == (0, 12)
    assert [finding["kind"] for finding in watched.findings] == ["nonfinite"]
