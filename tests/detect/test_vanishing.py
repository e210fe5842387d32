import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradwatch
from gradwatch.detect.vanishing import (
    BEGUN,
    CLIFF,
    CLIMBED,
    DEPTH_RATIO,
    FIRST_STEPS,
    FLAT,
    FLAT_RATIO,
    GONE_RATIO,
    IDLE_RATIO,
    IDLE_STEPS,
    LOSSES,
    NOISES,
    PATIENCE,
    RECOVERING,
    RISEN,
    STIRRING,
    UNFINISHED,
    UNIMPROVED,
    Vanishing,
)
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import of_tensors
from tests.reports import (
    INF,
    NAN,
    diagnosis,
    examine_all,
    findings,
    kinds,
    random_walks,
    report,
    run_of,
    sick_columns,
    table,
    times,
)


def slow_vanishing(reports, layers):  # one long loop on purpose: a twin of the rule
    """The default rules: for each step the columns that are sick and do not recover, None where it says nothing."""
    first_total, first_loss, recent, updates, past = 0.0, None, None, 0, {}
    last_total, fell, seen, signs, early, learned = 0.0, False, [], set(), [], False
    finite, climbed = [], False
    told = []
    for step in reports:
        if not any(step.measured) or not math.isfinite(step.grad_norm_total):
            told.append(None)
            continue
        if updates < FIRST_STEPS:
            first_total = max(first_total, step.grad_norm_total)
        updates += 1
        if step.loss is not None:
            signs |= {step.loss > 0} if step.loss and not math.isnan(step.loss) else set()
            finite += [step.loss] * math.isfinite(step.loss)
            early = finite[:LOSSES]
        has_meaning = signs != {True, False}
        if first_loss is None:
            first_loss = recent = step.loss
        elif step.loss is not None and math.isfinite(step.loss):
            recent += (step.loss - recent) / LOSSES
        if step.loss is not None and (not seen or math.isfinite(step.loss)):
            seen.append(step.loss)
        gone = step.grad_norm_total <= GONE_RATIO * first_total
        fell = fell or (gone and updates <= FIRST_STEPS and last_total > CLIFF * first_total)
        last_total = step.grad_norm_total
        if step.loss is None or first_loss is None or not has_meaning:
            gone = gone and (first_total == 0 or fell)
        else:
            share = UNFINISHED if step.grad_norm_total == 0 else UNIMPROVED
            gone = gone and first_loss > 0 and step.loss > share * first_loss
        if gone:
            told.append({column for column in range(len(layers)) if step.measured[column]})
            continue
        idle = first_loss is not None and first_loss > 0 and has_meaning
        begun = max(first_loss, sum(early) / len(early)) if idle else 0.0
        learned = learned or (idle and len(early) >= LOSSES and recent < UNIMPROVED * begun)
        noise = sum(abs(b - a) for a, b in itertools.pairwise(finite)) / max(len(finite) - 1, 1)
        over = max(CLIMBED * begun, begun + NOISES * noise)
        climbed = climbed or (idle and len(early) >= LOSSES and recent > over)
        idle = idle and updates > IDLE_STEPS and not learned and not climbed
        idle = idle and BEGUN * begun < recent <= RISEN * begun
        flat = all(abs(loss - seen[0]) / (abs(seen[0]) or 1) <= FLAT for loss in seen)
        ratios = slow_faded(step, layers, (FLAT_RATIO if flat else IDLE_RATIO) if idle else DEPTH_RATIO)
        past = {column: before for column, before in past.items() if column in ratios or not step.measured[column]}
        due = set()
        for column, ratio in ratios.items():
            before = past.setdefault(column, [])
            if (
                len(before) < PATIENCE - 1
                or ratio <= (RECOVERING if ratio < DEPTH_RATIO else STIRRING) * before[-(PATIENCE - 1)]
            ):
                due.add(column)
            before.append(ratio)
        told.append(due)
    return told


def slow_faded(step, layers, limit):
    """{column: its root mean square as a share of the largest after the boundary} of what is faint at one step."""
    rms = {
        column: step.grad_norm[column] / math.sqrt(max(layers.tensors[column].numel(), 1))
        for column in range(len(layers))
        if step.measured[column]
    }
    by_depth = sorted(rms, key=lambda column: layers.depth[column])
    weights = [column for column in by_depth if layers.tensors[column].ndim >= 2]
    boundary = None
    for place in range(len(weights) - 1):
        before = max(rms[column] for column in weights[: place + 1])
        after = max(rms[column] for column in weights[place + 1 :])
        if before < limit * after:
            boundary, strongest = weights[place], after
    vectors = [column for column in by_depth if layers.tensors[column].ndim < 2]
    if weights and vectors:
        loudest = max(rms[column] for column in vectors)
        if max(rms[column] for column in weights) < GONE_RATIO * loudest:
            boundary, strongest = weights[-1], loudest
    if boundary is None:
        return {}
    return {
        column: rms[column] / strongest
        for column in by_depth
        if layers.depth[column] <= layers.depth[boundary] and rms[column] < limit * strongest
    }


def slow_faded_along_paths(step, layers, limit):
    """``slow_faded`` where the paths are known: a weight is faint with all that lies as deep."""
    names = range(len(layers))
    rms = {
        column: step.grad_norm[column] / math.sqrt(max(layers.tensors[column].numel(), 1))
        for column in names
        if step.measured[column]
    }
    weights = [column for column in rms if layers.tensors[column].ndim >= 2]
    vectors = [column for column in rms if layers.tensors[column].ndim < 2]
    if weights and vectors:
        loudest = max(rms[column] for column in vectors)
        if max(rms[column] for column in weights) < GONE_RATIO * loudest:
            last = max(layers.depth[column] for column in weights)
            faint = [column for column in rms if layers.depth[column] <= last and rms[column] < limit * loudest]
            return {column: rms[column] / loudest for column in faint}
    nearer = {column: {other for other in names if layers.after[column, other]} for column in names}
    found = {}
    for column in weights:
        after = nearer[column] & set(weights)
        if not after:
            continue
        largest = max(rms[other] for other in after)
        as_deep = [
            other
            for other in names
            if nearer[other] & after and (other not in nearer[column] or column in nearer[other])
        ]
        beside = [other for other in as_deep if other in weights and other not in after]
        if max(rms[other] for other in [column, *beside]) < limit * largest:
            for other in {column, *as_deep} - after:
                if other in rms and rms[other] < limit * largest and other not in found:
                    found[other] = rms[other] / largest
            found[column] = rms[column] / largest
    return found


def forked_table(seed):
    """Ten tensors of a random graph: weights and vectors, on several branches that may meet."""
    rng = np.random.default_rng(seed)
    layers = of_tensors({f"t{place}": torch.zeros((3, 2) if place % 3 else (3,)) for place in range(10)})
    after = np.triu(rng.random((10, 10)) < 0.3, 1)
    for middle in range(10):
        after |= after[:, [middle]] & after[[middle]]  # what lies after something after it lies after it
    layers.connect(after, np.ones(10, dtype=bool))
    return layers


def mixed_table():
    """Weights, biases and a scalar, run in another order than they were registered."""
    shapes = {"w0": (3, 2), "b0": (3,), "w1": (4, 3), "scale": (), "w2": (2, 4)}
    layers = of_tensors({name: torch.zeros(shape) for name, shape in shapes.items()})
    layers.depth = np.array([0, 1, 4, 3, 2])
    return layers


def vectorised(reports, layers):
    return [unmended(result) for result in examine_all(Vanishing(layers, Thresholds()), reports)]


def unmended(result):
    sick = sick_columns(result)
    return sick if sick is None or result.mending is None else sick - set(np.flatnonzero(result.mending).tolist())


@pytest.mark.parametrize("loss_seen", [True, False], ids=["with loss", "without loss"])
def test_agrees_with_the_slow_loop_on_random_walks(loss_seen):
    sick_steps = 0
    for seed in range(20):
        rows, losses = random_walks(seed, steps=60, count=5)
        fades = np.linspace(0, -12, 60)[:, None] * np.array([1, 1, 0.1, 0.4, 0.5]) * (seed % 3)
        reports = run_of((np.array(rows) * 10**fades).tolist(), losses if loss_seen else None)
        slow = slow_vanishing(reports, mixed_table())
        assert vectorised(reports, mixed_table()) == slow
        sick_steps += sum(map(bool, slow))
    assert sick_steps > 50  # else this test would show nothing


norms = st.one_of(st.floats(-15, 5).map(lambda power: 10**power), st.sampled_from([0.0, NAN]), st.just(INF))
losses = st.one_of(st.none(), st.floats(-1, 1), st.just(NAN))
nonfinite = st.sampled_from([0] * 9 + [1])


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.tuples(*[norms] * 5, losses, nonfinite), min_size=1, max_size=25))
def test_agrees_with_the_slow_loop_on_anything(steps):
    reports = [report(row, step, loss, nonfinite=[bad, 0, 0, 0, 0]) for step, (*row, loss, bad) in enumerate(steps)]
    assert vectorised(reports, mixed_table()) == slow_vanishing(reports, mixed_table())


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.tuples(*[st.sampled_from([0.0, NAN, 1e-9, 1e-6, 1e-3, 1.0])] * 3), min_size=1, max_size=25))
def test_agrees_with_the_slow_loop_where_layers_fade_and_recover(rows):
    reports = run_of([[*row, 1.0, 0.5] for row in rows], [1.0] * len(rows))
    assert vectorised(reports, mixed_table()) == slow_vanishing(reports, mixed_table())


@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_the_slow_loop_along_the_paths_of_a_graph(seed):
    layers, rng = forked_table(seed), np.random.default_rng(seed)
    sick_steps = 0
    for step in run_of(10.0 ** rng.uniform(-7, 0, (300, 10)), [1.0] * 300):
        found = Vanishing(layers, Thresholds()).examine(step)
        slow = slow_faded_along_paths(step, layers, DEPTH_RATIO)
        assert sick_columns(found) == set(slow)
        sick_steps += bool(slow)
    assert sick_steps > 5


HEALTHY = [[0.1, 0.3, 0.5, 1.0]] * 30
FADING = [[1e-8, 1e-7, 1e-6, 1.0]] * 30


def test_a_stack_of_fading_layers_is_one_finding():
    (finding,) = findings(run_of(FADING, [1.0] * 30))
    assert (finding.kind, finding.severity, finding.layer) == ("vanishing", "warning", "w0")
    assert finding.layers == ("w0", "w1", "w2")
    assert (finding.step, finding.raised_step) == (0, PATIENCE - 1)
    assert finding.value == pytest.approx(1e-8)
    assert finding.threshold == pytest.approx(1e-4)
    assert "first 3 weights" in finding.cause
    assert "1e+08 times less than that of w3" in finding.measured


@pytest.mark.parametrize(
    ("rows", "reached"), [([[0, 1.0]], "the first weight"), ([[0, 0, 1.0]], "the first 2 weights")]
)
def test_a_gradient_of_zero_is_called_so_and_never_inf_times_smaller(rows, reached):
    (finding,) = findings(run_of(rows * 12, [1.0] * 12))
    last = f"w{len(rows[0]) - 1}"
    assert finding.measured == f"The gradient of w0 is exactly zero at step 9, while that of {last} has norm 1."
    assert finding.cause.startswith(f"Gradients shrink along depth: at step 9 they no longer reach {reached}.")


def test_a_healthy_stack_raises_nothing():
    assert kinds(run_of(HEALTHY)) == []
    assert kinds(run_of(HEALTHY, [0.9**step for step in range(30)])) == []


def test_the_norm_is_compared_per_entry():
    layers = of_tensors({"w0": torch.zeros(1, 1), "w1": torch.zeros(1000, 1000)})
    assert kinds(run_of([[2e-4, 1.0]] * 30), layers=layers) == []  # per entry w0's is the larger


@pytest.mark.parametrize("quiet", [0.0, 1e-12])
def test_a_single_quiet_layer_in_the_middle_raises_nothing(quiet):
    assert kinds(run_of([[0.1, 0.3, quiet, 0.5, 1.0]] * 40, [1.0] * 40)) == []


@pytest.mark.parametrize("name", ["bias", "key_bias"])
def test_a_vector_whose_gradient_is_zero_raises_nothing(name):
    layers = of_tensors({name: torch.zeros(3), "w0": torch.zeros(3, 3), "w1": torch.zeros(3, 3)})
    assert kinds(run_of([[0.0, 0.1, 1.0]] * 40, [1.0] * 40), layers=layers) == []


@pytest.mark.parametrize(("dead", "raised"), [(0.0, True), (1e-8, True), (1e-3, False)])
def test_weights_that_get_nothing_while_the_last_bias_learns_are_dead(dead, raised):
    layers = mixed_table()
    rows = [[dead if layers.is_weight[column] else 1.0 for column in range(len(layers))]] * 20
    found = findings(run_of(rows), layers=layers)
    assert bool(found) == raised
    if raised:
        assert {name for name, weight in zip(layers.names, layers.is_weight, strict=True) if weight} <= {
            *found[0].layers
        }


@pytest.mark.parametrize(
    ("losses", "growth", "raised"),
    [
        ([2.3] * 40, 1.0, True),  # stands still
        (None, 1.0, False),  # nobody knows
        ([2.3 * 0.98**step for step in range(40)], 1.0, False),  # learns
        ([2.3] * 40, 1.05, False),  # stirs: grows by half within the patience
    ],
    ids=["idle", "no loss", "learns", "stirs"],
)
def test_a_run_that_has_not_begun_to_learn_is_held_to_more(losses, growth, raised):
    rows = [[5e-4 * growth**step, 1.0, 1.0] for step in range(40)]
    found = findings(run_of(rows, losses))
    assert [(finding.kind, finding.step) for finding in found if finding.kind == "vanishing"] == (
        [("vanishing", IDLE_STEPS)] if raised else []
    )


def test_a_branch_that_starts_at_zero_and_wakes_raises_nothing():
    asleep, awake = [[0.0, 0.0, 1.0]] * 2, [[0.2, 0.3, 1.0]] * 30
    assert kinds(run_of(asleep + awake, [1.0] * 32)) == []


def test_a_layer_that_keeps_recovering_raises_nothing():
    waking = [[1e-12 * 2.5**step, 1.0] for step in range(25)]
    assert kinds(run_of(waking, [1.0] * 25)) == []


@pytest.mark.parametrize(("growth", "raised"), [(0.95 * RECOVERING, True), (1.05 * RECOVERING, False)])
def test_a_layer_recovers_once_its_ratio_has_doubled_within_the_patience(growth, raised):
    rows = [[1e-8, 1.0]] * (PATIENCE - 1) + [[growth * 1e-8, 1.0]]
    assert kinds(run_of(rows, [1.0] * PATIENCE)) == ["vanishing"] * raised


def test_noise_in_a_hopeless_layer_is_no_recovery():
    noise = np.random.default_rng(0).lognormal(0, 0.5, 60)
    (finding,) = findings(run_of([[1e-9 * factor, 1.0] for factor in noise], [1.0] * 60))
    assert finding.step == 0
    assert finding.raised_step < 2 * PATIENCE


def test_every_streak_recovers_from_where_it_began_itself():
    """A fade that is over must not make the beginning of the next one look like a recovery."""
    rows = [[1e-9, 1.0]] * 3 + [[1.0, 1.0]] * 5 + [[1e-6, 1.0]] * PATIENCE
    (finding,) = findings(run_of(rows, [1.0] * len(rows)))
    assert (finding.step, finding.raised_step) == (8, 7 + PATIENCE)


@pytest.mark.parametrize("column", [0, 1, 3])
def test_a_layer_without_gradients_raises_nothing(column):
    rows = [[NAN if place == column else norm for place, norm in enumerate(row)] for row in HEALTHY]
    assert kinds(run_of(rows, [1.0] * 30)) == []


def test_a_step_where_nothing_has_a_gradient_says_nothing():
    assert Vanishing(table(2), Thresholds()).examine(report([NAN, NAN])) is None


@pytest.mark.parametrize("factor", [1e-8, 1e5])
@pytest.mark.parametrize("rows", [HEALTHY, FADING, HEALTHY[:10] + [[0.0] * 4] * 20], ids=["healthy", "fading", "gone"])
def test_the_scale_of_the_loss_changes_no_finding(rows, factor):
    told = [
        [(f.kind, f.layer, f.layers, f.step, f.raised_step) for f in findings(reports)]
        for reports in (run_of(rows, [2.0] * 30), run_of([times(factor, row) for row in rows], [2.0 * factor] * 30))
    ]
    assert told[0] == told[1]


def test_a_model_gone_silent_before_it_learned_is_one_finding_over_all_layers():
    (finding,) = findings(run_of(HEALTHY[:5] + [[1e-9] * 4] * 20, [2.0] * 25))
    assert finding.layers == ("w0", "w1", "w2", "w3")
    assert (finding.step, finding.raised_step) == (5, 4 + PATIENCE)
    assert finding.threshold == pytest.approx(GONE_RATIO * math.hypot(*HEALTHY[0]))
    assert "the loss has not improved" in finding.measured


def test_a_model_gone_silent_once_it_learned_raises_nothing():
    assert kinds(run_of(HEALTHY[:5] + [[1e-9] * 4] * 20, [2.0] * 5 + [0.5] * 20)) == []


def test_a_loss_that_began_below_zero_is_no_measure_of_having_learned():
    assert kinds(run_of(HEALTHY[:5] + [[1e-9] * 4] * 20, [-2.0] * 5 + [-0.5] * 20)) == []


def test_without_a_loss_gradients_are_gone_that_were_never_there_or_fell_at_once():
    assert kinds(run_of([[0.0] * 4] * 20)) == ["vanishing"]
    assert kinds(run_of(HEALTHY[:5] + [[1e-9] * 4] * 20)) == ["vanishing"]
    assert kinds(run_of(HEALTHY[:5] + [[1e-2] * 4] + [[1e-9] * 4] * 20)) == []  # converged in two updates
    assert kinds(run_of(HEALTHY[:1] * 20 + [[1e-9] * 4] * 20)) == []  # the last margin of a hinge holds


def test_a_loss_of_zero_under_a_head_of_zeros_is_right_until_the_first_reward():
    def silent(sizes):
        figures = {"weight_norm": np.array(sizes), "update_ratio": np.zeros(3)}
        return [report([0.0] * 3, step, 0.0, sampled=step % 10 == 0, figures=figures) for step in range(130)]

    assert kinds(silent([1.0, 2.0, 3.0])) == ["vanishing"]  # a softmax over one class
    assert kinds(silent([1.0, 2.0, 0.0])) == []  # values that begin at zero, where no reward has been met yet


def test_a_converged_run_raises_nothing():
    level = np.logspace(0, -9, 400)
    assert kinds(run_of(np.outer(level, [0.2, 0.5, 1.0]).tolist(), level.tolist())) == []


def test_an_overflow_among_the_first_steps_does_not_make_what_follows_look_gone():
    assert kinds(run_of([[1.0, 1.0, 1.0, INF], *HEALTHY], [2.0] * 31)) == ["exploding"]


@pytest.mark.parametrize(("norm", "is_sick"), [(0.099, True), (0.1, False), (0.2, False), (NAN, False)])
def test_a_norm_that_the_user_sets_holds_literally(norm, is_sick):
    thresholds = Thresholds(vanishing_norm=0.1)
    told = findings(run_of([[1.0, norm]] * PATIENCE, [0.9**step for step in range(PATIENCE)]), thresholds)
    assert [(finding.layer, finding.threshold) for finding in told] == [("w1", 0.1)] * is_sick


def test_a_literal_norm_silences_the_default():
    assert kinds(run_of(FADING, [1.0] * 30), Thresholds(vanishing_norm=1e-9)) == []


@pytest.mark.parametrize("patience", [1, 4, 25])
def test_patience_is_honoured(patience):
    (finding,) = findings(run_of(FADING, [1.0] * 30), Thresholds(patience=patience))
    assert (finding.step, finding.raised_step) == (0, patience - 1)


def test_a_model_of_one_weight_is_not_compared_along_depth():
    assert kinds(run_of([[1e-30]] * 30, [1.0] * 30)) == []


@pytest.mark.parametrize(
    ("ratio", "step_of_loss", "expected"),
    [
        pytest.param(0.8 * FLAT_RATIO, 0.5 * FLAT, ["vanishing"], id="a loss that does not move at all"),
        pytest.param(0.8 * FLAT_RATIO, 2 * FLAT, [], id="a loss that moves"),
        pytest.param(1.2 * FLAT_RATIO, 0.5 * FLAT, [], id="not so faint"),
    ],
)
def test_a_loss_that_never_moved_needs_less_evidence(ratio, step_of_loss, expected):
    losses = [2.0 * (1 - step_of_loss * (step % 2)) for step in range(40)]
    assert kinds(run_of([[ratio, 1.0]] * 40, losses)) == expected


@pytest.mark.parametrize(
    ("loss", "expected"), [(0.1, ["vanishing"]), (1e-4, []), (0.0, [])], ids=["flat", "converged", "satisfied"]
)
def test_a_gradient_of_exactly_zero_under_a_loss_that_is_not_gone(loss, expected):
    assert kinds(run_of([[1.0, 1.0]] * 20 + [[0.0, 0.0]] * 20, [1.0] * 20 + [loss] * 20)) == expected


def test_the_floor_is_where_the_faint_begin():
    layers = table(3)
    watching = diagnosis(layers)
    (step,) = run_of([[1.0, 5.0, NAN]])
    watching.observe(step)
    np.testing.assert_allclose(watching.band(step)[0], [1e-4 * 5.0, NAN, NAN])  # nothing nearer the output than w1
    assert diagnosis(layers, Thresholds(vanishing_norm=0.5)).band(step)[0].tolist() == [0.5] * 3
    layers.connect(np.array([[0, 0, 1], [0, 0, 0], [0, 0, 0]], dtype=bool), np.ones(3, dtype=bool))
    (other,) = run_of([[1.0, 5.0, 3.0]])
    np.testing.assert_allclose(watching.band(other)[0], [1e-4 * 3.0, NAN, NAN])  # w1 lies beside w0
    np.testing.assert_allclose(watching.band(report([NAN, NAN, NAN]))[0], [NAN] * 3)


# --- whole runs


def stack(widths, function):
    parts = [nn.Linear(*pair) for pair in itertools.pairwise(widths)]
    return nn.Sequential(*[part for layer in parts for part in (layer, function())][:-1])


class ActorCritic(nn.Module):
    """Two networks in one module; they share nothing but the optimizer and, if asked, a first layer."""

    def __init__(self, actor, trunk=None):
        super().__init__()
        self.trunk, self.critic, self.actor = trunk or nn.Identity(), stack([8, 16, 16, 1], nn.Tanh), actor

    def forward(self, x):
        seen = self.trunk(x)
        return self.actor(seen), self.critic(seen)


def judge(model, scale, steps=40):
    """Findings of a run whose critic has ``scale`` times the loss of its actor."""
    inputs = torch.randn(64, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with gradwatch.watch(model, optimizer) as watcher:
        for _ in range(steps):
            actions, values = model(inputs)
            loss = (actions - inputs[:, :2].sin()).square().mean() + scale * (values - inputs[:, :1]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return watcher.findings


@pytest.mark.parametrize("seed", range(3))
def test_an_actor_beside_a_critic_with_far_larger_gradients_is_not_deeper(seed):
    torch.manual_seed(seed)
    assert judge(ActorCritic(stack([8, 16, 16, 2], nn.Tanh)), scale=1e6) == []
    trunk = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    assert judge(ActorCritic(stack([8, 16, 16, 2], nn.Tanh), trunk), scale=1e6) == []


def test_an_actor_that_vanishes_beside_a_critic_is_found_by_itself():
    torch.manual_seed(0)
    (finding,) = judge(ActorCritic(stack([8, *[16] * 10, 2], nn.Sigmoid)), scale=1.0)
    assert (finding.kind, finding.layer) == ("vanishing", "actor.0.weight")
    assert all(name.startswith("actor.") for name in finding.layers)
    assert "less than that of actor." in finding.measured


@pytest.mark.parametrize(
    ("losses", "is_idle"),
    [
        pytest.param([1.0] * 40, True, id="stands still"),
        pytest.param([0.4] + [1.0] * 39, True, id="stands still after an easy batch"),
        pytest.param([0.4] + [1.0] * 10 + [0.7] * 29, False, id="comes down after an easy batch"),
        pytest.param([1.0] * 10 + [3.0] * 30, False, id="rises with its targets"),
        pytest.param([1.0] * 10 + [1.5] * 10 + [1.0] * 40, False, id="has climbed with its targets"),
        pytest.param([1.0, 0.7, 1.3, 1.0] * 15, True, id="stands still under noise"),
        pytest.param([1.0, -1.0] * 20, False, id="goes through zero"),
        pytest.param([1.0] * 10 + [0.1] * 15 + [1.0] * 30, False, id="was learned, and comes back with new targets"),
    ],
)
def test_only_a_loss_that_measures_progress_and_stands_still_makes_a_run_idle(losses, is_idle):
    assert kinds(run_of([[1e-3, 1.0]] * len(losses), losses)) == ["vanishing"] * is_idle


def test_a_policy_whose_gradient_is_gone_is_not_judged_by_a_loss_that_went_through_zero():
    rows = HEALTHY[:20] + [[1e-9] * 4] * 20
    assert kinds(run_of(rows, [1.0, -1.0] * 20)) == []
    assert kinds(run_of(rows, [1.0] * 40)) == ["vanishing"]


class ReadAtTheLastStep(nn.Module):
    """A recurrence in both directions whose backward one is read where it begins: its recurrent weight does nothing."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(4, 8, num_layers=2, batch_first=True, bidirectional=True), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


@pytest.mark.parametrize("find_loss", [True, False])
def test_a_weight_that_nothing_depends_on_has_not_vanished(find_loss):
    torch.manual_seed(0)
    model = ReadAtTheLastStep()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with gradwatch.watch(model, optimizer, find_loss=find_loss) as watcher:
        for _ in range(40):
            x = torch.randn(16, 6, 4)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), x[:, -1, :3].argmax(1)).backward()
            optimizer.step()
    assert float(model.cell.weight_hh_l1_reverse.grad.norm()) == 0
    assert watcher.findings == []


def test_the_unused_half_of_a_bidirectional_module_is_no_finding_while_the_loss_stands_still():
    """The limit is higher then; the other weights of the module pass gradients, however small beside the head's."""
    torch.manual_seed(0)
    cell, head = nn.LSTM(30, 5, bidirectional=True), nn.Linear(10, 30)
    model = nn.ModuleDict({"cell": cell, "head": head})
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    x, y = torch.eye(30)[torch.randint(0, 30, (20, 16))], torch.randint(0, 30, (16,))
    with gradwatch.watch(model, optimizer) as watcher:
        for _ in range(60):
            nn.functional.cross_entropy(head(cell(x)[0][-1]), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert float(watcher.history.layer("cell.weight_hh_l0_reverse")["grad_norm"].max()) == 0
    assert [finding.kind for finding in watcher.findings if finding.kind == "vanishing"] == []


class Recurrence(nn.Module):
    """An LSTM that is read at its last step; what it is given after the first one is zero."""

    def __init__(self, forget_bias):
        super().__init__()
        self.cell, self.head = nn.LSTM(3, 12, batch_first=True), nn.Linear(12, 1)
        with torch.no_grad():
            self.cell.bias_hh_l0[12:24] = forget_bias

    def forward(self, x, state=None):
        return self.head(self.cell(nn.functional.pad(x[:, None], (0, 0, 0, 39)), state)[0][:, -1])


def vanished_in(model, steps, batch_of, rate):
    optimizer = torch.optim.SGD(model.parameters(), rate)
    with gradwatch.watch(model, optimizer) as watcher:
        for _ in range(steps):
            *given, y = batch_of()
            optimizer.zero_grad()
            (model(*given)[:, 0] - y).square().mean().backward()
            optimizer.step()
    assert float(model.cell.weight_ih_l0.grad.norm()) == 0
    return [(finding.layer, finding.raised_step) for finding in watcher.findings if finding.kind == "vanishing"]


@pytest.mark.parametrize("seed", range(3))
def test_what_a_module_is_given_should_be_used_where_a_hundred_updates_have_learned_nothing(seed):
    torch.manual_seed(seed)

    def batch_of():
        x = torch.randn(32, 3)
        return x, 2 * x.sum(1)

    assert vanished_in(Recurrence(-9.0), 120, batch_of, 0.05) == [("cell.weight_ih_l0", 99)]


@pytest.mark.parametrize("seed", range(3))
def test_a_decoder_that_is_fed_with_zeros_and_learns_from_its_state_is_healthy(seed):
    torch.manual_seed(seed)

    def batch_of():
        state = torch.randn(1, 32, 12)
        return torch.zeros(32, 3), (state, state), 0.5 + 0.05 * torch.randn(32)

    assert vanished_in(Recurrence(1.0), 150, batch_of, 0.02) == []
