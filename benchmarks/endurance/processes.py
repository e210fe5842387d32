"""Start processes that need not load torch: each is a fork of one that has loaded it, and has no second thread."""

from __future__ import annotations

import functools
import multiprocessing
import os
from multiprocessing.context import ForkServerContext

__all__ = ["SINGLE_THREAD", "loaded_context"]

SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""What a process is given that is to be forked: no fork would have its second thread."""

_LOADED = (
    "numpy",
    "torch.nn.parallel",
    "torch.utils.data",
    "torch.utils.tensorboard",
    "tensorboard.compat.proto.event_pb2",
    "lightning.pytorch",
)


@functools.cache
def loaded_context() -> ForkServerContext:
    """Return what starts processes that have loaded torch, TensorBoard and Lightning, and nothing of gradwatch."""
    os.environ.update(SINGLE_THREAD)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_LOADED))
    return context
