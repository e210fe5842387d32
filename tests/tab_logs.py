"""Runs for the tests of the tab, and TensorBoard over them: its parts within the process, or the whole of it beside."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from urllib.parse import urlencode

import numpy as np
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto
from werkzeug.test import Client
from werkzeug.wrappers import Request, Response

from gradwatch.sinks import RowBuilder
from gradwatch.sinks.tensorboard import TensorBoard
from gradwatch.tensorboard_plugin.plugin import GradWatchPlugin

METADATA = SummaryMetadata(
    plugin_data=SummaryMetadata.PluginData(plugin_name="gradwatch", content=b'{"version": 1}'), data_class=2
)
PATIENCE = 60  # seconds; reached only where something is broken, or a machine is very busy
EVERYTHING = {"gradwatch": 0, "histograms": 0}


def write_run(directory, reports, findings=(), every=1, band=None):
    """Reports as rows, every ``every``-th of each optimizer, and findings as (finding, ended)."""
    sink, builders, skipped = TensorBoard(directory), {}, 0
    for report in reports:
        builder = builders.setdefault(report.optimizer, RowBuilder())
        builder.add(report)
        skipped += report.skipped
        if report.update % every == 0:
            sink.write_row(builder.build(report, skipped, band))
    for finding, ended in findings:
        sink.write_finding(finding, ended)
    sink.close()


def write_events(directory, events):
    """(step, tag, content) as they are: a TensorProto, an array or something for JSON."""
    writer = EventFileWriter(str(directory))
    for step, tag, content in events:
        if isinstance(content, dict | list | str | bytes):
            content = make_tensor_proto(content if isinstance(content, str | bytes) else json.dumps(content))
        elif isinstance(content, np.ndarray):
            content = make_tensor_proto(content)
        value = Summary.Value(tag=tag, tensor=content, metadata=METADATA if tag.startswith("gradwatch/") else None)
        writer.add_event(Event(step=step, wall_time=time.time(), summary=Summary(value=[value])))
    writer.close()


class Answer:
    """What came back.

    Attributes:
        status: of HTTP.
        content: parsed JSON, or the header of an array.
        values: the array, None where there is none.
    """

    def __init__(self, status, body):
        self.status, self.body, self.values = status, body, None
        if body[:1] in (b"{", b"["):
            with contextlib.suppress(ValueError):
                self.content = json.loads(body)
                return
        length = int.from_bytes(body[:4], "little")
        self.content = json.loads(body[4 : 4 + length])
        self.values = np.frombuffer(body[4 + length :], dtype="<f4").reshape(self.content["shape"])


class Tab:
    """The plugin over the event files in ``directory``, or over what TensorBoard's own reader makes of them."""

    reads_files = True

    def __init__(self, directory):
        self._multiplexer = EventMultiplexer(tensor_size_guidance=EVERYTHING).AddRunsFromDirectory(str(directory))
        self.reload()
        provider = MultiplexerDataProvider(self._multiplexer, str(directory))
        logdir = str(directory) if self.reads_files else None
        self.plugin = GradWatchPlugin(TBContext(data_provider=provider, multiplexer=self._multiplexer, logdir=logdir))
        self._apps = self.plugin.get_plugin_apps()

    def reload(self):
        self._multiplexer.Reload()
        if self.reads_files and hasattr(self, "plugin"):
            self.plugin._events.look_again()

    def get(self, question, **arguments):
        response = Client(self._dispatch, Response).get(f"/{question}", query_string=arguments)
        return Answer(response.status_code, response.get_data())

    def _dispatch(self, environ, start_response):
        return self._apps[Request(environ).path](environ, start_response)


def fetch(address, path):
    """(status, body) of what TensorBoard answers below ``data/``."""
    try:
        with urllib.request.urlopen(f"{address}/data/{path}", timeout=PATIENCE) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def wait_until_loaded(address, directory):
    """Until TensorBoard says of each run, and of its histograms, what is said in this process."""
    tab, deadline = Tab(directory), time.monotonic() + PATIENCE
    runs = [each["run"] for each in tab.get("runs").content]
    expected = {f"overview?{urlencode({'run': run})}": tab.get("overview", run=run) for run in runs}
    for run in runs:
        for layer in tab.get("overview", run=run).content.get("layers", ())[:1]:
            arguments = {"run": run, "layer": layer, "kind": "grad"}  # these come from TensorBoard's own reader
            expected[f"entries?{urlencode(arguments)}"] = tab.get("entries", **arguments)
    for question, answer in expected.items():
        while fetch(address, f"plugin/gradwatch/{question}") != (answer.status, answer.body):
            assert time.monotonic() < deadline, f"TensorBoard has not loaded {question}"
            time.sleep(0.1)


@contextlib.contextmanager
def tensorboard_over(directory, *flags):
    """Its address, of a TensorBoard of its own, once it has loaded what is there."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(directory), "--port", "0", *flags]
    server = subprocess.Popen([*command, "--host", "127.0.0.1"], stderr=subprocess.PIPE, text=True)
    try:
        address = next(match[0].rstrip("/") for line in server.stderr if (match := re.search(r"http://\S+", line)))
        wait_until_loaded(address, directory)
        yield address
    finally:
        server.terminate()
        server.communicate()
