"""Event files of short runs, real and forged, for the tests of what reads them."""

import json

import numpy as np
import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.util.tensor_util import make_tensor_proto
from torch import nn

import gradwatch
from gradwatch.event_files.format import TOTALS
from gradwatch.event_files.reader import read_runs
from gradwatch.sinks import RowBuilder
from gradwatch.sinks.tensorboard import TensorBoard
from tests.event_files.test_records import framed

TABLE = {"layers": ["a", "b"], "depth": [0, 1], "size": [4, 4]}
FINDING = {
    "kind": "exploding",
    "severity": "warning",
    "layer": "a",
    "layers": ["a", "b"],
    "step": 3,
    "raised_step": 4,
    "last_step": 4,
    "value": 1e3,
    "threshold": 2.0,
    "cause": "a cause",
    "measured": "a measurement.",
    "figure": "",
    "remedies": [{"name": "rest", "text": "let it rest"}],
    "ranks": [],
    "ended": False,
}


def write_rows(directory, reports, told=()):
    """One file in which every report is a row; ``told`` are (finding, ended), openings at the step they were raised."""
    sink, builder = TensorBoard(directory), RowBuilder()
    sink.continues = True  # a second file in the same directory, as of a resumed run
    for report in reports:
        for finding, ended in told:
            if finding.raised_step == report.step:
                sink.write_finding(finding, ended)
        builder.add(report)
        sink.write_row(builder.build(report, skipped_steps=0))
    sink.close()


def train(log_dir, steps=12, learning_rate=0.01, spoil=None, **options):
    """A real run, watched; step ``spoil`` has NaN in its batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), learning_rate)
    with gradwatch.watch(model, optimizer, log_dir=log_dir, log_every_n_steps=1, **options) as watcher:
        for step in range(steps):
            x = torch.randn(16, 4) * (torch.nan if step == spoil else 1)
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            watcher.observe_loss(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return watcher


def layers_in(directory):
    """Names of the layers whose gradients were logged in ``directory`` itself."""
    runs = {run.name: run for run in read_runs(directory)}
    return runs[str(directory)].layers


def event(step=0, **values):
    """An event as bytes: a JSON-able value becomes a string tensor, an array a tensor, a number a scalar."""
    return Event(
        step=step, summary=Summary(value=[_value(tag, content) for tag, content in values.items()])
    ).SerializeToString()


def _value(tag, content):
    name = f"gradwatch/{tag}"
    if isinstance(content, int | float):
        return Summary.Value(tag=name, simple_value=content)
    if isinstance(content, np.ndarray):
        return Summary.Value(tag=name, tensor=make_tensor_proto(content))
    if not isinstance(content, bytes | str):
        content = json.dumps(content)
    return Summary.Value(tag=name, tensor=make_tensor_proto(content))


def totals(**values):
    """(T,) float32: zeros but for ``values``, what nobody observed NaN."""
    named = {**dict.fromkeys(TOTALS, 0.0), "loss": np.nan, "learning_rate": np.nan, **values}
    return np.array([named[name] for name in TOTALS], dtype=np.float32)


def norms(*columns):
    """(3, P) float32: norm, highest and lowest alike."""
    return np.array([columns] * 3, dtype=np.float32)


def forge(directory, *contents, name="events.out.tfevents.1.host"):
    """An event file of ``contents``, checksums and all."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(b"".join(map(framed, contents)))
    return directory
