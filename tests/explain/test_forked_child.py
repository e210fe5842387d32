"""What runs in a forked child changes nothing in this process, and keeps nobody waiting."""

import contextlib
import os
import queue
import resource
import signal
import socket
import sys
import threading
import time

import pytest
import torch

from gradwatch.explain.forked_child import ChildFailedError, ChildLostError, can_fork, in_child
from tests.forked_python import run

LONG = 60.0  # seconds, on a machine however busy


def open_files():
    return sorted(os.listdir("/proc/self/fd"))


def test_it_returns_what_is_returned():
    assert can_fork()
    assert in_child(lambda: ("a", [1.5, None]), LONG) == ("a", [1.5, None])
    assert in_child(lambda: None, LONG) is None


def test_a_large_answer_arrives_whole():
    assert in_child(lambda: b"x" * 3_000_000, LONG) == b"x" * 3_000_000


def test_an_exception_arrives_in_words():
    def fails():
        raise KeyError("no such layer")

    with pytest.raises(ChildFailedError, match="KeyError: 'no such layer'"):
        in_child(fails, LONG)


def test_an_answer_that_cannot_be_sent_is_an_exception():
    with pytest.raises(ChildFailedError, match=r"[Pp]ickle"):
        in_child(lambda: threading.Lock(), LONG)


@pytest.mark.parametrize("end", [lambda: sys.exit(3), lambda: os.kill(os.getpid(), signal.SIGKILL)])
def test_a_child_that_ends_early_is_lost(end):
    with pytest.raises(ChildLostError, match="has not answered"):
        in_child(end, LONG)


def test_whoever_waits_for_another_thread_is_ended_in_time():
    began = time.perf_counter()
    with pytest.raises(ChildLostError, match=r"within 0\.2 s"):
        in_child(queue.Queue().get, 0.2)
    assert time.perf_counter() - began < 0.2 + LONG / 2


def test_nothing_in_memory_changes():
    weights, counts, numbers = torch.ones(3), [0], iter(range(10))
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()

    def changes():
        weights.zero_()
        counts.append(1)
        torch.rand(3, generator=generator)
        return next(numbers)

    assert in_child(changes, LONG) == 0
    assert (weights.tolist(), counts, next(numbers)) == ([1, 1, 1], [0], 0)
    assert torch.equal(generator.get_state(), before)


def test_nothing_is_written_and_nothing_is_left_open(tmp_path, capfd):
    path = tmp_path / "log.txt"
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    def writes():
        file.write("in the child\n")
        file.flush()
        with contextlib.suppress(OSError):
            theirs.send(b"in the child")
        print("in the child", flush=True)
        os.write(2, b"in the child")
        open(tmp_path / "new.txt", "w").close()

    with path.open("w", encoding="utf-8") as file, ours, theirs:
        file.write("before\n")
        files = open_files()
        with pytest.raises(ChildFailedError, match="Too many open files"):
            in_child(writes, LONG)
        assert open_files() == files
        with pytest.raises(BlockingIOError):
            ours.recv(1)
    assert path.read_text(encoding="utf-8") == "before\n"
    assert not (tmp_path / "new.txt").exists()
    assert capfd.readouterr() == ("", "")


def test_a_system_that_makes_no_more_files_makes_no_child():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(ChildLostError, match=r"the system makes no process: .*Too many open files"):
            in_child(lambda: 1, LONG)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_signal_reaches_this_process_alone():
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(os.getpid()))
    try:

        def calls_itself():
            os.kill(os.getpid(), signal.SIGUSR1)
            return list(heard)

        assert in_child(calls_itself, LONG) == []
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [os.getpid()]


def test_a_program_that_ignores_its_children_is_served_too():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert in_child(lambda: 5, LONG) == 5
        with pytest.raises(ChildLostError):
            in_child(queue.Queue().get, 0.1)
    finally:
        signal.signal(signal.SIGCHLD, before)


ENDED_AND_LOST = """
import os, queue
from gradwatch.explain.forked_child import ChildLostError, in_child
in_child(lambda: 1, 600)
try:
    in_child(queue.Queue().get, 0.1)
except ChildLostError:
    print("lost")
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("none stays")
"""


@pytest.mark.process
def test_no_child_stays():
    """In a process of its own: the process of the tests may have other children."""
    assert run([sys.executable, "-c", ENDED_AND_LOST], check=True).stdout.splitlines() == ["lost", "none stays"]


def test_tensors_are_computed_after_many_threads_were_used_here():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        a = torch.randn(300, 300, requires_grad=True)
        (a @ a).relu().sum().backward()
        found = in_child(lambda: torch.autograd.grad((a @ a).relu().sum(), a)[0].sum().item(), LONG)
        assert found == pytest.approx(a.grad.sum().item(), rel=1e-4)
    finally:
        torch.set_num_threads(threads)
