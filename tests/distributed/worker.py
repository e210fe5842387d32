"""Run programs on this rank, each in a process group of its own: ``-m tests.distributed.worker RESULTS MODULE NAME…``.

A program that takes too long is a hang. This rank then prints where each of its threads is, and ends, and with it the
launch.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.distributed.launch import SECONDS, file_name


def main(results: str, module: str, *names: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch warns of its own prototypes
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, is_master=False)
    programs = importlib.import_module(module).PROGRAMS
    for name in names:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        open_group(store, name, rank, world)
        answer = answer_of(programs[name])
        path = Path(results) / f"{file_name(name)}.{rank}.json"
        path.with_suffix(".part").write_text(json.dumps(answer), encoding="utf-8")
        path.with_suffix(".part").rename(path)
        gc.collect()
        if dist.is_initialized():
            dist.destroy_process_group()
    faulthandler.cancel_dump_traceback_later()


def open_group(store: dist.Store, name: str, rank: int, world: int) -> None:
    """Join the process group of a program. Its limit is longer than ours, so that a hang is ours to tell."""
    prefixed = dist.PrefixStore(name, store)
    dist.init_process_group("gloo", store=prefixed, rank=rank, world_size=world, timeout=timedelta(seconds=5 * SECONDS))


def answer_of(program: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"result": program()}
    except Exception:
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    main(*sys.argv[1:])
