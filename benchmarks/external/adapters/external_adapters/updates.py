"""Seed a run, end it after a number of updates, and record what a bare run did.

Every program uses this adapter. The seed makes a run repeatable; the end by updates, not by seconds, makes it the same
on a slow machine. Three variables steer it: ``EXTERNAL_SEED``, ``EXTERNAL_UPDATES`` (of all optimizers together) and
``EXTERNAL_RECORD`` (a file; set for bare runs alone).
"""

from __future__ import annotations

import atexit
import importlib
import json
import math
import os
import random
from pathlib import Path
from types import ModuleType
from typing import Any

from external_adapters.imports import after_import

MOST_VALUES = 5000


def install() -> None:
    """Wait for torch."""
    random.seed(_seed())
    after_import("numpy", lambda numpy: numpy.random.seed(_seed()))
    after_import("torch", _prepare)


def _seed() -> int:
    return int(os.environ.get("EXTERNAL_SEED", "0"))


def _prepare(torch: ModuleType) -> None:
    torch.manual_seed(_seed())
    torch.set_num_threads(1)
    if "EXTERNAL_RECORD" in os.environ:
        _Record(torch, Path(os.environ["EXTERNAL_RECORD"]))
    most = int(os.environ.get("EXTERNAL_UPDATES", "0"))
    if most:
        _end_after(most)


def _end_after(most: int) -> None:
    """Raise ``SystemExit`` after update number ``most``."""
    count = 0

    def after(optimizer: Any, args: Any, keywords: Any) -> None:
        nonlocal count
        count += 1
        if count >= most:
            raise SystemExit(0)

    _hooks().register_optimizer_step_post_hook(after)


def _hooks() -> ModuleType:
    return importlib.import_module("torch.optim.optimizer")  # torch.optim hides the name


class _Record:
    """What a bare run did: its losses and, at each update, the norm of all gradients, in float64."""

    def __init__(self, torch: ModuleType, path: Path) -> None:
        self._torch, self._path, self._process = torch, path, os.getpid()
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._updates = 0
        _hooks().register_optimizer_step_pre_hook(self._before)
        self._follow_losses(torch)
        atexit.register(self._write)

    def _follow_losses(self, torch: ModuleType) -> None:
        backward = torch.Tensor.backward

        def noted_backward(loss: Any, *args: Any, **keywords: Any) -> Any:
            if loss.numel() == 1 and len(self._losses) < MOST_VALUES:
                self._losses.append(float(loss.detach()))
            return backward(loss, *args, **keywords)

        torch.Tensor.backward = noted_backward  # type: ignore[attr-defined]

    def _before(self, optimizer: Any, args: Any, keywords: Any) -> None:
        self._updates += 1
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if len(self._norms) < MOST_VALUES:
            squares = [
                float(g.detach().double().coalesce().values().square().sum())
                if g.is_sparse
                else float(g.detach().double().square().sum())
                for g in gradients
            ]
            self._norms.append(math.sqrt(sum(squares)) if all(map(math.isfinite, squares)) else math.nan)

    def _write(self) -> None:
        if os.getpid() == self._process:  # not in the processes that a loader of data starts
            self._path.write_text(
                json.dumps({"updates": self._updates, "losses": self._losses, "norms": self._norms}), encoding="utf-8"
            )
