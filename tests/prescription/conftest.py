"""A clock that does not depend on the machine."""

import time

import pytest


class Clock:
    """A stand-in for ``time.perf_counter``, each reading of which takes ``tick`` seconds; sleeping moves it, too.

    ``prescribe`` reads the clock once an update, so a budget is a number of updates, the same on every machine.
    """

    def __init__(self):
        self.now, self.tick = 0.0, 1e-2

    def __call__(self):
        self.sleep(self.tick)
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.setattr("gradwatch.prescription.number_of_workers", lambda: 1)  # a child has a clock of its own
    return clock
