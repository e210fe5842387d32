"""Let a program of GRIST take one training step on the failing input that GRIST has found.

GRIST changes the input of a program until the loss is NaN or Inf, and then leaves: before the backward pass, so that a
training monitor has nothing to look at. Here the program goes on for one update. Six of the programs compute a loss
and train nothing (``EXTERNAL_GRIST=drive``): for those this adapter makes the one update, by SGD on the leaves of the
loss's graph. The search itself is GRIST's own.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from external_adapters.imports import after_import


def install() -> None:
    """Wait for GRIST's searcher."""
    after_import("scripts.utils.torch_utils", _change)


def _change(searchers: ModuleType) -> None:
    import torch

    failed = False

    def loss_checker(self: Any, loss_val: Any, log_msg: str | None = None) -> None:
        nonlocal failed
        if failed:
            raise SystemExit(0)
        if not bool(torch.isfinite(loss_val).all()):
            print(f"GRIST found a loss of {loss_val} at its iteration {self.iter_count}", flush=True)
            failed = True
            if os.environ.get("EXTERNAL_GRIST") == "drive":
                train_once(loss_val)
                raise SystemExit(0)

    searchers.TorchScheduler.loss_checker = loss_checker


def train_once(loss: Any) -> None:
    """Make one update by SGD from ``loss``, on all leaves of its graph."""
    import torch

    optimizer = torch.optim.SGD(list(leaves(loss)), lr=1e-3)
    optimizer.zero_grad()
    loss.sum().backward()
    optimizer.step()


def leaves(loss: Any) -> list[Any]:
    """Return the tensors that ``loss.backward()`` gives gradients to."""
    found: dict[int, Any] = {}
    seen, ahead = set(), [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        ahead += [following for following, _ in node.next_functions]
    return list(found.values())
