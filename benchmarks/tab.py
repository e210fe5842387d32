"""How fast the GradWatch tab opens and zooms, in Chromium, over runs of two sizes and both of TensorBoard's loaders.

Run ``python -m benchmarks.tab [small large scalars]``. Needs Chromium; set CHROMIUM to its path where it is not
/usr/bin/chromium. Prints one table row for each: seconds until TensorBoard has loaded the run; seconds to the first
picture, from opening the tab, and from opening the page in a new browser; frames while zooming in and out; bytes the
tab fetched. With the fast loader each figure is the median of three tries, each with a TensorBoard and a browser of its
own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

from gradwatch.measure.report import StepReport
from gradwatch.sinks import Row
from gradwatch.sinks.tensorboard import TensorBoard

SCALARS = ("grad_norm", "weight_norm", "update_ratio")
SIZES = {
    "small": (300, 3_000, ()),
    "long": (1_000, 2_000, ()),
    "large": (1_000, 20_000, ()),
    "scalars": (300, 2_000, SCALARS),
}
"""Layers, logged steps, scalars a layer beside the packed rows; 2,000 rows are 100,000 steps at the default cadence."""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
TURNS = 40  # of the wheel
TRIES = {True: 3, False: 1}  # by whether the loader is fast: the other one takes minutes
FRAMES = """() => { window.frames_ = []; let last = performance.now();
  const tick = (now) => { window.frames_.push(now - last); last = now; requestAnimationFrame(tick); };
  requestAnimationFrame(tick); }"""
DRAWN = """() => performance.getEntriesByName('gradwatch drawn')[0].startTime / 1000"""
FETCHED = """() => performance.getEntriesByType('resource').reduce((sum, each) => sum + each.transferSize, 0)"""


def write_run(directory: Path, layers: int, steps: int, scalars: tuple[str, ...]) -> int:
    """A run of noise in ``layers // 8`` blocks, one spike in it; returns the bytes written."""
    rng = np.random.default_rng(0)
    parts = ("attn.q.weight", "attn.q.bias", "attn.out.weight", "attn.out.bias", "mlp.0.weight", "mlp.0.bias",
             "norm.weight", "norm.bias")  # fmt: skip
    names = tuple(f"blocks.{number // 8}.{parts[number % 8]}" for number in range(layers))
    shape = {"layers": names, "depth": np.arange(layers), "size": np.full(layers, 4096)}
    sink = TensorBoard(directory, layer_scalars=scalars)
    for step in range(steps):
        norm = np.exp(rng.normal(-np.arange(layers) / layers * 5, 0.3))
        norm[layers // 2] *= 1e4 if step == steps // 3 else 1
        zeros = np.zeros(layers, dtype=np.int64)
        report = StepReport(
            step=step, optimizer=0, update=step, measured=zeros == 0, grad_norm=norm, nonfinite=zeros,
            grad_norm_total=1.0, grad_norm_clipped_total=0.5, loss=1.0, **shape,
        )  # fmt: skip
        figures = {"update_ratio": norm / 1e3, "weight_norm": norm * 10}
        band = np.stack([norm / 1e4, norm * 2])
        sink.write_row(Row(report, norm * 1.1, norm * 0.9, 1.0, 1.0, figures, 0, clipped=step % 3 == 0, band=band))
    sink.close()
    return sum(path.stat().st_size for path in directory.iterdir())


@contextlib.contextmanager
def tensorboard(directory: Path, fast: bool):
    """Its address, once the run is loaded; and how long that took."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(directory), "--port", "0"]
    flags = ["--host", "127.0.0.1", f"--load_fast={str(fast).lower()}"]
    began = time.perf_counter()
    server = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True)
    try:
        address = next(match[0] for line in server.stderr if (match := re.search(r"http://\S+?:\d+", line)))
        yield address, began
    finally:
        server.terminate()
        server.communicate()


def wait_for(address: str, steps: int) -> None:
    """Until all rows are there; asks for nothing but the totals, whose reading costs next to nothing."""
    while True:
        question = f"{address}/data/plugin/gradwatch/overview?run=."
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(question) as response:
            if json.load(response)["rows"] == steps:
                return
        time.sleep(0.5)


@dataclass(frozen=True)
class Look:
    """What one look at the tab took.

    Attributes:
        loaded: seconds until TensorBoard had the run.
        opened, drawn: seconds to the first picture, from opening the page, and the tab within it.
        median, most, longest: milliseconds of a frame while zooming: the middle one, the 95th percentile, the longest.
        fetched: bytes.
    """

    loaded: float
    opened: float
    drawn: float
    median: float
    most: float
    longest: float
    fetched: int


def look(address: str, loaded: float) -> Look:
    """Open the tab in a new browser, zoom in and out, and say what that took."""
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        browser = playwright.chromium.launch_persistent_context(
            profile, executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=FLAGS,
            viewport={"width": 1280, "height": 800},
        )  # fmt: skip
        page = browser.new_page()
        began = time.perf_counter()
        page.goto(f"{address}/#gradwatch", wait_until="commit")
        frame = page.frame_locator("iframe")
        frame.locator(".panel[data-drawn]").wait_for(timeout=120_000)
        opened = time.perf_counter() - began
        (inner,) = (each for each in page.frames if "plugin_entry" in each.url)
        drawn = inner.evaluate(DRAWN)
        frame.locator(".plot").hover()
        inner.evaluate(FRAMES)
        for turn in range(TURNS):
            page.mouse.wheel(0, -100 if turn < TURNS // 2 else 100)
            page.wait_for_timeout(60)
        zooming = inner.evaluate("window.frames_")
        page.wait_for_timeout(3_000)  # what settles is fetched, and drawn
        longest, fetched = max(inner.evaluate("window.frames_")), inner.evaluate(FETCHED)
        browser.close()
    return Look(loaded, opened, drawn, *np.percentile(zooming, [50, 95]).tolist(), longest, fetched)


def looks(directory: Path, fast: bool, steps: int) -> Iterator[Look]:
    """Look at the run, each time with a TensorBoard that has read nothing for the tab yet."""
    for _ in range(TRIES[fast]):
        with tensorboard(directory, fast) as (address, began):
            wait_for(address, steps)
            yield look(address, time.perf_counter() - began)


def main(sizes: list[str]) -> None:
    print(
        "| layers × steps | file | loader | loaded after | first picture | with TensorBoard's own page "
        "| frame while zooming: median, 95 % below, longest | fetched |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in sizes:
        layers, steps, scalars = SIZES[name]
        with tempfile.TemporaryDirectory() as directory:
            size = write_run(Path(directory), layers, steps, scalars)
            for fast in (True, False):
                shape = f"{layers:,} × {steps:,}{', with scalars' * bool(scalars)} | {size / 1e6:.0f} MB"
                print(
                    f"| {shape} | `--load_fast={str(fast).lower()}` | {table_row(looks(Path(directory), fast, steps))}",
                    flush=True,
                )


def table_row(tries: Iterable[Look]) -> str:
    """The medians of some looks, as the rest of a row."""
    all_tries = list(tries)
    middle = Look(*(statistics.median(getattr(one, each.name) for one in all_tries) for each in fields(Look)))
    frames = f"{middle.median:.0f}, {middle.most:.0f}, {middle.longest:.0f} ms"
    times = f"{middle.loaded:.1f} s | {middle.drawn:.2f} s | {middle.opened:.2f} s"
    return f"{times} | {frames} | {middle.fetched / 1e6:.1f} MB |"


if __name__ == "__main__":
    main(sys.argv[1:] or list(SIZES))
