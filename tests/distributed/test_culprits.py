"""Rank 0 says which rank made its model sick, and why; nobody waits for anybody to say so."""

import re
import textwrap

import pytest

from tests.distributed.culprits import CULPRIT, PROGRAMS, ROW, SICK, STRATEGIES
from tests.distributed.launch import Results, torchrun

pytestmark = [pytest.mark.process, pytest.mark.slow]

EVIDENCE = {
    "bad_row": (rf"was given already held NaN or Inf, in 1 of \d+ rows: {ROW}", "clean-data"),
    "bad_target": (rf"held NaN.*in row {ROW}", "clean-data"),
    "logarithm": (r"the logarithm of 0", "safe-log"),
    "derivative": (r"the gradient of what the model itself \(\w+\) returned is already NaN or Inf", None),
    "weight": (r"1 entry of (this rank's part of )?0\.weight|into 1 entry of 0\.weight", "initialise"),
}


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    return Results(2, "tests.distributed.culprits", list(PROGRAMS), tmp_path_factory)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("sickness", EVIDENCE)
def test_the_first_rank_names_the_rank_that_made_a_nan_and_tells_why(launched, strategy, sickness):
    first, second = launched.of(f"{strategy} | {sickness}")
    evidence, remedy = EVIDENCE[sickness]
    for finding in (first["findings"][0], second["findings"][0]):
        assert (finding["kind"], finding["step"], finding["ranks"]) == ("nonfinite", SICK, [CULPRIT])
        assert re.search(evidence, finding["cause"]), finding["cause"]
        assert remedy is None or finding["remedies"][0]["name"] == remedy
    assert first["findings"][0]["cause"].startswith(f"It began on rank {CULPRIT}. ")
    assert f"rank {CULPRIT}" in first["findings"][0]["text"]
    assert f" on rank {CULPRIT} since step {SICK}" in first["findings"][0]["message"]
    assert len(first["findings"]) == len(second["findings"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_error_that_is_raised_names_the_rank_on_the_first(launched, strategy):
    first, second = launched.of(f"{strategy} | raise")
    assert f"It began on rank {CULPRIT}. " in first["raised"]
    assert f"rows: {ROW}" in second["raised"]
    assert first["seconds"] < 20


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("way", ["skip", "traced"])
def test_skipping_and_tracing_name_the_rank(launched, strategy, way):
    first, second = launched.of(f"{strategy} | {way}")
    assert first["findings"][0]["ranks"] == second["findings"][0]["ranks"] == [CULPRIT]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_healthy_ranks_have_nothing_to_say(launched, strategy):
    assert [rank["findings"] for rank in launched.of(f"{strategy} | healthy")] == [[], []]


def test_what_another_rank_has_found_alone_is_a_finding_of_the_first(launched):
    first, second = launched.of("alone")
    assert [finding["ranks"] for finding in first["findings"]] == [[CULPRIT]]
    assert first["findings"][0]["step"] == second["findings"][0]["step"] == SICK


def test_a_store_that_is_gone_stops_nobody(launched):
    """Both ranks are sick at one step, which is one finding, whether the note of the other comes before or not."""
    for rank in launched.of("store gone"):
        assert rank["kinds"] == ["nonfinite"]
        assert rank["seconds"] < 20


def test_a_loss_that_leaps_on_one_rank_is_where_the_explosion_of_all_began(launched):
    first, _ = launched.of("DDP | spike")
    (finding,) = (finding for finding in first["findings"] if finding["kind"] == "exploding")
    assert (finding["step"], finding["ranks"]) == (SICK, [CULPRIT])
    assert finding["cause"].startswith(f"It began on rank {CULPRIT}, whose loss leapt to ")
    assert f"at step {SICK}, from at most " in finding["cause"]


def test_a_finding_of_the_first_rank_speaks_of_the_layer_that_it_names(launched):
    """The rank whose replica holds a NaN names that weight. On the others the layer nearest the output is sick."""
    first, second = (rank["findings"][0] for rank in launched.of("DDP | weight"))
    assert (first["layer"], second["layer"]) == ("5.bias", "0.weight")
    for finding in (first, second):
        assert finding["layer"] in finding["measured"]
        assert "into 1 entry of 0.weight" in finding["cause"]


PROGRAM = """
    import time, torch, torch.distributed as dist
    from torch import nn

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for step in range(20):
        rows = torch.randn(16, 8, generator=generator)
        if step == 12 and dist.get_rank() == 1:
            rows[3, 2] = float("inf")
        loss = (model(rows) - rows[:, :1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    dist.destroy_process_group()
    time.sleep(0.5)  # gloo's threads still hold the last tensors, and torch aborts if the process ends now
"""


def test_a_script_under_gradwatch_run_has_one_summary_that_names_the_rank(tmp_path):
    (tmp_path / "train.py").write_text(textwrap.dedent(PROGRAM))
    command = ("-m", "gradwatch", "run", "--log-dir", "here", "--fail-on", "nonfinite", "train.py")
    ended = torchrun(2, command, tmp_path, 300)
    assert ended.status == 1, ended.output
    assert ended.output.count("20 steps, 1 finding (1 nonfinite)") == 1
    assert ended.output.count("nonfinite in 2.bias on rank 1 since step 12") == 1
    assert "no findings" not in ended.output
    assert [path.name for path in (tmp_path / "here").iterdir() if "tfevents" not in path.name] == []
