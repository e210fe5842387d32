"""One wrapper around a function for everyone who listens: there while anybody does, and gone afterwards."""

import functools
import gc
import inspect
import pickle
import threading
import types

import pytest
import torch

from gradwatch.hooks.followed_function import FollowedFunction


@pytest.fixture
def library():
    def double(x, *, fails=False):
        """Double a number."""
        if fails:
            raise ArithmeticError("made to happen")
        return 2 * x

    return types.SimpleNamespace(double=double)


class Listener:
    def __init__(self, name="", told=None):
        self.name, self.told = name, [] if told is None else told

    def enter(self, args, kwargs):
        self.told.append(("enter", self.name, args, kwargs))
        return self.name

    def leave(self, token, result, has_failed):
        self.told.append(("leave", token, result, has_failed))


def test_calls_are_told_before_and_after_and_return_what_they_return(library):
    listener = Listener("a")
    stop = FollowedFunction(library, "double").listen(listener.enter, listener.leave)
    assert library.double(3) == 6
    assert listener.told == [("enter", "a", (3,), {}), ("leave", "a", 6, False)]
    stop()


def test_a_call_that_raises_is_told_as_failed_and_raises(library):
    listener = Listener("a")
    stop = FollowedFunction(library, "double").listen(listener.enter, listener.leave)
    with pytest.raises(ArithmeticError, match="made to happen"):
        library.double(3, fails=True)
    assert listener.told[-1] == ("leave", "a", None, True)
    assert library.double(4) == 8  # and the next call is told again
    assert listener.told[-1] == ("leave", "a", 8, False)
    stop()


def test_several_listeners_share_one_wrapper_which_goes_with_the_last(library):
    bare, followed = library.double, FollowedFunction(library, "double")
    first, second = Listener(), Listener()
    stop_first = followed.listen(first.enter)
    wrapper = library.double
    stop_second = followed.listen(second.enter)
    assert library.double is wrapper is not bare
    stop_first()
    stop_first()
    assert library.double is wrapper
    stop_second()
    assert library.double is bare
    assert (first.told, second.told) == ([], [])


def test_the_wrapper_looks_like_the_function(library):
    bare = library.double
    stop = FollowedFunction(library, "double").listen(Listener().enter)
    listener = Listener()
    stop_again = FollowedFunction(torch.autograd, "backward").listen(listener.enter)
    assert library.double.__doc__ == bare.__doc__
    assert inspect.signature(library.double) == inspect.signature(bare)
    assert pickle.loads(pickle.dumps(torch.autograd.backward)) is torch.autograd.backward
    stop()
    stop_again()


@pytest.mark.parametrize("restores_first", [True, False])
def test_who_wraps_in_between_keeps_a_wrapper_and_ours_does_nothing_any_more(library, restores_first):
    bare, followed = library.double, FollowedFunction(library, "double")
    listener = Listener()
    stop = followed.listen(listener.enter, listener.leave)
    ours = library.double
    library.double = theirs = functools.wraps(ours)(lambda x: ours(x) + 1)
    assert library.double(3) == 7
    assert len(listener.told) == 2
    if restores_first:
        library.double = ours
        stop()
        assert library.double is bare
        return
    stop()
    assert library.double is theirs
    assert library.double(3) == 7
    assert len(listener.told) == 2
    stop = followed.listen(listener.enter, listener.leave)  # around theirs, which still holds our first one
    assert library.double(3) == 7
    assert len(listener.told) == 4  # told once
    stop()
    assert library.double is theirs
    library.double = ours  # what they take for the original
    stop = followed.listen(listener.enter)
    stop()
    assert library.double is bare


def test_a_listener_that_is_dropped_is_let_go_and_the_wrapper_with_it(library):
    bare = library.double
    listener = Listener()
    told = listener.told
    FollowedFunction(library, "double").listen(listener.enter, listener.leave)
    del listener
    gc.collect()
    assert library.double is bare
    assert library.double(3) == 6
    assert told == []


def test_who_begins_to_listen_while_a_call_begins_hears_that_call(library):
    followed, told, stops, late = FollowedFunction(library, "double"), [], [], []

    class Early(Listener):
        def enter(self, args, kwargs):
            late.append(Listener("late", told))
            stops.append(followed.listen(late[-1].enter, late[-1].leave))

    early = Early()
    stops.append(followed.listen(early.enter))
    library.double(1)
    assert told == [("enter", "late", (1,), {}), ("leave", "late", 2, False)]
    for stop in stops:
        stop()


def test_a_call_within_a_call_belongs_to_the_outer_one(library):
    double = library.double
    library.double = lambda x: double(x) if x < 5 else library.double(x - 5)
    listener = Listener()
    stop = FollowedFunction(library, "double").listen(listener.enter)
    assert library.double(7) == 4
    assert len(listener.told) == 1
    stop()


def test_threads_that_listen_and_call_at_once_leave_nothing_behind(library):
    bare, followed = library.double, FollowedFunction(library, "double")
    wrong = []

    def work():
        for number in range(300):
            listener = Listener()
            stop = followed.listen(listener.enter, listener.leave)
            if library.double(number) != 2 * number:
                wrong.append(number)
            if ("enter", "", (number,), {}) not in listener.told:
                wrong.append(number)
            stop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert library.double is bare
