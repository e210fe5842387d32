"""The race on runs that are made up: who goes on, how long, and until when."""

import dataclasses
import math
import os
import signal
import time
from collections import Counter

import pytest

from gradwatch.findings import Finding
from gradwatch.prescription import outcome, ranking
from gradwatch.prescription.race import ABREAST, FINALISTS, FURTHER, PATIENCE, race
from gradwatch.prescription.treatments import Treatment
from gradwatch.prescription.trial import TrialRun
from gradwatch.remedies import Change, NotApplicableError

SICK = Finding("vanishing", "error", "w", ("w",), 5, 14, 20, 1.0, 1.0, "", "")


def named(name, strength=""):
    return (Treatment(name, Change("after the optimizer is made", f"{name}{strength}"), strength),)


CANDIDATES = [named(f"r{place:02}") for place in range(27)]


class Tries:
    """Remedy number n ends at a loss of n + 1 hundredths; the untreated model at 10."""

    def __init__(self, seconds_per_step=1e-9, seconds_around=0.0):
        self.seconds_per_step, self.seconds_around, self.calls = seconds_per_step, seconds_around, []

    def __call__(self, candidate, seed, steps):
        self.calls.append((candidate and candidate[0].remedy, seed, steps))
        if not candidate:
            return TrialRun(
                seed, steps, 10.0, 10.0, (SICK,), self.seconds_per_step, True, seconds_around=self.seconds_around
            )
        loss = (int(candidate[0].remedy[1:]) + 1) / 100
        return TrialRun(seed, steps, math.nan, loss, (), self.seconds_per_step, True)


def raced(tries, candidates=CANDIDATES, seeds=(0, 1, 2), seconds=60.0, length=300, advised=()):
    baselines = {seeds[0]: tries((), seeds[0], length)}
    deadline = time.perf_counter() + seconds
    whole, reasons = race(
        candidates, tries, baselines, seeds, length, "vanishing", deadline, lambda share, name: None, advised
    )
    return whole, reasons, baselines


def test_the_better_third_goes_on_to_the_next_seed():
    tries = Tries()
    whole, _, baselines = raced(tries)
    counts = Counter(seed for candidate, seed, _ in tries.calls if candidate)
    assert counts == {0: 27, 1: 9, 2: FINALISTS} | dict.fromkeys((3, 4, 5), ABREAST)  # the leaders, once more as many
    assert set(baselines) == set(range(6))
    assert [candidate for candidate, runs in whole.items() if len(runs) == 6] == CANDIDATES[:ABREAST]
    assert [candidate for candidate, runs in whole.items() if len(runs) == 3] == CANDIDATES[ABREAST:FINALISTS]
    assert {steps for _, _, steps in tries.calls} == {300}


def test_of_those_that_solve_the_task_what_acts_on_the_cause_goes_on_though_it_ends_higher():
    def solving(candidate, seed, steps):
        loss = 1e-3 / (1 + int(candidate[0].remedy[1:])) if candidate else 10.0  # r00 ends highest
        return TrialRun(seed, steps, 10.0, loss, () if candidate else (SICK,), 1e-9, True)

    whole, baselines = raced(solving, advised=["r00"])[::2]
    assert len(whole[CANDIDATES[0]]) == 6
    assert ranking.rank(whole, baselines, "vanishing", ["r00"])[0].remedy == "r00"


def test_a_leader_that_fails_on_a_further_seed_leads_no_more():
    tries = Tries()

    def by_chance(candidate, seed, steps):
        run = tries(candidate, seed, steps)
        return dataclasses.replace(run, findings=(SICK,)) if candidate in CANDIDATES[:3] and seed > 3 else run

    whole, _, baselines = raced(by_chance)
    best = ranking.rank(whole, baselines, "vanishing")[0]
    assert (best.remedy, best.cured, len(best.seeds)) == ("r03", True, 6)
    assert [len(whole[each]) for each in CANDIDATES[:3]] == [5, 5, 5]  # each failed on the fifth seed


def test_no_time_is_left_for_further_seeds_after_the_deadline():
    tries = Tries()

    def waiting(candidate, seed, steps):
        if seed > 2:
            time.sleep(0.5)
        return tries(candidate, seed, steps)

    whole, _, _ = raced(waiting, seconds=0.4)
    assert max(len(runs) for runs in whole.values()) == 3


def test_where_time_is_short_first_runs_are_shorter_and_count_no_more_once_there_are_longer_ones():
    tries = Tries(seconds_per_step=2e-2)  # 27 runs of 300 steps would take 162 s
    whole, _, _ = raced(tries)
    first = [steps for candidate, seed, steps in tries.calls if candidate and seed == 0]
    assert first == [100] * 27 + [300] * FINALISTS  # once more, as long as on the others
    assert {run.steps for run in whole[CANDIDATES[0]]} == {300}
    assert [run.seed for run in whole[CANDIDATES[FINALISTS - 1]]] == [1, 2, 0]
    assert [run.seed for run in whole[CANDIDATES[0]]] == [1, 2, 0, 3, 4, 5]


def test_the_last_ones_run_their_full_length_on_a_single_seed_too():
    tries = Tries(seconds_per_step=2e-2)
    whole, _, _ = raced(tries, seeds=(0,))
    made = [(seed, steps) for candidate, seed, steps in tries.calls if candidate]
    assert made == [(0, 100)] * 27 + [(0, 300)] * 9 + [(1, 300)] * ABREAST  # the leaders have a further seed
    assert [run.steps for run in whole[CANDIDATES[ABREAST]]] == [300]


@pytest.mark.parametrize(
    ("healthy", "judged", "further"),
    [
        ({1}, [0, 3, 2], [4, 5, 6]),
        ({1, 3, 4}, [0, 5, 2], [6, 7, 8]),
        ({1, 2, 3}, [0, 4, 5], [6, 7, 8]),
        ({1, 3, 4, 5}, [0, 2], [6, 7, 8, 9]),
        ({*range(1, 9), *range(10, 20)}, [0], [9, 20, 21, 22, 23]),
        (set(range(1, 40)), [0], []),
    ],
)
def test_a_seed_on_which_nothing_is_sick_judges_no_remedy_and_another_takes_its_place(healthy, judged, further):
    tries = Tries()

    def lucky(candidate, seed, steps):
        run = tries(candidate, seed, steps)
        return TrialRun(seed, steps, 10.0, 0.5, (), 1e-9, True) if not candidate and seed in healthy else run

    whole, _, baselines = raced(lucky)
    assert set(baselines) == {*judged, *further}
    assert [run.seed for run in whole[CANDIDATES[ABREAST]]] == judged
    assert [run.seed for run in whole[CANDIDATES[0]]] == judged + further
    untreated = [seed for candidate, seed, _ in tries.calls if not candidate]
    assert len(untreated) == len(set(untreated)) <= 1 + 2 * (1 + FURTHER) + (1 + len(further)) * (1 + PATIENCE)


def test_a_first_run_is_long_enough_to_see_the_finding_come():
    tries = Tries(seconds_per_step=10.0)
    raced(tries, length=60, seconds=1e4)
    assert {steps for candidate, _, steps in tries.calls if candidate} == {60}


def test_nothing_is_begun_that_would_run_past_the_deadline():
    tries = Tries(seconds_per_step=1.0)
    whole, _, _ = raced(tries, seconds=1.0)
    assert whole == {}
    assert [candidate for candidate, _, _ in tries.calls] == [()]


def test_what_a_run_takes_beside_its_loop_counts():
    tries = Tries(seconds_around=2.0)
    whole, _, _ = raced(tries, seconds=1.9)
    assert whole == {}
    tries = Tries(seconds_per_step=1e-3, seconds_around=2.0)  # 27 runs of 2.3 s would take 62 s, of which there are 41
    raced(tries)
    assert [steps for candidate, seed, steps in tries.calls if candidate and seed == 0][:27] == [100] * 27
    tries = Tries(
        seconds_around=1.0
    )  # there is time for a trial on the second seed, but not for its untreated run, too
    _, _, baselines = raced(tries, seeds=(0, 1), seconds=1.9)
    assert set(baselines) == {0}


def test_a_seed_on_which_the_untreated_model_raises_judges_no_remedy():
    tries = Tries()

    def failing(candidate, seed, steps):
        if not candidate and seed == 1:
            raise RuntimeError("out of memory")
        return tries(candidate, seed, steps)

    whole, _, baselines = raced(failing)
    assert set(baselines) == {0, 2, 3, 4, 5, 6}
    assert [run.seed for run in whole[CANDIDATES[0]]] == [0, 3, 2, 4, 5, 6]


def test_a_change_that_raises_on_a_later_seed_is_no_cure_and_says_why():
    tries = Tries()

    def failing(candidate, seed, steps):
        if candidate == CANDIDATES[0] and seed == 1:
            raise RuntimeError("shapes do not match")
        return tries(candidate, seed, steps)

    whole, reasons, _ = raced(failing)
    assert CANDIDATES[0] not in whole
    assert list(reasons) == ["r00"]
    assert len(whole[CANDIDATES[1]]) == 6


def test_what_cannot_be_tried_says_why_and_no_pair_with_it_is_tried():
    tries = Tries()
    single, pair = CANDIDATES[0], CANDIDATES[0] + CANDIDATES[1]

    def picky(candidate, seed, steps):
        if single[0] in candidate:
            raise NotApplicableError("it has no layers")
        return tries(candidate, seed, steps)

    picky.calls = tries.calls
    whole, reasons, _ = raced(picky, [single, pair, CANDIDATES[2]])
    assert reasons == {"r00": "not applicable: it has no layers"}
    assert list(whole) == [CANDIDATES[2]]


def test_a_changed_model_that_raises_is_left_out_with_its_error():
    def failing(candidate, seed, steps):
        if candidate:
            raise RuntimeError("shapes do not match")
        return Tries()(candidate, seed, steps)

    _, reasons, _ = raced(failing, CANDIDATES[:1])
    assert reasons == {"r00": "not applicable: the changed model raised RuntimeError: shapes do not match"}


def test_a_strength_that_raises_bars_neither_the_others_nor_pairs():
    gentle, strong, pair = named("r03", "-1"), named("r03", "-2"), CANDIDATES[3] + CANDIDATES[1]
    tries = Tries()

    def failing(candidate, seed, steps):
        if candidate == gentle:
            raise ValueError("found NaN")
        return tries(candidate, seed, steps)

    failing.calls = tries.calls
    whole, reasons, _ = raced(failing, [gentle, strong, pair])
    assert list(whole) == [strong, pair]
    assert reasons == {}  # of r03 another strength was tried


def test_of_several_strengths_the_best_stands_for_all():
    weak, strong = named("r03", "-1"), named("r03", "-2")
    baseline = {0: TrialRun(0, 300, 10.0, 10.0, (SICK,), 1e-3, True, processor_seconds=1e-3)}
    runs = {
        weak: [TrialRun(0, 300, math.nan, 5.0, (), 1e-3, True, processor_seconds=1e-3)],
        strong: [TrialRun(0, 300, math.nan, 4.0, (), 7e-3, True, processor_seconds=2e-3)],
    }
    (trial,) = ranking.rank(runs, baseline, "vanishing")
    assert (trial.code, trial.loss, trial.baseline_loss, trial.cured) == (
        "# after the optimizer is made\nr03-2", 4.0, 10.0, True,
    )  # fmt: skip
    assert trial.cost == pytest.approx(2.0)


def test_cures_come_first_then_those_that_got_further_then_the_lower_loss():
    baseline = {seed: TrialRun(seed, 300, 10.0, 10.0, (SICK,), 1e-3, True) for seed in range(2)}

    def runs(*losses, sick=()):
        return [TrialRun(seed, 300, math.nan, loss, sick, 1e-3, True) for seed, loss in enumerate(losses)]

    tried = {
        named("a"): runs(0.1, sick=(SICK,)),
        named("b"): runs(1.0),
        named("c"): runs(3.0, 3.0),
        named("d"): runs(2.0, 2.0),
        named("e"): runs(0.5, 9.5),
    }
    assert [trial.remedy for trial in ranking.rank(tried, baseline, "vanishing")] == ["d", "c", "b", "e", "a"]


def test_what_leaves_nothing_of_the_findings_comes_before_what_leaves_some():
    other = dataclasses.replace(SICK, kind="dead", severity="warning")
    baseline = {0: TrialRun(0, 300, 10.0, 10.0, (SICK, other), 1e-3, True)}
    tried = {
        named("leaves"): [TrialRun(0, 300, 10.0, 0.1, (other,), 1e-3, True)],
        named("clean"): [TrialRun(0, 300, 10.0, 1.0, (), 1e-3, True)],
    }
    found = ranking.rank(tried, baseline, "vanishing")
    assert [(trial.remedy, trial.cured) for trial in found] == [("clean", True), ("leaves", True)]


def test_the_simplest_of_those_next_to_the_best_comes_first():
    baseline = {0: TrialRun(0, 300, 10.0, 10.0, (SICK,), 1e-3, True)}
    losses = {named("a") + named("b"): 1.0, named("a"): 1.05, named("b"): 1.02, named("c"): 1.2}
    tried = {each: [TrialRun(0, 300, 10.0, loss, (), 1e-3, True)] for each, loss in losses.items()}
    found = [trial.remedy for trial in ranking.rank(tried, baseline, "vanishing")]
    assert found == ["b", "a", "a + b", "c"]


def cured_at(*losses, seconds=1e-3):
    return [
        TrialRun(seed, 300, 10.0, loss, (), 1e-3, True, processor_seconds=seconds) for seed, loss in enumerate(losses)
    ]


def test_a_simpler_change_whose_loss_is_within_the_spread_of_the_best_comes_first():
    baseline = {seed: TrialRun(seed, 300, 10.0, 10.0, (SICK,), 1e-3, True) for seed in range(2)}
    tried = {
        named("a") + named("b"): cured_at(0.5, 1.5),
        named("c"): cured_at(1.4, 1.4),  # worse by 40 %, but the best itself ends at 1.5 on one seed
        named("d"): cured_at(1.6, 1.6),
    }
    assert [trial.remedy for trial in ranking.rank(tried, baseline, "vanishing")] == ["c", "a + b", "d"]


def test_of_those_about_as_good_what_acts_on_the_cause_comes_first_then_fewer_lines_then_the_cheaper():
    baseline = {0: TrialRun(0, 300, 10.0, 10.0, (SICK,), 1e-3, True)}
    long = (Treatment("long", Change("after the optimizer is made", "one\ntwo\nthree")),)
    tried = {
        named("slow"): cured_at(1.0, seconds=4e-3),
        long: cured_at(1.01),
        named("advised"): cured_at(1.05, seconds=9e-3),
        named("short"): cured_at(1.02),
    }
    found = [trial.remedy for trial in ranking.rank(tried, baseline, "vanishing", ["advised"])]
    assert found == ["advised", "short", "slow", "long"]


def test_of_those_that_solve_the_task_a_still_lower_loss_does_not_come_first():
    baseline = {0: TrialRun(0, 300, 10.0, 8.0, (SICK,), 1e-3, True)}
    tried = {named("lucky"): cured_at(1e-7), named("advised"): cured_at(5e-2), named("worse"): cured_at(0.2)}
    found = [trial.remedy for trial in ranking.rank(tried, baseline, "vanishing", ["advised"])]
    assert found == ["advised", "lucky", "worse"]  # all began at 10


def test_a_loss_below_zero_is_never_solved():
    baseline = {0: TrialRun(0, 300, 3.0, 8.0, (SICK,), 1e-3, True)}
    tried = {named("advised"): cured_at(-1.0), named("lower"): cured_at(-50.0)}
    found = [trial.remedy for trial in ranking.rank(tried, baseline, "vanishing", ["advised"])]
    assert found == ["lower", "advised"]


def test_a_model_that_begins_at_a_huge_loss_does_not_make_all_losses_alike():
    baseline = {0: TrialRun(0, 300, 1e9, 1e9, (SICK,), 1e-3, True)}
    clipped = [TrialRun(0, 300, 1e9, 1.0, (), 1e-3, True)]
    tried = {named("advised"): clipped, named("begins well"): cured_at(1e-2)}
    found = [trial.remedy for trial in ranking.rank(tried, baseline, "vanishing", ["advised"])]
    assert found == ["begins well", "advised"]


def test_where_time_was_short_the_note_says_so_and_never_that_nothing_helped():
    baseline = {0: TrialRun(0, 300, 10.0, 10.0, (SICK,), 1e-3, True)}
    found = ranking.rank({named("a"): cured_at(9.9)}, baseline, "vanishing")
    note = outcome.sentence(found, "vanishing", left=3)
    assert note.startswith(
        "The time ran out: 1 of 4 remedies were tried against vanishing, and none of these cured it."
    )
    assert outcome.sentence(found, "vanishing").startswith("Nothing helped: of 1 remedies tried")


@pytest.mark.parametrize("workers", [2, 3])
def test_runs_side_by_side_come_to_the_same_as_one_after_the_other(workers):
    def picky(candidate, seed, steps):
        if candidate == CANDIDATES[4]:
            raise NotApplicableError("it has no layers")
        if candidate == CANDIDATES[5]:
            raise RuntimeError("shapes do not match")
        return Tries()(candidate, seed, steps)

    picky.calls = []
    baselines = [{0: picky((), 0, 300)} for _ in range(2)]
    deadline = time.perf_counter() + 60
    arguments = (0, 1, 2), 300, "vanishing", deadline, lambda share, name: None
    alone = race(CANDIDATES, picky, baselines[0], *arguments)
    together = race(CANDIDATES, picky, baselines[1], *arguments, workers=workers)
    assert repr(together) == repr(alone)  # a NaN is not equal to itself
    assert list(together[0]) == list(alone[0])
    assert alone[1]["r05"] == "not applicable: the changed model raised RuntimeError: shapes do not match"


def test_a_process_that_is_killed_is_one_trial_that_failed():
    def killed(candidate, seed, steps):
        if candidate == CANDIDATES[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        return Tries()(candidate, seed, steps)

    baselines = {0: Tries()((), 0, 300)}
    deadline = time.perf_counter() + 60
    advance = lambda share, name: None
    whole, reasons = race(CANDIDATES[:3], killed, baselines, (0,), 300, "vanishing", deadline, advance, workers=2)
    assert list(whole) == [CANDIDATES[0], CANDIDATES[2]]
    assert reasons["r01"].endswith("raised its process ended without a result (exit code -9)")


def test_the_cost_of_a_step_is_told_where_both_runs_were_whole_ones():
    baseline = {0: TrialRun(0, 300, 10.0, math.nan, (SICK,), 4e-3, True, is_hopeless=True)}
    (trial,) = ranking.rank({named("a"): [TrialRun(0, 300, 10.0, 1.0, (), 1e-3, True)]}, baseline, "vanishing")
    assert math.isnan(trial.cost)


def test_what_a_code_cannot_do_stands_above_it():
    baseline = {0: TrialRun(0, 300, 10.0, 10.0, (SICK,), 1e-3, True)}
    runs = [TrialRun(0, 300, 10.0, 1.0, (), 1e-3, True, not_done="forward calls tanh by name")]
    (trial,) = ranking.rank({named("a"): runs}, baseline, "vanishing")
    assert trial.code == "# forward calls tanh by name\n# after the optimizer is made\na"
