import random

from gradwatch import Finding
from gradwatch.event_files.consequences import AFTERMATH, leaders
from gradwatch.event_files.run import FindingEvent
from gradwatch.findings import KINDS, MAY_COME_FIRST


def event(draws, step):
    last = step + draws.choice([0, 1, AFTERMATH, 100])
    finding = Finding(
        draws.choice(KINDS), "warning", "a", ("a",), step, step, last, value=1.0, threshold=1.0, measured="", cause=""
    )
    return FindingEvent(finding, ended=draws.random() < 0.7)


def plainly(states, index):
    """The earliest of those before that may have led to this one."""
    then = states[index].finding
    for earlier, first in enumerate(states[:index]):
        goes_on = not first.ended or first.finding.last_step + AFTERMATH >= then.step
        if goes_on and first.finding.kind in MAY_COME_FIRST[then.kind]:
            return earlier
    return None


def test_each_finding_follows_the_earliest_that_may_have_led_to_it():
    draws, follow = random.Random(0), 0
    for _ in range(200):
        steps = sorted(draws.randrange(300) for _ in range(30))
        states = [event(draws, step) for step in steps]
        found = leaders(states)
        assert found == [plainly(states, index) for index in range(30)]
        follow += sum(each is not None for each in found)
    assert follow > 1000
