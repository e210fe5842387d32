"""Every rank decides alike, whatever one of them sees, and none waits for a rank that does otherwise."""

import math

import pytest

from tests.distributed import decisions
from tests.distributed.decisions import BATCHES, NORM, PROGRAMS, SICK, SICK_RUNS, STEPS, STRATEGIES
from tests.distributed.launch import Results, same, same_weights
from tests.distributed.settings import SETTINGS, expected

pytestmark = [pytest.mark.process, pytest.mark.slow]

TOLERANCE = 1e-5
PATIENCE = 25  # seconds. A rank that waits longer waits for another; all of these programs take less than one alone


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    return Results(2, "tests.distributed.decisions", list(PROGRAMS), tmp_path_factory)


def ranks_of(launched, name):
    ranks = launched.of(name)
    assert max(rank["seconds"] for rank in ranks) < PATIENCE
    return ranks


def identity(shown):
    return [
        (finding["kind"], finding["layer"], finding["step"], finding["raised_step"]) for finding in shown["findings"]
    ]


def left_out(sickness, mode, steps):
    """Return which steps must be left out; a sick weight makes every later step sick."""
    lasts = sickness == "weight of NaN"
    return [mode != "report" and (step == SICK or (lasts and step > SICK)) for step in range(steps)]


@pytest.mark.parametrize(("strategy", "sickness", "mode"), SICK_RUNS)
def test_what_one_rank_sees_is_decided_alike_on_all(launched, strategy, sickness, mode):
    first, second = ranks_of(launched, f"{strategy} | {sickness} | {mode}")
    assert first["skipped"] == second["skipped"]
    assert first["skipped"] == left_out(sickness, mode, len(first["skipped"]))
    assert (first["raised"] is not None) == (mode == "raise")
    if (strategy, sickness) == ("DDP", "weight of NaN"):  # the rank that holds it names it, the others their last layer
        assert [finding["layer"] for finding in second["findings"][:1]] == ["0.weight"]
        assert [step for *_, step, _ in identity(first)] == [step for *_, step, _ in identity(second)]
        return
    assert first["raised"] == second["raised"]
    assert identity(first) == identity(second)


@pytest.mark.parametrize(("strategy", "sickness", "mode"), SICK_RUNS)
def test_a_sick_step_of_one_rank_is_a_finding_on_each(launched, strategy, sickness, mode):
    for rank in ranks_of(launched, f"{strategy} | {sickness} | {mode}"):
        kind, layer, step, raised_step = identity(rank)[0]
        assert (kind, step, raised_step) == ("nonfinite", SICK, SICK)
        assert (layer == "") == (sickness == "loss of NaN")


@pytest.mark.parametrize(("strategy", "sickness", "mode"), [run for run in SICK_RUNS if run[2] != "report"])
def test_weights_are_those_of_a_single_process_that_leaves_the_sick_step_out(launched, strategy, sickness, mode):
    if sickness == "weight of NaN":
        return  # it stays in the weights whatever is left out
    steps = SICK if mode == "raise" else STEPS
    for rank in ranks_of(launched, f"{strategy} | {sickness} | {mode}"):
        assert same_weights(rank["weights"], decisions.healthy_weights(SICK, steps), TOLERANCE)


@pytest.mark.parametrize(
    ("strategy", "sickness", "mode"), [run for run in SICK_RUNS if run[:2] != ("FSDP2", "entry of Inf")]
)
def test_the_first_rank_says_which_rank_it_was(launched, strategy, sickness, mode):
    first, _ = ranks_of(launched, f"{strategy} | {sickness} | {mode}")
    assert first["findings"][0]["ranks"] == [decisions.SICK_RANK]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_spike_of_one_rank_is_left_out_by_all(launched, strategy):
    for rank in ranks_of(launched, f"spike | {strategy}"):
        assert rank["skipped"] == [step == SICK for step in range(STEPS)]
        assert same_weights(rank["weights"], decisions.healthy_weights(SICK), TOLERANCE)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_policy_that_needs_whole_tensors_says_so_where_ranks_hold_parts(launched, strategy):
    expected = {"adaptive(0.01)", "by_update(0.1)"} if strategy == "FSDP2" else set()
    for rank in ranks_of(launched, f"parts of tensors | {strategy}"):
        assert set(rank["said"]) == expected
        assert all("each rank holds parts of these" in said for said in rank["said"].values())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_gradient_scaler_leaves_an_update_out_on_every_rank(launched, strategy):
    """Figures are unscaled, and an overflow of one part is an overflow of all, which is no finding."""
    known = expected(SETTINGS["DDP"], "none")["grad_norm_total"]
    for rank in ranks_of(launched, f"scaled | {strategy}"):
        assert rank["skipped"] == [step == SICK for step in range(STEPS)]
        assert same(rank["grad_norm_total"][:SICK], known[:SICK], TOLERANCE)
        assert rank["grad_norm_total"][SICK] == math.inf
        assert (rank["scale"], rank["findings"]) == (2.0**9, [])
        assert same_weights(rank["weights"], decisions.healthy_weights(SICK), TOLERANCE)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_clipping_of_the_loop_is_seen_past(launched, strategy):
    known = expected(SETTINGS["DDP"], "norm")
    for rank in ranks_of(launched, f"clips by itself | {strategy}"):
        assert same_weights(rank["weights"], known["weights"], TOLERANCE)
        seen = [step for step in range(STEPS) if not rank["already_clipped"][step]]
        assert seen[-4:] == [2, 3, 4, 5]  # clipping may be labelled as long as it is new
        for figure in ("grad_norm_total", "grad_norm_clipped_total"):
            assert same([rank[figure][s] for s in seen], [known[figure][s] for s in seen], TOLERANCE)


@pytest.mark.parametrize("name", ["join", "join, clips"])
def test_uneven_inputs_under_join(launched, name):
    known = decisions.uneven_reference(NORM if name == "join, clips" else None)
    for rank, batches in zip(ranks_of(launched, name), BATCHES, strict=True):
        assert rank["refused"] == ""
        assert same(rank["grad_norm_total"], known["grad_norm_total"][:batches], TOLERANCE)
        assert same_weights(rank["weights"], known["weights"], TOLERANCE)


def test_skipping_under_join_is_refused_or_works(launched):
    ranks = ranks_of(launched, "join, skips")
    words = [rank["refused"] for rank in ranks]
    assert all("join" in text for text in words) or words == ["", ""]
    if words == ["", ""]:
        known = decisions.uneven_reference(None)["weights"]
        assert all(same_weights(rank["weights"], known, TOLERANCE) for rank in ranks)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rank_without_rows_takes_part(launched, strategy):
    known = expected(SETTINGS["DDP"], "norm")
    for rank in ranks_of(launched, f"empty batches | {strategy}"):
        assert same(rank["grad_norm_total"], known["grad_norm_total"], TOLERANCE)
        assert same_weights(rank["weights"], known["weights"], TOLERANCE)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["reads alone", "group destroyed", "group remade"])
def test_reading_and_closing_wait_for_nobody(launched, name, strategy):
    known = expected(SETTINGS["DDP"], "norm")
    for rank in ranks_of(launched, f"{name} | {strategy}"):
        assert same_weights(rank["weights"], known["weights"], TOLERANCE)
        if name == "reads alone":
            assert rank["seen"] == [0, STEPS]
        else:
            assert same(rank["grad_norm_total"], known["grad_norm_total"], TOLERANCE)


@pytest.mark.parametrize(
    ("name", "strategy"), [("closes early", "DDP"), ("lacks watch", "DDP"), ("lacks watch", "FSDP2")]
)
def test_a_rank_that_is_not_watched_keeps_nobody_waiting(launched, name, strategy):
    for rank in ranks_of(launched, f"{name} | {strategy}"):
        assert same_weights(rank["weights"], decisions.healthy_weights(), TOLERANCE)


@pytest.mark.parametrize("strategy", ["FSDP2"])
@pytest.mark.parametrize("name", ["lacks watch", "lacks watch, clips"])
def test_watching_one_rank_alone_is_said(launched, name, strategy):
    first, second = ranks_of(launched, f"{name} | {strategy}")
    assert any("rank" in text for text in first["words"])
    assert same(first["weights"], second["weights"])  # and no replica goes a way of its own


@pytest.mark.parametrize("strategy", ["DDP"])
def test_a_rank_that_leaves_a_step_out_keeps_nobody_waiting(launched, strategy):
    assert [rank["steps"] for rank in ranks_of(launched, f"leaves a step out | {strategy}")] == [STEPS, STEPS - 1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rank_that_raises_keeps_nobody_waiting(launched, strategy):
    first, second = ranks_of(launched, f"raises | {strategy}")
    assert (first["caught"], second["caught"]) == ("", "this rank has had enough")
    assert first["steps"] == second["steps"] == SICK


def test_a_model_that_is_watched_before_the_group_is_made(launched):
    known = expected(SETTINGS["DDP"], "norm")
    for rank in ranks_of(launched, "watched before the group"):
        assert same(rank["grad_norm_total"], known["grad_norm_total"], TOLERANCE)
        assert same_weights(rank["weights"], known["weights"], TOLERANCE)


@pytest.mark.parametrize("name", ["ranks on their own", "groups on their own"])
def test_ranks_that_share_no_gradient_have_figures_of_their_own(launched, name):
    for rank, (shown, steps) in enumerate(zip(ranks_of(launched, name), BATCHES, strict=True)):
        known = decisions.own_reference((rank, 2), steps)
        assert same(shown["grad_norm_total"], known["grad_norm_total"], TOLERANCE)
        assert same_weights(shown["weights"], known["weights"], TOLERANCE)


def test_a_rank_without_a_model_is_not_waited_for(launched):
    known = decisions.own_reference((0, 1), STEPS)
    first, _ = ranks_of(launched, "one rank trains")
    assert same(first["grad_norm_total"], known["grad_norm_total"], TOLERANCE)
    assert same_weights(first["weights"], known["weights"], TOLERANCE)
