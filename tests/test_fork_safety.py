import os
import sys
import threading

import pytest

from gradwatch.fork_safety import ForkSafeLock, lazy_property

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks on Windows")


class Square:
    """A number, the square of which may be long in coming."""

    def __init__(self, number: int, wait=lambda: None) -> None:
        self.number, self.wait, self.computed = number, wait, 0

    @lazy_property
    def square(self) -> int:
        """The square."""
        self.computed += 1
        self.wait()
        return self.number**2


def in_child(act) -> int:
    """Return the exit status of a forked child that acts: 0 if it came to an end, 14 if it had to be ended."""
    program = os.fork()
    if not program:
        import signal

        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        try:
            act()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitpid(program, 0)[1]


def held_by_another_thread(lock: ForkSafeLock) -> threading.Event:
    """Have another thread hold ``lock`` until the event is set that is returned."""
    is_held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            is_held.set()
            may_end.wait(60)

    threading.Thread(target=hold, daemon=True).start()
    assert is_held.wait(60)
    return may_end


def test_a_property_is_computed_once_for_each_object():
    two, three = Square(2), Square(3)
    assert [two.square, three.square, two.square] == [4, 9, 4]
    assert two.computed == three.computed == 1


def test_a_property_can_be_removed_and_is_computed_again():
    two = Square(2)
    assert two.square == 4
    del two.square
    assert two.square == 4
    assert two.computed == 2


def test_the_class_shows_the_docstring_of_a_property():
    assert Square.square.__doc__ == "The square."


def test_no_lock_is_held_while_a_property_is_computed():
    began, may_end = threading.Event(), threading.Event()
    slow, fast, read = Square(2, lambda: (began.set(), may_end.wait(60))), Square(3), []
    threads = [
        threading.Thread(target=lambda each=each: read.append(each.square), daemon=True) for each in (slow, fast)
    ]
    threads[0].start()
    assert began.wait(60)
    threads[1].start()
    threads[1].join(60)
    assert read == [9]
    may_end.set()
    threads[0].join(60)
    assert read == [9, 4]


def test_a_lock_lets_one_thread_in_and_that_one_again():
    lock, entered = ForkSafeLock(), []
    may_end = held_by_another_thread(lock)

    def enter() -> None:
        with lock, lock:
            entered.append(may_end.is_set())

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    may_end.set()
    thread.join(60)
    assert entered == [True]


def test_a_lock_is_free_again_after_an_error():
    lock = ForkSafeLock()
    with pytest.raises(ValueError), lock:
        raise ValueError
    held_by_another_thread(lock).set()


@forks
def test_a_forked_child_finds_a_lock_free_that_another_thread_held():
    lock = ForkSafeLock()
    may_end = held_by_another_thread(lock)
    assert in_child(lock.__enter__) == 0
    may_end.set()


@forks
def test_a_child_that_is_forked_within_the_block_leaves_it():
    lock = ForkSafeLock()
    with lock:
        assert in_child(lambda: lock.__exit__()) == 0
    held_by_another_thread(lock).set()  # the parent's own is free again
