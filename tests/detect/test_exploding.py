import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwatch.detect import loss_level
from gradwatch.detect.exploding import (
    ASCENDED,
    BEYOND_DATA,
    CAME_WITH_DATA,
    COME_DOWN,
    DISPLACED,
    EVIDENCE,
    EVIDENCE_ALONE,
    FIRST_STEPS,
    HORIZON,
    IN_A_ROW,
    LASTING,
    LOST,
    MARGIN,
    NEGLIGIBLE,
    OUTGROWN,
    SINCE_DATA,
    SPREADS,
    USUAL,
    WORSE,
    Exploding,
)
from gradwatch.detect.loss_evidence import Reach
from gradwatch.findings import Thresholds
from tests.detect.test_loss_evidence import slow_reaches
from tests.reports import (
    INF,
    NAN,
    diagnosis,
    examine_all,
    findings,
    kinds,
    onsets,
    random_walks,
    report,
    run_of,
    table,
    times,
)

UNBOUNDED = Reach(INF, INF)


def slow_loss_suffers(losses, reaches):
    """``loss_level`` over a whole run, a step at a time."""
    return slow_loss_levels(losses, reaches)[0]


def slow_loss_levels(losses, reaches):
    """(whether the loss suffers, up to where it is usual, its mean, whether it leapt with the data) at each step."""
    mean = spread = largest = last = 0.0
    seen = 0
    suffers, usual, means, leaps = [], [], [], []
    leapt = False
    for loss, reach in zip(losses, reaches, strict=True):
        if loss is None:
            suffers.append(None)
        elif not math.isfinite(loss):
            suffers.append(True)
        elif seen == 0:
            mean, largest, seen, last = loss, abs(loss), 1, loss
            suffers.append(False)
        else:
            change, last = loss - last, loss
            beyond = change - reach.rise if change > reach.rise else min(0.0, change + reach.fall)
            mean += beyond
            allowed = max(loss_level.RISE * abs(mean), loss_level.SPREADS * spread)
            above = loss - mean
            if seen < loss_level.FIRST_STEPS and abs(loss) < loss_level.RUNAWAY * largest:
                largest = max(largest, abs(loss))
            rises = above > allowed and abs(loss) > loss_level.NEGLIGIBLE * largest
            suffers.append(rises or loss < -loss_level.RUNAWAY * largest)
            if allowed > 0 and abs(above) > allowed:
                above = math.copysign(allowed, above)
            share = 1 / min(seen + 1, loss_level.HORIZON)
            mean, spread = mean + share * above, spread + share * (abs(above) + abs(beyond) - spread)
            seen += 1
            leapt = abs(change) > USUAL * spread and abs(beyond) > CAME_WITH_DATA * abs(change)
        usual.append(mean + USUAL * spread)
        means.append(mean)
        leaps.append(leapt and loss is not None)
    return suffers, usual, means, leaps


def slow_largest(losses):
    """The largest of the first ten finite losses at each step, without those that have run away by then."""
    first, count, told = [], 0, []
    for loss in losses:
        if loss is not None and math.isfinite(loss):
            count += 1
            if count <= loss_level.FIRST_STEPS and (not first or abs(loss) < loss_level.RUNAWAY * max(first)):
                first.append(abs(loss))
        told.append(max(first, default=0))
    return told


def slow_suffers(reports):
    """(whether the loss suffers, whether it has been on both sides of zero) at each step; None where there is none."""
    losses = [step.loss for step in reports]
    suffers = slow_loss_suffers(losses, slow_reaches(reports))
    largest = slow_largest(losses)
    signed = []
    for place, loss in enumerate(losses):
        seen = [each for each in losses[: place + 1] if each is not None]
        is_signed = any(each < 0 for each in seen) and any(each > 0 for each in seen)
        runs_away = loss is not None and (not math.isfinite(loss) or -loss > loss_level.RUNAWAY * largest[place])
        signed.append(is_signed)
        if is_signed and not runs_away:
            suffers[place] = None
    return suffers, signed


def slow_exploding(reports):  # one long loop on purpose: a twin of the rule
    """The default rule: for each step the onset of each sick layer, None where the step says nothing."""
    losses = [step.loss for step in reports]
    (suffering, signed), largest = slow_suffers(reports), slow_largest(losses)
    _, usual, means, leaps = slow_loss_levels(losses, slow_reaches(reports))
    count = len(reports[0].grad_norm)
    seen, level, spread, evidence, onset, peak, outgrown = ([0.0] * (count + 1) for _ in range(7))
    first_logs = [[] for _ in range(count + 1)]
    told = []
    loss_at_onset, peak_since, goes_on, first_total, has_level, displaced = None, 0.0, False, 0.0, False, False
    at_once, near_peak, largest_before, total_of_data = False, 0, 0.0, 0.0
    for place, (step, suffers) in enumerate(zip(reports, suffering, strict=True)):
        if signed[place] and step.loss is not None and step.grad_norm_total <= SINCE_DATA * total_of_data:
            suffers = None
        if step.loss is not None and evidence[count] <= 0:
            largest_before = largest[place - 1] if place else 0.0
        if any(step.nonfinite > 0):
            told.append(None)
            continue
        outgrows = [False] * (count + 1)
        for column, norm in enumerate([*step.grad_norm.tolist(), step.grad_norm_total]):
            if not math.isfinite(norm) or norm == 0:
                continue
            if seen[column] == 0:
                level[column] = math.log10(norm)
                first_total = norm if column == count else first_total
            first_logs[column].append(math.log10(norm))
            above = math.log10(norm) - level[column]
            margin = max(MARGIN, SPREADS * spread[column])
            if seen[column] < FIRST_STEPS:
                peak[column], outgrown[column] = max(peak[column], norm), 0
            else:
                outgrown[column] = outgrown[column] + 1 if norm > OUTGROWN * peak[column] else 0
            outgrows[column] = 10**above > 10**margin
            if evidence[column] <= 0 and above > margin:
                onset[column] = step.step
            evidence[column] = max(0.0, evidence[column] + above - margin)
            taken = max(-margin, min(above, margin))
            share = 1 / min(seen[column] + 1, HORIZON)
            level[column] += share * taken
            spread[column] += share * (abs(taken) - spread[column])
            seen[column] += 1
        if onset[count] == step.step:
            loss_at_onset, peak_since = step.loss, -INF
            at_once, near_peak = max(evidence[:count]) >= EVIDENCE, 0
            goes_on = step.loss is None or at_once
            total_of_data = step.grad_norm_total if leaps[place] else 0.0
        elif step.loss is not None and loss_at_onset is not None:
            worse = not step.loss - loss_at_onset <= WORSE * abs(loss_at_onset)
            goes_on = goes_on or worse or step.loss < min(0, -ASCENDED * abs(loss_at_onset))
        if suffers is False and loss_at_onset is not None and evidence[count] > 0:
            suffers = step.loss > BEYOND_DATA * max(largest[place], abs(loss_at_onset))
        is_over, has_settled, is_lost = False, False, True
        if step.loss is not None and math.isfinite(step.loss):
            peak_since = max(peak_since, step.loss)
            is_over = 0 < step.loss < COME_DOWN * peak_since
            near_peak += goes_on and not is_over
            fallen, risen = peak_since - step.loss, peak_since - means[place]
            has_settled = risen > 0 and fallen > (1 - COME_DOWN) * risen
            is_high = max(peak_since, abs(step.loss)) > LOST * largest_before
            is_lost = bool(is_high or at_once or near_peak >= LASTING)
        if not has_level and not suffers and seen[count] >= FIRST_STEPS:
            has_level = True
            for column in range(count + 1):
                if seen[column]:
                    first = first_logs[column][:FIRST_STEPS]
                    level[column] = float(np.median(first))
                    spread[column] = sum(abs(each - level[column]) for each in first) / len(first)
                evidence[column] = 0.0
        if step.sampled and "update_ratio" in step.figures:
            displaced = displaced or any(ratio > DISPLACED for ratio in step.figures["update_ratio"])
        suffers = suffers and goes_on and not is_over and is_lost
        enough = EVIDENCE_ALONE if suffers is None else EVIDENCE
        sick = {}
        for column in range(count):
            outgrew = evidence[column] >= enough and evidence[count] > 0 and suffers is not False
            if suffers is None:
                is_small = step.grad_norm_total <= NEGLIGIBLE * first_total
                outgrew = outgrew and evidence[count] >= EVIDENCE and not is_small and (has_level or displaced)
                outgrew = outgrew and not (step.loss is not None and step.loss <= usual[place])
                outgrew = outgrew and not has_settled and step.grad_norm_total > SINCE_DATA * total_of_data
            slowly = suffers is None and outgrown[column] >= IN_A_ROW and outgrown[count] >= IN_A_ROW
            if slowly or (outgrew and outgrows[column]) or step.grad_norm[column] == INF:
                sick[column] = onset[column] if evidence[column] > 0 else step.step
        told.append(sick)
    return told


def vectorised(reports):
    return [
        onsets(result) for result in examine_all(Exploding(table(len(reports[0].grad_norm)), Thresholds()), reports)
    ]


@pytest.mark.parametrize("loss_seen", [True, False], ids=["with loss", "without loss"])
def test_agrees_with_the_slow_loop_on_random_walks(loss_seen):
    sick_steps = 0
    for seed in range(20):
        norms, losses = random_walks(seed, steps=60, count=4)
        reports = run_of(norms, losses if loss_seen else None)
        slow = slow_exploding(reports)
        assert vectorised(reports) == slow
        sick_steps += sum(map(bool, slow))
    assert sick_steps > 50  # else this test would show nothing


def test_agrees_with_the_slow_loop_where_updates_are_measured():
    sick_steps = without_reach = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        norms, losses = random_walks(seed, steps=60, count=4)
        lengths = 10.0 ** rng.normal(-5, 1, (60, 4))
        reports = [
            report(
                row, step, loss, sampled=step % 3 == 0,
                figures={"update_ratio": lengths[step], "weight_norm": np.ones(4)},
            )
            for step, (row, loss) in enumerate(zip(norms, losses, strict=True))
        ]  # fmt: skip
        slow = slow_exploding(reports)
        assert vectorised(reports) == slow
        sick_steps += sum(map(bool, slow))
        without_reach += slow != slow_exploding(run_of(norms, losses))
    assert sick_steps > 50
    assert without_reach > 5


norms = st.one_of(st.floats(-6, 6).map(lambda power: 10**power), st.sampled_from([0.0, NAN, INF]))
losses = st.one_of(st.none(), st.floats(-3, 8).map(lambda power: 10**power), st.sampled_from([0.0, -1.0, NAN, INF]))
nonfinite = st.sampled_from([0] * 9 + [1])


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.tuples(norms, norms, norms, losses, nonfinite), min_size=1, max_size=40))
def test_agrees_with_the_slow_loop_on_anything(steps):
    reports = [report(row, step, loss, nonfinite=[bad, 0, 0]) for step, (*row, loss, bad) in enumerate(steps)]
    assert vectorised(reports) == slow_exploding(reports)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(losses, min_size=1, max_size=80))
def test_the_loss_level_agrees_with_the_slow_loop(sequence):
    level = loss_level.LossLevel()
    seen = [None if loss is None else loss_level.loss_suffers(level, loss, UNBOUNDED) for loss in sequence]
    assert seen == slow_loss_suffers(sequence, [UNBOUNDED] * len(sequence))


@pytest.mark.parametrize("reach", [UNBOUNDED, Reach(0.5, 0.3), Reach(0.0, 0.0)])
def test_the_loss_level_agrees_with_the_slow_loop_where_the_loss_plunges_and_leaps(reach):
    for seed in range(20):
        sequence = (10.0 ** np.random.default_rng(seed).normal(0, 0.05 * seed, 80)).tolist()
        level = loss_level.LossLevel()
        seen = [loss_level.loss_suffers(level, loss, reach) for loss in sequence]
        assert seen == slow_loss_suffers(sequence, [reach] * len(sequence))


STEADY = [[1.0, 2.0, 4.0]] * 20
BLOWN = [times(10.0**power, STEADY[0]) for power in (1, 2, 3)]
RISING = [1.0] * 20 + [3.0, 9.0, 27.0]
FALLING = [0.97**step for step in range(23)]


def test_growth_of_ten_for_three_steps_with_a_rising_loss_is_exploding():
    (finding,) = findings(run_of(STEADY + BLOWN, RISING))
    assert (finding.kind, finding.severity, finding.step) == ("exploding", "warning", 20)
    assert finding.layers == ("w0", "w1", "w2")
    assert finding.raised_step == 22
    assert finding.value == pytest.approx(1000, rel=0.1)
    assert finding.threshold == pytest.approx(2, rel=0.1)
    assert "1e+03" not in finding.cause
    assert "3 of 3 layers" in finding.cause
    assert "the loss is 27" in finding.cause
    assert f"gradient norm of {finding.layer} is" in finding.measured


def test_growing_norms_under_a_falling_loss_are_none():
    assert kinds(run_of(STEADY + BLOWN, FALLING)) == []


def test_the_layer_that_grew_most_gives_its_name():
    grown = [[10.0**power, 2 * 20.0**power, 4 * 10.0**power] for power in (1, 2, 3)]
    assert findings(run_of(STEADY + grown, RISING))[0].layer == "w1"


def test_a_single_spike_of_twenty_is_none():
    spiked = [*STEADY, times(20, STEADY[0]), *STEADY]
    assert kinds(run_of(spiked)) == []
    assert kinds(run_of(spiked, [1.0] * 20 + [5.0] + [1.0] * 20)) == []


def test_spikes_that_come_back_now_and_then_do_not_add_up():
    spiked = ([*STEADY[:10], times(20, STEADY[0])]) * 10
    assert kinds(run_of(spiked, [3.0 if row[0] == 20 else 1.0 for row in spiked])) == []


def test_without_a_loss_growth_must_be_twice_as_strong_in_decades():
    grown = [times(10.0**power, STEADY[0]) for power in range(1, 5)]
    assert kinds(run_of(STEADY + grown[:3])) == []
    assert kinds(run_of(STEADY + grown)) == ["exploding"]


def test_one_layer_that_grows_while_the_total_stays_is_none():
    quiet = [[1e-3, 1.0, 1.0]] * 20 + [[1e-3 * 10**power, 1.0, 1.0] for power in (1, 2, 3)]
    assert "exploding" not in kinds(run_of(quiet, RISING))


@pytest.mark.parametrize(("factor", "raised"), [(2e4, True), (5e3, False)])
def test_without_a_loss_slow_growth_beyond_all_first_steps_is_found(factor, raised):
    slow = [times(factor ** (step / 400), STEADY[0]) for step in range(1, 440)]
    slow = [*STEADY, *slow[:400], *[times(factor, STEADY[0])] * 5]
    found = findings(run_of(slow))
    assert [finding.kind for finding in found] == (["exploding"] if raised else [])


def test_an_explosion_is_seen_at_step_1():
    (finding,) = findings(run_of([[1.0, 1.0], [1e4, 1e4]], [1.0, 1e4]))
    assert (finding.kind, finding.step, finding.raised_step) == ("exploding", 1, 1)


@pytest.mark.parametrize(("step", "level"), [(0, "."), (20, "; its level was 2.")])
def test_a_norm_that_overflows_while_its_entries_are_finite_is_exploding_never_nonfinite(step, level):
    (finding,) = findings(run_of([*STEADY[:step], [1.0, INF, 4.0]], [1.0] * (step + 1)))
    assert (finding.kind, finding.layer, finding.layers, finding.step) == ("exploding", "w1", ("w1",), step)
    assert finding.value == INF
    assert finding.measured.endswith(f" overflows its norm while its entries are still finite at step {step}{level}")
    assert ("outgrow" in finding.cause) == (step > 0)  # at step 0 there is no level yet


def test_an_overflow_that_stays_is_never_taken_for_vanishing_elsewhere():
    assert kinds(run_of([[1.0, 2.0, INF]] * 30 + STEADY * 2, [1.0] * 70)) == ["exploding"]


@pytest.mark.parametrize("factor", [1e-8, 1e5])
@pytest.mark.parametrize("seed", range(6))
def test_the_scale_of_the_loss_changes_no_finding(factor, seed):
    rows, losses = random_walks(seed, steps=80, count=3)
    told = [
        [(f.kind, f.layer, f.layers, f.step, f.raised_step) for f in findings(reports)]
        for reports in (
            run_of(rows, losses),
            run_of([times(factor, row) for row in rows], times(factor, losses)),
        )
    ]
    assert told[0] == told[1]


@pytest.mark.parametrize(("growth", "is_sick"), [(2.9, True), (3.1, False)])
def test_a_growth_that_the_user_sets_holds_literally(growth, is_sick):
    thresholds = Thresholds(exploding_growth=growth)
    reports = run_of([*STEADY, times(3, STEADY[0])], FALLING[:21])
    assert kinds(reports, thresholds) == ["exploding"] * is_sick


def test_the_literal_growth_is_the_findings_threshold():
    (finding,) = findings(run_of([*STEADY, [1.0, 10.0, 4.0]]), Thresholds(exploding_growth=4))
    assert (finding.layer, finding.step, finding.threshold) == ("w1", 20, 4.0)
    assert finding.value == pytest.approx(5)
    assert "5 times its level of 2 (normal: up to 4 times)" in finding.measured


@pytest.mark.parametrize("patience", [1, 3, 5])
def test_patience_counts_sick_steps_in_a_row(patience):
    thresholds = Thresholds(exploding_growth=4, patience=patience)
    grown = STEADY + [times(100, STEADY[0])] * patience
    (finding,) = findings(run_of(grown), thresholds)
    assert (finding.step, finding.raised_step) == (20, 19 + patience)
    assert findings(run_of(grown[:-1]), thresholds) == []


@pytest.mark.parametrize("absent", [NAN, 0.0], ids=["unmeasured", "zero"])
def test_a_layer_without_gradients_raises_nothing_and_hides_nothing(absent):
    rows = [[row[0], row[1], absent] for row in STEADY + BLOWN]
    (finding,) = findings(run_of(rows, RISING))
    assert finding.layers == ("w0", "w1")


def test_a_layer_that_first_appears_late_begins_its_own_level():
    rows = [[NAN, 1.0]] * 20 + [[1e5, 1.0]] * 20
    assert kinds(run_of(rows, [1.0] * 20 + [5.0] * 20)) == []


def test_a_slow_rise_over_hundreds_of_steps_is_none():
    rows = [[10 ** (step / 100), 1.0] for step in range(300)]
    assert kinds(run_of(rows, [1.0] * 300)) == []


def test_a_converged_run_raises_nothing():
    level = np.logspace(0, -9, 400)
    assert kinds(run_of(np.outer(level, [1.0, 0.5, 0.2]).tolist(), level.tolist())) == []


def test_a_step_that_is_not_finite_leaves_the_levels_alone():
    detector = Exploding(table(2), Thresholds())
    examine_all(detector, run_of([[1.0, 1.0]] * 5))
    before = detector.state()
    assert detector.examine(report([NAN, 1e9], 5, nonfinite=[3, 0])) is None
    assert all(np.array_equal(before[name], value) for name, value in detector.state().items())


@pytest.mark.parametrize(
    ("growth", "losses", "expected"),
    [
        pytest.param([10.0] * 20, [6.0 * 0.93**step for step in range(20)], [], id="a task changed, and is learned"),
        pytest.param(
            [10.0] * 20, [6.0 * (1 + 0.3 * (step % 2)) for step in range(20)], [], id="... slowly, with noise"
        ),
        pytest.param([10.0] * 20, [6.0 * 1.1**step for step in range(20)], ["exploding"], id="goes on rising"),
        pytest.param([1e4] * 3, [6.0, 5.0, 4.0], ["exploding"], id="evidence enough at once"),
    ],
)
def test_what_leapt_once_and_recovers_is_no_explosion(growth, losses, expected):
    rows = STEADY + [times(factor, STEADY[0]) for factor in growth]
    assert kinds(run_of(rows, [2.0] + [0.1] * 19 + losses)) == expected


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        pytest.param([0.2, 1.0, 4.0, 5.0, 3.0, 4.0, 2.0, 3.0, 1.0], [], id="a penalty scheduled up settles"),
        pytest.param([0.2, 1.0, 4.0, 9.0, 12.0], ["exploding"], id="more is lost than was learned"),
        pytest.param([0.2, 1.0] + [3.0, 4.0] * 15, ["exploding"], id="it does not settle"),
    ],
)
def test_a_loss_that_leaps_below_five_times_its_first_values_may_settle(losses, expected):
    rows = STEADY * 3 + [times(factor, STEADY[0]) for factor in [30.0, 200.0] + [500.0] * (len(losses) - 2)]
    assert kinds(run_of(rows, [2.0] + [0.1] * (3 * len(STEADY) - 1) + losses)) == expected


def test_one_overshoot_on_the_way_out_of_a_plateau_is_no_explosion():
    """The evidence gathers while the loss falls; what it lay at then is no peak that it has stayed near."""
    growth, falling = [3.0, 4.0, 6.0, 8.0] * 4, [2.0 * 0.97**step for step in range(16)]
    rows = STEADY * 2 + [times(factor, STEADY[0]) for factor in [*growth, 30.0, 60.0, 10.0, 3.0, 1.0]]
    assert kinds(run_of(rows, [2.0] * 2 * len(STEADY) + falling + [2.0, 4.0, 1.3, 1.2, 1.2])) == []


def test_a_likelihood_that_comes_back_from_its_peak_has_settled():
    rows = STEADY + [times(300.0, STEADY[0])] * 6
    before = [0.1] + [-4.0 - step % 2 / 10 for step in range(19)]
    assert kinds(run_of(rows, [*before, 0.4, 13.0, 13.0, 14.0, 13.0, 13.0])) == ["exploding"]
    assert kinds(run_of(rows, [*before, 0.4, 13.0, -1.4, 3.2, 0.2, 0.2])) == []


def test_gradients_of_rewards_that_are_rescaled_have_not_exploded():
    """Loss and gradients of a policy leap together, further than any update could have moved the loss."""

    def policy(after):
        random, width = np.random.default_rng(3), len(STEADY[0])
        figures = {"weight_norm": np.ones(width), "update_ratio": np.full(width, 1e-3)}
        scales = [1.0] * 40 + after
        losses = [scale * random.normal() * 0.2 for scale in scales]
        return [
            report(times(scale, STEADY[0]), step, losses[step], sampled=step % 10 == 0, figures=figures)
            for step, scale in enumerate(scales)
        ]

    assert kinds(policy([100.0] * 30)) == []
    assert kinds(policy([100.0] * 5 + [10.0 ** (3 + step / 2) for step in range(10)])) == ["exploding"]


@pytest.mark.parametrize("loss_seen", [True, False], ids=["with loss", "without loss"])
def test_adam_that_leaps_near_a_minimum_does_not_explode(loss_seen):
    norms = [0.5 * 0.97**step for step in range(400)]
    leap = [norms[-1] * 1.4**step for step in range(20)]
    losses = [norm**2 for norm in norms] + [norms[-1] ** 2 * 2.0**step for step in range(20)]
    assert norms[-1] * 300 < leap[-1] < 0.1 * norms[0]
    rows = [[norm, norm] for norm in norms + leap]
    assert kinds(run_of(rows, losses if loss_seen else None)) == []


def test_the_ceiling_is_what_a_norm_must_exceed():
    layers = table(2)
    watching = diagnosis(layers)
    for step in run_of([[1.0, NAN]] * 20):
        watching.observe(step)
    ceiling = watching.band(step)[1]
    np.testing.assert_allclose(ceiling, [2.0, NAN])  # MARGIN over a level of 1
    literal = diagnosis(layers, Thresholds(exploding_growth=50))
    literal.observe(step)
    np.testing.assert_allclose(literal.band(step)[1], [50.0, NAN])


def test_a_level_of_one_norm_is_none_where_the_data_made_the_loss_rise():
    """The first images of a detector held nothing; the next gradient is 25,000 times as large, and so is the loss."""
    moved = {"update_ratio": np.array([1e-2, 1e-2]), "weight_norm": np.array([1.0, 1.0])}
    rows = [[1e-5, 1e-5], *[[0.25 + 0.05 * (step % 3), 0.25] for step in range(60)]]
    losses = [1e-3, *[3.0 + step % 4 for step in range(60)]]
    run = [
        report(row, step, loss, sampled=step % 10 == 0, figures=moved)
        for step, (row, loss) in enumerate(zip(rows, losses, strict=True))
    ]
    assert kinds(run) == []


def test_without_a_loss_an_early_leap_is_an_explosion_only_where_an_update_displaced_the_weights():
    rows = [[1e-5, 1e-5], *[[1.0, 1.0]] * 30]
    for moved, expected in ((1e-2, []), (5.0, ["exploding"])):
        figures = {"update_ratio": np.full(2, moved), "weight_norm": np.ones(2)}
        run = [report(row, step, sampled=step % 10 == 0, figures=figures) for step, row in enumerate(rows)]
        assert kinds(run) == expected


@pytest.mark.parametrize(("factor", "is_sick"), [(5.0, True), (1.5, False)])
def test_a_loss_that_multiplies_without_end_is_exploding_whoever_makes_it_rise(factor, is_sick):
    """The updates are tiny: the loop clips its gradients, and the loss is multiplied at every step."""
    sizes = [1.0] * 20 + [factor**step for step in range(1, 10)]
    figures = {"update_ratio": np.array([1e-6]), "weight_norm": np.array([1.0])}
    clipped = {"grad_norm_clipped_total": 1e-6}
    run = [
        report([size], step, size, sampled=step % 10 == 0, figures=figures, **clipped)
        for step, size in enumerate(sizes)
    ]
    assert [finding.kind for finding in findings(run)] == ["exploding"] * is_sick


@pytest.mark.parametrize("first", [-0.01, 0.01])
def test_gradients_that_grow_while_a_likelihood_improves_are_none(first):
    """The gradient of a likelihood grows as 1/σ², while the likelihood gains log σ: here 0.1 at a step."""
    losses = [first] * 2 + [-0.1 * step for step in range(1, 49)]
    sizes = [1.0] * 20 + [1.25 ** min(step, 25) for step in range(30)]
    assert findings(run_of([[size] for size in sizes], losses)) == []


def test_gradients_that_grow_while_an_error_is_ascended_are_exploding():
    losses = [-1.0] * 20 + [-(1.6**step) for step in range(30)]
    assert kinds(run_of([[1.25 ** max(0, step - 20)] for step in range(50)], losses)) == ["exploding"]


def test_a_catapult_that_has_come_down_is_no_explosion():
    """At the edge of stability a loss leaps to nine times its value within three steps, and settles in three more."""
    losses = [1.0] * 20 + [1.1, 2.0, 9.0, 3.5, 3.9, 2.6, 1.9] + [1.2] * 20
    leap = [2.5, 9.0, 25.0, 10.0, 15.0, 7.0, 3.0]
    rows = STEADY + [times(factor, STEADY[0]) for factor in leap] + STEADY
    assert kinds(run_of(rows, losses)) == []
    still_up = losses[:23] + [9.0] * 24
    assert kinds(run_of(rows, still_up)) == ["exploding"]


def test_growth_under_a_loss_that_has_been_on_both_sides_of_zero_needs_the_evidence_of_no_loss():
    """The loss of a policy gradient rises and falls through zero; its rise is no harm."""
    losses = [(-1.0) ** step for step in range(20)] + [3.0, 5.0, 9.0, 9.0]
    grown = [times(10.0**power, STEADY[0]) for power in (1, 2, 3)]
    assert kinds(run_of(STEADY + grown, losses[:23])) == []
    assert kinds(run_of([*STEADY, *grown, times(1e4, STEADY[0])], losses)) == ["exploding"]
