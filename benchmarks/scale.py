"""What watching costs on many ranks: ``python -m benchmarks.scale [--write]``.

**Counted.** One process plays rank 0 of up to 1,024. torch's ``fake`` process group sends nothing and answers at once;
everything else is the real code of torch and of gradwatch. A dispatch mode counts the collectives that reach the group,
and their bytes. Host time is the processor time of the update in that process, which waits for nobody. What a network
adds depends on the number of ranks, and is the same for any tool that sends as much: it is counted, not timed.

**Measured.** With ``--measure``, two real processes train the same sharded model with ``clip_grad_norm_`` of torch and
with ``clip=1.0`` of gradwatch, in turns.

**Measured at the store.** With ``--meet``, threads of two processes meet before an exchange, as ranks do. Each has a
connection of its own to a real ``TCPStore`` in a third process, whose processor time counts.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed import fake_pg  # noqa: F401  # makes the backend "fake" known
from torch.utils._python_dispatch import TorchDispatchMode

import gradwatch
from benchmarks.pages import write_between
from gradwatch.ranks.meetings import Meetings

PAGE = Path("docs/distributed.md")
MARKERS = "<!-- bench-scale: begin -->", "<!-- bench-scale: end -->"
MEETING_MARKERS = "<!-- bench-meetings: begin -->", "<!-- bench-meetings: end -->"
RANKS = (2, 16, 128, 1024)
LAYERS = 10, 1000  # each has a weight and a bias
SIZES = [*((ranks, 100) for ranks in RANKS), *((RANKS[-1], count) for count in LAYERS)]
NARROW, WIDE = 8, 1024  # so that 1,024 ranks have a row each
SETTLED = 21  # updates, after which a look at the weights comes every tenth step
STEPS = 20


class Everybody(dist.Store):
    """The store of a process group whose ranks all do what this one does."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size, self._values = size, {}

    def set(self, key: str, value: bytes | str) -> None:
        self._values[key] = value.encode() if isinstance(value, str) else bytes(value)

    def get(self, key: str) -> bytes:
        return self._values[key]

    def add(self, key: str, amount: int) -> int:
        total = int(self._values.get(key, b"0")) + amount * self._size
        self._values[key] = str(total).encode()
        return total

    def compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        present = self._values.get(key, b"")
        if present == bytes(expected):
            present = self._values[key] = bytes(desired)
        return present

    def check(self, keys: list[str]) -> bool:
        return all(key in self._values for key in keys)

    def delete_key(self, key: str) -> bool:
        return self._values.pop(key, None) is not None

    def num_keys(self) -> int:
        return len(self._values)

    def wait(self, keys: list[str], timeout: object = None) -> None:
        pass


class Traffic(TorchDispatchMode):
    """Counts collectives and the bytes that this rank hands over to them."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives = self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # comes again as what it does to the parts, collectives among it
        if function.namespace in ("c10d", "_c10d_functional") and "wait" not in str(function):
            self.collectives += 1
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(args))
        return function(*args, **(kwargs or {}))


def tensors_in(values: object) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_in(value)


@contextmanager
def pretended(ranks: int) -> Iterator[None]:
    """Be rank 0 of many that are not there."""
    store = Everybody(ranks)  # held here: the group holds no more than its half in C++
    dist.init_process_group("fake", store=store, rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def layers(count: int) -> nn.Sequential:
    pairs = [[nn.Linear(NARROW, WIDE), nn.Linear(WIDE, NARROW)] for _ in range(count // 2)]
    return nn.Sequential(*[layer for pair in pairs for layer in pair])


def fsdp2(count: int) -> nn.Module:
    return fully_shard(layers(count))


def ddp(count: int) -> nn.Module:
    return DistributedDataParallel(layers(count))


@dataclass(frozen=True)
class Cost:
    """What a step costs between the backward pass and the update, that included.

    Attributes:
        collectives, bytes: of a step, on average.
        seconds: of this process, the median over steps.
    """

    collectives: float
    bytes: float
    seconds: float


def cost_of(make: Callable[[int], nn.Module], count: int, clips: str) -> Cost:
    """Return what the steps cost with torch's clipping, with gradwatch's, or with neither."""
    model = make(count)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, foreach=True)
    watcher = gradwatch.watch(model, optimizer, clip=1.0) if clips == "gradwatch" else None
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)

    def step() -> None:
        if clips == "torch":
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    for _ in range(SETTLED):
        step()
    with Traffic() as traffic:
        for _ in range(STEPS):
            step()
    seconds = [timed(step) for _ in range(STEPS)]
    if watcher is not None:
        watcher.close()
        if len(watcher.history) != SETTLED + 2 * STEPS:
            raise RuntimeError(f"{len(watcher.history)} of {SETTLED + 2 * STEPS} steps were measured")
    return Cost(traffic.collectives / STEPS, traffic.bytes / STEPS, statistics.median(seconds))


def timed(act: Callable[[], None], clock: Callable[[], float] = time.process_time) -> float:
    begin = clock()
    act()
    return clock() - begin


def counted() -> Iterator[str]:
    """Yield a table: how a step's cost grows with ranks and with layers."""
    yield (
        "| strategy | ranks | weights and biases | collectives a step: torch's clipping, gradwatch's "
        "| bytes a step: torch's, gradwatch's | host time of the update, ms: unclipped, torch's, gradwatch's |\n"
        "|---|---|---|---|---|---|"
    )
    for name, make in {"FSDP2": fsdp2, "DDP": ddp}.items():
        for ranks, count in SIZES:
            with pretended(ranks):
                bare, torchs, ours = (cost_of(make, count, clips) for clips in ("", "torch", "gradwatch"))
            yield (
                f"| {name} | {ranks:,} | {2 * count:,} | {torchs.collectives:g}, {ours.collectives:g} "
                f"| {torchs.bytes:,.0f}, {ours.bytes:,.0f} "
                f"| {bare.seconds * 1e3:.2f}, {torchs.seconds * 1e3:.2f}, {ours.seconds * 1e3:.2f} |"
            )


# --- measured with two processes


BLOCKS, WIDTH, TOKENS, ROUNDS = 6, 256, 512, 120


def trained(clips: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a step of a sharded MLP on random data, and what closes it."""
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)) for _ in range(BLOCKS)]
    for part in parts:
        fully_shard(part)
    model = fully_shard(nn.Sequential(*parts))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    watcher = gradwatch.watch(model, optimizer, clip=1.0) if clips == "gradwatch" else None
    rows = torch.randn(TOKENS, WIDTH)

    def step() -> None:
        nn.functional.mse_loss(model(rows), rows).backward()
        if clips == "torch":
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, watcher.close if watcher is not None else lambda: None


def measure() -> None:
    """Time both ways on this rank, their steps interleaved; rank 0 prints the ratio."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ways = {clips: trained(clips) for clips in ("torch", "gradwatch")}
    times: dict[str, list[float]] = {clips: [] for clips in ways}
    for _ in range(ROUNDS):
        for clips, (step, _) in ways.items():
            dist.barrier()
            times[clips].append(timed(step, time.perf_counter))
    for _, close in ways.values():
        close()
    if dist.get_rank() == 0:
        settled = {clips: seconds[SETTLED:] for clips, seconds in times.items()}
        ratios = [ours / theirs for ours, theirs in zip(settled["gradwatch"], settled["torch"])]
        means = statistics.mean(settled["gradwatch"]) / statistics.mean(settled["torch"])
        print(
            f"Two processes, gloo, FSDP2, {len(ratios)} steps each: a step with gradwatch's `clip=1.0` takes "
            f"{statistics.median(ratios):.3f} (median), {means:.3f} (means) of one with `clip_grad_norm_`, "
            f"which takes {statistics.median(settled['torch']) * 1e3:.1f} ms."
        )
    dist.destroy_process_group()
    time.sleep(0.5)  # gloo's threads still hold the last tensors, and torch aborts if the process ends now


def measured() -> str:
    """Return what two processes have measured."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "benchmarks.scale", "--rank"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout.strip()


# --- meetings at a real store


MEETING_RANKS, MEETINGS, CLIENTS = (2, 8, 32, 128), 100, 2


@dataclass(frozen=True)
class OneOfMany:
    """A rank as meetings know it: its number, how many there are, and its own connection to the store."""

    rank: int
    size: int
    connection: dist.Store
    is_alive: bool = True

    def store(self) -> dist.Store:
        return self.connection


def serve(answers: Queue[float], is_over: Queue[bool]) -> None:
    """Be the store: say at which port, and, once all is over, how much processor time it took."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    answers.put(store.port)
    is_over.get()  # connections are there
    begin = time.process_time()
    answers.put(0.0)
    is_over.get()
    answers.put(time.process_time() - begin)


def meet(port: int, ranks: Sequence[int], size: int, begin: Barrier) -> None:
    """Be some of the ranks, a thread each."""
    stores = [dist.TCPStore("127.0.0.1", port, is_master=False) for _ in ranks]

    def run(rank: int, store: dist.Store) -> None:
        meetings = Meetings(OneOfMany(rank, size, store), "bench")  # type: ignore[arg-type]
        if not all(meetings.come("x") for _ in range(MEETINGS)):
            raise RuntimeError(meetings.reason)

    threads = [threading.Thread(target=run, args=each) for each in zip(ranks, stores, strict=True)]
    begin.wait()  # all are connected
    begin.wait()  # and the store looks at its clock
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def seconds_of_store(size: int) -> float:
    """Return the processor time that the store takes for one meeting of ``size`` ranks."""
    spawn = multiprocessing.get_context("spawn")
    answers, is_over, begin = spawn.Queue(), spawn.Queue(), spawn.Barrier(CLIENTS + 1)
    server = spawn.Process(target=serve, args=(answers, is_over))
    server.start()
    port = int(answers.get())
    each = [range(client, size, CLIENTS) for client in range(CLIENTS)]
    clients = [spawn.Process(target=meet, args=(port, ranks, size, begin)) for ranks in each]
    for client in clients:
        client.start()
    begin.wait()
    is_over.put(True)
    answers.get()
    begin.wait()
    for client in clients:
        client.join()
    is_over.put(True)
    seconds = float(answers.get())
    server.join()
    if any(client.exitcode for client in clients):
        raise RuntimeError("some ranks did not meet")
    return seconds / MEETINGS


def met() -> Iterator[str]:
    """Yield a table: how the work of the store grows with the ranks that meet."""
    yield "| ranks | requests a meeting | processor time of the store, ms a meeting | µs a request |\n|---|---|---|---|"
    for size in MEETING_RANKS:
        seconds = seconds_of_store(size)
        requests = 3 * size + 1  # the last one decides in two and removes a key, instead of waiting and reading
        yield f"| {size} | {requests} | {seconds * 1e3:.2f} | {seconds / requests * 1e6:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="also time two real processes")
    parser.add_argument("--meet", action="store_true", help="measure nothing but meetings at a real store")
    parser.add_argument("--write", action="store_true", help=f"write the tables into {PAGE}")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.getLogger("gradwatch").addHandler(logging.NullHandler())
    if arguments.rank:
        measure()
        return
    torch.set_num_threads(1)
    lines = []
    for line in met() if arguments.meet else counted():
        print(line, flush=True)
        lines.append(line)
    if arguments.measure:
        lines += ["", measured()]
        print(lines[-1])
    if arguments.write:
        write_between(PAGE, MEETING_MARKERS if arguments.meet else MARKERS, "\n".join(lines))


if __name__ == "__main__":
    main()
