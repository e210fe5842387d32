"""Guards: a fault of ours ends where it happened, is said once, and takes away nothing that was asked for."""

import gc

import pytest

from gradwatch.findings import NonFiniteError
from gradwatch.hooks.guard import REST_AFTER, Guard, UnwatchableError, observing, otherwise, without_collecting


class Part:
    """Fails as often as it is told to; ``seen`` are the calls that were tried."""

    def __init__(self, *faults):
        self.guard, self.faults, self.seen = Guard(), list(faults), []

    def work(self, way):
        self.seen.append(way)
        if self.faults and (fault := self.faults.pop(0)) is not None:
            raise fault
        return way

    @observing("looking")
    def look(self):
        """Look."""
        return self.work("look")

    def act_plainly(self):
        return self.work("plain")

    @otherwise("acting", act_plainly)
    def act(self):
        return self.work("fast")


def messages(caplog):
    return [record.getMessage() for record in caplog.records]


def at_steps(part, method, steps):
    """What ``method`` returns at so many steps."""
    returned = []
    for _ in range(steps):
        part.guard.step += 1
        returned.append(method())
    return returned


def test_a_fault_ends_in_its_block_and_the_next_step_tries_again(caplog):
    part = Part(ValueError("made to happen"))
    assert at_steps(part, part.look, 3) == [None, "look", "look"]
    (message,) = messages(caplog)
    assert "a fault in gradwatch itself (looking)" in message
    assert "made to happen" in caplog.text  # its traceback


def test_a_block_that_failed_is_left_out_for_the_rest_of_the_step():
    part = Part(ValueError())
    part.guard.step += 1
    assert [part.look(), part.look()] == [None, None]
    assert part.seen == ["look"]
    assert at_steps(part, part.look, 1) == ["look"]


def test_three_faults_in_a_row_make_a_block_rest(caplog):
    part = Part(*[ValueError()] * REST_AFTER)
    assert at_steps(part, part.look, 6) == [None] * 6
    assert len(part.seen) == REST_AFTER == 3
    first, rests = messages(caplog)  # two messages in all
    assert "Please report it" in first
    assert "3 times in a row" in rests


def test_a_success_between_begins_the_row_anew(caplog):
    part = Part(ValueError(), ValueError(), None, ValueError(), ValueError(), None)
    assert at_steps(part, part.look, 7) == [None, None, "look", None, None, "look", "look"]
    assert len(messages(caplog)) == 1  # said once


def test_blocks_count_their_faults_by_themselves():
    guard = Guard()

    def fail():
        raise ValueError

    for _ in range(4):
        guard.step += 1
        assert guard.run("one", fail) is None
        assert guard.run("other", str, 7) == "7"
    assert guard.rests("one")
    assert not guard.rests("other")


@pytest.mark.parametrize("error", [NonFiniteError("w", 1, "NaN"), UnwatchableError("inside")])
def test_what_is_meant_for_the_user_passes(error):
    for method in ("look", "act"):
        part = Part(error)
        with pytest.raises(type(error)):
            getattr(part, method)()
        assert len(part.seen) == 1
    with pytest.raises(type(error)):
        Guard().run("block", Part(error).work, "fast")


def test_what_acts_acts_plainly_where_its_way_failed(caplog):
    part = Part(ValueError())
    assert at_steps(part, part.act, 2) == ["plain", "fast"]
    assert part.seen == ["fast", "plain", "fast"]
    assert len(messages(caplog)) == 1


def test_what_acts_never_rests_only_its_fast_way_does():
    part = Part(*[ValueError(), None] * REST_AFTER)
    assert at_steps(part, part.act, 6) == ["plain"] * 6
    assert part.seen == ["fast", "plain"] * REST_AFTER + ["plain"] * 3


def test_a_plain_way_that_fails_as_well_stops_nobody(caplog):
    part = Part(ValueError(), ValueError())
    assert at_steps(part, part.act, 2) == [None, "fast"]
    assert [("plain way" in message) for message in messages(caplog)] == [False, True]


def test_faults_of_the_interpreter_are_not_swallowed():
    part = Part(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        part.look()


def test_decorated_methods_keep_name_and_words():
    assert (Part.look.__name__, Part.look.__doc__) == ("look", "Look.")


def test_the_collector_pauses_and_goes_on_whatever_happens():
    @without_collecting
    def measure(fails):
        assert not gc.isenabled()
        if fails:
            raise ValueError
        return 1

    assert measure(False) == 1
    assert gc.isenabled()
    with pytest.raises(ValueError):
        measure(True)
    assert gc.isenabled()
    gc.disable()
    try:
        assert measure(False) == 1
        assert not gc.isenabled()
    finally:
        gc.enable()
