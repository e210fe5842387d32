"""What every test shares."""

import gc
import os
import signal
import sys
from collections import defaultdict
from importlib.metadata import version

import hypothesis
import pytest
import torch

from gradwatch.watcher import sink_dispatcher
from tests.slow_tests import slow_functions

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)  # the same wherever it runs
hypothesis.settings.load_profile("repeatable")
sink_dispatcher.PATIENCE = sink_dispatcher.LAST_PATIENCE = 60.0  # what a test has written, it reads at once
torch.set_num_threads(1)  # tensors this small are slower on several threads, and far slower on a busy machine

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a job in the background; processes would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """Let a warning pass that an old release of another package makes of itself."""
    if version("wandb").startswith("0.18."):  # it closes none of its own sockets
        config.addinivalue_line("filterwarnings", "ignore:unclosed <socket:ResourceWarning")


COVERED_ALIKE = 100  # of the tests that differ by parameters alone


@pytest.hookimpl(tryfirst=True)  # before markers are asked for
def pytest_collection_modifyitems(items):
    """Mark what takes long, and let coverage follow some of many tests that differ by parameters alone.

    Being followed doubles their time.
    """
    alike = defaultdict(list)
    for item in items:
        alike[item.nodeid.partition("[")[0]].append(item)
    slow = slow_functions()
    for name, tests in alike.items():
        for test in tests[slow[name] :] if name in slow else ():
            test.add_marker("slow")
        every = max(1, len(tests) // COVERED_ALIKE)
        for index, test in enumerate(tests):
            if index % every:
                test.add_marker("no_cover")


def pytest_collection_finish():
    """Leave what the imports made, over a million objects, out of every later garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _lines_of_forked_children_count():
    """Let a forked child, which may open no file and ends without a trace, leave its coverage before it ends."""
    end, coverage = os._exit, sys.modules.get("coverage")

    def leave_coverage_and_end(status):
        try:
            if coverage is not None and (current := coverage.Coverage.current()) is not None:
                import resource

                most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
                current.stop()
                current.save()
        finally:
            end(status)

    os._exit = leave_coverage_and_end
    yield
    os._exit = end


@pytest.fixture(autouse=True, scope="module")
def _what_a_file_has_loaded_is_collected_no_more():
    """Leave out what later imports made, too: a collection in a test would else take a fifth of a second."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_counts_as_compiled_any_more():
    """Leave nothing of what one test has compiled to the next: gradwatch asks how many graphs were compiled."""
    yield
    if (dynamo := sys.modules.get("torch._dynamo.utils")) is not None:
        dynamo.counters.clear()
        torch.distributions.Distribution.set_default_validate_args(True)  # compiling turns it off for the process
