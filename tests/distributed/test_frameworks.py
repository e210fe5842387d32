"""Frameworks on two ranks: figures, clipping and weights are those of a single process; and ``gradwatch run``."""

import functools
import re
import textwrap

import pytest

from tests.distributed.frameworks import PROGRAMS
from tests.distributed.launch import Results, same, same_weights, torchrun
from tests.distributed.settings import SETTINGS, STEPS, expected

pytestmark = [pytest.mark.process, pytest.mark.slow]

TOLERANCE = 1e-5
SECONDS = 300  # of a launch on a busy machine


@functools.cache
def known():
    """The figures of a single process that clips by the norm with torch."""
    return expected(SETTINGS["DDP"], "norm")


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    return Results(2, "tests.distributed.frameworks", list(PROGRAMS), tmp_path_factory)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_framework_trains_to_the_weights_of_a_single_process(launched, name):
    for shown in launched.of(name):
        assert shown["weights"].keys() == known()["weights"].keys()
        assert same_weights(shown["weights"], known()["weights"], TOLERANCE)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_framework_shows_the_figures_of_a_single_process(launched, name):
    for shown in launched.of(name):
        by_itself = "by itself" in name
        seen = [step for step in range(STEPS) if not (by_itself and shown["already_clipped"][step])]
        assert len(shown["grad_norm_total"]) == STEPS
        assert seen[-4:] == [2, 3, 4, 5]  # clipping of the loop may be labelled as long as it is new
        for figure in ("grad_norm_total", "grad_norm"):
            measured = [shown[figure][step] for step in seen]
            assert same(measured, [known()[figure][step] for step in seen], TOLERANCE)
        assert shown["findings"] == []


SCRIPT = """
    import math, sys, time
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(8):
        rows = torch.randn(16, 6, generator=torch.Generator().manual_seed(10 * step + rank))
        if rank == 1 and step == 5 and "sick" in sys.argv:
            rows[3, 2] = math.nan
        model(rows).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    dist.destroy_process_group()
    time.sleep(0.5)  # gloo's threads still hold the last tensors, and torch aborts if the process ends now
"""


def run_script(directory, *arguments):
    (directory / "train.py").write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    command = ("-m", "gradwatch", "run", "--log-dir", str(directory / "here"), *arguments)
    return torchrun(2, command, directory, SECONDS)


def summaries(ended):
    """The lines in which ``gradwatch run`` says how many steps it saw."""
    return re.findall(r"^gradwatch: .*\d+ steps.*$", ended.output, re.MULTILINE)


def test_gradwatch_run_watches_a_sharded_script(tmp_path):
    ended = run_script(tmp_path, "--fail-on", "nonfinite", "train.py")
    assert ended.status == 0, ended.output
    (summary,) = summaries(ended)
    assert summary.startswith("gradwatch: 8 steps, no findings")


def test_gradwatch_run_fails_and_says_why_where_another_rank_is_sick(tmp_path):
    ended = run_script(tmp_path, "--fail-on", "nonfinite", "train.py", "sick")
    assert ended.status not in (0, None), ended.output
    (summary,) = summaries(ended)
    assert "nonfinite" in summary
    assert "Traceback" not in ended.output.partition("torch/distributed/elastic")[0]
