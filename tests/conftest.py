"""What every test shares."""

import gc
import sys

import pytest
import torch

torch.set_num_threads(1)  # tensors this small are slower on several threads, and far slower on a busy machine


def pytest_collection_finish():
    """Leave what the imports made, over a million objects, out of every later garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_counts_as_compiled_any_more():
    """What one test has compiled is no business of the next: gradwatch asks how many graphs this process compiled."""
    yield
    if (dynamo := sys.modules.get("torch._dynamo.utils")) is not None:
        dynamo.counters.clear()
