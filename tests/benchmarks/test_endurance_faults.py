"""The attacks by faults and surroundings refuse what they say, and notice what may not be."""

import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.endurance.boundary import Boundary
from benchmarks.endurance.ends import ENDS, NO_SUMMARY, SHOWS_FRAMES
from benchmarks.endurance.fault_try import NAN_STEPS, Outcome
from benchmarks.endurance.faults import what_gave_way
from benchmarks.endurance.processes import Tried
from benchmarks.endurance.surroundings import _differences

HERE = frozenset({__file__})
FILES = ("JSON lines", "CSV", "TensorBoard")
WHOLE = Outcome(
    weights="w",
    found=[*NAN_STEPS],
    on_disk={name: [*NAN_STEPS] for name in FILES},
    rows={name: [0, 3, 6] for name in FILES},
    status=1,
)


def inside(body):
    """A function of ``body`` that seems to stand in a file of /watching."""
    code = compile(f"def act(path):\n    {body}", "/watching/sink.py", "exec")
    names = {"torch": torch, "np": np, "tensor": torch.ones(2)}
    exec(code, names)
    return names["act"]


@pytest.mark.parametrize(
    ("sort", "body", "error"),
    [
        ("open", "open(path, 'w').close()", OSError),
        ("write", "open(path, 'wb', buffering=0).write(b'x')", OSError),
        ("write", "path.write_text('x')", OSError),
        ("directory", "path.mkdir()", OSError),
        ("allocation", "torch.zeros(3)", MemoryError),
        ("allocation", "tensor.clone()", MemoryError),
        ("allocation", "np.zeros(3)", MemoryError),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_call_of_that_number_is_refused_once_or_for_good(tmp_path, sort, body, error):
    act = inside(body)
    for for_good, expected in ((False, [False, True, False, False]), (True, [False, True, True, True])):
        boundary = Boundary("/watching", HERE, frozenset(), sort, 1, for_good=for_good)
        refused = []
        with boundary.armed():
            for number in range(4):
                try:
                    act(tmp_path / f"{for_good} {number}")
                except error:
                    refused.append(True)
                else:
                    refused.append(False)
        assert refused == expected
        assert boundary.refused == sum(expected)


def test_calls_of_the_training_and_questions_about_tensors_pass(tmp_path):
    ask = inside("torch.is_grad_enabled(), torch.ones(2).numel()")
    boundary = Boundary("/watching", HERE, frozenset(), "allocation", 0)
    with boundary.armed():
        assert torch.zeros(3).sum() == 0
        with pytest.raises(MemoryError):
            ask(tmp_path)
    assert boundary.seen == 1


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, None),
        ({"stopped": "Traceback"}, "stopped"),
        ({"weights": "others"}, "weights"),
        ({"status": 0}, "healthy"),
        ({"says_healthy": True}, "healthy"),
        ({"found": []}, "healthy"),
        ({"on_disk": {**WHOLE.on_disk, "CSV": [4]}, "step": 5}, "next NaN"),
        ({"on_disk": {**WHOLE.on_disk, "CSV": [4]}, "step": 6}, None),
        ({"on_disk": {**WHOLE.on_disk, "CSV": [4]}, "step": 5, "is_over": False}, None),
        ({"rows": {**WHOLE.rows, "CSV": [0, 3]}}, "silent"),
        ({"rows": {**WHOLE.rows, "CSV": [0, 3]}, "log": ["gradwatch: Csv never took 1 row."]}, None),
    ],
)
def test_what_may_not_be_is_noticed(change, kind):
    found = [name for name, _ in what_gave_way(Tried(("write", 3, False), replace(WHOLE, **change), ""), WHOLE)]
    assert found == ([] if kind is None else [kind])


def test_a_try_without_a_result_is_a_run_that_was_stopped():
    assert [*what_gave_way(Tried(("write", 3, False), None, "took too long"), WHOLE)] == [("stopped", "took too long")]


SUMMARY = "gradwatch: 3 steps, no findings; event files in runs\n"


@pytest.mark.parametrize(
    ("status", "out", "error", "differs"),
    [
        (7, "trained\n", f"oh\n{SUMMARY}", []),
        (0, "trained\n", f"oh\n{SUMMARY}", ["status 0, bare 7"]),
        (7, "", f"oh\n{SUMMARY}", ["stdout '', bare 'trained\\n'"]),
        (7, "trained\n", f"ah\n{SUMMARY}", ["stderr 'ah\\n', bare 'oh\\n'"]),
        (7, "trained\n", "oh\n", ["no summary"]),
    ],
)
def test_a_program_that_ends_otherwise_than_bare_differs(status, out, error, differs):
    bare = subprocess.CompletedProcess([], 7, "trained\n", "oh\n")
    assert _differences(bare, subprocess.CompletedProcess([], status, out, error), has_summary=True) == differs


def test_every_end_is_known():
    assert set(ENDS) >= NO_SUMMARY | SHOWS_FRAMES
    assert len(ENDS) == len(set(ENDS)) > 30
