"""The benchmark of clipping: every model takes steps, every way does what its formula says, tables count right."""

import json
import math

import pytest
import torch
from torch import nn

from benchmarks.clipping import results, table
from benchmarks.clipping.programs import CLEAN, FAULT, FAULTS, MODELS, RATES, STEPS, data, optimizers, rate_at
from benchmarks.clipping.results import Setting
from benchmarks.clipping.train import Outcome, _advance, make, outcome, recovery_of, spike_score, train
from benchmarks.clipping.ways import ORACLE, SCORED, WAYS, Update, norm_of


def update_with(*gradients, loss=1.0):
    """Return an update of weights of ones with these gradients, under plain descent."""
    parameters = [nn.Parameter(torch.ones_like(torch.as_tensor(each, dtype=torch.float64))) for each in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.as_tensor(gradient, dtype=torch.float64).clone()
    return Update(parameters, [torch.optim.SGD(parameters, lr=0.1)], loss)


def clipped(way, *gradients):
    update = update_with(*gradients)
    assert way.clip_(update)
    return update.gradients


@pytest.mark.parametrize("optimizer", RATES)
@pytest.mark.parametrize("model", MODELS)
def test_each_model_and_optimizer_takes_two_steps_side_by_side_as_alone(model, optimizer):
    rate = RATES[optimizer][1]
    together = [make(model, optimizer, rate, "none", seed) for seed in (7, 8)]
    _advance(MODELS[model], together, range(2))
    net = make(model, optimizer, rate, "none", 7).model
    plain, known = optimizers(optimizer, net, rate), MODELS[model]
    for step in range(2):
        for each in plain:
            each.param_groups[0]["lr"] = rate_at(step, rate)
            each.zero_grad()
        inputs, targets = data(model, 7).batches[step]
        loss = known.loss(net(inputs), targets)
        loss.backward()
        for each in plain:
            each.step()
        assert together[0].losses[step] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert len(together[1].losses) == 2
    assert sum(each.numel() for each in net.parameters()) < 1_000_000


@pytest.mark.slow
def test_a_way_that_has_not_acted_follows_the_unclipped_run_and_is_what_it_would_be_alone():
    ways, conditions = ("norm 10", "ZClip", "skip at 6 σ"), (CLEAN, "gradient × 1000")
    alone = train("MLP", {make("MLP", "SGD", 0.03, way, 7): conditions for way in ways})
    following = train("MLP", {make("MLP", "SGD", 0.03, way, 7): conditions for way in ("none", *ways)})
    theirs = {(each.name, each.condition): outcome(each) for each in following}
    assert len(alone) == 6
    for each in alone:
        mine, other = outcome(each), theirs[each.name, each.condition]
        assert mine.loss == pytest.approx(other.loss, rel=1e-2)
        assert (mine.clipped, mine.recovery) == (other.clipped, other.recovery)
    assert theirs["ZClip", CLEAN] == theirs["none", CLEAN]
    assert theirs["ZClip", "gradient × 1000"].clipped > 0


def test_each_fault_changes_what_it_names_and_only_then():
    for name, fault in FAULTS.items():
        one = make("MLP", "SGD", 0.03, "none", 7)
        one.fault, one.condition = fault, name
        assert not one.is_sick(FAULT - 1)
        assert one.is_sick(FAULT)
        inputs, targets = data("MLP", 7).batches[FAULT]
        gradients = [torch.full((20,), 0.01)]
        fault.gradients_(gradients, FAULT)
        changed = (
            not torch.equal(fault.batch(inputs, targets)[0], inputs),
            not torch.equal(gradients[0], torch.full((20,), 0.01)),
            fault.rate(1.0) != 1.0,
        )
        assert sum(changed) == 1
        assert not one.is_sick(FAULT + fault.lasts)


def test_a_flipped_bit_makes_one_entry_huge_and_finite():
    gradients = [torch.linspace(-0.02, 0.02, 20)]
    FAULTS["bit flip"].gradients_(gradients, FAULT)
    assert torch.isfinite(gradients[0]).all()
    assert (gradients[0].abs() > 1e30).sum() == 1


def test_the_rate_warms_up_and_falls_to_nothing():
    assert rate_at(0, 1.0) == pytest.approx(0.1)
    assert rate_at(STEPS - 1, 1.0) == pytest.approx(1 / STEPS)


@pytest.mark.parametrize("name", [name for name in WAYS if name != "none"])
def test_no_way_raises_a_norm(name):
    way = WAYS[name]()
    for scale in (1.0, 2.0, 0.5, 100.0, 1.0):
        update = update_with([3.0 * scale, 4.0 * scale], [[0.0, 1.0]], [[1.0]], [1.0])
        before = norm_of(update.gradients)
        way.clip_(update)
        assert norm_of(update.gradients) <= before * (1 + 1e-12)


def test_a_fixed_norm_is_what_torch_makes_of_it():
    assert torch.allclose(torch.cat(clipped(WAYS["norm 1"](), [3.0, 4.0])), torch.tensor([0.6, 0.8]).double())
    kept = clipped(WAYS["norm 10"](), [3.0, 4.0])
    assert kept[0].tolist() == [3.0, 4.0]


def test_agc_keeps_each_row_to_a_hundredth_of_its_weights_and_leaves_the_head_alone():
    rows, vector, head, bias = clipped(WAYS["AGC"](), [[3.0, 4.0], [0.0, 0.001]], [1.0, 1.0], [[9.0]], [9.0])
    assert rows[0].norm() == pytest.approx(0.01 * math.sqrt(2))
    assert rows[1].tolist() == [0.0, 0.001]
    assert vector.norm() == pytest.approx(0.01 * math.sqrt(2))
    assert (head.item(), bias.item()) == (9.0, 9.0)


def test_autoclip_clips_to_the_tenth_percentile_of_all_norms():
    way = WAYS["AutoClip"]()
    for norm in range(1, 11):
        left = clipped(way, [float(norm)])
    assert left[0].item() == pytest.approx(1.9)  # of 1 … 10, interpolated


def test_zclip_leaves_25_steps_alone_and_then_brings_a_spike_near_the_mean():
    way = WAYS["ZClip"]()
    norms = [1.0, 3.0] * 12 + [2.0]
    for norm in norms:
        assert clipped(way, [norm])[0].item() == norm
    deviation = math.sqrt(24 / 25)
    z = (100 - 2) / (deviation + 1e-6)
    assert clipped(way, [100.0])[0].item() == pytest.approx(2 + 2.5**2 * deviation / z)


def test_adagc_clips_each_tensor_to_its_own_average():
    way = WAYS["by tensor (AdaGC)"]()
    for _ in range(50):
        clipped(way, [0.3], [0.4])
    one, other = clipped(way, [3.0], [0.4])
    assert one.item() == pytest.approx(1.05 * 0.3)
    assert other.item() == 0.4


def test_skipping_needs_64_values_and_six_deviations():
    way = WAYS["skip at 6 σ"]()
    for step in range(62):
        assert way.clip_(update_with([1.0 + step % 2]))
    assert way.clip_(update_with([1000.0]))  # the 63rd
    way = WAYS["skip at 6 σ"]()
    for step in range(63):
        assert way.clip_(update_with([1.0 + step % 2]))
    assert not way.clip_(update_with([1000.0]))
    assert not way.clip_(update_with([1.0], loss=1000.0))
    assert way.clip_(update_with([1.0]))


def test_updates_are_clipped_by_the_weights_under_descent_and_by_the_second_moment_under_adam():
    way = WAYS["of updates"]()
    update = update_with([50.0, 50.0])
    before = [each.detach().clone() for each in update.parameters]
    with torch.no_grad():
        update.optimizers[0].step()
        way.after_(update, before)
    assert torch.allclose(update.parameters[0], torch.full((2,), 0.9).double())
    weight = nn.Parameter(torch.ones(2, dtype=torch.float64))
    adam = torch.optim.AdamW([weight], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    for size in (1.0, 100.0):
        weight.grad = torch.full_like(weight, size)
        old = weight.detach().clone()
        adam.step()
        bare = weight.detach() - old
        with torch.no_grad():
            way.after_(Update([weight], [adam], 1.0), [old])
    ratio = math.sqrt(100**2 * (1 - 0.99**2) / (0.99 * 0.01 + 0.01 * 100**2))
    assert torch.allclose(weight.detach() - old, bare / ratio)


def test_spikes_and_recoveries_are_counted():
    assert spike_score([1.0, 1.1] * 30) == 0
    assert spike_score([*[1.0, 1.1] * 30, 9.0]) == 1 / 61
    clean = [1.0] * STEPS
    sick = [*clean[:FAULT], *[5.0] * 10, *clean[FAULT + 10 :]]
    assert recovery_of(clean, clean) == 0
    assert recovery_of(sick, clean) == 10
    assert recovery_of([*clean[:FAULT], *[5.0] * (STEPS - FAULT)], clean) == STEPS - FAULT


def outcomes(*values):
    return [Outcome(loss, 4.0, 0.5, 0.0, None) for loss in values]


SETTING = Setting("MLP", "SGD", 0.03)


def test_a_run_that_is_worse_than_untrained_diverged_and_counts_as_untrained():
    assert not Outcome(1.0, 4.0, 0.0, 0.0, None).diverged
    assert Outcome(math.inf, 4.0, 0.0, 0.0, None).counted == 4.0
    assert Outcome(5.0, 4.0, 0.0, 0.0, None).diverged


def test_the_oracle_takes_the_lowest_mean_and_the_larger_norm_of_equal_ones():
    runs = {(SETTING, way, CLEAN): outcomes(1.0, 2.0) for way in ORACLE}
    assert results.chosen(runs)[SETTING, CLEAN] == "none"
    runs[SETTING, "norm 3", CLEAN] = outcomes(1.0, 1.5)
    assert results.chosen(runs)[SETTING, CLEAN] == "norm 3"


def test_regret_and_harm_are_those_of_the_mean_over_seeds():
    runs = {(SETTING, way, CLEAN): outcomes(1.0, 1.1) for way in (*SCORED, "norm 3")}
    runs[SETTING, "auto", CLEAN] = outcomes(1.2, 1.3)
    best, pairs = {(SETTING, CLEAN): "norm 3"}, [(SETTING, CLEAN)]
    mean, low, high = table.mean_regret(runs, best, "auto", pairs)
    assert mean == pytest.approx(0.2 / 1.05)
    assert low <= mean <= high
    assert table.hurt(runs, best, "auto", pairs) == pairs
    assert table.hurt(runs, best, "1.0", pairs) == []


def test_what_is_missing_is_what_no_line_has():
    runs = {(SETTING, "none", CLEAN): outcomes(1.0)}
    missing = results._missing(("MLP", "SGD"), runs, {SETTING: ("none", "auto", "auto")})
    assert missing == {SETTING: ["auto"]}
    assert results._missing(("MLP", "AdamW"), runs, {SETTING: ("auto",)}) == {}


def test_the_z_score_brings_a_spike_near_the_mean():
    way = WAYS["z-score"]()
    for _ in range(3):
        assert clipped(way, [2.0])[0].item() == 2.0
    z = (20 - 2) / 0.5  # no deviation, so a quarter of the mean
    assert clipped(way, [20.0])[0].item() == pytest.approx(2 + 0.5 * 2.5**2 / z)


def test_results_are_read_as_they_were_written(tmp_path):

    path = tmp_path / "results.jsonl"
    found = {CLEAN: outcomes(1.0, math.inf)}
    path.write_text(json.dumps(results.row_of(SETTING, "auto", found)) + "\n")
    assert results.read(path) == {(SETTING, "auto", CLEAN): found[CLEAN]}


def test_what_is_committed_makes_the_tables():
    runs, best = results.read(results.RESULTS), results.chosen(results.read(results.SEARCHED))
    pairs = table.complete(runs, best, SCORED)
    assert len(pairs) > 0
    assert all(f"| {way} |" in table._by_condition(runs, best, SCORED, pairs) for way in SCORED)
