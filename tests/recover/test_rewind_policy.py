"""The decisions of a rewind, against a slow twin that looks at the whole past at every step."""

import random

import pytest

from gradwatch import Rewind
from gradwatch.recover.rewind_policy import REFUSALS, RewindPolicy, Symptoms


class Twin:
    """The rules as docs/recovery.md states them, asked of the whole past instead of counters."""

    def __init__(self, plan):
        self.plan = plan
        self.past = []  # (steps, was sick) of each step
        self.refused = []  # whether each was refused, since the last rewind
        self.taken = []  # steps of the snapshots that are kept
        self.restored = set()
        self.backs = []  # steps at which the run went back
        self.anew = 0  # from when the cadence counts

    def healthy_since(self, snapshot):
        """The last sick step at which the snapshot was not yet confirmed, or its own step."""
        since = snapshot
        for steps, was_sick in self.past:
            if steps > snapshot and was_sick and steps - 1 - since < self.plan.confirm:
                since = steps
        return since

    def times(self, steps):
        """Rewinds, back to the first pause of two cooldowns."""
        count, until = 0, steps
        for back in reversed(self.backs):
            if until - back >= 2 * self.plan.cooldown:
                break
            count, until = count + 1, back
        return count

    def decide(self, symptoms):
        steps, onset = symptoms.steps, symptoms.onset
        before = self.past[-REFUSALS][0] if len(self.past) >= REFUSALS else 0
        self.refused.append(symptoms.is_refused)
        if onset is None and len(self.refused) >= REFUSALS and all(self.refused[-REFUSALS:]):
            onset = before
        is_sick = symptoms.is_refused or symptoms.is_open
        if onset is None or symptoms.onset is None:
            self.past.append((steps, is_sick))
        if onset is None:
            return ("skip" if symptoms.is_refused else "nothing"), None
        confirmed = [each for each in self.taken if onset - self.healthy_since(each) >= self.plan.confirm]
        if not confirmed:
            if symptoms.onset is not None:
                self.past.append((steps, symptoms.can_go_on))
            return ("stay" if symptoms.can_go_on else "give up"), None
        if self.times(steps) >= self.plan.max_times:
            return "give up", None
        fresh = [each for each in confirmed if each not in self.restored]
        chosen = max(fresh) if fresh else min(confirmed)
        self.taken = [each for each in self.taken if each <= chosen]
        self.restored.add(chosen)
        self.backs.append(steps)
        self.refused = []
        if symptoms.onset is not None:
            self.past.append((steps, False))
        return "rewind", chosen


def random_symptoms(generator, steps):
    kind = generator.choices(["healthy", "refused", "onset", "open"], [60, 4, 1, 1])[0]
    onset = max(0, steps - 1 - generator.randrange(4)) if kind == "onset" else None
    return Symptoms(
        steps, onset, is_refused=kind == "refused", can_go_on=generator.random() < 0.5, is_open=kind == "open"
    )


@pytest.mark.parametrize("seed", range(30))
def test_decisions_are_those_of_the_slow_twin(seed):
    generator = random.Random(seed)
    plan = Rewind(every=generator.choice([2, 5]), keep=generator.choice([2, 4]), confirm=generator.choice([1, 6, 12]))
    policy, twin = RewindPolicy(plan), Twin(plan)
    seen = set()
    for steps in range(1, 400):
        symptoms = random_symptoms(generator, steps)
        decision = policy.decide(symptoms)
        assert (decision.action, decision.snapshot) == twin.decide(symptoms), (steps, symptoms)
        seen.add(decision.action)
        if decision.action == "give up":
            break
        if policy.is_due(steps):
            policy.note_taken(steps)
            twin.taken = [each.steps for each in policy.snapshots]
    assert "nothing" in seen


def healthy(policy, steps):
    for each in steps:
        assert policy.decide(Symptoms(each)).action == "nothing"
        if policy.is_due(each):
            policy.note_taken(each)


def test_a_snapshot_is_never_restored_before_it_is_confirmed():
    policy = RewindPolicy(Rewind(every=10, confirm=20))
    healthy(policy, range(1, 45))
    assert [each.steps for each in policy.snapshots] == [20, 30, 40]
    assert policy.decide(Symptoms(45, onset=44)).snapshot == 20


def test_a_confirmed_snapshot_is_always_kept():
    policy = RewindPolicy(Rewind(every=1, keep=2, confirm=30))
    healthy(policy, range(1, 300))
    assert 299 - policy.snapshots[0].steps >= 30


def test_the_rate_is_lowered_for_one_cooldown_and_the_count_ends_after_two():
    plan = Rewind(every=10, confirm=5, lr_factor=0.5)
    policy = RewindPolicy(plan)
    healthy(policy, range(1, 50))
    policy.decide(Symptoms(50, onset=49))
    assert (policy.times, policy.rate_factor) == (1, 0.5)
    healthy(policy, range(51, 50 + plan.cooldown))
    assert policy.rate_factor == 0.5
    healthy(policy, [50 + plan.cooldown])
    assert (policy.times, policy.rate_factor) == (1, 1.0)
    healthy(policy, [50 + 2 * plan.cooldown])
    assert policy.times == 0


def test_no_snapshot_is_taken_while_the_run_is_sick():
    policy = RewindPolicy(Rewind(every=5))
    healthy(policy, range(1, 10))
    policy.decide(Symptoms(10, is_open=True))
    assert not policy.is_due(10)
    healthy(policy, [11])
    assert policy.snapshots[-1].steps == 11
