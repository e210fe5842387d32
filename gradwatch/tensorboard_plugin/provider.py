"""Translate what TensorBoard's two readers hold of a run into events: steps and tensors, by tag.

Tensors are given as they are in the file. ``DataProvider.read_tensors`` would turn them into arrays of whatever shape
they declare before anyone could look (see ``gradwatch.event_files.decode``), so this file asks the same sources one
level below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradwatch.event_files import format
from gradwatch.event_files.assemble import last_course
from gradwatch.event_files.decode import UnreadableError

__all__ = ["ProviderEvents", "RunKey", "TagVersion"]

EVERYTHING = 2**31 - 1  # how many points are asked for; fewer than all would be a random choice


@dataclass(frozen=True)
class RunKey:
    """One run of one experiment, asked for by one request.

    Attributes:
        context: TensorBoard's, of the request.
        experiment: its id.
        run: name of the run.
    """

    context: Any
    experiment: str
    run: str


class TagVersion(NamedTuple):
    """A state of a tag: it changes once something was added. ``content`` is what its metadata says of the format."""

    last_step: int
    last_wall_time: float
    content: bytes


class ProviderEvents:
    """The events of all runs, read through the context that TensorBoard gives a plugin."""

    def __init__(self, context: Any) -> None:
        self._provider, self._multiplexer = context.data_provider, context.multiplexer

    def versions(self, context: Any, experiment: str) -> dict[str, dict[str, TagVersion]]:
        """Return the tags of gradwatch's, by run and name."""
        listed = self._provider.list_tensors(context, experiment_id=experiment, plugin_name=format.PLUGIN)
        return {run: {tag: _version(each) for tag, each in series.items()} for run, series in listed.items()}

    def tensors(self, key: RunKey, tag: str, plugin: str = format.PLUGIN) -> list[tuple[int, Any]]:
        """Return (step, TensorProto) of every event, in order of steps; what a resumed run wrote anew replaces the old.

        Raises:
            UnreadableError: if there is more than TensorBoard hands over at once.
        """
        stub = getattr(self._provider, "_stub", None)
        events = self._from_memory(key, tag) if stub is None else _from_server(stub, key, tag, plugin)
        return last_course(events)

    def _from_memory(self, key: RunKey, tag: str) -> Iterator[tuple[int, Any]]:
        try:
            events = self._multiplexer.Tensors(key.run, tag)
        except KeyError:
            return
        yield from ((event.step, event.tensor_proto) for event in events)


def _version(series: Any) -> TagVersion:
    return TagVersion(series.max_step, series.max_wall_time, series.plugin_content)


def _from_server(stub: Any, key: RunKey, tag: str, plugin: str) -> Iterator[tuple[int, Any]]:
    import grpc
    from tensorboard.data.proto import data_provider_pb2

    request = data_provider_pb2.ReadTensorsRequest(experiment_id=key.experiment)
    request.plugin_filter.plugin_name = plugin
    request.run_tag_filter.runs.names.append(key.run)
    request.run_tag_filter.tags.names.append(tag)
    request.downsample.num_points = EVERYTHING
    try:
        answer = stub.ReadTensors(request)
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        raise UnreadableError(
            f"{tag} is larger than the 256 MiB that TensorBoard's data server hands over at once. "
            "Start TensorBoard with --load_fast=false, or log less often (log_every_n_steps)."
        ) from None
    for run in answer.runs:
        for each in run.tags:
            yield from zip(each.data.step, each.data.value, strict=True)
