"""A case that hangs, dies or raises is a result, and the others have theirs."""

import multiprocessing
import os
import time

import pytest

from benchmarks.endurance.processes import ends_in, server_with, started, tried


def act(what, number):
    if what == "hangs":
        time.sleep(600)
    elif what == "dies":
        os._exit(3)
    elif what == "raises":
        raise ValueError("made to happen")
    return number, os.getpid()


CASES = [("returns", 0), ("raises", 1), ("dies", 2), ("returns", 3), ("hangs", 4), ("returns", 5), ("returns", 6)]


@pytest.mark.process
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("context", [None, "server"])
def test_a_case_that_hangs_dies_or_raises_is_a_result_and_the_others_have_theirs(apart, context):
    by = {} if context is None else {"context": server_with(["numpy"])}
    found = {each.case: each for each in tried(act, CASES, apart=apart, seconds=10.0, **by)}
    assert set(found) == set(CASES)
    how = {what: found[what, number].how for what, number in CASES if what != "returns"}
    assert "ValueError: made to happen" in how.pop("raises")
    assert how == {"dies": "ended without a result", "hangs": "took too long"}
    returned = [found[case] for case in CASES if case[0] == "returns"]
    assert [each.result[0] for each in returned] == [0, 3, 5, 6]
    assert not apart or len({each.result[1] for each in returned}) == 4
    assert all(each.how == "" for each in returned)


@pytest.mark.process
def test_whoever_stops_listening_leaves_no_process_behind():
    trying = tried(act, [("returns", 0), ("hangs", 1)], apart=True)
    assert next(trying).result[1] != os.getpid()
    trying.close()
    assert multiprocessing.active_children() == []


def answer(pipe, number):
    pipe.send(number)


def never_end(pipe):
    time.sleep(600)


@pytest.mark.process
def test_a_process_that_does_not_end_in_time_is_killed():
    context = server_with(["numpy"])
    process, pipe = started(context, answer, 7)
    assert pipe.recv() == 7
    assert ends_in(process, 60.0)
    process, _ = started(context, never_end)
    assert not ends_in(process, 0.1)
    assert process.exitcode == -9
