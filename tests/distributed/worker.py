"""Run programs on ranks, each in a process group of its own.

Usage: ``python -m tests.distributed.worker WORLD RESULTS MODULE NAME…``.

A program that takes too long is a hang. A rank then prints where each of its threads is, and ends, and with it the
launch.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.distributed.launch import SECONDS, file_name


def main(world: str, results: str, module: str, *names: str) -> None:
    """Load everything, fork the ranks, and wait for them, with an address at which they meet."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch warns of its own prototypes
    programs = importlib.import_module(module).PROGRAMS
    gc.collect()
    gc.freeze()  # what the imports made, over a million objects, is no part of later collections
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        pids = {}
        for rank in range(int(world)):
            if (pid := os.fork()) == 0:
                server.close()
                run_rank(rank, int(world), port, programs, Path(results), names)
                return
            pids[pid] = rank
        store = dist.TCPStore(
            "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach()
        )
    wait_for(pids)
    del store


def wait_for(pids: dict[int, int]) -> None:
    """Wait for the ranks. The first one that fails ends the others, and this process with its status."""
    while pids:
        pid, ended = os.wait()
        rank = pids.pop(pid)
        if (status := os.waitstatus_to_exitcode(ended)) != 0:
            for other in pids:
                os.kill(other, signal.SIGKILL)
            sys.exit(f"rank {rank} ended with status {status}")


def run_rank(rank: int, world: int, port: int, programs: dict[str, Any], results: Path, names: Sequence[str]) -> None:
    """Be one rank: run each program and write what it returns."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()}, MASTER_ADDR="127.0.0.1")
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    for name in names:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        open_group(store, name, rank, world)
        answer = answer_of(programs[name])
        path = results / f"{file_name(name)}.{rank}.json"
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
