"""Leave out what torch itself cannot do: torch 2.6 has no FSDP2 on a CPU."""

from pathlib import Path

import torch

RUNS_FSDP2 = hasattr(torch.cpu.Stream, "record_event")
"""Whether FSDP2 runs on a CPU: it asks for events of a CPU's streams, of which torch 2.6 knows nothing."""

USES_FSDP2 = ("FSDP2", "HSDP", "expert mesh", "ModelParallelStrategy", "test_gradwatch_run_")


def pytest_collection_modifyitems(config, items):
    """Deselect the tests that train with FSDP2; ``test_fsdp2_on_a_cpu.py`` holds torch to it."""
    ours = [item for item in items if item.path.parent == Path(__file__).parent]
    left_out = {item for item in ours if not RUNS_FSDP2 and any(name in item.name for name in USES_FSDP2)}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]
