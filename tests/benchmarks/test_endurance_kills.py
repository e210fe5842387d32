"""What the attacks by kills and forks call lost, doubled and unreadable, and that they try everything."""

import json
from collections import Counter

from benchmarks.endurance.forking import MOMENTS, REFUSED, VERBS, planned
from benchmarks.endurance.kills import Killed, Remains, Truth, _read_lines

FIRST, SECOND = ("nonfinite", "a", 3), ("nonfinite", "a", 9)


def heard(*messages):
    truth = Truth(is_awaited=True)
    for message in messages:
        truth.hear(json.dumps(message).encode())
    return truth


def killed(truth, **remains):
    return Killed("watch", 0, truth, Remains(**remains), hung=0)


def test_what_was_said_and_what_was_flushed_is_lost_where_it_is_not_there():
    truth = heard(["ready"], ["said", *FIRST], ["flushed", 3, [FIRST, SECOND]])
    run = killed(truth, steps={0, 2}, opened=Counter([FIRST]))
    assert (run.lost, run.lost_rows, run.doubled) == ({SECOND}, {1}, set())
    whole = killed(truth, steps={0, 1, 2, 3}, opened=Counter([FIRST, SECOND]))
    assert (whole.lost, whole.lost_rows, whole.doubled) == (set(), set(), set())


def test_a_finding_that_was_written_as_new_twice_is_doubled():
    assert killed(heard(["ready"]), opened=Counter([FIRST, FIRST, SECOND])).doubled == {FIRST}


def test_a_victim_that_never_trained_tried_nothing():
    assert killed(heard()).is_void
    assert not killed(heard(["ready"])).is_void
    assert not killed(Truth(is_awaited=False)).is_void  # it was killed while it started


def test_the_last_line_may_be_torn_and_no_other(tmp_path):
    path, opened = tmp_path / "run.jsonl", {"event": "opened", "kind": "nonfinite", "layer": "a", "step": 3}
    path.write_text(f'{{"event": "row", "step": 0}}\n{{"eve\n{json.dumps(opened)}\n{{"event": "ro')
    remains = Remains()
    _read_lines(path, remains)
    assert (remains.steps, remains.opened) == ({0}, Counter([FIRST]))
    assert len(remains.problems) == 1


def test_every_verb_is_tried_at_every_moment_in_a_thousand_forks():
    forks = planned(1, 0, 1000)
    assert len(forks) == 1000
    assert forks[100:200] == planned(1, 100, 100)
    tried = {(fork.moment, fork.verb, fork.leaves) for fork in forks}
    assert len(tried) == 2 * (len(MOMENTS) * len(VERBS) - len(REFUSED))
