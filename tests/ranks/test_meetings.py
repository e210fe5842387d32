"""Ranks agree before each exchange: all take part, or none does."""

import threading
import time
from datetime import timedelta

import pytest
from torch.distributed import HashStore, PrefixStore, TCPStore

from gradwatch.ranks import meetings
from gradwatch.ranks.meetings import Meetings
from tests.distributed.launch import torchrun

LATE = 0.6  # seconds, as a rank is that saves a checkpoint between the backward pass and the update

TRAINING = f"""
import time

import torch
import torch.distributed as dist

import gradwatch

dist.init_process_group("gloo")
rank, rows = dist.get_rank(), torch.randn(8, 4)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
with gradwatch.watch(model, optimizer, on_nonfinite="skip"):
    for step in range(5):
        optimizer.zero_grad()
        model(rows).square().mean().backward()
        if rank == 0 and step == 3:
            time.sleep({LATE})
        optimizer.step()
print("trained", flush=True)
dist.destroy_process_group()
time.sleep(0.5)  # gloo's threads still hold the last tensors, and torch aborts if the process ends now
"""


class Counted(PrefixStore):
    """A store that counts what is asked of it."""

    requests = 0

    def add(self, *asked):
        self.requests += 1
        return super().add(*asked)

    def wait(self, *asked):
        self.requests += 1
        return super().wait(*asked)

    def set(self, *asked):
        self.requests += 1
        return super().set(*asked)

    def compare_set(self, *asked):
        self.requests += 1
        return super().compare_set(*asked)

    def delete_key(self, *asked):
        self.requests += 1
        return super().delete_key(*asked)


class OfOneStore:
    """A group of threads, each of which is a rank."""

    def __init__(self, rank, size, store):
        self.rank, self.size, self.is_alive = rank, size, True
        self._store = Counted("test", store)

    def store(self):
        return self._store


def meetings_of(size):
    store = HashStore()
    return [Meetings(OfOneStore(rank, size, store), "about") for rank in range(size)]


def together(acts):
    """Return what each of ``acts`` has returned, a thread each."""
    found = [None] * len(acts)

    def run(place):
        found[place] = acts[place]()

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads), "a rank waits for ever"
    return found


@pytest.fixture
def _impatient(monkeypatch):
    monkeypatch.setattr(meetings, "PATIENCE", timedelta(seconds=1))


def test_all_that_come_take_part():
    ranks = meetings_of(3)
    answers = together([lambda each=each: [each.come("x") for _ in range(20)] for each in ranks])
    assert answers == [[True] * 20] * 3


def test_a_meeting_takes_three_requests_of_each_rank():
    """And one more of the last to come, which decides, wakes the others and tidies up after the meeting before."""
    ranks = meetings_of(4)
    together([lambda each=each: [each.come("x") for _ in range(10)] for each in ranks])
    assert sum(each.group.store().requests for each in ranks) == 10 * (3 * len(ranks) + 1) - 1


@pytest.fixture(params=[True, False], ids=["libuv", "sockets"])
def connected(request):
    """Meetings of two ranks, each connected to a store of either kind that ``torchrun`` may serve."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, use_libuv=request.param)
    client = TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False, use_libuv=request.param)
    return [Meetings(OfOneStore(rank, 2, store), "about") for rank, store in enumerate([server, client])]


def test_who_comes_late_takes_part_and_torch_prints_no_warning(connected, capfd):
    first, late = connected

    def come_late():
        time.sleep(LATE)
        return late.come("x")

    begin = time.monotonic()
    assert together([lambda: first.come("x"), come_late]) == [True, True]
    assert time.monotonic() - begin < 15  # of 20
    assert capfd.readouterr() == ("", "")


def test_who_waits_hears_at_once_that_a_rank_has_left(connected, capfd):
    first, second = connected
    assert together([lambda: first.come("x"), lambda: second.come("x")]) == [True, True]

    def leave_late():
        time.sleep(LATE)
        second.leave()

    begin = time.monotonic()
    assert together([lambda: first.come("x"), leave_late]) == [False, None]
    assert time.monotonic() - begin < 15  # of 20
    assert first.reason == "rank 1 is watched no longer"
    assert capfd.readouterr() == ("", "")


@pytest.mark.process
@pytest.mark.slow
def test_a_rank_that_comes_late_to_an_update_leaves_nothing_on_the_streams(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TRAINING, encoding="utf-8")
    ended = torchrun(2, [str(script)], tmp_path, 300)
    assert ended.output.count("trained") == 2, ended.output
    assert [line for line in ended.output.splitlines() if "timed out" in line or "timeout" in line] == []


@pytest.mark.usefixtures("_impatient")
def test_a_rank_that_does_not_come_keeps_the_others_waiting_once():
    first, second, late = meetings_of(3)
    assert together([lambda: first.come("x"), lambda: second.come("x")]) == [False, False]
    assert not late.come("x")  # all get the same answer
    assert not first.come("x")
    assert {each.reason for each in (first, second, late)} == {"not every rank came to an update within 1 s"}


@pytest.mark.usefixtures("_impatient")
def test_ranks_that_mean_different_exchanges_do_not_meet():
    ranks = meetings_of(2)
    assert together([lambda: ranks[0].come("x"), lambda: ranks[1].come("y")]) == [False, False]


def test_nobody_waits_long_for_a_rank_that_has_left():
    first, second = meetings_of(2)
    assert together([lambda: first.come("x"), lambda: second.come("x")]) == [True, True]
    second.leave()
    begin = time.monotonic()
    assert not first.come("x")
    assert time.monotonic() - begin < 15  # of 20
    assert first.reason == "rank 1 is watched no longer"


def test_what_was_decided_does_not_pile_up():
    ranks = meetings_of(2)
    together([lambda each=each: [each.come("x") for _ in range(50)] for each in ranks])
    assert ranks[0].group.store().num_keys() < 5


@pytest.mark.usefixtures("_impatient")
def test_a_store_that_is_gone_ends_the_meetings():
    first, _ = meetings_of(2)

    def gone():
        raise RuntimeError("it is gone")

    first.group.store = gone
    assert not first.come("x")
    assert "it is gone" in first.reason
